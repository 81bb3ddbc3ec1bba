"""The words of a comparison: the cells of its table, and the notes a reader needs to judge it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from tangentune.comparison.plan import ALL, Shots
from tangentune.comparison.summary import Cell, Mean, Row
from tangentune.estimators.summary import nice_bytes, nice_seconds
from tangentune.pictures.names import some

COLUMNS = ("Pictures a class", "Method", "Accuracy", "NLL", "ECE", "Fit", "Peak memory", "Paired difference (points)")


@final
@dataclass(frozen=True)
class Entry:
    """One entry of the table, and whether it is the best of its kind."""

    text: str
    best: bool = False


def table_lines(rows: Sequence[Row]) -> list[list[Entry]]:
    """One line a row, one entry a column of `COLUMNS`; the number of pictures stands once in its group."""
    lines, last = [], None
    for row in rows:
        first = Entry("" if row.shots == last else str(row.shots))
        last = row.shots
        if not row.means:
            lines.append([first, Entry(row.method), Entry("failed"), *[Entry("")] * (len(COLUMNS) - 3)])
            continue
        means = row.means
        lines.append(
            [
                first,
                Entry(row.method),
                Entry(f"{with_error(means['accuracy'], 1, 100)} %", "accuracy" in row.best),
                Entry(with_error(means["nll"], 3), "nll" in row.best),
                Entry(f"{with_error(means['ece'], 1, 100)} %", "ece" in row.best),
                Entry(_seconds(means["seconds"])),
                Entry(nice_bytes(means["peak_bytes"].mean)),
                Entry(_difference(row)),
            ]
        )
    return lines


def with_error(value: Mean, digits: int, factor: float = 1.0) -> str:
    """A mean with its standard error, both times `factor`.

    Example:
        >>> with_error(Mean(0.5, 0.01), 1, 100), with_error(Mean(0.5, None), 3)
        ('50.0 ± 1.0', '0.500')
    """
    error = "" if value.error is None else f" ± {factor * value.error:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{error}"


def notes(settings: Mapping[str, Any], cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """Sentences on the test part, the errors, time and memory, small classes and failures."""
    sentences = [_test(settings, rows), _errors(rows), _costs(settings, cells)]
    sentences += _small_classes(settings["classes"], [row.shots for row in rows])
    for row in rows:
        failed = len({cell.seed for cell in cells if _failed_in(cell, row)})
        if failed:
            of = failed + len(row.seeds)
            reasons = "; ".join(reason.rstrip(".") for reason in row.failures)
            sentences.append(f"{row.method}, {row.shots} a class: {failed} of {of} seeds failed: {reasons}.")
    return [sentence for sentence in sentences if sentence]


def _failed_in(cell: Cell, row: Row) -> bool:
    return cell.failed is not None and (cell.method, cell.shots) == (row.method, row.shots)


def _test(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    n, share = settings["test_pictures"], settings["test_share"]
    origin = "given apart" if share is None else f"{100 * share:.3g} % of each class, set aside before every draw"
    text = f"Scored on the same {n:,} test pictures throughout ({origin})."
    measured = [row.means["accuracy"].mean for row in rows if row.means]
    if measured:
        middle = float(np.median(measured))
        points = 100 * math.sqrt(middle * (1 - middle) / n)  # binomial: n independent pictures
        text += (
            f" Their number alone gives an accuracy of {100 * middle:.0f} % a standard error of {points:.1f} points."
        )
    if settings["shared_pictures"]:
        text += f" {settings['shared_pictures']} of them are also training pictures, so all accuracies are optimistic."
    return text


def _errors(rows: Sequence[Row]) -> str:
    counts = {len(row.seeds) for row in rows if row.means}
    several = sorted(count for count in counts if count > 1)
    parts = []
    if several:
        how_many = " or ".join(map(str, several))
        parts.append(f"± is the standard error over {how_many} seeds, each with its own draw of training pictures.")
    if any(row.best for row in rows):
        parts.append("* marks the best of the methods with as many pictures.")
    if any(row.difference for row in rows):
        errors = "± over the draws, then ± over the test pictures" if several else "± over the test pictures"
        parts.append(
            f"The last column is the accuracy less that of the best other method, on the same pictures: {errors}."
        )
    return " ".join(parts)


def _costs(settings: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    before = [cell.before_bytes for cell in cells if cell.before_bytes is not None]
    if not before:
        return ""
    threads = settings["threads"]
    where = f"on {settings['device']} with {threads} thread{'' if threads == 1 else 's'}"
    text = f"Time and memory are those of the fit with every choice it makes, {where}; "
    if settings["peak_of"] != "each fit":
        return f"{text}this system cannot reset the peak of memory, so it is that of all cells so far."
    low, high = nice_bytes(min(before)), nice_bytes(max(before))
    held = low if low == high else f"{low} to {high}"
    return f"{text}{held} of the memory was held before it began."


def _small_classes(counts: Mapping[str, int], shots: Sequence[Shots]) -> list[str]:
    highest = max((int(count) for count in shots if count != ALL), default=0)
    small = {name: count for name, count in counts.items() if count < highest}
    if not small:
        return []
    named = some([f"{name} has {count}" for name, count in small.items()], 8)
    return [f"Classes with fewer training pictures than asked for give all they have: {named}."]


def _seconds(value: Mean) -> str:
    if value.mean >= 60:
        return nice_seconds(value.mean)
    return f"{with_error(value, 2 if value.mean < 1 else 1)} s"


def _difference(row: Row) -> str:
    found = row.difference
    if found is None:
        return ""
    draws = "" if found.error_draws is None else f" ± {100 * found.error_draws:.1f}"
    return f"{100 * found.mean:+.1f}{draws} ± {100 * found.error_tests:.1f} on {found.other}"
