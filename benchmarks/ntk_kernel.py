"""The tangent kernel of a small network against `vmap(grad)` and one matrix product, in time and in error.

    python -m benchmarks.ntk_kernel

64 pictures of 32 x 32 through three convolutions and a linear layer (14,849 weights for one output, 19,466 for ten).
Same pictures and weights, one thread, one run, alternating measurements, medians. About a minute.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from benchmarks import record
from benchmarks.cifar_split import begin, study_parser
from tangentune.methods.ntk import survey_rows, tangent_kernel

NAME, PICTURES, OUTPUTS, BAR, ERROR_BAR = "ntk_kernel", 64, (1, 10), 1.0, 1e-6
WORDS = {
    "vmap": "`vmap(jacrev)`, then one matrix product",
    "vmap_chunk_16": "the same, 16 pictures at a time",
    "vmap_channels_last": "the same, all at once, pictures channels last",
    "tangent_kernel": "`tangent_kernel`, network surveyed before",
    "tangent_kernel_cold": "`survey_rows` and `tangent_kernel`",
}


def main() -> None:
    """Measure, print, write docs/results/ntk_kernel.json and the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--runs", type=int, default=25, help="measurements of each figure")
    given = parser.parse_args()
    begin(given)
    results: dict[str, Any] = {"pictures": PICTURES, "runs": given.runs}
    for outputs in OUTPUTS:
        results[f"outputs_{outputs}"] = measure(outputs, given.runs)
    record.record(NAME, results)
    text = page(results)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    print(text)


def measure(outputs: int, runs: int) -> dict[str, Any]:
    """Medians, ratios and errors for one number of outputs."""
    network, x = small_network(outputs), torch.randn(PICTURES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ways = all_ways(network, x)
    exact = by_vmap(copy.deepcopy(network).double(), x.double())()
    errors = {name: float((way().double() - exact).norm() / exact.norm()) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(own) for name, own in seconds.items()}
    fastest = min((name for name in ways if name.startswith("vmap")), key=lambda name: median[name])
    paired = [a / b for a, b in zip(seconds[fastest], seconds["tangent_kernel"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": median,
        "relative_error": errors,
        "fastest_vmap": fastest,
        "speed_to_fastest_vmap": statistics.median(paired),
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
    rows = survey_rows(network, x)
    return {
        "vmap": by_vmap(network, x),
        "vmap_chunk_16": by_vmap(network, x, 16),
        "vmap_channels_last": by_vmap(network, x.contiguous(memory_format=torch.channels_last)),
        "tangent_kernel": lambda: tangent_kernel(rows, x)[0],
        "tangent_kernel_cold": lambda: tangent_kernel(survey_rows(network, x), x)[0],
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


def page(results: dict[str, Any]) -> str:
    """The page as Markdown: the verdict first."""
    one = results["outputs_1"]
    speed, error = one["speed_to_fastest_vmap"], one["relative_error"]["tangent_kernel"]
    lines = ["# The tangent kernel of a small network", ""]
    lines.append(
        f"- One output, {PICTURES} pictures: {speed:.2f} times the speed of the fastest `vmap`; the bar of {BAR} is "
        f"{'met' if speed >= BAR else 'MISSED'}. Surveying the network anew each time: "
        f"{one['cold_speed_to_fastest_vmap']:.2f} times."
    )
    lines.append(
        f"- Error in float32: {error:.1e} of the kernel's norm; the bar of {ERROR_BAR:.0e} is "
        f"{'met' if error <= ERROR_BAR else 'MISSED'}."
    )
    lines.append(
        f"- Ten outputs, all {PICTURES} x 10 rows: {results['outputs_10']['speed_to_fastest_vmap']:.2f} times."
    )
    table = [
        {
            "outputs": str(outputs),
            "way": words,
            "ms": f"{1e3 * results[f'outputs_{outputs}']['seconds'][name]:.1f}",
            "error": f"{results[f'outputs_{outputs}']['relative_error'][name]:.1e}",
        }
        for outputs in OUTPUTS
        for name, words in WORDS.items()
    ]
    lines += ["", record.markdown_table(table, dict.fromkeys(table[0], "")), ""]
    lines += [
        f"float32, one thread, medians of {results['runs']} alternating measurements in one run. Why it is faster:",
        "pictures go through channels last, no weight gradient is formed but the rows themselves, and these are",
        "products with patches that stay in the cache and serve several outputs; `vmap` makes grouped convolutions",
        "of plain pictures.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
