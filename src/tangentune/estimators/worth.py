"""Was the whole network worth its time? What a linear probe on the same pictures would score, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.estimators.summary import Summary, nice_seconds
from tangentune.metrics import r2

CERTAIN = 1.96  # standard errors on either side of a 95 % interval


@dataclass(frozen=True)
class Step:
    """Something to try next: why, and how it is said in Python and on the command line."""

    why: str
    python: str
    command: str


def compare_classes(labels: NDArray, fitted: NDArray, probe: NDArray) -> dict[str, Any]:
    """Accuracy of a probe, and by how much a fit is above it on the same n pictures: classes by position, (n,) each.

    The interval is that of Agresti and Min (2005), "Simple improved confidence intervals for comparing matched
    proportions": half a picture more of each kind, which holds its 95 % with few pictures too.
    """
    n, ours, theirs = len(labels), fitted == labels, probe == labels
    won, lost = (ours & ~theirs).sum(), (theirs & ~ours).sum()
    middle = (won - lost) / (n + 2)
    half = CERTAIN * np.sqrt(won + lost + 1 - (won - lost) ** 2 / (n + 2)) / (n + 2)
    interval = [max(-1.0, float(middle - half)), min(1.0, float(middle + half))]
    return {"score": float(theirs.mean()), "gain": float((won - lost) / n), "interval": interval}


def compare_numbers(targets: NDArray, fitted: NDArray, probe: NDArray) -> dict[str, Any]:
    """The same in R2, of numbers (n, k): a normal interval of the paired difference of squared errors."""
    scale = np.square(targets - targets.mean(0)).mean(0)
    scale = np.where(scale > 0, scale, 1.0)
    gains = ((np.square(targets - probe) - np.square(targets - fitted)) / scale).mean(1)
    half = CERTAIN * gains.std(ddof=1) / np.sqrt(len(gains))
    interval = [float(gains.mean() - half), float(gains.mean() + half)]
    return {"score": float(r2(targets, probe)), "gain": float(gains.mean()), "interval": interval}


def verdict(facts: Summary) -> str:
    """What moving the whole network has brought over a linear probe, in a sentence; empty where no probe was tried."""
    probe = facts.probe
    if probe is None:
        return ""
    if not facts.settings["body_scale"]:
        return "This fit is a linear probe: no block of the network was moved."
    low, high = probe["interval"]
    score, between = _shown(facts, probe["score"]), f"95 % interval {_gain(facts, low)} to {_gain(facts, high)}"
    than = f"a linear probe of the same pictures {score}: a gain of {_gain(facts, probe['gain'])} ({between})"
    spent = f"for {nice_seconds(facts.seconds)} instead of about {nice_seconds(probe['seconds'])}"
    if low > 0:
        return f"The whole network was worth its time: {than}, {spent}."
    if high < 0:
        return f"The whole network was not worth its time: {than}, {spent}."
    return f"It is not certain that the whole network was worth its time: {than}, {spent}."


def next_steps(facts: Summary) -> list[Step]:
    """What to try next, likeliest first: at most three."""
    steps, options = [], facts.options
    if facts.doubtful:
        labels = "1 label looks" if facts.doubtful == 1 else f"{facts.doubtful:,} labels look"
        steps.append(Step(f"{labels} like a mistake: look at them first", "suspects()", "tangentune suspects"))
    pictures = facts.contract["input_size"] is not None
    if facts.classification and not facts.settings["outer_steps"] and facts.source is None:
        why = "let the network take some steps towards the labels first, if leave-one-out finds that better"
        steps.append(Step(why, "outer_steps='loo'", "--outer-steps loo"))
    if pictures and options["augment"] in (None, "none"):
        why = "show each picture mirrored as well, if left and right mean the same"
        steps.append(Step(why, "augment='flip'", "--augment flip"))
    if facts.probe is not None and facts.probe["interval"][0] <= 0 and facts.settings["body_scale"]:
        steps.append(Step("as good and quicker for now: the probe alone", "subset='none'", "--subset none"))
    return steps[:3]


def _shown(facts: Summary, score: float) -> str:
    return f"has {100 * score:.1f} %" if facts.classification else f"has an R² of {score:.3f}"


def _gain(facts: Summary, gain: float) -> str:
    return f"{100 * gain:+.1f} points" if facts.classification else f"{gain:+.3f}"
