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
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tangentune import _files as directories
from tangentune._files import plain
from tangentune.errors import InputError, StoreError
from tangentune.estimators import audit
from tangentune.estimators import model_files as files

_READ_ATTEMPTS = 5
T = TypeVar("T")


def write_model(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str,
    pictures: Tensor | None = None,
    edits: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a model directory, or leave everything as it was.

    An older model in the same place is replaced after the new one is complete and on the disk.

    Args:
        directory: where the model shall be; parents are made.
        config: settings that JSON can hold (numpy numbers, tuples and paths are converted). The keys
            "format", "format_version", "tensors", "pictures", "edits" and "config_sha256" belong to this module.
        tensors: arrays of any shape, dtype and device.
        card: the text of README.md.
        pictures: pixels to keep in a file of their own.
        edits: lines of the audit log.

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
    if taken := sorted(set(files.ENVELOPE) & set(config)):
        message = f"the settings may not use the key {taken[0]!r}, which belongs to the store"
        raise StoreError(message)
    try:
        settings = plain(config, "config")
    except InputError as error:
        message = f"cannot write the model to {target}: {error}"
        raise StoreError(message) from error
    contents = {files.TENSORS: _own_storage(tensors)}
    if pictures is not None:
        contents[files.PICTURES] = _own_storage({"pixels": pictures})
    partial = None
    try:
        _check_space(target, sum(t.nbytes for arrays in contents.values() for t in arrays.values()))
        partial = directories.make_partial(target)
        _fill(partial, settings, contents, card, edits)
        directories.put_in_place(partial, target)
    except OSError as error:
        raise StoreError(_why_not_written(target, error)) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    directories.sweep(target)


def read_model(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_model` wrote, after checking every byte of it against its checksum.

    The tensors come in fresh memory, laid out as any new tensor, so that products with them give the same
    bits as before saving: a file mapped into memory has another alignment, and products may round otherwise.

    Args:
        directory: a model directory.

    Returns:
        The settings, without the keys of this module, and the tensors on the CPU, kept pictures among them as
        "pixels".

    Raises:
        StoreError: no model is there, it is damaged or truncated, or a newer tangentune wrote it.
    """

    def read(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = files.read_tensors(folder, config["tensors"])
        if config["pictures"] is not None:
            tensors |= files.read_tensors(folder, config["pictures"])
        return {k: v for k, v in config.items() if k not in files.ENVELOPE}, tensors

    return _undisturbed(Path(directory), read)


def read_edits(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The audit log of a model, every line checked; empty if it was never changed.

    Raises:
        StoreError: no model is there, or the log is damaged.
    """
    return _undisturbed(Path(directory), lambda folder, config: files.read_edits(folder, config["edits"]))


def _undisturbed(folder: Path, read: Callable[[Path, dict[str, Any]], T]) -> T:
    """Read all of one model, though a writer may put another in its place meanwhile."""
    for attempt in range(_READ_ATTEMPTS):
        before = files.read_text(folder)
        try:
            result = read(folder, files.parse(folder, before))
        except StoreError:
            if attempt + 1 == _READ_ATTEMPTS or files.read_text(folder) == before:
                raise
            continue
        if files.read_text(folder) == before:
            return result
    message = f"{folder} is being rewritten over and over; read it when its writer has ended"
    raise StoreError(message)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a model, checked, without reading its tensors.

    Raises:
        StoreError: no model is there, config.json is damaged, or a newer tangentune wrote it.
    """
    folder = Path(directory)
    config = files.parse(folder, files.read_text(folder))
    return {k: v for k, v in config.items() if k not in files.ENVELOPE}


def check_destination(directory: str | os.PathLike[str]) -> Path:
    """Find out before the work whether a model could be written here; the resolved path.

    Raises:
        StoreError: the place is a file, a directory of something else, holds files that would be lost, or may
            not be written.
    """
    target = Path(os.path.realpath(directory))
    if target.exists():
        _check_replaceable(target)
    parent = directories.existing_ancestor(target)
    if not parent.is_dir():
        message = f"cannot write a model to {target}: {parent} is a file, not a directory"
        raise StoreError(message)
    if not os.access(parent, os.W_OK | os.X_OK):
        message = f"cannot write a model to {target}: no permission to write in {parent}"
        raise StoreError(message)
    return target


def _check_replaceable(target: Path) -> None:
    if not target.is_dir():
        message = f"cannot write a model to {target}: it is a file; name a directory"
        raise StoreError(message)
    if not os.access(target, os.W_OK | os.X_OK):
        message = f"cannot write a model to {target}: no permission to write there"
        raise StoreError(message)
    inside = sorted(entry.name for entry in target.iterdir())
    if not inside:
        return
    try:
        ours = json.loads((target / files.CONFIG).read_bytes()).get("format") == files.FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        message = (
            f"{target} exists and is not a tangentune model, so it is left alone; "
            "choose another directory or empty this one"
        )
        raise StoreError(message)
    foreign = [name for name in inside if name not in files.OURS]
    if foreign:
        message = (
            f"replacing the model in {target} would delete {foreign[0]!r}, which tangentune did not write; "
            "move it away or choose another directory"
        )
        raise StoreError(message)


def _fill(
    folder: Path,
    config: dict[str, Any],
    contents: dict[str, dict[str, Tensor]],
    card: str,
    edits: Sequence[dict[str, Any]],
) -> None:
    """Write all files; config.json, which makes a directory a model, last."""
    (folder / files.CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
    for name, tensors in contents.items():
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # the library gives the system's error number in its text only
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
        shutil.copymode(folder / files.CARD, folder / name)  # the library lets nobody else read its file
    if edits:
        (folder / files.AUDIT).write_text(audit.dump(edits), encoding="utf-8")
    envelope = {
        "format": files.FORMAT,
        "format_version": files.FORMAT_VERSION,
        **config,
        "tensors": files.describe(folder / files.TENSORS, contents[files.TENSORS]),
        "pictures": files.describe(folder / files.PICTURES, contents.get(files.PICTURES)),
        "edits": {"lines": len(edits), "seal": edits[-1]["seal"] if edits else audit.FIRST},
    }
    envelope["config_sha256"] = files.config_sha256(envelope)
    text = json.dumps(envelope, indent=2, ensure_ascii=False, allow_nan=False)
    # Names of files may hold bytes that are no text; as escapes they are still JSON and come back the same.
    (folder / files.CONFIG).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
    for path in (*sorted(folder.iterdir()), folder):
        directories.flush(path)


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory (the file format has no views)."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        start = plain.untyped_storage().data_ptr()
        if plain.numel() and (start in seen or plain.untyped_storage().nbytes() != plain.nbytes):
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(directories.existing_ancestor(target)).free
    if free < needed:
        text = f"{needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free"
        raise OSError(errno.ENOSPC, text)


def _why_not_written(target: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "the disk is full" if full else "the disk refused"
    return f"cannot write the model to {target}: {reason} ({error.strerror or error}); nothing was changed"
