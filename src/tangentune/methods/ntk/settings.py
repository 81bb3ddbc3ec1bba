"""Settings of a tangent-kernel Gaussian process, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from tangentune._checks import check_counts, check_words, is_number
from tangentune.errors import InputError
from tangentune.kernels.output_gram import Outputs
from tangentune.memory import parse_bytes
from tangentune.methods.ntk.evidence import Scale
from tangentune.methods.ntk.problems import Mean

Space = Literal["auto", "function", "parameter"]
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
    batch_size: int = 64
    memory: int | str = "1GiB"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_words(self)
        check_counts(self, {"batch_size": 1})
        check_scale("noise", self.noise)
        check_scale("prior_variance", self.prior_variance)
        parse_bytes(self.memory)

    def choose_space(self, rows: int, width: int) -> Space:
        """The space for a problem of so many rows and weights."""
        if self.space != "auto":
            return self.space
        if rows > FUNCTION_ROWS and width > PARAMETER_WIDTH:
            message = f"{rows:,} rows and {width:,} weights make two large matrices; take fewer pictures or params, or "
            message += "set space='function' (memory rows^2) or 'parameter' (weights^2)"
            raise InputError(message)
        return "parameter" if width <= PARAMETER_WIDTH and (width <= rows or rows > FUNCTION_ROWS) else "function"


def check_scale(name: str, value: object) -> None:
    """Refuse what is neither "evidence" nor a positive number."""
    if value == "evidence" or (is_number(value) and 0 < float(value) < float("inf")):  # type: ignore[arg-type]
        return
    message = f"{name} is {value!r}; it must be a variance above 0, or 'evidence'"
    raise InputError(message)
