"""Watch a pass through a network: which torch functions used which parameters, and the cotangents that come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tangentune.jacobian.layers import RULES, Use
from tangentune.networks.features import tensors_in
from tangentune.networks.network_function import Inputs, recordable

Sink = Callable[[int, Use, str, str, Tensor], None]  # (which use, the use, role, parameter, cotangent of its output)


class Function(Protocol):
    """A frozen network as `(inputs, replaced parameters) -> outputs (n, C)`."""

    def __call__(self, x: Inputs, replaced: Mapping[str, Tensor], /) -> Tensor:
        """Outputs (n, C)."""
        ...

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Parameters that may move, by name; none requires grad."""
        ...


class _Root(torch.autograd.Function):
    """Start of the graph: makes a frozen network's output depend on a token that requires grad."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _token: Tensor) -> Tensor:  # noqa: ARG004
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad_outputs[0], None


class Recorder(TorchFunctionMode):
    """Records every call that takes a tracked parameter; gives its output's cotangent to `sink`, role by role.

    Functions are watched, not modules, so a module used twice, a tied weight, or a subclass that pads by
    itself is seen as what it does. A tracked parameter in a call without a rule lands in `unruled`.
    The tracked parameters must not require grad: the backward pass then skips weight gradients.
    The sink must not hold the outputs: the tape holds the sink, and neither would ever be freed.
    """

    def __init__(self, names: dict[int, str], sink: Sink):
        super().__init__()
        self.names, self.sink = names, sink
        self.uses: list[Use] = []
        self.unruled: set[str] = set()
        self.token = torch.zeros((), requires_grad=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`; if it used tracked parameters, note how."""
        kwargs = kwargs or {}
        touched = {id(t) for t in tensors_in(args, kwargs) if id(t) in self.names}
        # BatchNorm takes the cheaper way also where nothing of it is tracked: else its rounding would depend on that.
        if not touched and func is not F.batch_norm:
            return func(*args, **kwargs)
        use = RULES[func](*args, **kwargs) if func in RULES else None
        output = None if use is None else use.output()
        output = func(*args, **kwargs) if output is None else output
        if not touched:
            return output
        if use is None or not touched <= {id(t) for t in use.roles.values()}:
            if tensors_in(output):
                self.unruled |= {self.names[t] for t in touched}
            return output
        use.roles = {role: t for role, t in use.roles.items() if id(t) in touched}
        if not output.requires_grad:
            output = _Root.apply(output, self.token.to(output.device))
        self.uses.append(use)
        # A tensor hook sees the cotangent of the value as it is now, also if an in-place op follows.
        output.register_hook(partial(self._receive, len(self.uses) - 1))
        return output

    def _receive(self, position: int, g: Tensor) -> None:
        use, g = self.uses[position], g.detach()
        for role, tensor in use.roles.items():
            self.sink(position, use, role, self.names[id(tensor)], g.to(tensor.dtype))

    def places(self) -> dict[str, list[tuple[Use, str]]]:
        """The uses of every parameter that was met, and its role in each."""
        out: dict[str, list[tuple[Use, str]]] = {}
        for use in self.uses:
            for role, tensor in use.roles.items():
                out.setdefault(self.names[id(tensor)], []).append((use, role))
        return out

    def backward(self, output: Tensor, cotangents: Iterable[Tensor]) -> Iterator[None]:
        """One backward pass a cotangent, each as it is asked for; the graph goes with the last."""
        items = iter(cotangents)
        current = next(items, None) if output.requires_grad else None
        while current is not None:
            following = next(items, None)
            with torch.enable_grad():
                scalar = (output * current).sum()  # torch imports sympy, for seconds, where a gradient is given to it
            scalar.backward(retain_graph=following is not None, inputs=[self.token])
            yield
            current = following


def watch(function: Function, names: Iterable[str], x: Inputs, sink: Sink) -> tuple[Tensor, Recorder]:
    """Outputs of one taped forward pass, and who saw it; the sink sees each backward pass through the named ones."""
    parameters = function.parameters()
    recorder = Recorder({id(parameters[name]): name for name in names}, sink)
    with torch.enable_grad(), recorder:
        output = function(recordable(x), {})
    return output, recorder
