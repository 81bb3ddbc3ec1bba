"""What a selection is asked for, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

from tangentune.errors import InputError, check_counts, check_numbers, check_positive, check_words, is_number

# exp(-(1 - cosine) / COST_SCALE), and the penalty of the target masses: measured, docs/decisions/0014. The published
# code has .1 and 100, and features that are not centred.
COST_SCALE = 0.05
TAU_TARGET = 1.0
_USED = {"uot": ("cost_scale", "eps", "tau_source", "tau_target", "marginals"), "random": ("seed",)}
_ALWAYS = ("method", "unit", "budget", "granularity", "quota", "clusters", "centre")


@final
@dataclass(frozen=True)
class Budget:
    """How much to choose."""

    # "classes": so many candidates (classes or clusters, each with all its pictures); "pictures": so many pictures;
    # "mass": the best candidates that together hold this share of the row mass
    kind: Literal["classes", "pictures", "mass"]
    amount: float  # a whole number, or a share above 0 and up to 1

    def __post_init__(self) -> None:
        """Check."""
        check_words(self)
        amount = self.amount
        if self.kind == "mass":
            if not (is_number(amount) and 0 < amount <= 1):
                raise InputError(f"a budget of mass is a share of it, above 0 and up to 1, not {amount!r}")
        elif not (is_number(amount) and math.isfinite(amount) and amount >= 1 and amount == int(amount)):
            raise InputError(f"a budget of {self.kind} is a whole number of at least 1, not {amount!r}")


@final
@dataclass(frozen=True)
class SelectionSettings:
    """How source pictures are chosen.

    Attributes:
        budget: how much, in the unit; None with the method "all" only, which takes everything.
        unit: "pictures"; "classes": the best classes (or clusters) with all their pictures; "mass": as many as
            together hold this share of the mass.
        method: "uot" (unbalanced optimal transport), "nearest" (target class), "random" or "all".
        granularity: "pictures" are scored one by one, "classes" as a whole, "nested": the mass of each class is
            divided between its pictures; None: "classes" for a budget of them, else "nested" for "uot" and
            "pictures" for the others.
        quota: least number of pictures (classes) for every target class; None: for "nested" pictures an even share of
            the budget, else 0.
        clusters: k-means of directions makes so many classes of the source, whose own labels are not used.
        cost_scale: what `1 - cosine` is divided by for "uot"; small ones tell near targets apart.
        eps: weight of the entropy, as the next three of "uot".
        tau_source: penalty of the source masses.
        tau_target: penalty of the target masses; may be infinite.
        marginals: "uniform": every class has the mass 1; "counts": as many as it has pictures.
        centre: take the midpoint of the two sets' mean unit features off both, which leaves what tells pictures
            apart; the paper's code does not (docs/decisions/0014).
        seed: of "random" and of the clusters.

    Raises:
        InputError: a setting is out of range, or two do not go together.
    """

    budget: float | None = None
    unit: Literal["pictures", "classes", "mass"] = "pictures"
    method: Literal["uot", "random", "all", "nearest"] = "uot"
    granularity: Literal["pictures", "classes", "nested", None] = None
    quota: int | None = None
    clusters: int | None = None
    cost_scale: float = COST_SCALE
    eps: float = 1.0
    tau_source: float = 1.0
    tau_target: float = TAU_TARGET
    marginals: Literal["uniform", "counts"] = "uniform"
    centre: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check."""
        check_words(self)
        lowest = {"quota": 0, "clusters": 2}
        check_counts(self, {name: low for name, low in lowest.items() if getattr(self, name) is not None})
        check_positive(self, "cost_scale", "eps")
        check_numbers(self, ("tau_source",), lambda value: value >= 0, "a number of at least 0")
        if self.tau_target != math.inf:
            check_numbers(self, ("tau_target",), lambda value: value >= 0, "a number of at least 0, or infinite")
        if self.granularity == "nested" and self.method != "uot":
            raise InputError(
                f"granularity 'nested' divides masses of classes, which the method {self.method!r} has none of"
            )
        if self.unit == "classes" and self.granularity in ("pictures", "nested"):
            raise InputError("a budget of classes takes whole classes; use unit='pictures' to choose single ones")
        if (self.budget is None) != (self.method == "all"):
            message = f"the method {self.method!r} needs a budget"
            if self.method == "all":
                message = "the method 'all' takes every picture; leave the budget out"
            raise InputError(message)
        self.amount  # noqa: B018  # checks it

    @property
    def amount(self) -> Budget:
        """The budget; for "all", the whole mass."""
        return Budget("mass", 1.0) if self.budget is None else Budget(self.unit, self.budget)

    @property
    def candidates(self) -> str:
        """What is ranked: "pictures", "classes" or "nested"."""
        alone = "nested" if self.method == "uot" else "pictures"
        return self.granularity or ("classes" if self.unit == "classes" else alone)

    def for_targets(self, count: int) -> SelectionSettings:
        """The same settings with the quota that they mean for so many target classes."""
        if self.quota is not None:
            return self
        even = self.budget is not None and self.unit == "pictures" and self.candidates == "nested"
        return replace(self, quota=int(self.budget or 0) // count if even else 0)

    def recorded(self) -> dict[str, Any]:
        """Those that have an effect, as JSON-able values."""
        names = {*_ALWAYS, *_USED.get(self.method, ()), *(("seed",) if self.clusters else ())}
        kept = {key: value for key, value in asdict(self).items() if key in names}
        kept |= {"granularity": self.candidates}
        if self.budget is not None and self.unit != "mass":
            kept["budget"] = int(self.budget)
        return {key: "infinite" if value == math.inf else value for key, value in kept.items()}
