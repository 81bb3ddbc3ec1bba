"""HTML pages about single answers and single labels: why the model says so, and which labels may be mistakes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from tangentune.errors import nice_number
from tangentune.estimators.explanations import Suspect
from tangentune.pictures.pictures import Pictures
from tangentune.reports.explanation import EDGE, Attribution, Explanation, PictureEffect, familiarity, label_text
from tangentune.reports.gallery import MOST, Link, gallery
from tangentune.reports.pages import Estimator, is_classifier, network_name, relabel_command, render, thumbnail
from tangentune.solvers.likelihoods import LEAST_SQUARES

CLASSES_SHOWN = 5
DOUBTFUL = 0.5  # a probability below which the suggestion is likelier to be right than the label


def render_explanations(
    model: Estimator,
    pictures: Pictures,
    explanations: Sequence[Explanation],
    link: Link | None = None,
    known: Link | None = None,
) -> str:
    """Explanations of a fitted model's answers about pictures as one HTML page, a section for each picture.

    Addresses of their files come from `link`, those of the training pictures' files from `known`, where there are any.
    """
    classification = is_classifier(model)
    image = cache(partial(thumbnail, model.pictures_))  # a picture may be on several lists

    def tile(effect: PictureEffect, value: float, largest: float) -> dict[str, Any]:
        share = abs(value) / largest if largest > 0 else 0.0
        tile = {"effect": effect, "image": image(effect.position), "link": known and known(effect.id), "share": share}
        return tile | {"value": f"{value:+.3f}" if classification else nice_number(value, sign=True)}

    context = {
        "network": network_name(model),
        "n": len(model.ids_),
        "classification": classification,
        "several": is_classifier(model) and model.thresholds_ is not None,
        "source": bool(model.source_ and model.source_["strength"]),
        "likelihood": model.likelihood if model.likelihood != LEAST_SQUARES else None,
        "outer_steps": model.outer_steps_,
        "sections": [
            _section(one, thumbnail(pictures, one.position), tile) | {"link": link and link(one.id)}
            for one in explanations
        ],
    }
    return render("explain.html.j2", context)


def _section(one: Explanation, image: Any, tile: Any) -> dict[str, Any]:
    attributions, count = [], max(CLASSES_SHOWN, len(one.said or ()))
    for attribution in one.attributions:
        largest = abs(attribution.strongest.influence) if attribution.strongest else 0.0
        added = max((abs(effect.contribution) for effect in attribution.largest[:1]), default=0.0)
        shown = {"attribution": attribution, "verdict": _verdict(attribution)}
        shown |= {"sum": attribution.total - attribution.intercept}
        for name in ("raised", "lowered"):
            shown[name] = [tile(effect, effect.influence, largest) for effect in getattr(attribution, name)]
        shown["largest"] = [tile(effect, effect.contribution, added) for effect in attribution.largest]
        attributions.append(shown)
    return {
        "one": one,
        "image": image,
        "familiarity": familiarity(one.distance),
        "strange": one.distance > EDGE,
        "shown": one.answers[:count],
        "others": len(one.answers[count:]),
        "rest": sum(answer.confidence or 0.0 for answer in one.answers[count:]),
        "attributions": attributions,
    }


def _verdict(attribution: Attribution) -> str:
    """What would change without the most influential picture: "same", "other", or "" where nothing can be said."""
    strongest = attribution.strongest
    if strongest is None or strongest.without is None or strongest.without.confidence is None:
        return ""
    return "same" if strongest.without.label == attribution.answer.label else "other"


def render_suspects(
    model: Estimator,
    suspects: Sequence[Suspect],
    place: str | os.PathLike[str] | None = None,
    link: Link | None = None,
) -> str:
    """Labels that may be mistakes as one HTML page, worst first, with commands that correct them at `place`."""
    largest, known = max((one.score for one in suspects), default=0.0) or 1.0, is_classifier(model)
    editable = known and model.pictures_.pixels.numel() > 0
    tiles = [
        {
            "one": one,
            "position": one.position,
            "given": label_text(model, one.label),
            "suggestion": label_text(model, one.suggestion),
            "share": one.score / largest,
            "other": one.probability is None or one.probability < DOUBTFUL,
            "mend": relabel_command(place, one.id, label_text(model, one.suggestion)) if editable else None,
        }
        | ({"label": str(one.doubted or one.label)} if known else {})
        for one in suspects[:MOST]
    ]
    context = {
        "network": network_name(model),
        "n": len(model.ids_),
        "classification": known,
        "several": any(one.doubted for one in suspects),
        "gallery": gallery(model.pictures_, tiles, link),
    }
    return render("suspects.html.j2", context)
