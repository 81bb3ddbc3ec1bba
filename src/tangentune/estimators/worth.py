"""Was the whole network worth its time? What a linear probe on the same pictures would score, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.estimators.summary import Summary, nice_seconds
from tangentune.solvers.metrics import r2

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
    counted = facts.classification and not facts.several  # of several labels the squared error is compared
    unit = " points" if counted else ""
    gain, lowest, highest = (f"{100 * x:+.1f}" if unit else f"{x:+.3f}" for x in (probe["gain"], low, high))
    spent = f"for {nice_seconds(facts.seconds)} instead of about {nice_seconds(probe['seconds'])}"
    score = f"{100 * probe['score']:.1f} %" if counted else f"an R² of {probe['score']:.3f}"
    if facts.settings["outer_steps"]:  # the probe stands on features that took all the time there was
        than = f"A linear probe of the features as they were moved has {score}; their tangents change that by"
        return f"{than} {gain}{unit} (95 % interval {lowest} to {highest})."
    than = f"A linear probe of the same pictures has {score}; the whole network changes that by"
    worth = "It was worth its time" if low > 0 else "It was not worth its time"
    worth = worth if low > 0 or high < 0 else "It is not certain that it was worth its time"
    return f"{than} {gain}{unit} (95 % interval {lowest} to {highest}), {spent}. {worth}."


def next_steps(facts: Summary) -> list[Step]:
    """What to try next, likeliest first."""
    steps = []
    if facts.interval is not None and facts.interval[0] <= facts.largest_class:
        why = "more pictures: from these it is not certain that the model does better than to name the largest class"
        steps.append(Step(why, "add(...)", "tangentune add"))
    elif facts.doubtful:
        labels = "a label that looks like a mistake" if facts.doubtful == 1 else f"{facts.doubtful:,} doubtful labels"
        steps.append(Step(f"look at {labels}", "suspects()", "tangentune suspects"))
    unsure = facts.probe is not None and facts.probe["interval"][0] <= 0
    if unsure and facts.settings["body_scale"] and not facts.settings["outer_steps"]:
        steps.append(Step("the linear probe alone: quicker, and perhaps as good", "subset='none'", "--subset none"))
    return steps
