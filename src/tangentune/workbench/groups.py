"""Pictures that belong together (a camera, a day, a patient): how well each group is known without itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from tangentune.errors import InputError
from tangentune.estimators.explanations import leave_out
from tangentune.estimators.fitted import FittedModel
from tangentune.pictures.names import some
from tangentune.pictures.tables import Columns, read_columns
from tangentune.workbench.figures import Figures, judged, positions_of


@final
@dataclass(frozen=True)
class GroupFigures:
    """Figures of the pictures of one group, each left out alone, and left out as a whole.

    The latter are by the model fitted without all of them: what a new camera, day or patient would be answered.
    """

    name: str  # what the pictures have in common
    numbers: tuple[int, ...]
    alone: Figures
    whole: Figures


def named_by(ids: list[str], by: str | Mapping[str, str]) -> list[str]:
    r"""The group of each picture: by a regular expression on its id, or from a table of ids and groups.

    Of an expression the first group in parentheses counts, or the whole match.

    Example:
        >>> named_by(["cam1/a.png", "cam2/a.png"], r"cam(\d)")
        ['1', '2']
    """
    if isinstance(by, Mapping):
        if missing := [name for name in ids if name not in by]:
            raise InputError(f"the table names no group for {len(missing)} pictures: {some(missing)}")
        return [str(by[name]) for name in ids]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise InputError(f"{by!r} is no regular expression: {error}") from error
    found = [pattern.search(name) for name in ids]
    if missing := [name for name, match in zip(ids, found, strict=True) if match is None]:
        raise InputError(f"the pattern {by!r} does not fit {len(missing)} pictures: {some(missing)}")
    return [(match[1] if pattern.groups else match[0]) or "" for match in found if match is not None]


def table(path: Path, column: str) -> dict[str, str]:
    """Groups by id, from a column of a CSV file that has another one called id or path."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    return dict(zip(*read_columns(text, path.name, columns=Columns(label=column), key="id"), strict=True))


def figures(fitted: FittedModel, groups: list[str]) -> list[GroupFigures]:
    """Of every group, the largest first; the sum of R^3 over groups of R pictures.

    Probabilities are those of the scores at the model's temperature, whatever its likelihood.
    """
    names, index = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2:
        raise InputError("all pictures are in one group; leaving it out would leave none, so name at least two groups")
    scores = torch.from_numpy(leave_out(fitted, index))
    proba = fitted.outcome.probabilities(scores).numpy()
    given, out = positions_of(fitted), list[GroupFigures]()
    for group in np.argsort(-np.bincount(index), kind="stable").tolist():
        own = index == group
        alone, whole = judged(given[own], fitted.outcome.proba[own]), judged(given[own], proba[own])
        out.append(GroupFigures(str(names[group]), tuple(fitted.numbers[own].tolist()), alone, whole))
    return out
