"""Work in shards, each a task that leaves one file: by this process alone, or by all that `torchrun` started.

Ranks share nothing but a folder. Whoever is free takes the next shard by a lock that the system lets go when its
holder dies, so that a slow rank takes fewer and a dead one costs its shard; a file that is there is never made again,
so that a restart goes on. No collective is used, and none can hang: the last step, by rank 0, reads the files in their
order, so that the sum has the same bits however many ranks there were.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tangentune._files import claimed
from tangentune.errors import InputError, StoreError
from tangentune.pictures.encoded import Encoded, Part

PATIENCE = 1800.0  # seconds without any shard done, or without a rank, before somebody is missed
_NAP = 0.1


@final
@dataclass(frozen=True)
class Rank:
    """Which of how many processes this is, as `torchrun` tells them; alone without it."""

    number: int = 0
    count: int = 1
    local: int = 1  # of them on this machine
    place: int = 0  # which of these it is
    run: str = ""  # tells one start of them from the next

    @classmethod
    def here(cls) -> Rank:
        """From the environment."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
        try:
            number, count, local, place = (int(os.environ.get(name, i in (1, 2))) for i, name in enumerate(names))
        except ValueError:
            number, count, local, place = -1, 0, 0, 0
        if not 0 <= number < count or local < 1:
            told = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
            raise InputError(f"{told} is no rank of several processes; start them with torchrun, or unset these")
        start = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        told = "-".join(os.environ.get(name, "") for name in start).strip("-")
        return cls(number, count, local, place, told and hashlib.sha256(told.encode()).hexdigest()[:8])

    @property
    def leads(self) -> bool:
        """Whether it does what one alone should do."""
        return self.number == 0

    def device(self, given: str | None) -> str | None:
        """The device asked for; of several ranks that ask for the accelerator each takes one of its machine's."""
        several = given is not None and self.count > 1 and given.isalpha() and given != "cpu"
        return f"{given}:{self.place}" if several else given

    def jobs(self, given: int | None) -> int | None:
        """Processes that decode pictures: where none are asked for, a fair share of this machine's."""
        return given if given is not None or self.count == 1 else max(1, (os.cpu_count() or 1) // self.local)


ALONE = Rank()


class ShareDone(Exception):
    """Ends the work of a rank that does not lead: its shards are done, and the rest is not its own."""


@final
@dataclass(frozen=True)
class Shared:
    """A folder in which the ranks of one job leave their shards, until its result is written."""

    folder: Path
    rank: Rank = ALONE

    def run(self, names: int | Sequence[str], make: Callable[[int, Path], None]) -> list[Path]:
        """`run_shards` in this folder."""
        return run_shards(self.folder, names, make, self.rank)

    def lead(self) -> None:
        """Go on as the rank that leads; ShareDone for the others."""
        if not self.rank.leads:
            raise ShareDone


@contextmanager
def sharing(folder: Path | None, rank: Rank) -> Iterator[Shared | None]:
    """A job in shards until its result is written, when the folder goes; None where there is nothing to share.

    A rank that does not lead leaves the block early and quietly. Killed, all that was done stays for the next start.
    """
    if folder is None:
        yield None
        return
    with suppress(ShareDone):
        yield Shared(folder, rank)
    leave(folder, rank)


def job_digest(facts: Iterable[Any], pictures: Iterable[Encoded]) -> str:
    """Tells a job from others: by what its result depends on, and by names, sizes and times of its files."""
    told, seen = hashlib.sha256(repr(tuple(facts)).encode("utf-8", "backslashreplace")), set[Any]()
    for picture in pictures:
        path = picture.file if isinstance(picture, Part) else picture
        told.update(repr(picture).encode("utf-8", "backslashreplace"))
        if path not in seen and not isinstance(path, bytes):
            seen.add(path)
            with suppress(OSError):  # it is named when it is read
                found = os.stat(path)
                told.update(repr((found.st_size, found.st_mtime_ns)).encode())
    return told.hexdigest()[:12]


def parts_folder(out: str | os.PathLike[str], digest: str, work: str | None = None) -> Path:
    """Where the shards of a job lie until `out` is written: beside it, or in a folder that was given."""
    return Path(out).parent / f".{Path(out).name}.{digest}.parts" if work is None else Path(work) / f"{digest}.parts"


def run_shards(
    folder: Path,
    names: int | Sequence[str],
    make: Callable[[int, Path], None],
    rank: Rank,
    patience: float = PATIENCE,
) -> list[Path]:
    """All shards' files, in order, so many or of these names; returns when the last is there, whoever made it.

    `make` writes a shard's file whole or not at all, and always the same.

    Raises:
        StoreError: another rank holds a shard, and for `patience` seconds none was done; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}" for i in range(names)] if isinstance(names, int) else names
    files, count = [folder / name for name in names], len(names)
    before, since = count + 1, time.monotonic()
    while missing := [i for i in range(count) if not files[i].exists()]:
        first = rank.number * len(missing) // rank.count  # each begins elsewhere, so that they seldom meet
        for i in missing[first:] + missing[:first]:
            with claimed(files[i]) as mine:
                if mine and not files[i].exists():
                    _holder(files[i]).write_text(f"rank {rank.number} on {socket.gethostname()}")
                    try:
                        make(i, files[i])
                    finally:
                        _holder(files[i]).unlink(missing_ok=True)
        left = sum(not file.exists() for file in files)
        if left < before:
            before, since = left, time.monotonic()
        elif time.monotonic() - since > patience:
            names = sorted({_told(file) for file in files if not file.exists()})
            raise StoreError(
                f"{left} of {count} shards are still with {' and '.join(names)}, and none was done for {patience:.0f} "
                "s; end what hangs there, and start this again: it goes on"
            )
        if left:
            time.sleep(_NAP)
    return files


def leave(folder: Path, rank: Rank, patience: float = PATIENCE) -> None:
    """The end of a rank's work; rank 0, when the result is written, waits for the others and clears the folder away.

    A rank that comes when all is done finds the files until then, and has nothing to do. One that never comes is named
    in a warning.
    """
    if not rank.leads:
        with suppress(OSError):  # cleared away already: it was too late
            _left(folder, rank, rank.number).touch()
        return
    since = time.monotonic()
    while missing := [i for i in range(1, rank.count) if not _left(folder, rank, i).exists()]:
        if time.monotonic() - since > patience:
            names = ", ".join(map(str, missing))
            warnings.warn(f"nothing was heard of rank {names}; the result is whole without it", stacklevel=2)
            break
        time.sleep(_NAP)
    shutil.rmtree(folder, ignore_errors=True)


def _left(folder: Path, rank: Rank, number: int) -> Path:
    """Says that a rank has ended its work in this start; what a former start left says nothing."""
    return folder / "-".join(filter(None, ("rank", str(number), rank.run)))


def _holder(file: Path) -> Path:
    return file.with_name(f"{file.name}.by")


def _told(file: Path) -> str:
    try:
        return _holder(file).read_text()
    except OSError:
        return "a rank that did not say its number"
