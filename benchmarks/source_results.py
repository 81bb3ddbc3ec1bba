"""Reading the results of the study of pre-training pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from benchmarks import record

NAME, SCALE = "source_study", "source_scale"
WAYS = {"joint": "joint training", "closed": "the closed form"}
Row = Mapping[str, Any]


@final
@dataclass(frozen=True, eq=False)
class Results:
    """Rows of docs/results/source_study.json."""

    rows: Sequence[Row]
    selections: Sequence[Row]

    @classmethod
    def load(cls) -> Results:
        """From the file; empty without one."""
        payload = record.load(NAME)
        return cls(payload.get("rows", []), payload.get("selections", []))

    def of(self, section: str, value: str, **key: Any) -> dict[int, Any]:
        """A value of all rows with these settings, by seed; rows that have none are left out."""
        rows = [row for row in getattr(self, section) if key.items() <= row["key"].items()]
        return {row["key"]["seed"]: row[value] for row in rows if row.get(value) is not None}

    def budgets(self) -> list[int]:
        """How many pictures were chosen, ascending."""
        return sorted({row["key"]["budget"] for row in self.selections})

    def gains(self, target: str, way: str, ranking: str, budget: int, over: str, over_budget: int) -> list[float]:
        """Points of accuracy by which one choice beats another, seed by seed."""
        mine = self.of("rows", "accuracy", target=target, way=way, ranking=ranking, budget=budget)
        its = self.of("rows", "accuracy", target=target, way=way, ranking=over, budget=over_budget)
        return [100 * (mine[seed] - its[seed]) for seed in sorted(mine.keys() & its.keys())]
