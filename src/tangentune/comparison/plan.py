"""What a comparison shall measure: methods, numbers of pictures a class, seeds.

Nothing heavy is imported, so that the command line can name a mistake at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tangentune.comparison.methods import METHODS
from tangentune.errors import InputError, listed, whole

ALL = "all"
Shots = int | str  # a number of pictures a class, or ALL


def shots_order(shots: Shots) -> float:
    """A sorting key: numbers first, "all" last."""
    return float("inf") if shots == ALL else float(shots)


def read_shots(word: Any) -> Shots:
    """A number of pictures a class, at least 1, or "all", from a number or text; anything else is an InputError."""
    text = str(word).strip().lower()
    if text == ALL:
        return ALL
    if isinstance(word, bool) or not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{str(word)!r} is no number of pictures a class; give whole numbers from 1 on, or all")
    return int(text)


def read_methods(words: Iterable[Any]) -> list[str]:
    """Names of methods, each once, in the order given; an InputError lists what there is."""
    names = list(dict.fromkeys(str(word).strip().lower() for word in words))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        what = f"there is no method {unknown[0]!r}" if unknown else "no method is named"
        raise InputError(f"{what}; there are {', '.join(METHODS)}")
    return names


def plan_cells(
    methods: Sequence[str], shots: Sequence[Shots], seeds: int | Sequence[int]
) -> list[tuple[str, Shots, int]]:
    """Every cell wanted, (method, shots, seed), seed by seed, so that a part of them is a comparison already."""
    names = read_methods([methods] if isinstance(methods, str) else methods)
    wanted, several = listed(shots), listed(seeds)
    counts = sorted(dict.fromkeys(map(read_shots, [shots] if wanted is None else wanted)), key=shots_order)
    given = range(whole(seeds) or 0) if several is None else map(whole, several)
    numbers = [-1 if seed is None else seed for seed in dict.fromkeys(given)]
    if not counts or not numbers or min(numbers) < 0:
        raise InputError(
            f"shots={shots} and seeds={seeds} must each name at least one, and seeds are whole numbers, 0 or more"
        )
    return [(name, count, seed) for seed in numbers for count in counts for name in names]
