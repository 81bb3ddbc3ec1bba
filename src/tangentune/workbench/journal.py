"""The journal of a workbench: every edit on the disk before it is shown, until the model is saved.

    .MODEL.tangentune-journal       beside the model, readable by its owner alone; JSON, one line an edit
    .MODEL.tangentune-workbench     held while a workbench is open: there is one at a time

The first line names the version of the model that the edits follow, by the checksum of its settings. Pictures are named
by number; added ones are in their lines with all pixels. A save writes the seal of the log that it leaves behind before
it begins, so that a journal that a killed save left is known to be in the model already; then the journal goes.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from filelock import FileLock, Timeout

from tangentune import _files
from tangentune.errors import StoreError
from tangentune.pictures.pictures import Pictures
from tangentune.workbench.edits import KINDS, Edit

FORMAT = "tangentune-journal"
ENDING, LOCK = ".tangentune-journal", ".tangentune-workbench"
ACTIONS = ("take", "undo", "redo")


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """One line: an edit that was taken, or the last one undone, or done again."""

    action: str
    when: str
    edit: Edit | None = None  # of "take"
    arrived: Pictures | None = None  # of an edit "add", without labels


@final
@dataclass(frozen=True)
class Pending:
    """Edits of an earlier session that were not saved; `usable` unless the model has changed since."""

    edits: int
    since: str
    usable: bool
    sentence: str


@final
@dataclass(frozen=True, eq=False)
class Unfinished:
    """A journal that was found at opening."""

    version: str  # of the model that it follows
    entries: tuple[Entry, ...]
    saving: str | None  # seal of the log that a save was about to leave behind, if one had begun

    def pending(self, version: str) -> Pending:
        """What is told of it, the model being of a version."""
        count, since, usable = len(self.entries), self.entries[0].when, self.version == version
        what = f"{count} unsaved {'edit' if count == 1 else 'edits'} of {since} {'is' if count == 1 else 'are'} there"
        hint = "replay or discard them first"
        if not usable:
            hint = "the model was changed since by something else, so they no longer fit; discard them first"
        return Pending(count, since, usable, f"{what}; {hint}")


@final
class Journal:
    """The journal beside one model directory; holds the workbench's lock until `close`.

    Raises:
        StoreError: another workbench is open on the model, or the place cannot be written.
    """

    def __init__(self, directory: Path):
        target = Path(os.path.realpath(directory))
        self.path = target.parent / f".{target.name}{ENDING}"
        self._lock = FileLock(target.parent / f".{target.name}{LOCK}")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"another workbench is open on {target}; close that one first") from None
        except (OSError, NotImplementedError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"no workbench can be opened on {target}: {reason}") from error

    def close(self) -> None:
        """Let others open a workbench; the journal stays as it is."""
        if self._lock.is_locked:
            with suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def append(self, version: str, entry: Entry) -> None:
        """Put an entry on the disk; whole, or nothing of it and a StoreError."""
        self._write(_packed(entry), {"format": FORMAT, "version": version})

    def about_to_save(self, seal: str) -> None:
        """Note with which seal the log ends that the save now leaves behind."""
        if self.path.exists():
            self._write({"saving": seal})

    def remove(self) -> None:
        """Its edits are in the model, or not wanted."""
        try:
            self.path.unlink(missing_ok=True)
            _files.flush(self.path.parent)
        except OSError as error:
            raise StoreError(f"the journal {self.path} cannot be removed ({error.strerror}); remove it") from error

    def unfinished(self, seals: Collection[str]) -> Unfinished | None:
        """The edits of an earlier session, unless there are none or a log with these seals has them already."""
        found = self._read()
        if found is not None and (not found.entries or found.saving in seals):
            self.remove()
            return None
        return found

    def _read(self) -> Unfinished | None:
        """What is there; None without a journal. A line that was cut off while it was written counts for nothing."""
        try:
            rows = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror or error}") from error
        version, entries, saving = "", list[Entry](), None
        for number, row in enumerate(rows[:-1], 1):  # behind the last line break is nothing, or what was cut off
            try:
                line = _files.from_json(row)
                if number == 1:
                    version = {FORMAT: str(line["version"])}[line["format"]]
                elif "saving" in line:
                    saving = str(line["saving"])
                else:
                    entries.append(_unpacked(line))
                    saving = None  # the save failed, and the work went on
            except (ValueError, KeyError, TypeError, zlib.error) as error:
                raise StoreError(f"line {number} of {self.path} is damaged; move the file away") from error
        return Unfinished(version, tuple(entries), saving)

    def _write(self, line: dict[str, Any], header: dict[str, Any] | None = None) -> None:
        """A line at the end, behind the header where that is the first."""
        new, handle, before = not self.path.exists(), -1, 0
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            before = self._whole(handle)
            lines = [line] if before or header is None else [header, line]
            data = b"".join(json.dumps(one, allow_nan=False).encode() + b"\n" for one in lines)
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
            if new:
                _files.flush(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(handle, before)
                if new:
                    self.path.unlink()
            reason = error.strerror or error
            raise StoreError(f"the journal {self.path} cannot be written ({reason}); nothing was changed") from error
        finally:
            if handle >= 0:
                os.close(handle)

    def _whole(self, handle: int) -> int:
        """Length of the file, a line that was cut off taken away first."""
        size = os.fstat(handle).st_size
        if size:
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                size = data.rfind(b"\n") + 1
                os.ftruncate(handle, size)
        return size


def _packed(entry: Entry) -> dict[str, Any]:
    line: dict[str, Any] = {"action": entry.action, "when": entry.when}
    if entry.edit is not None:
        line |= asdict(entry.edit)
    if (pictures := entry.arrived) is not None:
        array = pictures.pixels.numpy()
        pixels = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()
        line |= {"ids": pictures.ids, "shape": list(array.shape), "dtype": array.dtype.str, "pixels": pixels}
    return line


def _unpacked(line: Mapping[str, Any]) -> Entry:
    if line["action"] not in ACTIONS:
        raise ValueError(line["action"])
    if line["action"] != "take":
        return Entry(line["action"], str(line["when"]))
    if line["kind"] not in KINDS:
        raise ValueError(line["kind"])
    numbers = tuple(int(number) for number in line["numbers"])
    edit = Edit(line["kind"], numbers, line["label"], bool(line["new_class"]), str(line["why"]))
    arrived = None
    if edit.kind == "add":
        array = np.frombuffer(zlib.decompress(base64.b64decode(line["pixels"])), np.dtype(line["dtype"]))
        pixels = torch.from_numpy(array.reshape(line["shape"]).copy())
        arrived = Pictures(pixels, None, [str(name) for name in line["ids"]])
    return Entry("take", str(line["when"]), edit, arrived)
