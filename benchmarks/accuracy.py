"""Accuracy of linear probe, tangent kernel and ordinary fine-tuning on few-shot CIFAR-10, five seeds.

`python -m benchmarks.accuracy` measures what docs/results/accuracy.json lacks, then writes table and figure beside
it. Fine-tuning is read from docs/results/finetune_accuracy.json (`python -m benchmarks.finetune_accuracy`); splits
and test pictures are the same. One thread, about 25 minutes; it may be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks import finetune_accuracy, plots, record
from benchmarks.datasets import cifar10, few_shot, held_out
from tangentune.estimators.classifier import TangentClassifier
from tangentune.metrics import accuracy, ece, nll
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures, load_pictures

NAME = "accuracy"
SIZE, SEEDS, SHOTS = 96, range(5), (10, 50)
METHODS: dict[str, dict[str, Any]] = {
    "linear probe, flip": {"body_scale": 0, "augment": "flip"},
    "tangent kernel, flip": {"augment": "flip"},
    "linear probe": {"body_scale": 0},
    "tangent kernel": {},
    "tangent kernel, outer steps, flip": {"augment": "flip", "outer_steps": "loo"},
}
KERNEL = "tangent kernel, outer steps, flip"
FINE_TUNING = {"fine-tuning": "", "fine-tuning, flip": "_flip"}
PROTOCOL = {
    "data": "CIFAR-10, few_shot(train labels, shots, seed), bicubic 32 -> 96, ImageNet mean and std",
    "network": "MobileNetV2 1.0, ImageNet weights",
    "test": "first 2,000 of the shuffled (seed 12345) test batch, for every method",
    "linear probe": "TangentClassifier(body_scale=0): normalisation and damping by leave-one-out error",
    "tangent kernel": "TangentClassifier with default options, augment and outer_steps='loo' as named",
    "fine-tuning": "best learning rate of the sweep by the test pictures themselves: generous",
    "flip": "probe and kernel: augment='flip'; fine-tuning (always trained with flips): logits averaged over mirrors",
    "seconds": "of `fit` (fine-tuning: one run of the sweep), processor time of one thread; other programs ran beside",
}
COLUMNS = ("accuracy", "nll", "ece")
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, write table and figure anew")
    torch.set_num_threads(1)
    if not parser.parse_args().table:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
        for seed, method, shots in product(SEEDS, METHODS, SHOTS):
            measure_once(backbone, shots, seed, method)
    publish()


def measure_once(backbone: Backbone, shots: int, seed: int, method: str) -> None:
    """Fit and score one method on one split unless the results file has it already."""
    key = {"shots": shots, "seed": seed, "method": method}
    if record.done(NAME, key):
        return
    data = cifar10()
    train, test = few_shot(data.train_labels, shots, seed), held_out(len(data.test))
    pictures = load_pictures(data.train[train], data.train_labels[train], contract=backbone.contract)
    others = load_pictures(data.test[test], data.test_labels[test], contract=backbone.contract)
    values = measure(TangentClassifier(backbone, **METHODS[method]), pictures, others)
    record.append(NAME, key, values)
    print(key, values, flush=True)


def measure(model: TangentClassifier, train: Pictures, test: Pictures) -> Row:
    """Scores on the test pictures, leave-one-out scores, what was chosen, and what it cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate pictures
        model.fit(train)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    start = time.process_time()
    proba = model.predict_proba(test)
    assert test.labels is not None
    labels = np.searchsorted(model.classes_, test.labels)
    values = {"accuracy": accuracy(labels, proba.argmax(1)), "nll": nll(labels, proba), "ece": ece(labels, proba)}
    own = np.searchsorted(model.classes_, model.targets_)
    loo = {
        "loo_accuracy": model.loo_score_,
        "loo_nll": nll(own, model.loo_proba_),
        "loo_ece": ece(own, model.loo_proba_),
    }
    cost = {
        "fit_seconds": round(wall, 2),
        "fit_cpu_seconds": round(cpu, 2),
        "predict_cpu_seconds": round(time.process_time() - start, 2),
        "peak_bytes": model.fit_report_["peak_bytes"],
    }
    chosen = {
        "outer_steps": model.outer_steps_,
        "metric_power": model.metric_power_,
        "body_scale": float(model.body_scale_),
        "normalize": bool(model.normalize_),
        "relative_damping": model.relative_damping_,
        "blocks": [name for name, scale in model.block_scales_.items() if scale > 0],
    }
    return values | loo | cost | {"chosen": chosen}


def publish() -> None:
    """Write the summary into the JSON file, the table as Markdown and the figure."""
    payload = record.load(NAME)
    rows = payload.get("rows", [])
    tuned = fine_tuning_rows()
    summary = summarise([*rows, *tuned])
    verdicts = [
        verdict(rows, tuned, shots, other)
        for shots in SHOTS
        for other in ("linear probe, flip", "tangent kernel, flip", *FINE_TUNING)
    ]
    verdicts = [line for line in verdicts if line]
    wanted = len(SEEDS) * len(SHOTS) * len(METHODS)
    complete = len(rows) == wanted and all(line["seeds"] == len(SEEDS) for line in summary)
    record.record(
        NAME, {**payload, "protocol": PROTOCOL, "complete": complete, "summary": summary, "verdicts": verdicts}
    )
    text = markdown(summary, verdicts, complete, payload.get("note", ""))
    (record.RESULTS / f"{NAME}.md").write_text(text)
    plots.accuracy_figure(summary).savefig(record.RESULTS / f"{NAME}.png", dpi=160)
    print(text)


def fine_tuning_rows() -> list[Row]:
    """Runs of the best learning rate for each shots, as rows of this table (plain and mirrored predictions)."""
    out = []
    for shots, best in finetune_accuracy.summarise()["best_of_sweep"].items():
        wanted = {"shots": int(shots), "learning_rate": best["learning_rate"], **finetune_accuracy.VARIANT}
        for row in record.load(finetune_accuracy.NAME).get("rows", []):
            if wanted.items() <= row["key"].items() and "accuracy" in row:
                for method, suffix in FINE_TUNING.items():
                    values = {name: row[name + suffix] for name in COLUMNS}
                    key = {"shots": int(shots), "seed": row["key"]["seed"], "method": method}
                    more = {"fit_cpu_seconds": row["train_cpu_seconds"], "learning_rate": best["learning_rate"]}
                    out.append({"key": key, **values, **more})
    return out


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over seeds of every method, by shots."""
    lines = []
    for shots in SHOTS:
        for method in (*METHODS, *FINE_TUNING):
            group = [row for row in rows if row["key"]["shots"] == shots and row["key"]["method"] == method]
            if group:
                lines.append({"shots": shots, "method": method, "seeds": len(group), **spread(group)})
    return lines


def spread(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means, and standard deviations of the scores; None where a method has no such figure."""
    out: dict[str, float | None] = {}
    for name in (*COLUMNS, "loo_accuracy", "fit_cpu_seconds", "peak_bytes"):
        values = [row[name] for row in rows if name in row]
        out[name] = statistics.fmean(values) if values else None
        out[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return out


def verdict(rows: Sequence[Row], tuned: Sequence[Row], shots: int, other: str) -> Row | None:
    """Tangent kernel (flip) minus another method in accuracy, paired by seed, with its standard error."""
    by_key = {(row["key"]["shots"], row["key"]["method"], row["key"]["seed"]): row for row in (*rows, *tuned)}
    gaps = [
        by_key[shots, KERNEL, seed]["accuracy"] - by_key[shots, other, seed]["accuracy"]
        for seed in SEEDS
        if (shots, KERNEL, seed) in by_key and (shots, other, seed) in by_key
    ]
    if len(gaps) < 2:
        return None
    mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    beyond = abs(mean) > 2 * error
    word = ("wins" if mean > 0 else "loses") if beyond else "is level"
    return {"shots": shots, "against": other, "gap": mean, "standard_error": error, "seeds": len(gaps), "kernel": word}


def markdown(summary: Sequence[Row], verdicts: Sequence[Row], complete: bool, note: str) -> str:
    """The page: verdicts first, then the table."""
    lines = ["# Accuracy on few-shot CIFAR-10", ""]
    if not complete:
        lines += ["**Incomplete: some runs are missing; see the column `seeds`.**", ""]
    for item in verdicts:
        said = f"{KERNEL} {item['kernel']}" + (" with " if item["kernel"] == "is level" else " against ")
        figures = f"{100 * item['gap']:+.1f} points, standard error {100 * item['standard_error']:.1f}"
        lines.append(f"- {item['shots']} pictures a class: {said}{item['against']} ({figures}, {item['seeds']} seeds).")
    table = [{name: cell(line, name) for name in ("shots", "method", "seeds")} | figures_of(line) for line in summary]
    lines += ["", record.markdown_table(table, dict.fromkeys(table[0], "")) if table else "", ""]
    lines += ["Mean ± standard deviation over seeds.", ""]
    protocol = PROTOCOL | ({"note": note} if note else {})
    lines += [f"- {name}: {text}." for name, text in protocol.items()]
    return "\n".join([*lines, "", f"![Accuracy by method]({NAME}.png)", ""])


def figures_of(line: Row) -> dict[str, str]:
    """Scores and costs of one line as text."""
    out = {name: cell(line, name, 3) for name in (*COLUMNS, "loo_accuracy")}
    out["fit seconds"] = cell(line, "fit_cpu_seconds", 1)
    peak = line["peak_bytes"]
    return out | {"peak GiB": "-" if peak is None else f"{peak / 2**30:.1f}"}


def cell(line: Row, name: str, digits: int = 0) -> str:
    """One entry of the table, with its spread where there is one."""
    value, deviation = line[name], line.get(f"{name}_std")
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


if __name__ == "__main__":
    main()
