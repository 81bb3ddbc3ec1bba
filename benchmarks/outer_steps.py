"""How far to move before linearising: accuracy, leave-one-out and seconds against `outer_steps`, CIFAR-10.

`python -m benchmarks.outer_steps` measures what docs/results/outer_steps.json lacks, on pictures that no other figure
is reported on (choices are made here). For comparison, the same number of steps on all pictures at once, without
cross-fitting: its leave-one-out then knows the answers. One thread, about 25 minutes.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks import record
from benchmarks.datasets import cifar10, few_shot, held_out
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone, load_pictures
from tangentune.estimators.outer_steps import BATCH, RATE
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune

NAME, SIZE, SHOTS, SEEDS, STEPS = "outer_steps", 96, (10, 50), (0,), (0, 32, 64)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    backbone, data = load_backbone("mobilenet_v2").with_size(SIZE), cifar10()
    chosen = held_out(len(data.test), 1000, start=4000)
    test = load_pictures(data.test[chosen], data.test_labels[chosen], contract=backbone.contract)
    for shots in SHOTS:
        for seed in SEEDS:
            index = few_shot(data.train_labels, shots, seed)
            train = load_pictures(data.train[index], data.train_labels[index], contract=backbone.contract)
            for steps in STEPS:
                for crossed in (True, False) if steps == 32 else (True,):
                    key = {"shots": shots, "seed": seed, "outer_steps": steps, "cross_fitted": crossed}
                    if record.done(NAME, key) is None:
                        record.append(NAME, key, _measure(backbone, train, test, steps, crossed))
    _write_page()


def _measure(backbone: Backbone, train: Pictures, test: Pictures, steps: int, crossed: bool) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    if not crossed:
        epochs = max(1, round(steps / -(-len(train) // BATCH)))
        settings = FineTuneSettings(learning_rate=RATE, epochs=epochs, head_start="probe")
        backbone, steps = fine_tune(backbone, train, settings).backbone, 0
    model = TangentClassifier(backbone, augment="flip", outer_steps=steps).fit(train)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert test.labels is not None
    return {
        "accuracy": model.score(test, test.labels),
        "loo_accuracy": model.loo_score_,
        "body_scale": model.body_scale_,
        "metric_power": model.metric_power_,
        "seconds": wall,
        "cpu_seconds": cpu,
    }


def _write_page() -> None:
    payload = record.load(NAME)
    rows = []
    for shots in SHOTS:
        for steps in STEPS:
            for crossed in (True, False):
                own = [
                    row
                    for row in payload["rows"]
                    if (row["key"]["shots"], row["key"]["outer_steps"], row["key"]["cross_fitted"])
                    == (shots, steps, crossed)
                ]
                if own:
                    means = {
                        k: sum(row[k] for row in own) / len(own) for k in ("accuracy", "loo_accuracy", "cpu_seconds")
                    }
                    name = f"{steps}" if crossed else f"{steps}, not cross-fitted"
                    rows.append({"pictures a class": shots, "outer steps": name, **means})
    columns = {
        "pictures a class": "",
        "outer steps": "",
        "accuracy": ".3f",
        "loo_accuracy": ".3f",
        "cpu_seconds": ".1f",
    }
    text = (
        "# How far to move before linearising\n\nCIFAR-10, MobileNetV2 at 96 px, flips, one seed, 1,000 "
        "held-out pictures (standard error of one accuracy about .013). Made by `python -m benchmarks.outer_steps`.\n\n"
        f"{record.markdown_table(rows, columns)}\n"
    )
    (record.RESULTS / f"{NAME}.md").write_text(text)


if __name__ == "__main__":
    main()
