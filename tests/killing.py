"""Work in child processes that end before they are done, and what they leave on the disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "ctypes.dlsym")
ANYWHERE = ("ctypes.dlsym", "os.remove", "os.rmdir")  # the swap; and what is named relative to an open directory


def child(work: Callable[[], Any], told: Path | None = None) -> int:
    """Do this in a copy of the process, what it says going to a file; its number."""
    if told is not None:
        told.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does without
        number = os.fork()
    if number == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            tqdm.set_lock(
                threading.RLock()
            )  # its usual one is the parent's too, which waits for ever for a killed child
            if told is not None:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                here = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(here, 1)
                os.dup2(here, 2)
                sys.stdout, sys.stderr = (os.fdopen(i, "w", errors="backslashreplace", closefd=False) for i in (1, 2))
            code = work() or 0
        except BaseException as error:
            if told is not None:
                told.write_text(f"Traceback: {type(error).__name__}: {error}")
        finally:
            if told is not None:
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    return number


def wait(number: int, seconds: float = 300) -> int:
    """The exit code of a child; of one that was killed the signal, below 0; one that hangs is an error."""
    until = time.monotonic() + seconds
    while (state := os.waitpid(number, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            message = f"it still ran after {seconds} s"
            raise TimeoutError(message)
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(state[1])


def dying(work: Callable[[], Any], step: int, place: Path) -> Callable[[], Any]:
    """The same work for a child, killed just before its n-th step that touches a place on the disk."""
    return _watched(work, place, lambda count: os._exit(9) if count == step else None)


def steps_of(work: Callable[[], Any], place: Path, told: Path) -> int:
    """How many such steps the work takes, done in a child; what it says goes to a file."""
    here, there = os.pipe()
    done = child(_watched(work, place, lambda _: os.write(there, b".")), told)
    os.close(there)
    with os.fdopen(here, "rb") as steps:
        count = len(steps.read())
    if code := wait(done):
        message = f"the work ended with {code}"
        raise RuntimeError(message)
    return count


def _watched(work: Callable[[], Any], place: Path, step: Callable[[int], Any]) -> Callable[[], Any]:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in STEPS and (event in ANYWHERE or str(place) in repr(arguments[:2])):
            count += 1
            step(count)

    def watched() -> Any:
        sys.addaudithook(hook)
        return work()

    return watched


def children(pid: int) -> list[int]:
    """Processes below one, in their order (Linux)."""
    try:
        direct = [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return direct + [below for child in direct for below in children(child)]


def alive(pid: int) -> bool:
    """Whether a process still runs (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def seen(folder: Path, *needles: bytes) -> list[str]:
    """Files with any of these bytes in them or in their names, the hidden ones too."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path.name for path in found if any(one in os.fsencode(path) + path.read_bytes() for one in needles)]


def threads(pid: int) -> int:
    """How many a process has (Linux)."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return 0


def called(pid: int) -> str:
    """The command of a process (Linux)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
