"""One measurement: a method, a number of pictures a class and a seed, with all that was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune.comparison.plan import Shots


@final
@dataclass(frozen=True)
class Cell:
    """What one method did with one draw of training pictures.

    Attributes:
        method: its name in `tangentune.comparison.methods.METHODS`.
        shots: pictures asked for of every class, or "all".
        seed: of the draw and of the method.
        n: training pictures it got, all classes together.
        failed: why there is no result; None where there is one.
        scores: accuracy, nll, ece and brier on the test pictures; empty if it failed.
        right: which test pictures it got right, as hexadecimal bits (see `right_pictures`).
        seconds: wall time of the fit with every choice it makes, without reading pictures and predicting.
        cpu_seconds: processor time of the same, all threads together.
        predict_seconds: wall time for all test pictures.
        peak_bytes: highest memory during the fit, all that the process (or the accelerator) holds.
        before_bytes: of these, held before the fit began: interpreter, network, all pictures.
        chosen: what the method chose.
        notes: warnings it gave.
    """

    method: str
    shots: Shots
    seed: int
    n: int
    failed: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    right: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    predict_seconds: float | None = None
    peak_bytes: int | None = None
    before_bytes: int | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, Shots, int]:
        """What tells it from other cells of the same comparison."""
        return self.method, self.shots, self.seed


def pack_right(right: NDArray[np.bool_]) -> str:
    """Which of n pictures are right, as hexadecimal text of n / 4 letters; `right_pictures` reads it."""
    return np.packbits(right).tobytes().hex()


def right_pictures(text: str, n: int) -> NDArray[np.bool_]:
    """(n,) which pictures are right, from what `pack_right` wrote.

    Example:
        >>> right_pictures(pack_right(np.array([True, False, True])), 3)
        array([ True, False,  True])
    """
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(bool)
