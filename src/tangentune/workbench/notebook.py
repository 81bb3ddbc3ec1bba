"""The workbench in a notebook: the same page in a frame, served by the notebook's own process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import final

from tangentune.estimators.classifier import TangentClassifier
from tangentune.workbench.server import prepare


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """What a notebook shows; the server runs until `close`, or until the notebook's process ends.

    Attributes:
        address: of the page, with its secret: whoever opens it on this machine may change the model.
        height: of the frame, in pixels.
    """

    address: str
    height: int
    close: Callable[[], None]

    def __repr__(self) -> str:
        return f"<workbench at {self.address}>"

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame."""
        address, size = escape(self.address, quote=True), f'width="100%" height="{int(self.height)}"'
        return f'<iframe src="{address}" title="The workbench of tangentune" {size} frameborder="0"></iframe>'


def frame(model: TangentClassifier, *, originals: str | os.PathLike[str] | None = None, height: int = 900) -> Frame:
    """Serve the workbench of a classifier that was saved or read, on a free port, to be shown in a frame.

    Edits change the model itself, at once; its directory when they are saved.
    """
    serving = prepare(model, originals=originals, framed=True)
    return Frame(serving.address, height, serving.start())
