"""Processes that decode pictures end with the one that started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from killing import alive, children
from PIL import Image

SCRIPT = """
import sys
from collections import deque
from tangentune.cli.run import run
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode_pool import decode_files
found = decode_files([sys.argv[1]] * 40000, DataContract(input_size=(3, 8, 8)), 2)
def work():
    next(found)
    print("decoding", flush=True)
    deque(found, maxlen=0)
sys.exit(run(work))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the children of a process")


@contextmanager
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that will start two workers, who have some minutes to do."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.png")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def decoding(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The same, once they work."""
    with started(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_decoder_outlives_its_parent(decoding: subprocess.Popen[str], number: int) -> None:
    workers = children(decoding.pid)
    assert len(workers) >= 2
    os.kill(decoding.pid, number)
    start = time.perf_counter()
    out, err = decoding.communicate(timeout=30)
    while any(map(alive, workers)) and time.perf_counter() - start < 5:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    if number != signal.SIGKILL:
        assert (decoding.returncode, out, err) == (130, "", "error: interrupted\n")


def test_no_decoder_waits_for_work_that_never_comes(tmp_path: Path) -> None:
    """Killed before the first task: what has just started must not wait for one."""
    with started(tmp_path) as process:
        while len(workers := children(process.pid)) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    start = time.perf_counter()
    while any(map(alive, workers)) and time.perf_counter() - start < 60:  # their modules come in first
        time.sleep(0.05)
    assert not any(map(alive, workers))
