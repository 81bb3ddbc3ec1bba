"""Tables and figures of the honesty study, from its rows of splits: `python -m benchmarks.loo_honesty.page`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from scipy.stats import t as student

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, legend_below, panels, styled
from benchmarks.record import Row
from benchmarks.study import publishing, standard_error

NAME, SIZE, BALANCED = "loo_honesty", 64, "CIFAR-10, balanced"
SPLITS = {50: 12, 150: 7, 500: 2}  # pictures: splits of each data set
LEGEND = "squared error; larger dot: more pictures"
REFERENCES = {"against_probe": "probe", "against_p0": "p = 0"}
POWERS = {"p = 0": 0.0, "p = 1/4": 0.25, "p = 1/2": 0.5}
METHODS = ("probe", *POWERS, "default")


def publish() -> None:
    """Write tables and figures; the table of other ways to estimate the metric is as it was measured once."""
    payload = record.load(NAME)
    found = digest(payload)
    columns = {"dataset": "", "splits": "", "error": "+.4f", "error_standard_error": ".4f", "error_rate": "+.4f"}
    columns |= {"error_rate_standard_error": ".4f", "worse": "", "worse beyond 2 s.e.": ""}
    parts = {
        "verdicts": "\n".join(map(sentence, found["pooled"])),
        "summary": table(found["summary"]),
        "against_probe": record.markdown_table(found["default_against_probe"], columns),
        "by_size": table(found["by_size"]),
    }
    figures = {NAME: honesty_figure(payload["rows"]), f"{NAME}_bias": bias_figure(found["summary"])}
    record.write_page(NAME, __file__, parts, figures)


def digest(payload: Row) -> Row:
    """Every table of the study, computed from its rows."""
    rows = payload.get("rows", [])
    sets = {dataset: record.matching(rows, dataset=dataset) for dataset in of_key(rows, "dataset")}
    sizes = sorted(of_key(rows, "n"))
    by_size = [({"dataset": name, "n": n}, record.matching(own, n=n)) for name, own in sets.items() for n in sizes]
    summary = summarised(({"dataset": name}, own) for name, own in sets.items())
    return {
        "summary": summary,
        "pooled": pooled(summary),
        "by_size": summarised(by_size),
        "default_against_probe": [against_probe(name, own) for name, own in sets.items() if len(own) > 1],
    }


def of_key(rows: Iterable[Row], name: str) -> list[str]:
    """The values of a setting, in the order of the rows."""
    return list(dict.fromkeys(row["key"][name] for row in rows))


def summarised(groups: Iterable[tuple[Row, list[Row]]]) -> list[Row]:
    """Mean errors and bias of every method over each group of two rows or more."""
    return [
        {**head, "method": method, "splits": len(group), **bias_of(group, method)}
        for head, group in groups
        for method in METHODS
        if len(group) > 1
    ]


def bias_of(rows: Sequence[Row], method: str) -> Row:
    """Bias of leave-one-out squared error and error rate of one method, alone and minus that of others."""
    out: Row = {}
    for suffix, tag in (("error", ""), ("error_rate", "_rate")):
        gaps = {
            name: [row["methods"][name][f"loo_{suffix}"] - row["methods"][name][f"held_out_{suffix}"] for row in rows]
            for name in {method, *REFERENCES.values()}
        }
        for side in ("loo", "held_out"):
            out[f"{side}_{suffix}"] = statistics.fmean(row["methods"][method][f"{side}_{suffix}"] for row in rows)
        out |= mean_and_error(f"bias{tag}", gaps[method])
        for name, other in REFERENCES.items():
            out |= mean_and_error(
                f"{name}{tag}", [own - its for own, its in zip(gaps[method], gaps[other], strict=True)]
            )
    return out


def mean_and_error(name: str, values: Sequence[float]) -> Row:
    """Mean and its standard error, by names."""
    return {name: statistics.fmean(values), f"{name}_standard_error": standard_error(values)}


def against_probe(dataset: str, rows: Sequence[Row]) -> Row:
    """Held-out error of the default minus that of its linear probe, and how often it is worse beyond noise."""
    out: Row = {"dataset": dataset, "splits": len(rows)}
    pairs = [(row["methods"]["default"], row["methods"]["probe"]) for row in rows]
    for name in ("error", "error_rate"):
        out |= mean_and_error(name, [own[f"held_out_{name}"] - its[f"held_out_{name}"] for own, its in pairs])
    scores = [own["probe_gap"] / max(own["probe_gap_standard_error"], 1e-6) for own, _ in pairs]
    return out | {"worse": sum(z > 0.01 for z in scores), "worse beyond 2 s.e.": sum(z > 2 for z in scores)}


def beyond_noise(line: Row, name: str) -> bool:
    """Is a bias outside its 95 % interval (Student's t over splits)?"""
    error = line[f"{name}_standard_error"]
    return error > 0 and abs(line[name]) > error * float(student.ppf(0.975, line["splits"] - 1))


def pooled(summary: Sequence[Row]) -> list[Row]:
    """Relative bias of each method over the data sets of random splits, weighted by precision."""
    lines = []
    for method in dict.fromkeys(line["method"] for line in summary):
        group = [line for line in summary if line["method"] == method and line["dataset"] != BALANCED]
        out: Row = {"method": method, "splits": sum(line["splits"] for line in group)}
        for name in ("bias", *REFERENCES):
            sizes = [line[name] / line["held_out_error"] for line in group]
            weights = [(line["held_out_error"] / max(line[f"{name}_standard_error"], 1e-12)) ** 2 for line in group]
            out[name] = sum(w * size for w, size in zip(weights, sizes, strict=True)) / sum(weights)
            out[f"{name}_standard_error"] = sum(weights) ** -0.5
        lines.append(out)
    return lines


def sentence(line: Row) -> str:
    """One method's verdict in words, from the pooled biases."""
    said = []
    for name, other in {"bias": "", **REFERENCES}.items():
        if not other or line["method"] not in ("probe", other):
            size, error, where = line[name], line[f"{name}_standard_error"], f" against {other}" if other else " alone"
            word = ("optimistic" if size < 0 else "pessimistic") if beyond_noise(line, name) else "no bias beyond noise"
            said.append(f"{word}{where} ({100 * size:+.1f} ± {100 * error:.1f} %)")
    return f"- {line['method']}: " + ", ".join(said) + f", {line['splits']} splits."


def table(summary: Sequence[Row]) -> str:
    """Lines of a summary as Markdown, biases in % of the held-out error."""
    shown, titles = [], {"bias": "bias %", "against_probe": "against probe %", "against_p0": "against p = 0 %"}
    for line in summary:
        row = {name: line[name] for name in ("dataset", "n", "method", "splits") if name in line}
        row |= {"LOO": f"{line['loo_error']:.4f}", "held out": f"{line['held_out_error']:.4f}"}
        scale = 100 / line["held_out_error"]
        for name, title in titles.items():
            star = " *" if beyond_noise(line, name) else ""
            row[title] = f"{scale * line[name]:+.1f} ± {scale * line[f'{name}_standard_error']:.1f}{star}"
        row["error rate LOO / held out"] = f"{line['loo_error_rate']:.3f} / {line['held_out_error_rate']:.3f}"
        shown.append(row)
    return record.markdown_table(shown)


@styled
def honesty_figure(rows: Sequence[Row]) -> Figure:
    """Leave-one-out against held-out squared error, one dot a split: dots below the diagonal are optimistic."""
    datasets, sizes = of_key(rows, "dataset"), sorted(of_key(rows, "n"))
    figure, axes_of = panels((2.4 * len(METHODS), 3.6), 1, len(METHODS), sharex=True, sharey=True)
    for axes, method in zip(axes_of[0], METHODS, strict=True):
        for row in rows:
            point = row["methods"][method]
            colour, size = COLOURS[datasets.index(row["key"]["dataset"])], 3 + 2 * sizes.index(row["key"]["n"])
            axes.plot(point["held_out_error"], point["loo_error"], "o", color=colour, markersize=size, alpha=0.65)
        axes.axline((0.4, 0.4), slope=1, color=MUTED, linewidth=0.8)
        axes.set_title(method, loc="left", fontsize=9)
        axes.set_xlabel("held-out")
        axes.set_aspect("equal", adjustable="box")
    points = [row["methods"][method] for row in rows for method in METHODS]
    top = 1.05 * max((p[key] for p in points for key in ("held_out_error", "loo_error")), default=1.0)
    axes_of[0, 0].set(xlim=(0, top), ylim=(0, top), ylabel="leave-one-out")
    legend_below(figure, axes_of[0, 0], zip(datasets, COLOURS, strict=False), title=LEGEND)
    return figure


@styled
def bias_figure(summary: Sequence[Row]) -> Figure:
    """Relative bias of the leave-one-out squared error for each method and data set, with two standard errors."""
    datasets = list(dict.fromkeys(line["dataset"] for line in summary))
    figure, axes_of = panels((6.4, 3.2), 1, 1)
    axes = axes_of[0, 0]
    for line in summary:
        shift, place = datasets.index(line["dataset"]), METHODS.index(line["method"])
        x, scale = place + 0.13 * (shift - (len(datasets) - 1) / 2), 100 / line["held_out_error"]
        bars = 2 * scale * line["bias_standard_error"]
        axes.errorbar(x, scale * line["bias"], yerr=bars, fmt="o", color=COLOURS[shift], capsize=3)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xticks(range(len(METHODS)), METHODS)
    axes.set_ylabel("bias of squared LOO error, %\n(below 0: optimistic)")
    legend_below(figure, axes, zip(datasets, COLOURS, strict=False))
    return figure


if __name__ == "__main__":
    publishing(publish, __doc__)
