"""One answer of a model and what it comes from, as records, in words, and as plain values for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

EDGE = 0.95  # a share of training pictures beyond which a picture is called unusual


@final
@dataclass(frozen=True)
class Answer:
    """What a model says: a class name, or a number as text; `confidence` is a probability, None where there is none."""

    label: str
    confidence: float | None


@final
@dataclass(frozen=True)
class Pull:
    """What one training picture did to one answer.

    Attributes:
        position: in `ids_`.
        id: its name.
        label: given.
        influence: what the lead (or number) would lose if the model had been fitted without it; exact.
        contribution: its term in the sum that the lead (or number) is.
        without: the answer of the model fitted without it; None where only another likelihood could tell.
    """

    position: int
    id: str
    label: str
    influence: float
    contribution: float
    without: Answer | None


@final
@dataclass(frozen=True)
class Account:
    """Where one lead, or one predicted number, comes from.

    Attributes:
        name: of the target, if there are several; else empty.
        answer: what is explained; `against` is the runner-up, None for numbers.
        total: the lead, or the number: the sum of `intercept` and the contributions of all training pictures.
        raised, lowered: the pictures of the largest influence in either direction, largest first.
        largest: the pictures of the largest contributions, largest first.
        counts: how many pictures raised and lowered it.
        error, scatter: standard deviations of the number, and of a new observation of it; None for classes.
    """

    name: str
    answer: Answer
    against: Answer | None
    total: float
    intercept: float
    raised: tuple[Pull, ...]
    lowered: tuple[Pull, ...]
    largest: tuple[Pull, ...]
    counts: tuple[int, int]
    error: float | None = None
    scatter: float | None = None

    @property
    def strongest(self) -> Pull | None:
        """The picture of the largest influence, if any has some."""
        return max((*self.raised[:1], *self.lowered[:1]), key=lambda pull: abs(pull.influence), default=None)


@final
@dataclass(frozen=True)
class Explanation:
    """One answer explained.

    Attributes:
        id: of the picture.
        position: among the pictures that were asked about.
        given: its label, if it is a training picture, which the answer then leaves out; else None.
        answers: classes with their probabilities, likeliest first; of a regressor its numbers.
        distance: its `ood_score`.
        accounts: one for a classifier, one a target for a regressor.
    """

    id: str
    position: int
    given: str | None
    answers: tuple[Answer, ...]
    distance: float
    accounts: tuple[Account, ...]


def familiarity(distance: float) -> str:
    """An out-of-distribution score in words.

    Example:
        >>> familiarity(0.2)
        'Familiar: nearer to the training pictures than 80 % of them are to the others.'
        >>> familiarity(1.3)
        'Unlike every training picture: 30 % more uncertain than the most distant of them. Do not rely on the answer.'
    """
    if distance > 1:
        excess = f"{100 * (distance - 1):.0f} %" if distance < 10 else f"{distance:.0f} times"
        words = "more uncertain than the most distant of them. Do not rely on the answer."
        return f"Unlike every training picture: {excess} {words}"
    farther = 100 * (1 - distance)
    if distance > EDGE:
        share = f"only {farther:.0f} % of the training pictures lie" if farther >= 0.5 else "no training picture lies"
        return f"Unusual: {share} as far from the others."
    if distance > 0.5:
        return f"Within the usual range: {100 - farther:.0f} % of the training pictures lie nearer to the others."
    return f"Familiar: nearer to the training pictures than {farther:.0f} % of them are to the others."


def label_text(model: Any, label: Any) -> str:
    """A label of a model's pictures for people: a class name, or numbers with four digits."""
    return str(label) if hasattr(model, "classes_") else ", ".join(map(short_number, np.atleast_1d(label)))


def document(explanation: Explanation) -> dict[str, Any]:
    """An explanation as plain values, for JSON."""

    def pull(one: Pull) -> dict[str, Any]:
        return vars(one) | {"without": None if one.without is None else vars(one.without)}

    def account(one: Account) -> dict[str, Any]:
        lists = {name: [pull(p) for p in getattr(one, name)] for name in ("raised", "lowered", "largest")}
        against = None if one.against is None else vars(one.against)
        return vars(one) | lists | {"answer": vars(one.answer), "against": against}

    plain = {
        "answers": [vars(answer) for answer in explanation.answers],
        "familiarity": familiarity(explanation.distance),
    }
    return vars(explanation) | plain | {"accounts": [account(one) for one in explanation.accounts]}


def short_number(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}"
