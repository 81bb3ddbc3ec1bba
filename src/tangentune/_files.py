"""Files and directories written whole or not at all: one file, a folder, named tensors; and what JSON can hold."""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangentune.errors import InputError, StoreError

if TYPE_CHECKING:  # safetensors brings torch, and what prints JSON does not need to wait for that
    from torch import Tensor

_PARTIAL = ".tangentune-partial"
_FORMER = ".tangentune-former"
_STALE_SECONDS = 24 * 3600


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with `~` for a home, if there is such a user; it need not exist.

    Raises:
        InputError: the system refuses the name or the way to it.
    """
    found = Path(os.path.expanduser(path))  # the method of Path raises where there is no such user
    try:
        found.exists()
    except OSError as error:
        message = f"{str(path)[:80]}{'...' if len(str(path)) > 80 else ''} cannot be used: {error.strerror}"
        raise InputError(message) from error
    return found


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to beside `path`; at the end, without an error, it takes its place in one move.

    Raises:
        StoreError: if the file system refuses.
    """
    target = Path(path)
    part = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        message = f"cannot write {target}: {error.strerror or error}"
        raise StoreError(message) from error
    finally:
        with suppress(OSError):  # not even the folder could be used
            part.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], kind: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """One safetensors file, in one move: tensors by name, and in its header what they are.

    The facts are text, and mappings or lists that JSON can hold; `read_tensors` takes no file of another kind.

    Raises:
        StoreError: if the file cannot be written.
        InputError: if a fact has no JSON form.
    """
    words = {name: fact if isinstance(fact, str) else json.dumps(plain(fact, name)) for name, fact in facts.items()}
    header = {"format": "pt", "kind": f"tangentune {kind}", **words}
    with replaced_file(path) as part:
        save_tensors(part, header, {name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def read_tensors(
    path: str | os.PathLike[str], kind: str, *, foreign: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_tensors` wrote, `(facts, tensors)`: bit for bit, on the CPU, in memory of their own.

    `foreign` takes any safetensors file, whoever wrote it, and its header as it stands.

    Raises:
        StoreError: there is no such file, it is damaged, or it holds something else.
    """
    try:
        header, tensors = load_tensors(path)
        if foreign:
            return header, tensors
        if header.pop("kind", None) != f"tangentune {kind}":
            message = f"{os.fspath(path)} holds no {kind} written by tangentune"
            raise StoreError(message)
        header.pop("format", None)
        facts = {name: json.loads(text) if text[:1] in ("{", "[") else text for name, text in header.items()}
    except (OSError, json.JSONDecodeError) as error:
        message = f"no {kind} can be read from {os.fspath(path)} ({error})"
        raise StoreError(message) from error
    return facts, tensors


def save_tensors(file: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file where it stands; the library's own error becomes an OSError with its number."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata=dict(header))
    except SafetensorError as error:  # the library gives the system's error number in its text only
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error


def load_tensors(file: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file; copies, so that the file need not stay as it is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
            return handle.metadata() or {}, tensors
    except SafetensorError as error:
        raise OSError(str(error)) from error


def make_partial(target: Path) -> Path:
    """A new hidden directory beside `target`, on the same file system, with the user's usual permissions."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{secrets.token_hex(6)}{_PARTIAL}"
    partial.mkdir()
    return partial


def put_in_place(partial: Path, target: Path) -> None:
    """Make `partial` the directory `target`; a former one is removed, or back in place if this fails.

    One atomic step if `target` is new or empty, or where the system can exchange directories (Linux, macOS).
    Elsewhere two renames: killed exactly between them, the former directory is what `find_former` finds.
    """
    if not target.exists() or not any(target.iterdir()):
        os.replace(partial, target)
    else:
        shutil.copymode(target, partial)
        if exchange(partial, target):
            shutil.rmtree(partial, ignore_errors=True)
        else:
            _replace_in_two_steps(partial, target)
    with suppress(OSError):  # it is in place; some file systems cannot flush a directory
        flush(target.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one atomic step; False, and nothing done, where the system cannot."""
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE on Linux and RENAME_SWAP on macOS are both 2
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            return library.renameat2(here, first, here, second, swap) == 0
        if sys.platform == "darwin":
            return library.renamex_np(first, second, swap) == 0
    except (OSError, AttributeError, TypeError):  # no such function in this system's library
        pass
    return False


def _replace_in_two_steps(partial: Path, target: Path) -> None:
    former = target.parent / f".{target.name}.{secrets.token_hex(6)}{_FORMER}"
    os.rename(target, former)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(former, target)
        raise
    shutil.rmtree(former, ignore_errors=True)


def find_former(target: Path) -> Path | None:
    """The directory that a writer killed between its two renames left, if any."""
    return next(iter(_siblings(target, _FORMER)), None)


def sweep(target: Path) -> None:
    """Remove unfinished directories that killed writers left beside `target` more than a day ago."""
    for left in _siblings(target, _PARTIAL):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # another process was quicker
            continue


def _siblings(target: Path, ending: str) -> list[Path]:
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.*{ending}"))


def flush(path: Path) -> None:
    """Wait until the disk holds this file or directory (Windows cannot open a directory for that)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def existing_ancestor(path: Path) -> Path:
    """The nearest parent that exists."""
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    return parent


def plain(value: Any, where: str = "value") -> Any:
    """JSON's own types from common Python and numpy ones, nested in any way; `where` names the value in errors.

    Raises:
        InputError: a key is no string, a number is not finite, or a type has no JSON form.

    Example:
        >>> plain({"shape": (2, 3), "scale": np.float32(0.5)})
        {'shape': [2, 3], 'scale': 0.5}
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                message = f"{where} has the key {key!r}, but JSON keys are strings"
                raise InputError(message)
        return {k: plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not np.isfinite(value):
        message = f"{where} is {value}, which JSON cannot hold; use None instead"
        raise InputError(message)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    message = f"{where} is of type {type(value).__name__}, which JSON cannot hold"
    raise InputError(message)
