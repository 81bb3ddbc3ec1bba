"""Decode many picture files in their given order, in this process or in worker processes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import chain
from typing import Any, cast

import numpy as np
from joblib import Parallel, cpu_count, delayed
from joblib.parallel import LokyBackend
from numpy.typing import NDArray

from tangentune.errors import InputError, PictureError, whole
from tangentune.pictures.contract import DataContract
from tangentune.pictures.cost import pillow_settings, use_settings
from tangentune.pictures.decode import try_decode
from tangentune.pictures.encoded import Encoded

Decoded = NDArray[np.uint8] | str
"""A picture's pixels, or the reason why it cannot be read."""

_CHUNK = 32
_LOOK_EVERY = 8
# Starting workers costs a few seconds, so they must have more than that to do.
_WORTH_WORKERS_S = 6.0
_LOOK_FOR_PARENT_S = 1.0


def worker_count(n_jobs: int) -> int:
    """How many processes an `n_jobs` means; negative counts back from all cores, as in scikit-learn."""
    count = whole(n_jobs)
    if not count:
        raise InputError(f"n_jobs is {n_jobs!r}; use None, a number of processes, or -1 for all cores.")
    return count if count > 0 else max(1, cpu_count() + 1 + count)


def decode_files(
    paths: Sequence[Encoded], contract: DataContract, n_jobs: int | None = None
) -> Generator[Decoded, None, None]:
    """Yield every file's pixels, or the reason why it cannot be read, in the order of `paths`, whatever `n_jobs` is.

    None begins in this process and hands the rest to one worker per core once the first pictures show that it pays.
    Workers are reused by later calls; one that dies is a PictureError.
    """
    workers = None if n_jobs is None else worker_count(n_jobs)
    start, done = time.perf_counter(), 0
    while done < len(paths) and (workers is None or workers == 1):
        yield try_decode(paths[done], contract)
        done += 1
        if workers is None and done % _LOOK_EVERY == 0:
            expected = (time.perf_counter() - start) / done * (len(paths) - done)
            workers = cpu_count() if expected > _WORTH_WORKERS_S and cpu_count() > 1 else None
    if done < len(paths):
        yield from _decode_in_workers(paths, done, contract, workers or 1)


def _decode_in_workers(
    paths: Sequence[Encoded], first: int, contract: DataContract, workers: int
) -> Generator[Decoded, None, None]:
    size = max(1, min(_CHUNK, (len(paths) - first) // (4 * workers)))
    settings, stopped = pillow_settings(), False

    def tasks() -> Iterator[Any]:
        for start in range(first, len(paths), size):
            if stopped:
                return
            here = [paths[i] for i in range(start, min(start + size, len(paths)))]  # read now, if they are bytes
            yield delayed(_decode_chunk)(here, contract, settings)

    # loky, not multiprocessing: it neither forks a process that runs threads nor imports the user's script.
    options: dict[str, Any] = {"backend": _Decoders(), "return_as": "generator", "batch_size": 1}
    results: Iterator[list[Decoded]] = iter(())
    try:
        results = cast("Iterator[list[Decoded]]", Parallel(n_jobs=workers, **options)(tasks()))
        yield from chain.from_iterable(results)
    except BrokenProcessPool as error:
        raise PictureError(
            "A process that decodes pictures died (out of memory, or a file that crashes its decoder); "
            "use n_jobs=1, or fewer processes than now, to go on or to see which file it is."
        ) from error
    finally:
        # When the caller stops early: let the few tasks under way end, because killing workers is not safe.
        stopped = True
        with suppress(BrokenProcessPool):
            deque(results, maxlen=0)


def _decode_chunk(paths: Sequence[Encoded], contract: DataContract, settings: tuple[Any, ...]) -> list[Decoded]:
    """Runs in a worker, under the Pillow settings of the process that asked."""
    use_settings(settings)
    return [try_decode(path, contract) for path in paths]


class _Decoders(LokyBackend):
    """Worker processes that look for their parent before they wait for any work."""

    def configure(self, *arguments: Any, **options: Any) -> int:
        """Start them, or take those of an earlier call."""
        return super().configure(*arguments, initializer=_end_with, initargs=(os.getpid(),), **options)


def _end_with(parent: int) -> None:
    """In a worker: end it soon after its parent is gone, however that came about; nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_FOR_PARENT_S)
        os._exit(1)

    if os.name == "posix":  # elsewhere the number of a parent outlives it
        threading.Thread(target=watch, daemon=True).start()
