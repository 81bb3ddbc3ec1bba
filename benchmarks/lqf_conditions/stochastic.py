"""Stochastic training of LQF, how near the optimum it comes: `python -m benchmarks.lqf_conditions.stochastic`.

MobileNetV2 on CIFAR-10 at 96 px, ten pictures a class, twelve epochs of mini-batches of eight, cosine decay after a
warm-up. The optimum is exact. What K-FAC is damped by was chosen on draw 100 at 64 px. Some two minutes a cell.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import STOCHASTIC, publish
from benchmarks.record import Row
from benchmarks.study import begin, quietly, stopwatch, study_parser
from tangentune import Backbone, Pictures, load_backbone
from tangentune.methods.lqf import LQFSettings, fit_lqf

SHOTS, SIZE, EPOCHS, SEEDS = 10, 96, 12, (0, 1, 2)
COMMON = LQFSettings(epochs=EPOCHS, batch_size=8, flip=False, head="cross_fitted", measure_every=1)


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    keys = ({"solver": name, "seed": seed} for seed, name in product(SEEDS, ("kfac", "sgd", "adam")))
    with quietly():
        record.fill(STOCHASTIC, keys, share_left)
    publish()


def share_left(key: Row) -> Row:
    """The share of the way to the optimum that is still to go after each epoch."""
    backbone, train = draw(key["seed"])
    settings = replace(COMMON, solver=key["solver"], seed=key["seed"])
    with stopwatch() as spent:
        found = fit_lqf(backbone, train, settings).records[0]
    found = replace(found, optimum=optimum(key["seed"]))
    left = [found.suboptimality(place) for place in range(len(found.points))]
    return {"left": left} | spent


@cache
def optimum(seed: int) -> float:
    """The least value of the objective, exact."""
    backbone, train = draw(seed)
    solved = fit_lqf(backbone, train, replace(COMMON, solver="dual", seed=seed)).records[0].optimum
    assert solved is not None
    return solved


@cache
def draw(seed: int) -> tuple[Backbone, Pictures]:
    """The network and the pictures."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    return backbone, datasets.cifar_split(backbone, SHOTS, seed, test=10)[0]


if __name__ == "__main__":
    main()
