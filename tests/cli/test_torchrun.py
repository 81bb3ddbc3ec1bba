"""torchrun's own processes, killed at random, twenty times: the restarted run ends with the identical model. Slow."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killing import called, children
from PIL import Image

from tangentune import TangentFeatures
from tangentune._files import load_tensors
from tangentune.errors import MissingExtraError

SIZE, COUNT, KILLS = 32, 160, 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("site"), np.random.default_rng(0)
    for i in range(COUNT):
        place = root / "PICTURES" / f"c{i % 4}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(place)
    try:
        TangentFeatures("mobilenet_v2", landmarks=None, width=200, input_size=SIZE).fit().save(root / "MAP")
    except MissingExtraError as error:
        pytest.skip(str(error))
    return root


def launch(site: Path, count: int, out: str) -> subprocess.Popen[bytes]:
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--rdzv-backend=c10d"]
    command += [
        "--rdzv-endpoint=localhost:0",
        "-m",
        "tangentune",
        "fit",
        "PICTURES",
        "--map",
        "MAP",
        "--out",
        out,
        "-q",
    ]
    return subprocess.Popen(
        [*command, "--n-jobs", "1"], cwd=site, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def model(site: Path, name: str) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in load_tensors(site / name / "model.safetensors")[1].items()}


@pytest.mark.slow
def test_any_number_of_processes_fits_the_same_model(site: Path) -> None:
    for count in (1, 2, 4):
        assert launch(site, count, f"by{count}").wait(300) == 0
    assert model(site, "by1") == model(site, "by2") == model(site, "by4")


@pytest.mark.slow
def test_a_worker_is_killed_at_random(site: Path) -> None:
    assert launch(site, 2, "alone").wait(300) == 0
    expected, chance = model(site, "alone"), random.Random(0)
    caught = 0
    for attempt in range(KILLS):
        out = f"killed{attempt}"
        run = launch(site, 2, out)
        while len(workers := [pid for pid in children(run.pid) if "tangentune" in called(pid)]) < 2:
            assert run.poll() is None
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 9))
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if alive:
            os.kill(chance.choice(alive), signal.SIGKILL)
        caught += run.wait(300) != 0
        assert launch(site, 2, out).wait(300) == 0
        assert model(site, out) == expected
    assert caught > KILLS // 2
    assert not list(site.glob(".*.parts"))
