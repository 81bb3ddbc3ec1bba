"""A model on disk: a directory with tensors, settings and a card; written whole or not at all.

    MODEL/config.json         settings, format version, and the checksums of itself and of the tensors
    MODEL/model.safetensors   every array (no code can hide in it; nothing is ever unpickled)
    MODEL/pictures.safetensors the training pictures, if they are kept
    MODEL/audit.jsonl         what was changed after the fit, if anything was
    MODEL/README.md           the model card, for people

A model is written into a hidden sibling directory, flushed to the disk, and only then takes its place, in one
step where the file system can swap two directories. Readers need no lock: they notice a swap and read again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tangentune import _files
from tangentune.errors import InputError, StoreError
from tangentune.estimators import audit

FORMAT, FORMAT_VERSION = "tangentune-model", 2
CONFIG, TENSORS, CARD, REPORT = "config.json", "model.safetensors", "README.md", "report.html"
PICTURES, AUDIT = "pictures.safetensors", "audit.jsonl"
ENVELOPE = ("format", "format_version", "tensors", "pictures", "edits", "config_sha256")
_READ_ATTEMPTS = 5
T = TypeVar("T")

# -- writing -----------------------------------------------------------------------------------------------------------


def write_model(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str,
    pictures: Tensor | None = None,
    edits: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a model directory, or leave everything as it was.

    An older model in the same place is replaced after the new one is complete and on the disk. The keys in `ENVELOPE`
    belong to this module; `pictures` are pixels to keep in a file of their own, `edits` lines of the audit log.

    Raises:
        StoreError: the place cannot be used (see `check_destination`), the disk is full, or the settings hold
            something JSON cannot.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> write_model(folder, {"damping": 0.1}, {"weights": torch.arange(3.0)}, "# A card")
        >>> config, tensors = read_model(folder)
        >>> config["damping"], tensors["weights"].tolist()
        (0.1, [0.0, 1.0, 2.0])
    """
    target = check_destination(directory)
    if taken := sorted(set(ENVELOPE) & set(config)):
        message = f"the settings may not use the key {taken[0]!r}, which belongs to the store"
        raise StoreError(message)
    try:
        settings = _files.plain(config, "config")
    except InputError as error:
        message = f"cannot write the model to {target}: {error}"
        raise StoreError(message) from error
    contents = {TENSORS: _own_storage(tensors)}
    if pictures is not None:
        contents[PICTURES] = _own_storage({"pixels": pictures})
    partial = None
    try:
        _check_space(target, sum(t.nbytes for arrays in contents.values() for t in arrays.values()))
        partial = _files.make_partial(target)
        _fill(partial, settings, contents, card, edits)
        _files.put_in_place(partial, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = f"the disk {'is full' if full else 'refused'} ({error.strerror or error})"
        message = f"cannot write the model to {target}: {reason}; nothing was changed"
        raise StoreError(message) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    _files.sweep(target)


def check_destination(directory: str | os.PathLike[str]) -> Path:
    """Find out before the work whether a model could be written here; the resolved path.

    A StoreError: the place is a file, a directory of something else, holds files that would be lost, or is read-only.
    """
    target = Path(os.path.realpath(directory))
    if target.exists():
        _check_replaceable(target)
    parent = _files.existing_ancestor(target)
    if not parent.is_dir():
        raise _not_writable(target, f"{parent} is a file, not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _not_writable(target, f"no permission to write in {parent}")
    return target


def _check_replaceable(target: Path) -> None:
    if not target.is_dir():
        raise _not_writable(target, "it is a file; name a directory")
    if not os.access(target, os.W_OK | os.X_OK):
        raise _not_writable(target, "no permission to write there")
    inside = sorted(entry.name for entry in target.iterdir())
    if not inside:
        return
    try:
        ours = json.loads((target / CONFIG).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        hint = "choose another directory or empty this one"
        message = f"{target} exists and is not a tangentune model, so it is left alone; {hint}"
        raise StoreError(message)
    if foreign := [name for name in inside if name not in (CONFIG, TENSORS, CARD, REPORT, PICTURES, AUDIT)]:
        lost = f"{foreign[0]!r}, which tangentune did not write; move it away or choose another directory"
        message = f"replacing the model in {target} would delete {lost}"
        raise StoreError(message)


def _not_writable(target: Path, why: str) -> StoreError:
    return StoreError(f"cannot write a model to {target}: {why}")


def _fill(
    folder: Path,
    config: dict[str, Any],
    contents: dict[str, dict[str, Tensor]],
    card: str,
    edits: Sequence[dict[str, Any]],
) -> None:
    """Write all files; config.json, which makes a directory a model, last."""
    (folder / CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
    listed: dict[str, Any] = {}
    for name, tensors in contents.items():
        file = folder / name
        _files.save_tensors(file, {"format": "pt"}, tensors)
        shutil.copymode(folder / CARD, file)  # the library lets nobody else read its file
        listed[name] = {"file": name, "bytes": file.stat().st_size, "sha256": _sha256(file), "names": sorted(tensors)}
    if edits:
        (folder / AUDIT).write_text(audit.dump(edits), encoding="utf-8")
    envelope = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **config,
        "tensors": listed[TENSORS],
        "pictures": listed.get(PICTURES),
        "edits": {"lines": len(edits), "seal": edits[-1]["seal"] if edits else audit.FIRST},
    }
    envelope["config_sha256"] = audit.seal(envelope, "config_sha256")
    text = json.dumps(envelope, indent=2, ensure_ascii=False, allow_nan=False)
    # Names of files may hold bytes that are no text; as escapes they are still JSON and come back the same.
    (folder / CONFIG).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
    for path in (*sorted(folder.iterdir()), folder):
        _files.flush(path)


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory (the file format has no views)."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage()
        if plain.numel() and (storage.data_ptr() in seen or storage.nbytes() != plain.nbytes):
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(_files.existing_ancestor(target)).free
    if free < needed:
        text = f"{needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free"
        raise OSError(errno.ENOSPC, text)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------


def read_model(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_model` wrote, after checking every byte of it against its checksum.

    The tensors come in fresh memory, laid out as any new tensor, so that products with them give the same
    bits as before saving: a file mapped into memory has another alignment, and products may round otherwise.

    The settings come without the keys of this module, the tensors on the CPU, kept pictures among them as "pixels".
    A StoreError: no model is there, it is damaged or truncated, or a newer tangentune wrote it.
    """

    def read(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = _read_tensors(folder, config["tensors"])
        if config["pictures"] is not None:
            tensors |= _read_tensors(folder, config["pictures"])
        return _settings(config), tensors

    return _undisturbed(Path(directory), read)


def read_edits(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The audit log of a model, every line checked; empty if it was never changed. Damage is a StoreError."""

    def read(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
        file, expected = folder / AUDIT, config["edits"]
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

    return _undisturbed(Path(directory), read)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a model, checked as by `read_model`, without reading its tensors."""
    folder = Path(directory)
    return _settings(_parse(folder, read_text(folder)))


def read_text(folder: Path) -> bytes:
    """The bytes of config.json; a clear refusal where there is none."""
    try:
        return (folder / CONFIG).read_bytes()
    except FileNotFoundError:
        message = f"{folder} is not a tangentune model: it has no {CONFIG}"
        if not folder.exists():
            former = _files.find_former(folder)
            hint = f"; an interrupted save left the former one in {former}, rename it back" if former else ""
            message = f"there is no model in {folder}: the directory does not exist{hint}"
        raise StoreError(message) from None
    except OSError as error:
        message = f"cannot read {folder / CONFIG}: {error.strerror or error}"
        raise StoreError(message) from error


def _undisturbed(folder: Path, read: Callable[[Path, dict[str, Any]], T]) -> T:
    """Read all of one model, though a writer may put another in its place meanwhile."""
    for attempt in range(_READ_ATTEMPTS):
        before = read_text(folder)
        try:
            result = read(folder, _parse(folder, before))
        except StoreError:
            if attempt + 1 == _READ_ATTEMPTS or read_text(folder) == before:
                raise
            continue
        if read_text(folder) == before:
            return result
    message = f"{folder} is being rewritten over and over; read it when its writer has ended"
    raise StoreError(message)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ENVELOPE}


def _parse(folder: Path, text: bytes) -> dict[str, Any]:
    """The content of config.json, after checking version, completeness and checksum."""
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
        known = f"this tangentune reads up to {FORMAT_VERSION}; update it with: pip install --upgrade tangentune"
        message = f"{file} has format version {version}, but {known}"
        raise StoreError(message)
    if isinstance(version, int) and 0 < version < FORMAT_VERSION:
        message = f"{file} has format version {version} of an older tangentune; fit the model again"
        raise StoreError(message)
    missing = [key for key in ENVELOPE if key not in config]
    if missing or version != FORMAT_VERSION:
        message = f"{file} is damaged: {(missing or ['format_version'])[0]!r} is missing or wrong"
        raise StoreError(message)
    if config["config_sha256"] != audit.seal(config, "config_sha256"):
        message = f"{file} is damaged or was edited by hand: it does not match its own checksum"
        raise StoreError(message)
    return config


def _read_tensors(folder: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    """The arrays of one file, copied into fresh memory, after checking size, checksum and names."""
    file = folder / expected["file"]
    try:
        size = file.stat().st_size
        if size != expected["bytes"]:
            message = f"{file} is damaged: it has {size} bytes instead of {expected['bytes']}"
            raise StoreError(message)
        if _sha256(file) != expected["sha256"]:
            message = f"{file} is damaged: its sha256 is not the one in {CONFIG}"
            raise StoreError(message)
        tensors = _files.load_tensors(file)[1]
    except FileNotFoundError:
        message = f"{file} is missing; save the model again"
        raise StoreError(message) from None
    except OSError as error:
        message = f"cannot read {file}: {error}"
        raise StoreError(message) from error
    if sorted(tensors) != expected["names"]:
        message = f"{file} is damaged: it does not hold the arrays that {CONFIG} names"
        raise StoreError(message)
    return tensors
