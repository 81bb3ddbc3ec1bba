"""The data contract: how a picture must look before a network may see it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tangentune.errors import BackboneError, listed, whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class DataContract:
    """How pictures are prepared for a backbone; travels with it and is saved with the model.

    Attributes:
        input_size: `(channels, height, width)`, or None: inputs are passed on as they come (vectors).
        mean: per-channel mean of pixels scaled to [0, 1]; empty means no shift.
        std: per-channel standard deviation, same scale; empty means no scaling.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop: None squashes the picture to the input size; a share in (0, 1] resizes the shorter side
            to size / crop and takes the centre.
        licence: licence of the weights, as stated by their source.
        source: where the weights came from.
        sha256: hash of the weight file, or of the parameters where there is no file.

    Example:
        >>> DataContract(input_size=(3, 96, 96)).with_size(64).input_size
        (3, 64, 64)
    """

    input_size: tuple[int, ...] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bicubic"
    crop: float | None = None
    licence: str = "unknown"
    source: str = "unknown"
    sha256: str | None = None

    def with_size(self, size: Any) -> DataContract:
        """The same contract at another height and width: the side of a square, both, or channels as well; None: as is.

        Raises:
            BackboneError: the size is no such thing, of other channels, or lacks the channels of a contract without.
        """
        if size is None:
            return self
        sides, own = _read_sides(size), self.input_size
        if own is None and len(sides) != 3:
            example = f"channels included, such as (3, {sides[0]}, {sides[-1]})"
            raise BackboneError(f"input_size={size} must be three positive whole numbers, {example}")
        if own is not None and len(sides) == 3 and sides[0] != own[0]:
            raise BackboneError(f"input_size={size} has {sides[0]} channels, but the backbone takes {own[0]}")
        height, width = sides[-2:] if len(sides) > 1 else sides * 2
        return replace(self, input_size=(sides[0] if own is None else own[0], height, width))

    def differences(self, other: DataContract) -> list[str]:
        """Fields by which another contract prepares pictures otherwise."""
        return [name for name in PREPARATION if getattr(self, name) != getattr(other, name)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DataContract:
        """Read what `to_dict` wrote (JSON turns tuples into lists)."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**arguments)


PREPARATION = [one.name for one in fields(DataContract) if one.name not in ("licence", "source", "sha256")]


def _read_sides(size: Any) -> list[int]:
    """One to three whole numbers of a picture size as people write it: also numpy's and tensors', and 20.0."""
    several = listed(size)
    sides = [whole(side) for side in ([size] if several is None else several)]
    if None in sides or not (1 if several is None else 2) <= len(sides) <= 3:
        raise BackboneError(
            f"input_size={size!r} must be the side of a square, (height, width) or (channels, height, width)"
        )
    return [side for side in sides if side is not None]
