"""Memory: how much may be used, how much was used, and keeping freed pages warm."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tangentune.errors import InputError

UNITS = {"": 1, "b": 1, "k": 2**10, "kb": 10**3, "kib": 2**10, "m": 2**20, "mb": 10**6, "mib": 2**20}
UNITS |= {"g": 2**30, "gb": 10**9, "gib": 2**30, "t": 2**40, "tb": 10**12, "tib": 2**40}


def parse_bytes(text: str | int | float) -> int:
    """Read a memory size: a number of bytes, or text such as "4GiB", "500 MB".

    Raises:
        InputError: if it is neither, or not positive.

    Example:
        >>> parse_bytes("4GiB"), parse_bytes("500MB")
        (4294967296, 500000000)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in UNITS or float(match[1]) <= 0:
        message = f"memory size {text!r} is not understood; write it as '4GiB', '500MB' or a number of bytes"
        raise InputError(message)
    return int(float(match[1]) * UNITS[match[2].lower()])


def available_bytes(device: torch.device) -> int:
    """Memory a new job could take on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, TypeError), open("/proc/meminfo") as lines:
        found = re.search(r"MemAvailable:\s+(\d+) kB", lines.read())
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def default_budget(device: torch.device) -> int:
    """Half of what is available."""
    return available_bytes(device) // 2


def _peak_bytes(device: torch.device) -> int:
    """Highest memory since the last reset, or since the start where the system cannot reset it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        found = re.search(r"VmHWM:\s+(\d+) kB", lines.read())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> bool:
    """Let the highest memory count from now on; False, and nothing done, where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


_OPEN: list[dict[torch.device, int]] = []  # the highest seen so far by each stage that is running, outermost first


@dataclass
class Meter:
    """Seconds and peak bytes of each stage of a job, in order; stages of another meter may run inside one."""

    device: torch.device
    stages: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one stage; a name met again adds to its row."""
        self._tell_outer(_peak_bytes(self.device))  # the reset below must not hide it from them
        reset_peak(self.device)
        _OPEN.append({self.device: 0})
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            peak = max(_OPEN.pop()[self.device], _peak_bytes(self.device))
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

    def report(self) -> dict[str, Any]:
        """Totals and stages."""
        return {
            "total_seconds": sum(row["seconds"] for row in self.stages),
            "peak_bytes": max((row["peak_bytes"] for row in self.stages), default=0),
            "stages": list(self.stages),
        }


@contextlib.contextmanager
def warm_pages() -> Iterator[None]:
    """Let glibc keep freed memory while a job runs; without this, page faults double the time of a backward pass.

    Returned to the system at the end. Does nothing elsewhere.
    """
    libc = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            trim_threshold, mmap_threshold = -1, -3
            libc.mallopt(trim_threshold, 2**30)
            libc.mallopt(mmap_threshold, 2**25)
    try:
        yield
    finally:
        if libc is not None:
            with contextlib.suppress(AttributeError):
                libc.mallopt(-1, 2**26)
                libc.malloc_trim(0)
