"""Which part of LQF matters? {ReLU, Leaky-ReLU} x {cross-entropy, squared} x {Adam, K-FAC} on few-shot CIFAR-10.

    python -m benchmarks.ablation.run    # what is missing, then table and figure; about 25 minutes, one thread

Dampings and rates were chosen once, by rule, on other training and test pictures (section "choice" of the results);
the exact optimum of every linear problem was found once by Newton's method on the Gram matrix of its outputs (section
"optima"). Both are read, not made. It may be stopped and started again at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

from benchmarks import record
from benchmarks.ablation.page import ACTIVATIONS, LOSSES, NAME, SOLVERS, publish, summarise
from benchmarks.datasets import cifar_split
from benchmarks.record import Row
from benchmarks.study import begin, scores, study_parser
from tangentune import Backbone, Pictures, TangentuneError, baselines, leaky, load_backbone, lqf
from tangentune.networks.healing import heal_batchnorm

SIZE, SHOTS, SEEDS, EPOCHS, TEST, SLOPE = 96, 10, 3, 12, 1000, 0.01
DAMPINGS = {"cross_entropy": 0.3, "squared": 3.0}  # as chosen, like the rates of each loss
RATES = {"cross_entropy": {"adam": 3e-4, "kfac": 1.0}, "squared": {"adam": 1e-4, "kfac": 0.3}}
TUNED_RATE = 1e-4  # best at 10 pictures a class in docs/results/finetune_accuracy.json


def main() -> None:
    """Measure what is missing, then write table and figure."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures = cache(lambda seed: cifar_split(backbone, SHOTS, seed, TEST))

    @cache
    def network(activation: str, seed: int) -> Backbone:
        """As it is, or leaking and healed on the labelled pictures of this seed."""
        if activation == "relu":
            return backbone
        changed, own = leaky.leaky(backbone, SLOPE).network, pictures(seed)[0]
        return heal_batchnorm(changed, own.batches(backbone.contract, 50), reference=backbone)

    record.fill(NAME, keys(), lambda key: measure(network(key["activation"], key["seed"]), *pictures(key["seed"]), key))
    record.record(NAME, {**record.load(NAME), "summary": summarise()})
    publish()


def keys() -> Iterator[Row]:
    """Every row, seed by seed."""
    for seed in range(SEEDS):
        setting = {"seed": seed, "shots": SHOTS, "epochs": EPOCHS, "test": TEST}
        for activation, loss, solver in product(ACTIVATIONS, LOSSES, SOLVERS):
            yield {"method": "lqf", "activation": activation, "loss": loss, "solver": solver} | setting
        for activation, loss in product(ACTIVATIONS, LOSSES):
            yield {"method": "fine-tuning", "activation": activation, "loss": loss, "flip": False} | setting
        yield {"method": "fine-tuning", "activation": "relu", "loss": "cross_entropy", "flip": True} | setting


def measure(backbone: Backbone, train: Pictures, test: Pictures, key: Row) -> Row:
    """Train and score one cell; `objectives` holds P after every epoch from 0 on. A diverged run says so."""
    shared: dict[str, Any] = {"loss": key["loss"], "seed": key["seed"]}
    if key["method"] == "fine-tuning":
        settings = baselines.FineTuneSettings(learning_rate=TUNED_RATE, flip=key["flip"], **shared)
        tuned = baselines.fine_tune(backbone, train, settings)
        return {**scores(tuned, test), "cpu_seconds": round(tuned.cpu_seconds, 2)}
    rate, damping = RATES[key["loss"]][key["solver"]], DAMPINGS[key["loss"]]
    shared |= {"solver": key["solver"], "learning_rate": rate, "damping": damping}
    shared |= {"head": "cross_fitted", "flip": False, "epochs": key["epochs"], "batch_size": 32, "measure_every": 1}
    try:
        fitted = lqf.fit_lqf(backbone, train, lqf.LQFSettings(**shared))
    except TangentuneError as error:
        return {"diverged": True, "reason": str(error), "accuracy": None, "objectives": []}
    return {
        **scores(fitted, test),
        "objectives": [point.objective for point in fitted.records[0].points],
        "certified": fitted.records[0].suboptimality(),
        "damping": fitted.damping,
        "learning_rate": shared["learning_rate"],
        "cpu_seconds": round(fitted.cpu_seconds, 2),
    }


if __name__ == "__main__":
    main()
