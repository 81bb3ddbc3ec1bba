"""Memory: sizes as people write them, the limits of containers, and peaks of stages inside one another."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import psutil
import pytest
import torch

from tangentune import memory
from tangentune.errors import InputError

CPU = torch.device("cpu")


def groups(folder: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A mount of control groups with these files, and the file that lists the groups of a process."""
    for name, text in files.items():
        file = folder / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "groups").write_text(line)
    return folder / "mount", folder / "groups"


def test_a_container_of_version_2_limits_the_room(tmp_path: Path) -> None:
    files = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 500\ninactive_file 150\n"}
    assert memory.room_in_groups(*groups(tmp_path, "0::/\n", files)) == 1000 - 700 + 150


def test_the_tightest_group_above_the_process_counts(tmp_path: Path) -> None:
    files = {f"job/step/memory.{name}": text for name, text in {"max": "max", "current": "5", "stat": ""}.items()}
    files |= {"job/memory.max": "90", "job/memory.current": "30", "job/memory.stat": "inactive_file 1"}
    files |= {"memory.max": "900", "memory.current": "30", "memory.stat": "inactive_file 0"}
    assert memory.room_in_groups(*groups(tmp_path, "0::/job/step\n", files)) == 61


def test_a_container_of_version_1_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    names = ("limit_in_bytes", "usage_in_bytes", "stat")
    values = ("5000", "6000", "inactive_file 7\ntotal_inactive_file 10")
    files = {f"memory/memory.{name}": text for name, text in zip(names, values, strict=True)}
    lines = "4:cpu,cpuacct:/docker/ab:c\n3:memory:/docker/ab:c\n0::/docker/ab:c\n"
    assert memory.room_in_groups(*groups(tmp_path, lines, files)) == 0  # more is used than a lowered limit allows
    (tmp_path / "mount" / "memory" / "memory.usage_in_bytes").write_text("1000")
    assert memory.room_in_groups(tmp_path / "mount", tmp_path / "groups") == 4010


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert memory.room_in_groups(tmp_path, tmp_path / "none") == math.inf
    files = {"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 1"}
    assert memory.room_in_groups(*groups(tmp_path, "0::/\n", files)) == math.inf


def test_the_budget_is_half_of_what_system_and_groups_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory.available_bytes(CPU) < psutil.virtual_memory().total
    monkeypatch.setattr(memory, "room_in_groups", lambda: 1001)
    assert memory.default_budget(CPU) == 500


def test_a_stage_counts_what_a_stage_inside_it_used() -> None:
    outer, inner = memory.Meter(CPU), memory.Meter(CPU)
    with outer.stage("whole"), inner.stage("part"):
        held = torch.ones(2**25)
    del held
    assert outer.report()["peak_bytes"] >= inner.report()["peak_bytes"] > 2**27
    assert memory.peak_bytes(CPU) > 2**20


@pytest.mark.parametrize("text", ["4 apples", "", "0", "-1GiB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not understood"):
        memory.parse_bytes(text)


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(memory).failed == 0


def test_a_stage_shows_one_line_and_leaves_none(capsys: pytest.CaptureFixture[str]) -> None:
    """A job of many stages is one calm line: each bar goes when its stage ends, and a quick stage shows nothing."""
    for label in ("reading", "kernels"):
        with memory.progress(label=label, total=3, unit="picture", verbose=1) as bar:
            bar.delay, bar.mininterval = 0, 0  # as if a second had gone by
            for _ in range(3):
                bar.update()
    shown = capsys.readouterr().err
    assert "reading: 100%" in shown
    assert "kernels: 100%" in shown
    assert "\n" not in shown
    assert shown.split("\r")[-1] == ""
    assert shown.split("\r")[-2].strip() == ""  # blanks over what was there
    for verbose in (0, 1):
        assert list(memory.progress(range(3), label="quick", total=None, verbose=verbose)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
