"""Products with the Fisher matrix three ways: exact forward and reverse, double backward, finite differences.

    python -m benchmarks.fisher_products.run

MobileNetV2 with a ridge-probe head for ten classes, CIFAR-10 pictures at 64 px, all layers; a direction drawn at
random with each parameter's own scale. Truth: forward and reverse in float64; double backward in float64 must agree.
One thread, one run, alternating measurements, medians. About 3 minutes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.datasets import cifar_split
from benchmarks.fisher_products.page import EXACT, LIKELIHOODS, NAME, publish
from benchmarks.record import Row
from benchmarks.study import alternating, begin, labels_of, mean_features, medians, network_inputs, study_parser
from tangentune import Linearization, heads, load_backbone, ntk

SIZE, SHOTS, PRODUCT_PICTURES = 64, 20, 32
EPSILONS = {"float32": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5), "float64": (1e-2, 1e-4, 1e-6, 1e-8)}


def main() -> None:
    """Measure, write docs/results/fisher_products.json and the page."""
    given = begin(study_parser(__doc__, runs=7))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures, _ = cifar_split(backbone, SHOTS, seed=0)
    labels = torch.from_numpy(labels_of(pictures))
    head = heads.probe_head(mean_features(backbone, pictures, flip=False), labels, calibrated=True)
    step = len(pictures) // PRODUCT_PICTURES
    x = torch.cat(list(network_inputs(backbone, pictures)))[: step * PRODUCT_PICTURES : step]
    networks = {"float32": Linearization(backbone, head=head), "float64": Linearization(backbone, head=head).double()}
    weights = sum(p.numel() for p in networks["float32"].point().values())
    results: Row = {"size": SIZE, "pictures": PRODUCT_PICTURES, "runs": given.runs, "parameters": weights}
    for likelihood in LIKELIHOODS:
        results[likelihood] = measure(networks, x, likelihood, given.runs)
    record.record(NAME, results)
    publish()


def measure(
    networks: dict[str, Linearization], x: Tensor, likelihood: Literal["categorical", "gaussian"], runs: int
) -> Row:
    """Errors of every way in both precisions, and seconds in float32."""
    generator, point = torch.Generator().manual_seed(1), networks["float32"].point()
    v = {name: torch.randn(p.shape, generator=generator) * p.norm() / p.numel() ** 0.5 for name, p in point.items()}

    def product(precision: str, **settings: Any) -> Tensor:
        found = ntk.fisher_vector_product(
            networks[precision], x.to(getattr(torch, precision)), v, likelihood=likelihood, **settings
        )
        return torch.cat([part.flatten() for part in found.values()]).double()

    truth, errors = product("float64"), {}
    for precision, epsilons in EPSILONS.items():
        found = {method: product(precision, method=method) for method in EXACT}
        for epsilon in (None, *epsilons):
            name = f"finite_difference {epsilon or 'default'}"
            found[name] = product(precision, method="finite_difference", epsilon=epsilon)
        errors[precision] = {name: float((own - truth).norm() / truth.norm()) for name, own in found.items()}
    ways = {method: partial(product, "float32", method=method) for method in (*EXACT, "finite_difference")}
    return {"relative_error": errors, "seconds": medians(alternating(ways, runs, warm_up=False))}


if __name__ == "__main__":
    main()
