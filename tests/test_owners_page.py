"""What docs/owners.md says of sums holds; the examples of docs/howto/several-machines.md run here, in small."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from documents import blocks, run_blocks
from PIL import Image
from torch.distributed.run import get_args_parser

from tangentune import TangentClassifier, TangentFeatures, TangentSums
from tangentune._files import read_tensors
from tangentune.cli.app import main
from tangentune.errors import MissingExtraError
from tangentune.solvers.sums import KIND

DOCS = Path(__file__).parents[1] / "docs"
TEXT, MACHINES = ((DOCS / name).read_text(encoding="utf-8") for name in ("owners.md", "howto/several-machines.md"))
SIZE, COUNT = 32, 30


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PICTURES, MAP, and one process's sums."""
    root, rng = tmp_path_factory.mktemp("site"), np.random.default_rng(0)
    for i in range(COUNT):
        (root / "PICTURES" / f"c{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(
            root / "PICTURES" / f"c{i % 3}" / f"{i}.png"
        )
    try:
        TangentFeatures("mobilenet_v2", landmarks=None, width=200, input_size=SIZE).fit().save(root / "MAP")
    except MissingExtraError as error:
        pytest.skip(str(error))
    return root


def run(command: list[str], folder: Path, **more: str) -> str:
    """A command as its page has it, this Python's torchrun and package found first."""
    binaries, source = Path(sys.executable).parent, Path(__file__).parents[1] / "src"
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(folder / "bin"), str(binaries), environment.get("PATH", "")])
    environment |= {"PATH": path, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_of_python_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shown, _ = run_blocks(blocks(TEXT, "python"), "docs/owners.md")
    assert shown == "True True\n"
    assert TangentSums.load("SITE.sums").pictures == 39


def test_the_slurm_script_runs(site: Path) -> None:
    """With Slurm's own commands stood in for: two processes share shards of 8, and bring the sums of one."""
    (script,) = blocks(MACHINES, "bash")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    (site / "bin").mkdir(exist_ok=True)
    for name, body in {"srun": 'exec "$@"', "scontrol": 'test "$1" = show && echo localhost'}.items():
        place = site / "bin" / name
        place.write_text(f"#!/bin/bash\n{body}\n")
        place.chmod(place.stat().st_mode | stat.S_IXUSR)
    (site / "job.sh").write_text(script.replace("--out SITE.sums", "--out SITE.sums --shard 8"))
    out = run(["bash", "job.sh"], site, SLURM_NNODES="1", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="localhost")
    assert out.count("Sums written to SITE.sums") == 1  # one rank speaks
    alone = TangentFeatures.load(site / "MAP").sums(site / "PICTURES")
    found = TangentSums.load(site / "SITE.sums")
    assert found.classes == alone.classes == ("c0", "c1", "c2")
    for name, tensor in read_tensors(site / "SITE.sums", KIND)[1].items():
        expected = getattr(alone, name)  # of other batches: the network's own rounding
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not list(site.glob(".*.parts"))


def test_the_kubernetes_job_runs(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = blocks(MACHINES, "yaml")
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    spec = job["spec"]
    pod, name = spec["template"]["spec"], service["metadata"]["name"]
    assert (pod["subdomain"], service["spec"]["selector"], spec["completionMode"]) == (
        name,
        {"job-name": name},
        "Indexed",
    )
    assert pod["volumes"][0]["name"] == pod["containers"][0]["volumeMounts"][0]["name"]
    command = pod["containers"][0]["command"]
    assert f"--nnodes={spec['completions']}" in command
    assert f"--master-addr={job['metadata']['name']}-0.{name}" in command
    here = {
        "$(JOB_COMPLETION_INDEX)": "0",
        "--nnodes=4": "--nnodes=1",
        "sums-0.sums": "localhost",
        "/data/": f"{site}/",
    }
    for old, new in here.items():
        command = [word.replace(old, new) for word in command]
    monkeypatch.chdir(site)
    told = get_args_parser().parse_args(command[1:])  # as torchrun reads it; another test starts its processes
    assert (command[0], told.nnodes, told.node_rank, told.module) == ("torchrun", "1", 0, True)
    assert (told.training_script, main(told.training_script_args)) == ("tangentune", 0)
    assert "pictures  30" in capsys.readouterr().out


def test_the_console_line_runs(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of torchrun's write the table that one process writes."""
    fixed = {"outer_steps": 0, "augment": None, "damping": 1.0, "body_scale": 0.5, "metric_power": 0, "normalize": True}
    model = TangentClassifier("mobilenet_v2", input_size=SIZE, subset="last:2", **fixed)
    model.fit(site / "PICTURES").save_pretrained(site / "MODEL")
    (line,) = blocks(MACHINES, "console")
    words = [*line.removeprefix("$ ").replace("node=4", "node=2").split(), "--n-jobs", "1"]
    told = run(words, site)
    assert told == f"{COUNT} predictions written to FILE.csv\n"
    shared = (site / "FILE.csv").read_bytes()
    (site / "FILE.csv").unlink()
    monkeypatch.chdir(site)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as torchrun gives each of its processes: other numbers round differently
    try:
        assert main(words[words.index("tangentune") + 1 :]) == 0  # here: another process would only import all again
    finally:
        torch.set_num_threads(threads)
    assert (site / "FILE.csv").read_bytes() == shared
    assert not list(site.glob(".*.parts"))
