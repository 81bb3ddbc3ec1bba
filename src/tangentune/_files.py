"""Files and directories written whole or not at all, by one writer at a time; named tensors; and what JSON can hold."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangentune.errors import InputError, StoreError

if TYPE_CHECKING:  # safetensors brings torch, and what prints JSON does not need to wait for that, nor for locks
    from filelock import FileLock
    from torch import Tensor

_PARTIAL = ".tangentune-partial"
_FORMER = ".tangentune-former"
_LOCK = ".tangentune-lock"
PATIENCE = 60  # seconds to wait for another writer


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, `~` being a home where there is such a user; InputError if the system refuses it."""
    found = Path(os.path.expanduser(path))  # the method of Path raises where there is no such user
    try:
        found.exists()
    except OSError as error:
        raise InputError(
            f"{str(path)[:80]}{'...' if len(str(path)) > 80 else ''} cannot be used: {error.strerror}"
        ) from error
    return found


@contextmanager
def replaced_file(path: str | os.PathLike[str], *, new: bool = False) -> Iterator[Path]:
    """A path to write to beside `path`; at the end, without an error, it takes its place in one move, or StoreError.

    If `new`, a place where something is already is refused, and stays as it is.
    """
    target = Path(path)
    part = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        (move_new if new else os.replace)(part, target)
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            raise StoreError(f"{target} is there already, and is not overwritten; give another name") from error
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # not even the folder could be used
            part.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], kind: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """One safetensors file, in one move: tensors by name, and in its header what they are.

    The facts are text, and mappings or lists that JSON can hold; `read_tensors` takes no file of another kind.
    """
    words = {name: fact if isinstance(fact, str) else json.dumps(plain(fact, name)) for name, fact in facts.items()}
    header = {"format": "pt", "kind": f"tangentune {kind}", **words}
    with replaced_file(path) as part:
        save_tensors(part, header, {name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def read_tensors(
    path: str | os.PathLike[str], kind: str, *, foreign: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_tensors` wrote, `(facts, tensors)`: bit for bit, on the CPU, in memory of their own.

    `foreign` takes any safetensors file, whoever wrote it, and its header as it stands. A file that is not there,
    damaged, or of another kind is a StoreError.
    """
    try:
        header, tensors = load_tensors(path)
        if foreign:
            return header, tensors
        if header.pop("kind", None) != f"tangentune {kind}":
            raise StoreError(f"{os.fspath(path)} holds no {kind} written by tangentune")
        header.pop("format", None)
        facts = {name: from_json(text) if text[:1] in ("{", "[") else text for name, text in header.items()}
    except (OSError, json.JSONDecodeError) as error:
        raise StoreError(f"no {kind} can be read from {os.fspath(path)} ({error})") from error
    return facts, tensors


def save_tensors(file: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file where it stands; the library's own error becomes an OSError with its number."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata=dict(header))
    except SafetensorError as error:  # the library gives the system's error number in its text only
        found = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
        code = int(found[1] or found[2]) if found else errno.EIO
        raise OSError(code, os.strerror(code) if found else str(error)) from error


def load_tensors(file: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file; copies, so that the file need not stay as it is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
            return handle.metadata() or {}, tensors
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_new(path: Path, text: str) -> None:
    """Write a text whole, or not at all, to a place where nothing is; else a StoreError, and nothing is written."""
    with replaced_file(path, new=True) as part:
        part.write_text(text, encoding="utf-8", newline="")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Be the only writer of `target`, by a lock file beside it that is gone afterwards; waits for another one a while.

    A writer that is killed holds nothing. What the thread holds already it may take again.
    """
    with claimed(target, PATIENCE) as held:
        if not held:
            raise StoreError(f"another process is changing {target}; do this again when it has ended")
        yield


@contextmanager
def claimed(target: Path, patience: float = 0) -> Iterator[bool]:
    """The same, told whether it came to be the only writer within some seconds, for who has other things to do."""
    from filelock import Timeout

    lock = _lock(target.parent / f".{target.name}{_LOCK}", os.getpid())
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        reason = f"{error.strerror if isinstance(error, OSError) else error}; use a disk that has locks"
        raise StoreError(f"cannot keep other writers away from {target}: {reason}") from error
    try:
        yield True
    finally:
        if lock.lock_counter == 1:  # while it is held: a writer that waits notices that this file is no more
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


@cache
def _lock(file: Path, _process: int) -> FileLock:
    """One lock of this process, which its forks do not share, for a file: so that a thread can take it again."""
    from filelock import FileLock

    return FileLock(file)


def make_partial(target: Path) -> Path:
    """A new hidden directory beside `target`, on the same file system, with the user's usual permissions."""
    partial = _sibling(target, _PARTIAL)
    partial.mkdir()
    return partial


def put_in_place(partial: Path, target: Path) -> None:
    """Make `partial` the directory `target`; a former one is then a leftover, or back in place if this fails.

    One atomic step if `target` is new or empty, or where the system can exchange directories (Linux, macOS).
    Elsewhere two renames: killed exactly between them, the former directory is what `find_former` finds.
    """
    if not target.exists() or not any(target.iterdir()):
        os.replace(partial, target)
    else:
        shutil.copymode(target, partial)
        if not exchange(partial, target):
            former = _sibling(target, _FORMER)
            os.rename(target, former)
            try:
                os.rename(partial, target)
            except BaseException:
                os.rename(former, target)
                raise
    with suppress(OSError):  # it is in place; some file systems cannot flush a directory
        flush(target.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one atomic step; False, and nothing done, where the system cannot."""
    return _rename(one, other, linux=2, macos=2) == 0  # RENAME_EXCHANGE, RENAME_SWAP


def move_new(source: Path, target: Path) -> None:
    """Give a file another place in one step; a FileExistsError, and nothing done, where there is something already.

    Where the system has no such step, an empty file of ours keeps the place until the file takes it.
    """
    number = _rename(source, target, linux=1, macos=4)  # RENAME_NOREPLACE, RENAME_EXCL
    if number in (errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EXDEV, errno.ENAMETOOLONG, errno.EROFS):
        raise OSError(number, os.strerror(number), os.fspath(target))
    if number:
        with open(target, "x"):
            pass
        try:
            os.replace(source, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _rename(one: Path, other: Path, *, linux: int, macos: int) -> int:
    """Rename with a flag of the system's own; 0, or the number of the error, ENOSYS where there is no such function."""
    here, first, second = -100, os.fsencode(one), os.fsencode(other)  # AT_FDCWD
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            return library.renameat2(here, first, here, second, linux) and ctypes.get_errno()
        if sys.platform == "darwin":
            return library.renamex_np(first, second, macos) and ctypes.get_errno()
    except (OSError, AttributeError, TypeError):  # no such function in this system's library
        pass
    return errno.ENOSYS


def find_former(target: Path) -> Path | None:
    """The directory that a writer killed between its two renames left, if any."""
    return next(iter(_leftovers(target, _FORMER)), None)


def remove_leftovers(target: Path, before: str = "") -> None:
    """Remove what this writer and killed ones left beside `target`, former versions of it too; the lock must be held.

    `before` begins the StoreError that names what cannot be removed.
    """
    for left in [*_leftovers(target, _PARTIAL), *(_leftovers(target, _FORMER) if target.exists() else ())]:
        try:
            shutil.rmtree(left)
        except OSError as error:
            where = f"{left} and cannot be removed ({error.filename or left}: {error.strerror or error})"
            raise StoreError(f"{before}an older version of {target} is left in {where}; remove it") from error


def _sibling(target: Path, ending: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(6)}{ending}"


def _leftovers(target: Path, ending: str) -> list[Path]:
    digits = "[0-9a-f]" * 12  # else those of `target.other` would be among them
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.{digits}{ending}"))


def check_exchangeable(target: Path) -> None:
    """Refuse by an OSError a place for a directory that cannot be exchanged: a mount point, a name too long."""
    if is_mount(target):
        raise OSError(errno.EBUSY, "it is a mount point, which no new directory can replace")
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(existing_ancestor(target) / _sibling(target, _PARTIAL).name)


def is_mount(path: Path) -> bool:
    """Whether something is mounted here; on Linux also a directory of the same disk."""
    try:
        rows = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return os.path.ismount(path)
    named = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(path))
    return os.path.ismount(path) or any(row.split(b" ")[4] == named for row in rows)


def file_digest(path: str | os.PathLike[str], start: int = 0) -> str:
    """The sha256 of a file's bytes from `start` on, as hexadecimal text; an OSError where it cannot be read."""
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    return next((parent for parent in path.parents if parent.exists()), path)


def from_json(text: str | bytes) -> Any:
    """What a JSON document says; an error of its decoder also where it is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deep", "", 0) from error


def plain(value: Any, where: str = "value") -> Any:
    """JSON's own types from common Python and numpy ones, nested in any way; `where` names the value in errors.

    Example:
        >>> plain({"shape": (2, 3), "scale": np.float32(0.5)})
        {'shape': [2, 3], 'scale': 0.5}
    """
    if isinstance(value, Mapping):
        if other := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"{where} has the key {other[0]!r}, but JSON keys are strings")
        return {k: plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not np.isfinite(value):
        raise InputError(f"{where} is {value}, which JSON cannot hold; use None instead")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"{where} is of type {type(value).__name__}, which JSON cannot hold")
