"""Settings of a tangent-kernel Gaussian process, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from tangentune.errors import InputError, check_counts, check_positive, check_words, is_number
from tangentune.kernels.output_gram import Outputs
from tangentune.memory import parse_bytes
from tangentune.methods.ntk.evidence import Scale
from tangentune.methods.ntk.problems import Mean

Space = Literal["auto", "function", "parameter", "matrix-free"]
FUNCTION_ROWS, PARAMETER_WIDTH = 10_000, 4096  # largest dense problems that "auto" takes on


@final
@dataclass(frozen=True)
class Settings:
    """What `NTKGaussianProcess` was told; its documentation says what each means."""

    mean: Mean = "network"
    outputs: Outputs = "full"
    space: Space = "auto"
    noise: Scale = "evidence"
    prior_variance: Scale = "evidence"
    rank: int = 100
    tolerance: float = 1e-5
    batch_size: int = 64
    memory: int | str = "1GiB"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_words(self)
        check_counts(self, {"rank": 1, "batch_size": 1})
        check_positive(self, "tolerance")
        check_scale("noise", self.noise)
        check_scale("prior_variance", self.prior_variance)
        parse_bytes(self.memory)

    def choose_space(self, rows: int, width: int, noise: Scale, prior_variance: Scale) -> Space:
        """The space for a problem of so many rows and weights."""
        if self.space in ("function", "parameter"):
            return self.space
        if self.space == "auto":
            if width <= min(rows, PARAMETER_WIDTH):
                return "parameter"
            if rows <= FUNCTION_ROWS:
                return "function"
            if width <= PARAMETER_WIDTH:
                return "parameter"
        large = f"{rows:,} rows and {width:,} weights go by space='matrix-free', which"
        if self.outputs != "full" or self.mean == "constant":
            raise InputError(
                f"{large} knows only outputs='full' and mean='network' or 'zero'; change those, or take less data"
            )
        if "evidence" in (noise, prior_variance):
            message = f"{large} cannot maximise the evidence; give noise and prior_variance as numbers, say those found"
            raise InputError(message + " on some of the data (noise_, prior_variance_)")
        return "matrix-free"


def check_scale(name: str, value: object) -> None:
    """Refuse what is neither "evidence" nor a positive number."""
    if value == "evidence" or (is_number(value) and 0 < float(value) < float("inf")):  # type: ignore[arg-type]
        return
    raise InputError(f"{name} is {value!r}; it must be a variance above 0, or 'evidence'")
