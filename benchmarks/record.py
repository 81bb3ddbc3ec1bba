"""Results of benchmarks as JSON in docs/results/, with the commit and the machine they came from.

A file holds lists of rows. A row is known by its `key` (the settings it was measured with), so that a script
that was stopped asks `done` and goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def record(name: str, payload: Mapping[str, Any]) -> Path:
    """Write docs/results/NAME.json in one move: the payload, then where and when it was measured."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**payload, "made_by": provenance()}, indent=1, allow_nan=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
    os.chmod(part.name, 0o644)
    os.replace(part.name, path)
    return path


def load(name: str) -> dict[str, Any]:
    """What docs/results/NAME.json holds; empty when there is none yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def done(name: str, key: Mapping[str, Any], section: str = "rows") -> dict[str, Any] | None:
    """The row measured with these settings, or None."""
    return next((row for row in load(name).get(section, []) if row["key"] == dict(key)), None)


def append(name: str, key: Mapping[str, Any], values: Mapping[str, Any], section: str = "rows") -> None:
    """Add a row, or replace the one of the same key; everything else in the file stays."""
    payload = load(name)
    rows = [row for row in payload.get(section, []) if row["key"] != dict(key)]
    commit, dirty = _commit()
    payload[section] = [*rows, {"key": dict(key), **values, "commit": commit, "dirty": dirty}]
    record(name, payload)


def provenance() -> dict[str, Any]:
    """Commit, machine, threads, versions and date, for the foot of a results file."""
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table; `columns` maps each column's name to its format, such as ".3f" or "".

    Example:
        >>> print(markdown_table([{"method": "probe", "accuracy": 0.75}], {"method": "", "accuracy": ".3f"}))
        | method | accuracy |
        | --- | --- |
        | probe | 0.750 |
    """
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[format(row[name], spec) for name, spec in columns.items()] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _commit() -> tuple[str | None, bool]:
    """Hash of the checked-out commit (None before the first one) and whether files differ from it."""
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!docs/results")
    return commit or None, bool(changes)


def _git(*arguments: str) -> str:
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
