"""Tables of the honesty study: bias of the leave-one-out error with its noise, from rows of splits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student

from benchmarks import record
from benchmarks.loo_split import METHODS, REMEDIES

Row = dict[str, Any]
BALANCED = "CIFAR-10, balanced"
REFERENCES = {"against_probe": "probe", "against_p0": "p = 0"}


def merged(rows: Sequence[Row], remedies: Sequence[Row]) -> list[Row]:
    """Splits that have remedies, with the plain methods of the same splits."""
    plain = {str(row["key"]): row["methods"] for row in rows}
    return [
        {"key": row["key"], "methods": plain[str(row["key"])] | row["methods"]}
        for row in remedies
        if str(row["key"]) in plain
    ]


def gains(rows: Sequence[Row]) -> list[Row]:
    """What each remedy changes against the plain fit of the same power on the same splits, in % of its error."""
    lines = []
    for dataset in dict.fromkeys(row["key"]["dataset"] for row in rows):
        points = [row["methods"] for row in rows if row["key"]["dataset"] == dataset]
        for remedy in REMEDIES if len(points) > 1 else ():
            plain, out = remedy.split(",")[0], {"dataset": dataset, "remedy": remedy, "splits": len(points)}
            for side in ("loo_error", "held_out_error"):
                changes = [100 * (point[remedy][side] / point[plain][side] - 1) for point in points]
                out[side], out[f"{side}_standard_error"] = mean_and_error(changes)
            lines.append(out)
    return lines


def summarise(rows: Sequence[Row], methods: Sequence[str], by_size: bool = False) -> list[Row]:
    """Mean errors and bias of every method on every data set (and, if asked, number of pictures)."""
    lines = []
    for dataset in dict.fromkeys(row["key"]["dataset"] for row in rows):
        sizes = sorted({row["key"]["n"] for row in rows}) if by_size else [None]
        for n in sizes:
            group = [row for row in rows if row["key"]["dataset"] == dataset and n in (None, row["key"]["n"])]
            for method in methods:
                if len(group) > 1:
                    head = {"dataset": dataset} | ({"n": n} if by_size else {}) | {"method": method}
                    lines.append(head | {"splits": len(group)} | bias_of(group, method))
    return lines


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
        out[f"bias{tag}"], out[f"bias{tag}_standard_error"] = mean_and_error(gaps[method])
        for name, other in REFERENCES.items():
            extra = [own - its for own, its in zip(gaps[method], gaps[other], strict=True)]
            out[f"{name}{tag}"], out[f"{name}{tag}_standard_error"] = mean_and_error(extra)
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
        if other and line["method"] in ("probe", other):
            continue
        size, error, where = line[name], line[f"{name}_standard_error"], f" against {other}" if other else " alone"
        word = "no bias beyond noise"
        if beyond_noise(size, error, line["splits"]):
            word = "optimistic" if size < 0 else "pessimistic"
        said.append(f"{word}{where} ({100 * size:+.1f} ± {100 * error:.1f} %)")
    return f"- {line['method']}: " + ", ".join(said) + f", {line['splits']} splits."


def digest(rows: Sequence[Row], remedies: Sequence[Row]) -> Row:
    """Every table of the study, computed from its rows."""
    together = merged(rows, remedies)
    summary = summarise(rows, METHODS)
    losses = [against_probe(rows, dataset) for dataset in dict.fromkeys(row["key"]["dataset"] for row in rows)]
    return {
        "summary": summary,
        "pooled": pooled(summary),
        "by_size": summarise(rows, METHODS, by_size=True),
        "default_against_probe": [loss for loss in losses if loss],
        "remedy_gains": gains(together),
        "remedy_summary": summarise(together, (*METHODS, *REMEDIES)),
    }


def markdown(tables: Row, complete: bool, protocol: dict[str, str], name: str) -> str:
    """The page."""
    lines = ["# How honest is the leave-one-out error?", ""]
    if not complete:
        lines += ["**Incomplete: some splits are missing; see the column `splits`.**", ""]
    lines += ["Squared leave-one-out error against held-out error, random splits of three data sets together:", ""]
    lines += [*map(sentence, tables["pooled"]), "", table(tables["summary"]), ""]
    lines += ["Bias in % of the held-out error; ± is one standard error over splits; * is beyond noise (95 %, t).", ""]
    lines += ["## The default against its own linear probe, held out", ""]
    columns = {"dataset": "", "splits": "", "error": "+.4f", "error_standard_error": ".4f", "error_rate": "+.4f"}
    columns |= {"error_rate_standard_error": ".4f", "worse": "", "worse beyond 2 s.e.": ""}
    lines += [record.markdown_table(tables["default_against_probe"], columns), ""]
    lines += ["Below 0 the default is better. The last two columns count splits in which its squared error was higher,"]
    lines += ["and higher by more than two standard errors over held-out pictures.", ""]
    if tables["remedy_gains"]:
        columns = {"dataset": "", "remedy": "", "splits": "", "loo_error": "+.1f", "loo_error_standard_error": ".1f"}
        columns |= {"held_out_error": "+.1f", "held_out_error_standard_error": ".1f"}
        lines += [
            "## Other ways to estimate the metric",
            "",
            record.markdown_table(tables["remedy_gains"], columns),
            "",
        ]
        lines += [
            "Change in % against the plain fit of the same power on the same splits. For cross-fitting, the change"
        ]
        lines += ["of the leave-one-out error is what the metric's having seen the picture is worth.", ""]
        lines += [f"- {remedy}: {text}." for remedy, text in REMEDIES.items()] + [""]
    lines += ["## By number of pictures", "", table(tables["by_size"]), "", "## Protocol", ""]
    lines += [f"- {key}: {text}." for key, text in protocol.items()]
    return "\n".join([*lines, "", f"![Splits]({name}.png)", "", f"![Bias]({name}_bias.png)", ""])


def table(summary: Sequence[Row]) -> str:
    """Lines of a summary as Markdown, biases in % of the held-out error."""
    shown = []
    for line in summary:
        head = {name: line[name] for name in ("dataset", "n", "method", "splits") if name in line}
        errors = {"LOO": f"{line['loo_error']:.4f}", "held out": f"{line['held_out_error']:.4f}"}
        scale = 100 / line["held_out_error"]
        biases = {}
        for title, name in (
            ("bias %", "bias"),
            ("against probe %", "against_probe"),
            ("against p = 0 %", "against_p0"),
        ):
            size, error = line[name], line[f"{name}_standard_error"]
            star = " *" if beyond_noise(size, error, line["splits"]) else ""
            biases[title] = f"{scale * size:+.1f} ± {scale * error:.1f}{star}"
        rate = f"{line['loo_error_rate']:.3f} / {line['held_out_error_rate']:.3f}"
        shown.append(head | errors | biases | {"error rate LOO / held out": rate})
    return record.markdown_table(shown, dict.fromkeys(shown[0], "")) if shown else ""
