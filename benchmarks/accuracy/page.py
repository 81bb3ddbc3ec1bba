"""Table, verdicts and figure of the accuracy study: `python -m benchmarks.accuracy.page`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.study import publishing, standard_error

NAME = "accuracy"
SEEDS, SHOTS = range(5), (10, 50)
METHODS: dict[str, dict[str, Any]] = {
    "linear probe, flip": {"body_scale": 0, "augment": "flip"},
    "tangent kernel, flip": {"augment": "flip"},
    "linear probe": {"body_scale": 0},
    "tangent kernel": {},
    "tangent kernel, outer steps, flip": {"augment": "flip", "outer_steps": "loo"},
}
KERNEL = "tangent kernel, outer steps, flip"
FINE_TUNING = {"fine-tuning": "", "fine-tuning, flip": "_flip"}
COLUMNS = ("accuracy", "nll", "ece")


def publish() -> None:
    """Write the table as Markdown and the figure."""
    found = digest()
    lines = [{name: line[name] for name in ("shots", "method", "seeds")} | scores(line) for line in found["summary"]]
    parts = {"verdicts": "\n".join(map(sentence, found["verdicts"])), "table": record.markdown_table(lines)}
    record.write_page(NAME, __file__, parts, {NAME: figure(found["summary"])})


def digest() -> Row:
    """What the rows say: a line a method, and the gaps between methods."""
    rows, methods = [*record.load(NAME).get("rows", []), *fine_tuning_rows()], (*METHODS, *FINE_TUNING)
    groups = [
        (shots, method, record.matching(rows, shots=shots, method=method)) for shots in SHOTS for method in methods
    ]
    summary = [
        {"shots": shots, "method": method, "seeds": len(group), **spread(group)}
        for shots, method, group in groups
        if group
    ]
    others = ("linear probe, flip", "tangent kernel, flip", *FINE_TUNING)
    verdicts = [verdict(rows, shots, other) for shots in SHOTS for other in others]
    return {"summary": summary, "verdicts": [line for line in verdicts if line]}


def fine_tuning_rows() -> list[Row]:
    """Runs of the best learning rate for each shots, as rows of this table (plain and mirrored predictions)."""
    out, tuned = [], record.load("finetune_accuracy")
    for shots, best in tuned["best_of_sweep"].items():
        key = {"shots": int(shots), "learning_rate": best["learning_rate"], **tuned["variant"]}
        for row in record.matching(tuned["rows"], **key):
            for method, suffix in FINE_TUNING.items() if "accuracy" in row else ():
                values = {name: row[name + suffix] for name in COLUMNS}
                own = {"shots": int(shots), "seed": row["key"]["seed"], "method": method}
                more = {"fit_cpu_seconds": row["train_cpu_seconds"], "learning_rate": best["learning_rate"]}
                out.append({"key": own, **values, **more})
    return out


def spread(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means, and standard deviations of the scores; None where a method has no such figure."""
    out: dict[str, float | None] = {}
    for name in (*COLUMNS, "loo_accuracy", "fit_cpu_seconds", "peak_bytes"):
        values = [row[name] for row in rows if name in row]
        out[name] = statistics.fmean(values) if values else None
        out[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return out


def verdict(rows: Sequence[Row], shots: int, other: str) -> Row | None:
    """Tangent kernel (flip) minus another method in accuracy, paired by seed, with its standard error."""
    kernel, its = (record.by_seed(rows, "accuracy", shots=shots, method=method) for method in (KERNEL, other))
    gaps = [kernel[seed] - its[seed] for seed in SEEDS if seed in kernel and seed in its]
    if len(gaps) < 2:
        return None
    mean, error = statistics.fmean(gaps), standard_error(gaps)
    word = ("wins" if mean > 0 else "loses") if abs(mean) > 2 * error else "is level"
    return {"shots": shots, "against": other, "gap": mean, "standard_error": error, "seeds": len(gaps), "kernel": word}


def sentence(line: Row) -> str:
    """A verdict in words."""
    said = f"{KERNEL} {line['kernel']}" + (" with " if line["kernel"] == "is level" else " against ")
    figures = f"{100 * line['gap']:+.1f} points, standard error {100 * line['standard_error']:.1f}"
    return f"- {line['shots']} pictures a class: {said}{line['against']} ({figures}, {line['seeds']} seeds)."


def scores(line: Row) -> dict[str, str]:
    """Scores and costs of one line as text."""
    out = {name: cell(line, name, 3) for name in (*COLUMNS, "loo_accuracy")} | {
        "fit seconds": cell(line, "fit_cpu_seconds", 1)
    }
    return out | {"peak GiB": "-" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**30:.1f}"}


def cell(line: Row, name: str, digits: int) -> str:
    """One entry of the table, with its spread where there is one."""
    value, deviation = line[name], line.get(f"{name}_std")
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


@styled
def figure(summary: Sequence[Row]) -> Figure:
    """Held-out accuracy of each method as a dot with its spread over seeds, leave-one-out accuracy as a ring."""
    figure, axes_of = panels((4.4 * len(SHOTS), 2.9), 1, len(SHOTS))
    for axes, shots in zip(axes_of[0], SHOTS, strict=True):
        lines = [line for line in summary if line["shots"] == shots][::-1]
        for height, line in enumerate(lines):
            colour = COLOURS[1] if line["method"].startswith("fine") else COLOURS[0]
            colour = MUTED if line["method"].startswith("linear") else colour
            axes.errorbar(line["accuracy"], height, xerr=line["accuracy_std"] or 0, fmt="o", color=colour, capsize=3)
            if line["loo_accuracy"] is not None:
                axes.plot(line["loo_accuracy"], height, "o", color=colour, markerfacecolor="none", markersize=9)
        axes.set_yticks(range(len(lines)), [line["method"] for line in lines])
        axes.set_ylim(-0.6, len(lines) - 0.4)
        axes.set_title(f"{shots} pictures a class", loc="left", fontsize=9)
        axes.set_xlabel("accuracy; dot: test, ring: leave-one-out")
    return figure


if __name__ == "__main__":
    publishing(publish, __doc__)
