"""The writer of results refuses code that no commit holds; every study can be imported."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import record

MODULES = sorted(path.relative_to(record.ROOT) for path in (record.ROOT / "benchmarks").rglob("*.py"))


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository of its own, with one commit and the folder of results."""
    for name in ("src", "benchmarks", "docs/results"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src" / "code.py").write_text("answer = 1\n")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *words]
        subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "docs" / "results")
    return tmp_path


def test_results_of_a_clean_tree_are_written_with_their_origin(repository: Path) -> None:
    record.append("study", {"n": 1}, {"seconds": 2.0})
    row = record.done("study", {"n": 1})
    assert row is not None
    assert row["commit"] == record.load("study")["made_by"]["commit"]
    assert len(row["commit"]) == 40
    assert not row["dirty"]
    assert {"cpu", "threads", "date"} <= row.keys()
    record.append("study", {"n": 2}, {"seconds": 2.0})  # results are no code: they make no tree dirty
    assert len(record.load("study")["rows"]) == 2
    assert (repository / "docs" / "results" / "study.json").exists()


@pytest.mark.parametrize("file", ["src/code.py", "benchmarks/new.py", "pyproject.toml"])
def test_results_of_a_dirty_tree_are_refused(repository: Path, file: str) -> None:
    (repository / file).write_text("answer = 2\n")
    with pytest.raises(record.UncommittedCode, match=rf"--scratch.*{file}"):
        record.check_clean()
    with pytest.raises(record.UncommittedCode, match="commit first"):
        record.append("study", {"n": 1}, {"seconds": 2.0})
    assert list((repository / "docs" / "results").iterdir()) == []


def test_a_scratch_folder_takes_results_of_any_tree_and_marks_them(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "src" / "code.py").write_text("answer = 2\n")
    monkeypatch.setattr(record, "RESULTS", repository / "scratch")
    record.append("study", {"n": 1}, {"seconds": 2.0})
    row = record.done("study", {"n": 1})
    assert row is not None
    assert row["dirty"]
    assert list((repository / "docs" / "results").iterdir()) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_can_be_imported(path: Path) -> None:
    try:
        import_module(".".join(path.with_suffix("").parts))
    except ModuleNotFoundError as missing:  # a rival of the bench extra; our own names must be there
        if (missing.name or "").split(".")[0] in ("tangentune", "benchmarks"):
            raise
        pytest.skip(f"{missing.name} is not installed; it comes with the bench extra")
