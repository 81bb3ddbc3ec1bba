"""The tangent kernel of a small network against `vmap(grad)` and one matrix product, in time and in error.

    python -m benchmarks.ntk_kernel.run

64 pictures of 32 x 32 through three convolutions and a linear layer (14,849 weights for one output, 19,466 for ten).
Same pictures and weights, one thread, one run, alternating measurements, medians. About a minute.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from benchmarks import record
from benchmarks.ntk_kernel.page import NAME, OUTPUTS, publish
from benchmarks.record import Row
from benchmarks.study import alternating, begin, medians, study_parser
from tangentune import ntk

PICTURES = 64


def main() -> None:
    """Measure, write docs/results/ntk_kernel.json and the page."""
    given = begin(study_parser(__doc__, runs=25))
    found = {f"outputs_{outputs}": measure(outputs, given.runs) for outputs in OUTPUTS}
    record.record(NAME, {"pictures": PICTURES, "runs": given.runs, **found})
    publish()


def measure(outputs: int, runs: int) -> Row:
    """Medians, ratios and errors for one number of outputs."""
    network, x = small_network(outputs), torch.randn(PICTURES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ways = all_ways(network, x)
    exact = by_vmap(copy.deepcopy(network).double(), x.double())()
    errors = {name: float((way().double() - exact).norm() / exact.norm()) for name, way in ways.items()}
    taken = alternating(ways, runs)
    median = medians(taken)
    fastest = min((name for name in ways if name.startswith("vmap")), key=lambda name: median[name])
    pairs = zip(taken[fastest], taken["tangent_kernel"], strict=True)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": median,
        "relative_error": errors,
        "fastest_vmap": fastest,
        "speed_to_fastest_vmap": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
        "cold_speed_to_fastest_vmap": median[fastest] / median["tangent_kernel_cold"],
    }


def small_network(outputs: int) -> nn.Module:
    """Three convolutions with ReLU and max pooling, one linear layer; torch's own random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, width in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, outputs)).eval().requires_grad_(False)


def all_ways(network: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every way to the kernel, in the order of `WORDS`."""
    rows = ntk.survey_rows(network, x)
    return {
        "vmap": by_vmap(network, x),
        "vmap_chunk_16": by_vmap(network, x, 16),
        "vmap_channels_last": by_vmap(network, x.contiguous(memory_format=torch.channels_last)),
        "tangent_kernel": lambda: ntk.tangent_kernel(rows, x)[0],
        "tangent_kernel_cold": lambda: ntk.tangent_kernel(ntk.survey_rows(network, x), x)[0],
    }


def by_vmap(network: nn.Module, x: Tensor, chunk: int | None = None) -> Callable[[], Tensor]:
    """What a user of `torch.func` writes; for one output `jacrev` is one gradient."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def outputs(params: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(network, params, (one[None],))[0]

    jacobian = vmap(jacrev(outputs), (None, 0), chunk_size=chunk)

    def kernel() -> Tensor:
        rows = torch.cat([own.flatten(2) for own in jacobian(parameters, x).values()], 2).flatten(0, 1)
        return rows @ rows.T

    return kernel


if __name__ == "__main__":
    main()
