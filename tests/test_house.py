"""The rule for files: about ten rooms, one idea a file, at most 450 lines, nothing tiny without a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tangentune

PACKAGE = Path(tangentune.__path__[0])
ROOT = Path(__file__).parents[1]
ROOMS = {"pictures", "solvers", "networks", "jacobian", "kernels"}
ROOMS |= {"methods", "estimators", "reports", "comparison", "workbench", "deployment", "cli"}
LONGEST, SHORTEST = 450, 40
# Why a file of fewer than 40 lines stands alone.
SMALL: dict[str, str] = {
    "__main__.py": "`python -m tangentune`",
    "_version.py": "no room imports the package that imports them all",
}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_package_shows_its_rooms() -> None:
    shown = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert {name for name in shown if (PACKAGE / name).is_dir()} == ROOMS
    assert len(shown) <= 20


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples", "docs"])
def test_no_file_is_too_long(folder: str) -> None:
    long = {str(path): lines(path) for path in (ROOT / folder).rglob("*.py") if lines(path) > LONGEST}
    assert not long, "one idea a file: what could be a file of its own?"


def test_no_small_file_stands_alone_without_a_reason() -> None:
    small = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and lines(path) < SHORTEST
    }
    assert small == set(SMALL), "fold the file into the idea that it belongs to, or say here why it stands alone"


def test_the_source_stays_small() -> None:
    """What people read: 25,238 and 4,487 when the rooms were rebuilt, and what has come since.

    Source: guards, locks, the ladder, sums and large fits (3,300 lines), the workbench (5,000); room for export, tables
    of answers, several labels a picture, fits of any size, mixed precision, few directions, quick exported files
    (400), moved features of many pictures, pilot and search in two looks (50), rows that a pilot began, a softness
    (100); less what was told or written twice (300). Studies: sets of real pictures (700), what to clean and to give
    next (500), times of the workbench and of large fits (400); less one that others have replaced, and how each read
    its pictures (220).
    """
    assert sum(lines(path) for path in PACKAGE.rglob("*.py")) <= 43_040
    assert sum(lines(path) for path in (ROOT / "benchmarks").rglob("*.py")) <= 8_140


def test_tests_mirror_the_rooms() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == ROOMS


def test_nothing_takes_a_model_of_any_kind() -> None:
    loose = [
        f"{path.relative_to(PACKAGE)}: {found}"
        for path in PACKAGE.rglob("*.py")
        for found in re.findall(r"\b(?:model|estimator|fitted): Any\b", path.read_text(encoding="utf-8"))
    ]
    assert not loose, "say which attributes are used: take a FittedModel or a Protocol"


def test_one_file_factors_matrices() -> None:
    """Elsewhere a factorisation could run in float32, give up, or fail with a raw error."""
    free = "solve_triangular|vecdot|vector_norm|norm"
    raw = rf"torch\.linalg\.(?!(?:{free})\b)\w+|torch\.(?:cholesky|svd|qr|inverse|pinverse|logdet|slogdet)\b"
    raw += r"|\.(?:logdet|slogdet|inverse|det)\(\)|LinAlgError|(?:np|scipy)\.linalg"
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(raw, path.read_text(encoding="utf-8"))
    }
    assert found == {"solvers/factorisation.py"}
