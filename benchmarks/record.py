"""Results of benchmarks as JSON in docs/results/, with the commit and the machine they came from; their pages beside.

A file holds lists of rows. A row is known by its `key` (the settings it was measured with), so that a script that was
stopped goes on where it was. Nothing is stored in docs/results/ that no commit can reproduce: see `check_clean`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.datasets import DataMissing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
AGAIN = False  # whether `fill` measures rows again that came from code that no commit holds
CODE = ("src", "benchmarks", "pyproject.toml", "constraints.txt")  # what a result depends on
Row = dict[str, Any]


class UncommittedCode(RuntimeError):
    """The code differs from every commit, so that a result could not be made again."""


def check_clean() -> None:
    """Refuse to measure for, or write to, docs/results/ with code that is not committed.

    Raises:
        UncommittedCode: a file of `CODE` is changed or new, and the results go to docs/results/.
    """
    changed = _changed()
    if changed and RESULTS.is_relative_to(ROOT / "docs" / "results"):
        names = ", ".join(line[3:] for line in changed.splitlines()[:5])
        raise UncommittedCode(f"commit first, or use --scratch: results need a clean tree, and these differ: {names}")


def record(name: str, payload: Mapping[str, Any]) -> Path:
    """Write docs/results/NAME.json in one move: the payload, then where and when it was measured.

    Raises:
        UncommittedCode: see `check_clean`.
        ValueError: a number is not finite.
    """
    check_clean()
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**payload, "made_by": provenance()}, indent=1, allow_nan=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
    os.chmod(part.name, 0o644)
    os.replace(part.name, path)
    return path


def load(name: str) -> Row:
    """What docs/results/NAME.json holds; empty when there is none yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def done(name: str, key: Mapping[str, Any], section: str = "rows") -> Row | None:
    """The row measured with these settings, or None."""
    return next((row for row in load(name).get(section, []) if row["key"] == dict(key)), None)


def append(name: str, key: Mapping[str, Any], values: Mapping[str, Any], section: str = "rows") -> None:
    """Add a row, or replace the one of the same key; everything else in the file stays."""
    payload, here = load(name), provenance()
    rows = [row for row in payload.get(section, []) if row["key"] != dict(key)]
    where = {name: here[name] for name in ("commit", "dirty", "date", "cpu", "gpu", "threads")}
    payload[section] = [*rows, {"key": dict(key), **values, **where}]
    record(name, payload)


def matching(rows: Iterable[Row], **key: Any) -> list[Row]:
    """The rows measured with these settings, whatever their others."""
    return [row for row in rows if key.items() <= row["key"].items()]


def by_seed(rows: Iterable[Row], value: str, **key: Any) -> dict[int, Any]:
    """A value of the rows measured with these settings, for each seed; rows that have none are left out."""
    return {row["key"]["seed"]: row[value] for row in matching(rows, **key) if row.get(value) is not None}


def fill(name: str, keys: Iterable[Row], measure: Callable[[Row], Mapping[str, Any]], section: str = "rows") -> None:
    """Measure and store the rows that are missing, one after the other; those without their pictures are left out."""
    for key in keys:
        row = done(name, key, section)
        if row is None or (AGAIN and row.get("dirty", True)):
            try:
                values = measure(key)
            except DataMissing as missing:
                print(f"{key} is left out: {missing}")
                continue
            append(name, key, values, section)
            short = {title: value for title, value in values.items() if isinstance(value, (bool, int, float))}
            print(key, short, flush=True)


def provenance() -> Row:
    """Commit, machine, threads, versions and date, for the foot of a results file."""
    return {
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD") or None,  # None before the first commit
        "dirty": bool(_changed()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_page(
    name: str, script: str, parts: Mapping[str, str], figures: Mapping[str, Figure] | None = None, dpi: int = 160
) -> None:
    """Write docs/results/NAME.md and its figures (name -> figure); print the page.

    Its text stands in page.md beside the study's `__file__`, with a $placeholder for each of the parts.
    """
    text = Template(Path(script).with_name("page.md").read_text()).substitute(parts)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for title, figure in (figures or {}).items():
        figure.savefig(RESULTS / f"{title}.png", dpi=dpi)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> str:
    """A Markdown table, a row a line; `columns` are names with their formats, as in ".3f", by default the first row's.

    Example:
        >>> print(markdown_table([{"method": "probe", "accuracy": 0.75}], {"method": "", "accuracy": ".3f"}))
        | method | accuracy |
        | --- | --- |
        | probe | 0.750 |
    """
    if not rows:
        return ""
    columns = dict.fromkeys(rows[0], "") if columns is None else columns
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[format(row[name], spec) for name, spec in columns.items()] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _changed() -> str:
    return git("status", "--porcelain", "--untracked-files=all", "--", *CODE)


def git(*arguments: str, folder: Path | None = None) -> str:
    """What git says of our repository, or that of a folder; nothing where it has nothing to say."""
    try:
        ran = subprocess.run(["git", *arguments], cwd=folder or ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ran.stdout.rstrip() if ran.returncode == 0 else ""


def _cpu_model() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
