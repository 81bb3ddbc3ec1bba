"""Products with the Fisher matrix three ways: exact forward and reverse, double backward, finite differences.

    python -m benchmarks.fisher_products

MobileNetV2 with a ridge-probe head for ten classes, CIFAR-10 pictures at 64 px, all layers; a direction drawn at
random with each parameter's own scale. Truth: forward and reverse in float64; double backward in float64 must agree.
One thread, one run, alternating measurements, medians. About 3 minutes.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.cifar_split import begin, study_parser
from benchmarks.datasets import cifar10, few_shot
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.tangents import flatten
from tangentune.methods.ntk import fisher_vector_product
from tangentune.networks.backbone import load_backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.load import load_pictures, normalise

NAME, SIZE, SHOTS, PRODUCT_PICTURES = "fisher_products", 64, 20, 32
EPSILONS = {torch.float32: (1e-1, 1e-2, 1e-3, 1e-4, 1e-5), torch.float64: (1e-2, 1e-4, 1e-6, 1e-8)}
LIKELIHOODS: tuple[Literal["categorical", "gaussian"], ...] = ("categorical", "gaussian")
PRECISIONS = ("float32", "float64")
EXACT = {"forward_reverse": "forward mode, then reverse", "double_backward": "double backward"}


def main() -> None:
    """Measure, print, write docs/results/fisher_products.json and the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--runs", type=int, default=7, help="measurements of each time")
    given = parser.parse_args()
    begin(given)
    lin, double, x = problem()
    results: dict[str, Any] = {"size": SIZE, "pictures": PRODUCT_PICTURES, "runs": given.runs}
    results["parameters"] = sum(p.numel() for p in lin.point().values())
    for likelihood in LIKELIHOODS:
        results[likelihood] = measure(lin, double, x, likelihood, given.runs)
    record.record(NAME, results)
    text = page(results)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    print(text)


def problem() -> tuple[Linearization, Linearization, Tensor]:
    """The network in float32 and in float64, and the pictures of the products."""
    backbone, data = load_backbone("mobilenet_v2").with_size(SIZE), cifar10()
    chosen = few_shot(data.train_labels, SHOTS, 0)
    pixels = load_pictures(data.train[chosen], data.train_labels[chosen], contract=backbone.contract).pixels
    x = normalise(pixels, backbone.contract)
    features = torch.cat([backbone.features(part) for part in x.split(50)])
    head = probe_head(features, torch.from_numpy(data.train_labels[chosen]), calibrated=True)
    lin, step = Linearization(backbone, head=head), len(x) // PRODUCT_PICTURES
    return lin, Linearization(backbone, head=head).double(), x[: step * PRODUCT_PICTURES : step]


def measure(
    lin: Linearization, double: Linearization, x: Tensor, likelihood: Literal["categorical", "gaussian"], runs: int
) -> dict[str, Any]:
    """Errors of every way in both precisions, and seconds in float32."""
    generator = torch.Generator().manual_seed(1)
    v = {
        name: torch.randn(p.shape, generator=generator) * p.norm() / p.numel() ** 0.5 for name, p in lin.point().items()
    }

    def product(at: Linearization, **settings: Any) -> Tensor:
        like = next(iter(at.point().values()))
        return flatten(fisher_vector_product(at, x.to(like), v, likelihood=likelihood, **settings)).double()

    truth = product(double)
    errors: dict[str, Any] = {}
    for name, at in (("float32", lin), ("float64", double)):
        rows = {method: distance(product(at, method=method), truth) for method in EXACT}
        dtype = next(iter(at.point().values())).dtype
        for epsilon in (None, *EPSILONS[dtype]):
            found = product(at, method="finite_difference", epsilon=epsilon)
            rows[f"finite_difference {epsilon or 'default'}"] = distance(found, truth)
        errors[name] = rows
    methods = (*EXACT, "finite_difference")
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(runs):
        for method in methods:
            start = time.perf_counter()
            product(lin, method=method)
            seconds[method].append(time.perf_counter() - start)
    return {"relative_error": errors, "seconds": {name: statistics.median(own) for name, own in seconds.items()}}


def distance(found: Tensor, truth: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return float((found - truth).norm() / truth.norm())


def page(results: dict[str, Any]) -> str:
    """The page as Markdown."""
    exact = {p: max(results[k]["relative_error"][p][m] for k in LIKELIHOODS for m in EXACT) for p in PRECISIONS}
    default = [results[k]["relative_error"]["float32"]["finite_difference default"] for k in LIKELIHOODS]
    best = [min(e for m, e in results[k]["relative_error"]["float32"].items() if "finite" in m) for k in LIKELIHOODS]
    spent = {
        m: results["categorical"]["seconds"][m] / results["categorical"]["seconds"]["finite_difference"] for m in EXACT
    }
    lines = ["# Products with the Fisher matrix", ""]
    lines.append(
        f"- Both exact ways agree with float64 to {exact['float32']:.0e} in float32 and with one another to "
        f"{exact['float64']:.0e} in float64."
    )
    lines.append(
        f"- The finite difference of the divergence's gradient (Maddox et al. 2021) errs by {max(default):.0e} in "
        f"float32 at its default step, by {max(best):.0e} at the best of the steps tried."
    )
    lines.append(
        f"- Time, in finite differences: forward and reverse {spent['forward_reverse']:.1f}, double backward "
        f"{spent['double_backward']:.1f}."
    )
    for likelihood in LIKELIHOODS:
        rows = table(results[likelihood])
        lines += [
            "",
            f"## {likelihood.capitalize()} likelihood",
            "",
            record.markdown_table(rows, dict.fromkeys(rows[0], "")),
        ]
    lines += [
        "",
        f"MobileNetV2 with a probe head for ten classes, {results['parameters']:,} weights, all in eval mode;",
        f"{results['pictures']} pictures of CIFAR-10 at {results['size']} px. Relative Euclidean error against forward",
        f"and reverse in float64; one thread, medians of {results['runs']} alternating measurements in one run.",
        "",
    ]
    return "\n".join(lines)


def table(own: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each way and step."""
    errors = own["relative_error"]
    rows = []
    for name in dict.fromkeys(name for precision in PRECISIONS for name in errors[precision]):
        way = EXACT.get(name, name.replace("finite_difference", "finite difference, step"))
        row = {"way": way}
        for precision in PRECISIONS:
            row[f"error {precision}"] = f"{errors[precision][name]:.0e}" if name in errors[precision] else ""
        seconds = own["seconds"].get(name.removesuffix(" default"))
        rows.append({**row, "ms float32": "" if seconds is None else f"{1e3 * seconds:.0f}"})
    return rows


if __name__ == "__main__":
    main()
