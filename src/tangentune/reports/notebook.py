"""What a notebook shows of a fitted model: its report, explanations and suspects, with pictures; and as data frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, final, overload

import numpy as np

from tangentune.errors import cannot_import, nice_number
from tangentune.estimators.explanations import Suspects
from tangentune.estimators.summary import summarise
from tangentune.estimators.user_input import load_inputs
from tangentune.pictures.pictures import Pictures
from tangentune.reports.explanation import Explanation, explain, familiarity, numbers_text
from tangentune.reports.explanation_page import DOUBTFUL, render_explanations
from tangentune.reports.model_page import render_report
from tangentune.reports.pages import Estimator, embedded, is_classifier, render, write_page

MOST = 24  # pictures that a notebook shows at once
_HEIGHT = 720  # of a page in a notebook, in pixels


@final
class Report:
    """The page about a fitted model, as it was when this was made.

    Attributes:
        scores: leave-one-out accuracy, log-loss, calibration error and Brier score; or R2 and RMSE.
    """

    def __init__(self, model: Estimator) -> None:
        facts = summarise(model)
        self.scores = facts.scores
        self._title = f"{facts.backbone} fitted to {facts.n:,} pictures"
        self._page, self._rows, self._version = render_report(model), _rows_of(model), model.fitted_.version

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {nice_number(value)}" for name, value in self.scores.items())
        return f"<report: {self._title}, leave-one-out {said}>"

    def _repr_html_(self) -> str:
        return _framed(self._page, self._title)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, whole or not at all."""
        return write_page(self._page, path, self._version)

    def to_frame(self) -> Any:
        """A row for each picture of the fit: its label, and what the model fitted without it says."""
        return frame(self._rows)


@final
class Explanations(Sequence[Explanation]):
    """Explanations of a model's answers about pictures, in their order."""

    def __init__(self, found: list[Explanation], page: str) -> None:
        self._found, self._page = found, page

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Explanation]: ...
    def __getitem__(self, index: int | slice) -> Explanation | list[Explanation]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return "\n".join(line for one in self._found for line in _sentences(one))

    def _repr_html_(self) -> str:
        return _framed(self._page, f"{len(self)} answers explained")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, whole or not at all."""
        return write_page(self._page, path)

    def to_frame(self) -> Any:
        """A row for each training picture that is named: what it did to the answer about which picture."""
        return frame(
            [
                {
                    "id": one.id,
                    "answer": attribution.answer.label,
                    "training_picture": effect.id,
                    "label": effect.label,
                    "influence": effect.influence,
                    "contribution": effect.contribution,
                    "answer_without": None if effect.without is None else effect.without.label,
                }
                for one in self._found
                for attribution in one.attributions
                for effect in (*attribution.raised, *reversed(attribution.lowered))
            ]
        )


def explanations_of(model: Estimator, X: Any, top: int) -> Explanations:
    """Explain what a model says of pictures, given in any form that it predicts."""
    pictures: Pictures = load_inputs(model, X, None, model.backbone_, labelled=False, reset=False)
    found = explain(model, pictures, top)
    return Explanations(found, render_explanations(model, pictures, found))


def suspects_html(suspects: Suspects) -> str:
    """Doubtful labels with their pictures, the first few of many."""
    tiles = []
    for one in suspects[:MOST]:
        image = suspects.images.get(one.position)
        tile = {"one": one, "image": None if image is None else embedded(image)}
        tile |= {"given": _label(one.label), "suggestion": _label(one.suggestion)}
        tiles.append(tile | {"wrong": one.probability is None or one.probability < DOUBTFUL})
    return render("notebook.html.j2", {"tiles": tiles, "more": len(suspects) - len(tiles)})


def frame(rows: list[dict[str, Any]]) -> Any:
    """Rows as a data frame of pandas, which is needed here only."""
    try:
        import pandas
    except ImportError as error:
        raise cannot_import("pandas", error, "pip install pandas") from error
    return pandas.DataFrame(rows)


def _rows_of(model: Estimator) -> list[dict[str, Any]]:
    """One for each picture of the fit."""
    rows = [{"id": name, "label": label} for name, label in zip(model.ids_, model.targets_.tolist(), strict=True)]
    if not is_classifier(model):
        for row, numbers in zip(rows, model.loo_predictions_.tolist(), strict=True):
            row["left_out"] = numbers[0] if len(numbers) == 1 else numbers
        return rows
    names, proba = model.classes_.tolist(), np.asarray(model.loo_proba_)
    for row, values in zip(rows, proba, strict=True):
        best = int(values.argmax())
        row |= {"left_out": names[best], "probability": float(values[best])}
        row["probability_of_label"] = float(values[names.index(row["label"])])
    return rows


def _label(label: Any) -> str:
    return numbers_text(label) if isinstance(label, float | list) else str(label)


def _sentences(one: Explanation) -> list[str]:
    """An explanation as text."""
    lines = []
    for attribution in one.attributions:
        sure = "" if attribution.answer.confidence is None else f" ({100 * attribution.answer.confidence:.0f} %)"
        rival = "" if attribution.against is None else f", ahead of {attribution.against.label}"
        name = f"{attribution.name} " if attribution.name else ""
        lines.append(f"{one.id}: {name}{attribution.answer.label}{sure}{rival}. {familiarity(one.distance)}")
        for word, effects in (("for it", attribution.raised[:3]), ("against", attribution.lowered[:3])):
            named = ", ".join(
                f"{effect.id} ({effect.label}, {nice_number(effect.influence, sign=True)})" for effect in effects
            )
            lines += [f"  most {word}: {named}"] if named else []
    return lines


def _framed(page: str, title: str) -> str:
    """A page that stands alone in a frame of a notebook, so that its style stays in there."""
    size = f'width="100%" height="{_HEIGHT}" style="border:1px solid #8885;border-radius:8px"'
    return f'<iframe sandbox srcdoc="{escape(page, quote=True)}" title="{escape(title, quote=True)}" {size}></iframe>'
