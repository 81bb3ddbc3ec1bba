"""Tangents, weights minus pre-trained weights: as an object, by parameter name, and end to end as solvers want them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from tangentune._files import read_tensors, write_tensors
from tangentune.errors import InputError

TangentVector = dict[str, Tensor]


@final
class TaskVector(Mapping[str, Tensor]):
    """Tangent of a network by parameter name; a vector space (task arithmetic: Ilharco et al. 2023, ICLR).

    In a linearised network outputs add as tangents do: `f0 + J (a u + b v) = f0 + a (J u) + b (J v)`.

    Args:
        tensors: parameter name -> tensor of the parameter's shape; copied by reference, never changed.

    Example:
        >>> cats, dogs = TaskVector({"w": torch.ones(2)}), TaskVector({"w": torch.tensor([1.0, 0.0])})
        >>> (2 * cats - dogs)["w"].tolist(), round(cats.norm(), 4)
        ([1.0, 2.0], 1.4142)
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __add__(self, other: TaskVector) -> TaskVector:
        self._refuse_other(other)
        return TaskVector({name: tensor + other[name] for name, tensor in self.items()})

    def __sub__(self, other: TaskVector) -> TaskVector:
        self._refuse_other(other)
        return TaskVector({name: tensor - other[name] for name, tensor in self.items()})

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: tensor * factor for name, tensor in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        """Every entry negated: forgetting by task negation."""
        return self * -1.0

    def __truediv__(self, factor: float) -> TaskVector:
        return self * (1.0 / factor)

    def __repr__(self) -> str:
        return f"TaskVector({len(self)} parameters, {sum(t.numel() for t in self.values()):,} entries)"

    def dot(self, other: TaskVector) -> float:
        """Inner product, summed in float64."""
        self._refuse_other(other)
        return sum(float((self[name].double() * other[name].double()).sum()) for name in sorted(self))

    def norm(self) -> float:
        """Euclidean length, summed in float64."""
        return self.dot(self) ** 0.5

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, in one move; raises StoreError if it cannot be written."""
        write_tensors(path, "task vector", {}, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskVector:
        """Read what `save` wrote, or any safetensors file of tensors by parameter name; StoreError if it cannot."""
        return cls(read_tensors(path, "task vector", foreign=True)[1])

    def _refuse_other(self, other: TaskVector) -> None:
        if not isinstance(other, TaskVector):
            raise InputError(f"a task vector is added to a task vector, not to a {type(other).__name__}")
        if self.keys() != other.keys():
            name = sorted(self.keys() ^ other.keys())[0]
            raise InputError(f"these task vectors hold different parameters: only one has {name!r}")
        wrong = [name for name, tensor in self.items() if tensor.shape != other[name].shape]
        if wrong:
            shapes = f"{tuple(self[wrong[0]].shape)} and {tuple(other[wrong[0]].shape)}"
            raise InputError(
                f"{wrong[0]} has the shapes {shapes} in these task vectors; they belong to different networks"
            )


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> TaskVector:
    """`after - before` over the names of `before`; an InputError names what is missing or has another shape."""
    for name, tensor in before.items():
        if name not in after:
            raise InputError(f"the fine-tuned weights have no {name!r}; they have, for instance, {sorted(after)[:3]}")
        if after[name].shape != tensor.shape:
            raise InputError(
                f"{name} has shape {tuple(after[name].shape)} after and {tuple(tensor.shape)} before fine-tuning"
            )
    return TaskVector({name: torch.sub(after[name].to(tensor), tensor) for name, tensor in before.items()})


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product over all parameters, in float64."""
    return float(sum((x.double() * b[name].double()).sum() for name, x in a.items()))


def combine(a: float, x: Mapping[str, Tensor], b: float, y: Mapping[str, Tensor]) -> TangentVector:
    """`a x + b y`, in the parameters' dtype."""
    return {name: torch.add(a * value, y[name], alpha=b) for name, value in x.items()}


def flatten(v: Mapping[str, Tensor]) -> Tensor:
    """All tensors end to end, (p,)."""
    return torch.cat([tensor.reshape(-1) for tensor in v.values()])


def unflatten(v: Tensor, shapes: Mapping[str, torch.Size]) -> TangentVector:
    """The inverse of `flatten`: views of v."""
    parts = v.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
