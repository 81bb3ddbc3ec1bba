"""The data contract: how a picture must look before a network may see it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class DataContract:
    """How pictures are prepared for a backbone; travels with it and is saved with the model.

    Attributes:
        input_size: `(channels, height, width)`, or None: inputs are passed on as they come (vectors).
        mean: per-channel mean of pixels scaled to [0, 1]; empty means no shift.
        std: per-channel standard deviation, same scale; empty means no scaling.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop: None squashes the picture to the input size; a share in (0, 1] resizes the shorter side
            to size / crop and takes the centre.
        licence: licence of the weights, as stated by their source.
        source: where the weights came from.
        sha256: hash of the weight file, or of the parameters where there is no file.

    Example:
        >>> DataContract(input_size=(3, 96, 96)).with_size(64).input_size
        (3, 64, 64)
    """

    input_size: tuple[int, ...] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bicubic"
    crop: float | None = None
    licence: str = "unknown"
    source: str = "unknown"
    sha256: str | None = None

    def with_size(self, size: int | tuple[int, int] | None) -> DataContract:
        """The same contract at another height and width (an int means a square); None changes nothing."""
        if size is None or self.input_size is None:
            return self
        height, width = (size, size) if isinstance(size, int) else size
        return replace(self, input_size=(self.input_size[0], height, width))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DataContract:
        """Read what `to_dict` wrote (JSON turns tuples into lists)."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**arguments)
