"""HTML pages about single answers and single labels: why the model says so, and which labels may be mistakes.

They stand alone, as the report does: nothing is loaded, no script is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tangentune import __version__
from tangentune._files import replaced_file
from tangentune.estimators.explanations import Suspect
from tangentune.pictures.pictures import Pictures
from tangentune.reports.answers import EDGE, Account, Explanation, Pull, familiarity, label_text
from tangentune.reports.model_page import environment
from tangentune.reports.tables import thumbnail
from tangentune.solvers.likelihoods import LEAST_SQUARES

CLASSES_SHOWN = 5
DOUBTFUL = 0.5  # a probability below which the suggestion is likelier to be right than the label


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Write a page to a file, whole or not at all; folders above it are made; returns the path.

    Raises:
        StoreError: the file cannot be written.
    """
    with replaced_file(path) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def render_explanations(model: Any, pictures: Pictures, explanations: Sequence[Explanation]) -> str:
    """Explanations of a fitted model's answers as one HTML page, a section for each picture.

    Args:
        model: fitted.
        pictures: what was asked about.
        explanations: of `accounts.explain`.
    """
    kept, classification = model.pictures_, hasattr(model, "classes_")
    images: dict[int, Any] = {}

    def tile(pull: Pull, value: float, largest: float) -> dict[str, Any]:
        if pull.position not in images:
            images[pull.position] = thumbnail(kept, pull.position)
        share = abs(value) / largest if largest > 0 else 0.0
        shown = f"{value:+.3f}" if classification else f"{value:+.3g}"
        return {"pull": pull, "image": images[pull.position], "value": shown, "share": share}

    context = {
        "version": __version__,
        "network": _network(model),
        "n": len(model.ids_),
        "classification": classification,
        "source": model.fitted_.training.source is not None,
        "likelihood": model.likelihood if model.likelihood != LEAST_SQUARES else None,
        "outer_steps": model.outer_steps_,
        "sections": [_section(one, thumbnail(pictures, one.position), tile) for one in explanations],
    }
    return environment().get_template("explain.html.j2").render(context)


def _network(model: Any) -> str:
    name = str(model.backbone_.name)
    return "the network" if name == "custom" else name


def _section(one: Explanation, image: Any, tile: Any) -> dict[str, Any]:
    accounts = []
    for account in one.accounts:
        largest = max((abs(pull.influence) for pull in account.raised[:1] + account.lowered[:1]), default=0.0)
        added = max((abs(pull.contribution) for pull in account.largest[:1]), default=0.0)
        accounts.append(
            {
                "account": account,
                "verdict": _verdict(account),
                "raised": [tile(pull, pull.influence, largest) for pull in account.raised],
                "lowered": [tile(pull, pull.influence, largest) for pull in account.lowered],
                "largest": [tile(pull, pull.contribution, added) for pull in account.largest],
                "sum": account.total - account.intercept,
            }
        )
    return {
        "one": one,
        "image": image,
        "familiarity": familiarity(one.distance),
        "strange": one.distance > EDGE,
        "shown": one.answers[:CLASSES_SHOWN],
        "others": len(one.answers[CLASSES_SHOWN:]),
        "rest": sum(answer.confidence or 0.0 for answer in one.answers[CLASSES_SHOWN:]),
        "accounts": accounts,
    }


def _verdict(account: Account) -> str:
    """What would change without the most influential picture: "same", "other", or "" where nothing can be said."""
    strongest = account.strongest
    if strongest is None or strongest.without is None or account.against is None:
        return ""
    return "same" if strongest.without.label == account.answer.label else "other"


def render_suspects(model: Any, suspects: Sequence[Suspect]) -> str:
    """Labels that may be mistakes as one HTML page, worst first."""
    kept = model.pictures_
    largest = max((one.score for one in suspects), default=0.0) or 1.0
    context = {
        "version": __version__,
        "network": _network(model),
        "n": len(model.ids_),
        "classification": hasattr(model, "classes_"),
        "tiles": [
            {
                "one": one,
                "given": label_text(model, one.label),
                "suggestion": label_text(model, one.suggestion),
                "image": thumbnail(kept, one.position),
                "share": one.score / largest,
                "wrong": one.probability is None or one.probability < DOUBTFUL,
            }
            for one in suspects
        ],
    }
    return environment().get_template("suspects.html.j2").render(context)
