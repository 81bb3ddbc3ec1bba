"""One pass over features: reading ahead, refusing bad rows, time left, and a state saved every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

from torch import Tensor
from tqdm.auto import tqdm

from tangentune.methods.source_selection.feature_source import CHUNK, Features, lengths


def stream(
    features: Features,
    what: str,
    *,
    start: int = 0,
    chunk: int = CHUNK,
    save: Callable[[int], None] | None = None,
    every: float = 10.0,
    verbose: int = 0,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The rows from `start` on as `(first row, (m, d) rows, (m,) their lengths)`.

    Args:
        features: what to read.
        what: the progress bar's name for the pass.
        start: first row, a multiple of `chunk` where a pass must be repeated bit for bit.
        chunk: rows at a time; each tensor is good until the next one is asked for.
        save: called with the number of rows done, after the caller has dealt with them.
        every: seconds between two calls of `save`.
        verbose: 1 shows a progress bar with the time left on anything over a second.

    Raises:
        InputError: a row holds NaN or infinity, or has no direction; it is named.

    Example:
        >>> from tangentune.methods.source_selection.features import open_features
        >>> features = open_features([[3.0, 4.0], [0.0, 2.0]])
        >>> [(first, norms.tolist()) for first, _, norms in stream(features, "lengths")]
        [(0, [5.0, 2.0])]
    """
    saved = time.monotonic()
    settings = {"desc": what, "unit": "row", "unit_scale": True, "delay": 1.0, "disable": not verbose}
    with (
        tqdm(total=features.count, initial=start, **settings) as bar,
        closing(features.chunks(start, chunk)) as chunks,
    ):
        for first, rows in chunks:
            yield first, rows, lengths(rows, first)
            done = first + len(rows)
            bar.update(len(rows))
            if save is not None and time.monotonic() - saved >= every and done < features.count:
                save(done)
                saved = time.monotonic()
