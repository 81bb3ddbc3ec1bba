"""The files of a model directory: their names, their checksums, and reading them with every check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tangentune._files import find_former
from tangentune.errors import StoreError
from tangentune.estimators import audit

FORMAT = "tangentune-model"
FORMAT_VERSION = 2
CONFIG, TENSORS, CARD, REPORT = "config.json", "model.safetensors", "README.md", "report.html"
PICTURES, AUDIT = "pictures.safetensors", "audit.jsonl"
OURS = (CONFIG, TENSORS, CARD, REPORT, PICTURES, AUDIT)
ENVELOPE = ("format", "format_version", "tensors", "pictures", "edits", "config_sha256")


def read_text(folder: Path) -> bytes:
    """The bytes of config.json; a clear refusal where there is none."""
    try:
        return (folder / CONFIG).read_bytes()
    except FileNotFoundError:
        if not folder.exists():
            former = find_former(folder)
            hint = f"; an interrupted save left the former one in {former}, rename it back"
            hint = hint if former else ""
            message = f"there is no model in {folder}: the directory does not exist{hint}"
            raise StoreError(message) from None
        message = f"{folder} is not a tangentune model: it has no {CONFIG}"
        raise StoreError(message) from None
    except OSError as error:
        message = f"cannot read {folder / CONFIG}: {error.strerror or error}"
        raise StoreError(message) from error


def parse(folder: Path, text: bytes) -> dict[str, Any]:
    """The settings in config.json, after checking version, completeness and checksum."""
    file = folder / CONFIG
    try:
        config = json.loads(text)
    except ValueError as error:
        message = f"{file} is damaged: it is not valid JSON ({error})"
        raise StoreError(message) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        message = f"{file} does not describe a tangentune model"
        raise StoreError(message)
    version = config.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        message = (
            f"{file} has format version {version}, but this tangentune reads up to {FORMAT_VERSION}; "
            "update it with: pip install --upgrade tangentune"
        )
        raise StoreError(message)
    if isinstance(version, int) and 0 < version < FORMAT_VERSION:
        message = f"{file} has format version {version} of an older tangentune; fit the model again"
        raise StoreError(message)
    missing = [key for key in ENVELOPE if key not in config]
    if missing or version != FORMAT_VERSION:
        message = f"{file} is damaged: {(missing or ['format_version'])[0]!r} is missing or wrong"
        raise StoreError(message)
    if config["config_sha256"] != config_sha256(config):
        message = f"{file} is damaged or was edited by hand: it does not match its own checksum"
        raise StoreError(message)
    return config


def read_tensors(folder: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    """The arrays of one file, copied into fresh memory, after checking size, checksum and names."""
    file = folder / expected["file"]
    try:
        size = file.stat().st_size
        if size != expected["bytes"]:
            message = f"{file} is damaged: it has {size} bytes instead of {expected['bytes']}"
            raise StoreError(message)
        if sha256(file) != expected["sha256"]:
            message = f"{file} is damaged: its sha256 is not the one in {CONFIG}"
            raise StoreError(message)
        with safe_open(file, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError:
        message = f"{file} is missing; save the model again"
        raise StoreError(message) from None
    except (OSError, SafetensorError) as error:
        message = f"cannot read {file}: {error}"
        raise StoreError(message) from error
    if sorted(tensors) != expected["names"]:
        message = f"{file} is damaged: it does not hold the arrays that {CONFIG} names"
        raise StoreError(message)
    return tensors


def describe(file: Path, tensors: Mapping[str, Tensor] | None) -> dict[str, Any] | None:
    """What config.json says of a file of arrays, for `read_tensors`; None where there is none."""
    if tensors is None:
        return None
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file), "names": sorted(tensors)}


def read_edits(folder: Path, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """The audit log, whole and unchanged."""
    file = folder / AUDIT
    try:
        text = file.read_text(encoding="utf-8") if expected["lines"] or file.exists() else ""
    except (OSError, ValueError) as error:
        message = f"cannot read {file}: {error}"
        raise StoreError(message) from error
    lines = audit.parse(text, str(file))
    if len(lines) != expected["lines"] or (lines[-1]["seal"] if lines else audit.FIRST) != expected["seal"]:
        message = f"{file} is damaged: it has {len(lines)} whole lines where {CONFIG} counts {expected['lines']}"
        raise StoreError(message)
    return lines


def sha256(file: Path) -> str:
    """Hash of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of the settings, whatever their order and layout; the checksum itself is left out."""
    rest = {k: v for k, v in config.items() if k != "config_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
