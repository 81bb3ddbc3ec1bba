"""Is the exact leave-one-out error honest? It against the error on held-out pictures, over many random splits.

`python -m benchmarks.loo_honesty` measures what docs/results/loo_honesty.json lacks, then writes tables and figures
beside it; `--remedies` also measures the metric estimated in other ways. One thread, about half an hour; it may be
stopped and started again at any time. The mathematics of one split is in `benchmarks.loo_split`.
"""

from __future__ import annotations

import argparse
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from benchmarks import plots, record
from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, few_shot, held_out, traffic_lights
from benchmarks.loo_split import METHODS, REMEDIES, Split, measure, measure_remedies
from tangentune.backbone import Backbone, load_backbone
from tangentune.data import Pictures, load_pictures

NAME, SIZE, HELD_OUT, POOL = "loo_honesty", 64, 400, 256
SPLITS = {50: 12, 150: 7, 500: 1}  # pictures: splits of each data set
REMEDY_SPLITS = {150: 3}
BALANCED_SPLITS = 4
PROTOCOL = {
    "network": f"MobileNetV2 1.0, ImageNet weights, {SIZE} px, no flips",
    "splits": f"training pictures and {HELD_OUT} held-out ones drawn at random, without regard to class, from one set "
    "(CIFAR-10 and Fashion-MNIST: the training set; traffic lights: all files), afresh for every split",
    "balanced": "CIFAR-10 once more with the same number of training pictures of every class",
    "p = ...": "that metric power, later half of the blocks, rows of length one; "
    "body scale (.5, 2 or 8) and damping by leave-one-out error",
    "probe": "the linear probe, normalisation and damping by leave-one-out error",
    "default": "TangentClassifier with default options",
    "error": "mean over pictures of the squared distance between scores and one-hot label",
    "bias": "mean over splits of leave-one-out minus held-out error, with its standard error over splits",
    "against probe": "the same bias minus the probe's on the same splits: how hard the pictures are cancels",
}
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, then write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, write tables and figures anew")
    parser.add_argument("--remedies", action="store_true", help="also measure other ways to estimate the metric")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
        run(backbone, SPLITS, "rows", lambda split: measure(backbone, split))
        if arguments.remedies:
            run(backbone, REMEDY_SPLITS, "remedies", lambda split: measure_remedies(backbone, split, pool(backbone)))
    publish()


def run(backbone: Backbone, splits: dict[int, int], section: str, study: Callable[[Split], Row]) -> None:
    """Measure every split that the results file lacks; data sets take turns, so that an early stop hurts all alike."""
    for key in keys(splits):
        if record.done(NAME, key, section):
            continue
        start = time.process_time()
        values = {"methods": study(draw(backbone, **key)), "cpu_seconds": round(time.process_time() - start, 1)}
        record.append(NAME, key, values, section)
        print(key, values["cpu_seconds"], _short(values["methods"]), flush=True)


def keys(splits: dict[int, int]) -> Iterator[Row]:
    """Every split of a study."""
    for seed in range(max(splits.values())):
        for n in [n for n, count in splits.items() if seed < count]:
            for dataset in DATASETS:
                if dataset != BALANCED or (splits is SPLITS and n < 500 and seed < BALANCED_SPLITS):
                    yield {"dataset": dataset, "n": n, "seed": seed}


def draw(backbone: Backbone, dataset: str, n: int, seed: int) -> Split:
    """Training and held-out pictures of one split, disjoint."""
    everything = DATASETS[dataset](backbone)
    rng = np.random.default_rng([zlib.crc32(dataset.encode()), n, seed])
    order = rng.permutation(len(everything.labels))
    if dataset == BALANCED:
        count = len(np.unique(everything.labels))
        chosen = few_shot(everything.labels, n // count, int(rng.integers(2**31)))
        order = np.concatenate([chosen, np.setdiff1d(order, chosen)[rng.permutation(len(order) - n)]])
    train, held = (everything.pictures(order[part]) for part in (slice(0, n), slice(n, n + HELD_OUT)))
    return Split(train, held, seed)


class _Array:
    """Pictures in an array, brought to size when asked for; final."""

    def __init__(self, data: ArrayData, backbone: Backbone):
        self.data, self.labels, self.contract = data, data.train_labels, backbone.contract

    def pictures(self, index: NDArray[np.int64]) -> Pictures:
        """Some of them, with labels."""
        return load_pictures(self.data.train[index], self.labels[index], contract=self.contract)


class _Files:
    """Pictures in files, decoded once; final."""

    def __init__(self, backbone: Backbone):
        parts = [traffic_lights("train"), traffic_lights("test")]
        paths = [path for part in parts for path in part.paths]
        self.labels = np.concatenate([part.labels for part in parts])
        self.loaded = load_pictures(paths, self.labels, contract=backbone.contract, n_jobs=1)

    def pictures(self, index: NDArray[np.int64]) -> Pictures:
        """Some of them, with labels."""
        return self.loaded.select(index)


BALANCED = "CIFAR-10, balanced"
DATASETS: dict[str, Callable[[Backbone], _Array | _Files]] = {
    "CIFAR-10": cache(lambda backbone: _Array(cifar10(), backbone)),
    "Fashion-MNIST": cache(lambda backbone: _Array(fashion_mnist(), backbone)),
    "traffic lights": cache(lambda backbone: _Files(backbone)),
    BALANCED: cache(lambda backbone: _Array(cifar10(), backbone)),
}


@cache
def pool(backbone: Backbone) -> Pictures:
    """Natural pictures that no split holds: what a metric from pre-training would have seen."""
    data = cifar10()
    index = held_out(len(data.test), count=POOL, start=4000)
    return load_pictures(data.test[index], data.test_labels[index], contract=backbone.contract)


def publish() -> None:
    """Write summaries into the JSON file, tables as Markdown, and the figures."""
    payload = record.load(NAME)
    rows = payload.get("rows", [])
    summary = summarise(rows, METHODS)
    by_size = summarise(rows, METHODS, by_size=True)
    remedies = summarise(merged(rows, payload.get("remedies", [])), (*METHODS, *REMEDIES))
    losses = [loss for dataset in DATASETS if (loss := against_probe(rows, dataset))]
    complete = len(rows) >= len(list(keys(SPLITS)))
    payload |= {"protocol": PROTOCOL, "complete": complete, "summary": summary, "by_size": by_size}
    payload |= {"pooled": pooled(summary), "default_against_probe": losses, "remedy_summary": remedies}
    record.record(NAME, payload)
    text = markdown(summary, by_size, remedies, losses, complete)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    plots.honesty_figure(rows, METHODS).savefig(record.RESULTS / f"{NAME}.png", dpi=160)
    plots.bias_figure(summary, METHODS).savefig(record.RESULTS / f"{NAME}_bias.png", dpi=160)
    print(text)


def merged(rows: Sequence[Row], remedies: Sequence[Row]) -> list[Row]:
    """Splits that have remedies, with the plain methods of the same splits."""
    plain = {str(row["key"]): row["methods"] for row in rows}
    return [
        {"key": row["key"], "methods": plain[str(row["key"])] | row["methods"]}
        for row in remedies
        if str(row["key"]) in plain
    ]


def summarise(rows: Sequence[Row], methods: Sequence[str], by_size: bool = False) -> list[Row]:
    """Mean errors and bias of every method on every data set (and, if asked, number of pictures)."""
    lines = []
    for dataset in DATASETS:
        sizes = sorted({row["key"]["n"] for row in rows}) if by_size else [None]
        for n in sizes:
            group = [row for row in rows if row["key"]["dataset"] == dataset and n in (None, row["key"]["n"])]
            for method in methods:
                if len(group) > 1:
                    head = {"dataset": dataset} | ({"n": n} if by_size else {}) | {"method": method}
                    lines.append(head | {"splits": len(group)} | bias_of(group, method))
    return lines


def bias_of(rows: Sequence[Row], method: str) -> Row:
    """Bias of leave-one-out squared error and error rate of one method, alone and against the probe's."""
    out: Row = {}
    for suffix in ("error", "error_rate"):
        points = [row["methods"][method] for row in rows]
        gaps = [point[f"loo_{suffix}"] - point[f"held_out_{suffix}"] for point in points]
        probe = [row["methods"]["probe"] for row in rows]
        extra = [g - (p[f"loo_{suffix}"] - p[f"held_out_{suffix}"]) for g, p in zip(gaps, probe, strict=True)]
        tag = "" if suffix == "error" else "_rate"
        out[f"loo_{suffix}"] = statistics.fmean(point[f"loo_{suffix}"] for point in points)
        out[f"held_out_{suffix}"] = statistics.fmean(point[f"held_out_{suffix}"] for point in points)
        out[f"bias{tag}"], out[f"bias{tag}_standard_error"] = mean_and_error(gaps)
        out[f"against_probe{tag}"], out[f"against_probe{tag}_standard_error"] = mean_and_error(extra)
    return out


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


def against_probe(rows: Sequence[Row], dataset: str) -> Row | None:
    """Held-out error of the default minus that of its linear probe, and how often it is worse beyond noise."""
    points = [row["methods"] for row in rows if row["key"]["dataset"] == dataset]
    if len(points) < 2:
        return None
    out: Row = {"dataset": dataset, "splits": len(points)}
    for suffix in ("error", "error_rate"):
        gaps = [p["default"][f"held_out_{suffix}"] - p["probe"][f"held_out_{suffix}"] for p in points]
        out[suffix], out[f"{suffix}_standard_error"] = mean_and_error(gaps)
    scores = [p["default"]["probe_gap"] / max(p["default"]["probe_gap_standard_error"], 1e-6) for p in points]
    return out | {"worse": sum(z > 0.01 for z in scores), "worse beyond 2 s.e.": sum(z > 2 for z in scores)}


def beyond_noise(bias: float, error: float, splits: int) -> bool:
    """Is a bias outside its 95 % interval (Student's t over splits)?"""
    return error > 0 and abs(bias) > error * float(student.ppf(0.975, splits - 1))


def pooled(summary: Sequence[Row]) -> list[Row]:
    """Relative bias of each method over the data sets of random splits, weighted by precision."""
    lines = []
    for method in dict.fromkeys(line["method"] for line in summary):
        group = [line for line in summary if line["method"] == method and line["dataset"] != BALANCED]
        out: Row = {"method": method, "splits": sum(line["splits"] for line in group)}
        for name in ("bias", "against_probe"):
            sizes = [line[name] / line["held_out_error"] for line in group]
            weights = [(line["held_out_error"] / max(line[f"{name}_standard_error"], 1e-12)) ** 2 for line in group]
            out[name] = sum(w * size for w, size in zip(weights, sizes, strict=True)) / sum(weights)
            out[f"{name}_standard_error"] = sum(weights) ** -0.5
        lines.append(out)
    return lines


def sentence(line: Row) -> str:
    """One method's verdict in words, from the pooled biases."""
    said = []
    for name, where in (("bias", "alone"), ("against_probe", "against its probe")):
        size, error = line[name], line[f"{name}_standard_error"]
        if name == "against_probe" and line["method"] == "probe":
            continue
        word = "no bias beyond noise"
        if beyond_noise(size, error, line["splits"]):
            word = "optimistic" if size < 0 else "pessimistic"
        said.append(f"{word} {where} ({100 * size:+.1f} ± {100 * error:.1f} %)")
    return f"- {line['method']}: " + ", ".join(said) + f", {line['splits']} splits."


def markdown(summary: list[Row], by_size: list[Row], remedies: list[Row], losses: list[Row], complete: bool) -> str:
    """The page."""
    lines = ["# How honest is the leave-one-out error?", ""]
    if not complete:
        lines += ["**Incomplete: some splits are missing; see the column `splits`.**", ""]
    lines += ["Squared leave-one-out error against held-out error, random splits of three data sets together:", ""]
    lines += [*map(sentence, pooled(summary)), "", table(summary), ""]
    lines += ["Bias in % of the held-out error; ± is one standard error over splits; * is beyond noise (95 %, t).", ""]
    lines += ["## The default against its own linear probe, held out", ""]
    columns = {"dataset": "", "splits": "", "error": "+.4f", "error_standard_error": ".4f", "error_rate": "+.4f"}
    columns |= {"error_rate_standard_error": ".4f", "worse": "", "worse beyond 2 s.e.": ""}
    lines += [record.markdown_table(losses, columns), "", "Below 0 the default is better. The last two columns count"]
    lines += ["splits in which it was worse, and worse by more than two standard errors over held-out pictures.", ""]
    lines += ["## By number of pictures", "", table(by_size), ""]
    if remedies:
        lines += ["## Other ways to estimate the metric, on the splits that have them", "", table(remedies), ""]
        lines += [f"- {name}: {text}." for name, text in REMEDIES.items()] + [""]
    lines += [f"- {name}: {text}." for name, text in PROTOCOL.items()]
    return "\n".join([*lines, "", f"![Splits]({NAME}.png)", "", f"![Bias]({NAME}_bias.png)", ""])


def table(summary: Sequence[Row]) -> str:
    """Lines of a summary as Markdown, biases in % of the held-out error."""
    shown = []
    for line in summary:
        head = {name: line[name] for name in ("dataset", "n", "method", "splits") if name in line}
        errors = {"LOO": f"{line['loo_error']:.4f}", "held out": f"{line['held_out_error']:.4f}"}
        scale = 100 / line["held_out_error"]
        biases = {}
        for title, name in (("bias %", "bias"), ("against probe %", "against_probe")):
            size, error = line[name], line[f"{name}_standard_error"]
            star = " *" if beyond_noise(size, error, line["splits"]) else ""
            biases[title] = f"{scale * size:+.1f} ± {scale * error:.1f}{star}"
        rate = f"{line['loo_error_rate']:.3f} / {line['held_out_error_rate']:.3f}"
        shown.append(head | errors | biases | {"error rate LOO / held out": rate})
    return record.markdown_table(shown, dict.fromkeys(shown[0], "")) if shown else ""


def _short(methods: Row) -> dict[str, str]:
    return {name: f"{point['loo_error']:.3f}/{point['held_out_error']:.3f}" for name, point in methods.items()}


if __name__ == "__main__":
    main()
