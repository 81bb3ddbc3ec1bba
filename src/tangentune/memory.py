"""What a job takes: memory that may be used, was used or is full; pages kept warm; stages and their progress."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tangentune.errors import BudgetError, InputError

T = TypeVar("T")

UNITS = {"": 1, "b": 1, "k": 2**10, "kb": 10**3, "kib": 2**10, "m": 2**20, "mb": 10**6, "mib": 2**20}
UNITS |= {"g": 2**30, "gb": 10**9, "gib": 2**30, "t": 2**40, "tb": 10**12, "tib": 2**40}

# Folder of a kind below the mount ("" is version 2) -> its limit, what is used, and the cache in its memory.stat.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def parse_bytes(text: str | int | float) -> int:
    """Read a memory size: a number of bytes, or text such as "4GiB", "500 MB"; what is neither is an InputError."""
    match = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:e\+?\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in UNITS or float(match[1]) <= 0:
        raise InputError(f"memory size {text!r} is not understood; write it as '4GiB', '500MB' or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].lower()])


def available_bytes(device: torch.device) -> int:
    """Memory a new job could take on the device now, within what a container or batch system allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(min(psutil.virtual_memory().available, room_in_groups()))


def room_in_groups(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that Linux control groups still leave this process; infinite where none sets a limit.

    A limit may stand at any group above the process. A container may see its own group as the root, whatever the path
    says, so the root is asked too. Files kept in memory count as used there, but give way to a new job. `root` is where
    groups are mounted; `groups` names those of the process, `number:kinds:path` a line; version 2 names no kinds.
    """
    room = math.inf
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, kinds, path = line.split(":", 2)
        for kind in _GROUP_FILES.keys() & set(kinds.split(",")):
            limit, used, cache = _GROUP_FILES[kind]
            tree = root / kind
            group = tree / path.lstrip("/")
            for folder in (group, *(above for above in group.parents if above.is_relative_to(tree))):
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit here
                    free = int((folder / limit).read_text()) - int((folder / used).read_text())
                    found = re.search(rf"^{cache} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
                    room = min(room, free + (int(found[1]) if found else 0))
    return max(room, 0)


def default_budget(device: torch.device) -> int:
    """Half of what is available."""
    return available_bytes(device) // 2


def resident_bytes(device: torch.device) -> int:
    """Memory that the process holds on the device now: libraries, networks and pictures are in it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def nice_mebibytes(count: float) -> str:
    """Memory in whole MiB, as budgets are told."""
    return f"{count / 2**20:,.0f} MiB"


def peak_bytes(device: torch.device) -> int:
    """Highest memory since the last reset, or since the start where the system cannot reset it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux: the one peak that can be reset; psutil does not tell it
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    highest = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if highest is not None:  # Windows, which has no `resource`
        return highest
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> bool:
    """Let the highest memory count from now on; False, and nothing done, where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


_AT_ONCE: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # pictures that a network was seen to have room for


def in_halves(
    work: Callable[[list[Tensor]], T], join: Callable[[list[T]], T], views: Sequence[Tensor], network: nn.Module
) -> T:
    """`work` on views (n, ...) of some pictures, in halves where a device's memory is full, and their results joined.

    What was found out stays with the network: no later batch fills the memory again. It is told once each time.

    Raises:
        BudgetError: one picture alone has no room.
    """
    count = len(views[0])
    most = _AT_ONCE.get(network, count)
    if count <= most:
        try:
            return work(list(views))
        except torch.OutOfMemoryError as error:
            if count == 1:
                message = f"one picture in the network has no room in the memory of {views[0].device}"
                raise BudgetError(f"{message}; lower the input size or take another device") from error
        # The error is let go here, and with it the tensors of the frames it came through.
        _AT_ONCE[network] = most = -(-count // 2)
        full = f"the memory of {views[0].device} is full with {count} pictures in the network at once"
        warnings.warn(f"{full}; it goes on with {most} at a time", RuntimeWarning, stacklevel=2)
    parts = zip(*(view.split(most) for view in views), strict=True)
    return join([in_halves(work, join, part, network) for part in parts])


_OPEN: list[dict[torch.device, int]] = []  # the highest seen so far by each stage that is running, outermost first


def progress(
    items: Iterable[Any] | None = None, *, label: str, total: int | None, unit: str = "it", verbose: int
) -> Any:
    """A bar for one stage, with the time left; it goes when the stage ends, so that a job shows one line at a time.

    It goes through `items`, `total` of them; where these are None, the stage calls `update` itself. `verbose` 0 shows
    nothing; what takes less than a second shows nothing either.
    """
    return tqdm(
        items, total=total, desc=label, unit=unit, delay=1.0, disable=not verbose, leave=False, dynamic_ncols=True
    )


@dataclass
class Meter:
    """Seconds and peak bytes of each stage of a job, in order; stages of another meter may run inside one."""

    device: torch.device
    stages: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one stage; a name met again adds to its row. What was freed before is given back to the system."""
        self._tell_outer(peak_bytes(self.device))  # the reset below must not hide it from them
        trim()
        reset_peak(self.device)
        own = {self.device: 0}
        _OPEN.append(own)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            _OPEN[:] = [other for other in _OPEN if other is not own]  # another thread's may have come after it
            peak = max(own[self.device], peak_bytes(self.device))
            self._tell_outer(peak)
        for row in self.stages:
            if row["stage"] == name:
                row["seconds"] += seconds
                row["peak_bytes"] = max(row["peak_bytes"], peak)
                return
        self.stages.append({"stage": name, "seconds": seconds, "peak_bytes": peak})

    def _tell_outer(self, peak: int) -> None:
        for highest in _OPEN:
            if self.device in highest:
                highest[self.device] = max(highest[self.device], peak)

    def of(self, name: str) -> dict[str, Any]:
        """The row of a stage."""
        return next(row for row in self.stages if row["stage"] == name)

    def report(self) -> dict[str, Any]:
        """Totals and stages."""
        return {
            "total_seconds": sum(row["seconds"] for row in self.stages),
            "peak_bytes": max((row["peak_bytes"] for row in self.stages), default=0),
            "stages": list(self.stages),
        }


def trim() -> None:
    """Give memory that was freed back to the system, which glibc else keeps for the process."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            if libc.mallopt and libc.malloc_trim:  # not of musl
                return libc
    return None


@contextlib.contextmanager
def warm_pages() -> Iterator[None]:
    """Let glibc keep freed memory while a job runs, since page faults double the time of a backward pass."""
    libc = _glibc()
    if libc is not None:
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**25)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(-1, 2**26)
            trim()
