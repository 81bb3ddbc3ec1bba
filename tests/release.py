"""Build wheel and sdist of the last commit, install both in clean environments of old and new versions, and fit there.

    python tests/release.py FOLDER [--torch-index ADDRESS | --gpu-builds] [--only oldest]     # `make release`

Every environment gets torch first, by its exact version, and only a build that brings no packages for GPUs along: those
are gigabytes, and a machine without a GPU has no use for them. Where the index has no other build of a version, that
environment is told as skipped; `--torch-index` names an index of CPU builds, `--gpu-builds` takes what there is.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

from minimum_versions import ROOT, minima

SMOKE = Path(__file__).with_name("release_fit.py")
SHOWN = ("torch", "numpy", "scikit-learn")
GPU = re.compile(r"nvidia|triton|cuda", re.IGNORECASE)


def main() -> int:
    """Build, try, print a table; 1 if an environment failed, or none could be tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch-index", help="where torch comes from, if not from pip's own index")
    parser.add_argument("--gpu-builds", action="store_true", help="also builds with packages for GPUs, of gigabytes")
    parser.add_argument("--only", action="append", help="an environment to try, such as oldest; all if not given")
    parser.add_argument("--newest", help="version of torch that is the newest; that of constraints.txt if not given")
    given = parser.parse_args()
    folder = given.folder.absolute()
    wheel, sdist = build(folder)
    sys.stdout.write(f"{wheel.name}: {wheel.stat().st_size:,} bytes\n{sdist.name}: {sdist.stat().st_size:,} bytes\n")
    oldest = [one for one in minima() if one.split("==")[0] in required()]
    (old,) = (one for one in oldest if one.startswith("torch=="))
    pinned = next(one for one in (ROOT / "constraints.txt").read_text().split() if one.startswith("torch=="))
    new = f"torch=={given.newest}" if given.newest else pinned
    rest = [one for one in oldest if one != old]
    environments = {"oldest": (old, rest), "oldest, with this torch": (new, rest), "newest": (new, [])}
    rows = [["environment", *SHOWN, "wheel", "sdist"]]
    for name in given.only or environments:
        (torch, pins), place = environments[name], folder / re.sub(r"\W+", "-", name)
        found = tried(place, torch, pins, given.torch_index, (wheel, sdist), gpu_builds=given.gpu_builds)
        rows.append([name, *found])
        sys.stdout.write(f"{' | '.join(rows[-1])}\n")
        sys.stdout.flush()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    done = [cell for row in rows[1:] for cell in row[-2:]]
    return int(any(cell == "FAILED" for cell in done) or all(cell == "skipped" for cell in done))


def required() -> set[str]:
    """Names of what the library itself needs."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[><=\[]", line)[0] for line in project["dependencies"]}


def build(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist of the last commit; the wheel that the sdist gives must hold the same files."""
    python, source, dist = made(folder / "build"), folder / "source", folder / "dist"
    call("rm", "-rf", source, dist)
    source.mkdir(parents=True)
    with subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE) as archive:
        call("tar", "-x", "-C", source, stdin=archive.stdout)
    call(python, "-m", "pip", "-q", "install", "hatchling")
    call(python, "-m", "hatchling", "build", "-d", dist, cwd=source)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "source", filter="data")
    (inner,) = (folder / "source").glob("tangentune-*")
    call(python, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "again", cwd=inner)
    assert names(wheel) == names(folder / "again" / wheel.name), "the sdist gives another wheel"
    return wheel, sdist


def names(wheel: Path) -> list[str]:
    """What is in a wheel."""
    return sorted(zipfile.ZipFile(wheel).namelist())


def tried(
    folder: Path, torch: str, pins: list[str], index: str | None, files: tuple[Path, Path], *, gpu_builds: bool
) -> list[str]:
    """The versions of an environment, and how wheel and sdist did there."""
    place = ["--index-url", index] if index else []
    python, pip = made(folder), ["-m", "pip", "--disable-pip-version-check", "-q", "install"]
    if not gpu_builds and brings_gpu_packages(python, [*pip, *place, torch]):
        return [torch.split("==")[1], "-", "-", "skipped", "skipped"]
    call(python, *pip, *place, torch)
    found = []
    for file in files:
        first = file == files[0]
        what = [f"{file}[weights]", torch, *pins] if first else ["--force-reinstall", "--no-deps", str(file)]
        call(python, *pip, *what)
        room = folder / "room"
        call("rm", "-rf", room)
        room.mkdir()
        start = time.perf_counter()
        done = subprocess.run([python, SMOKE], cwd=room, check=False)
        found.append(f"{time.perf_counter() - start:.0f} s" if done.returncode == 0 else "FAILED")
    listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format", "json"]))
    versions = {one["name"]: one["version"] for one in listed}
    assert gpu_builds or not [name for name in versions if GPU.search(name)], "packages for GPUs came along"
    return [*(versions[name] for name in SHOWN), *found]


def brings_gpu_packages(python: Path, install: list[str]) -> bool:
    """Whether the build that pip would take asks for packages for GPUs; nothing is installed."""
    plan = subprocess.check_output([python, *install, "--no-deps", "--ignore-installed", "--dry-run", "--report", "-"])
    asked = json.loads(plan)["install"][0]["metadata"].get("requires_dist", [])
    here = [one for one in asked if sys.platform == "linux" or "Linux" not in one]
    return any(GPU.match(one) for one in here if "extra ==" not in one)


def made(folder: Path) -> Path:
    """The Python of a new, empty environment."""
    venv.create(folder, with_pip=True, clear=True)
    return folder / "bin" / "python"


def call(*words: object, **options: object) -> None:
    """Run a command, which must succeed."""
    subprocess.run([str(word) for word in words], check=True, **options)  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
