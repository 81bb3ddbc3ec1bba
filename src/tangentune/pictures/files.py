"""Where picture files come from: a class folder, a flat folder, a CSV table, a list of paths, one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tangentune.errors import InputError, PictureError
from tangentune.pictures.names import PICTURE_SUFFIXES, is_picture_name, readable, some
from tangentune.pictures.tables import USUAL, Columns, read_table

# What operating systems, archives and disk stations leave behind.
_JUNK_FOLDERS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_SPLIT_NAMES = {"train", "training", "trn", "test", "testing", "tst", "val", "valid", "validation", "dev", "eval"}


@dataclass(frozen=True)
class FileList:
    """Picture files in their fixed order, found but not yet read.

    `ids` are printable names relative to the source's root; `labels` one text per file; `notes` sentences that the user
    should see (empty class folders, files left out); `lost` the `(id, reason)` of folders that could not be entered.
    """

    paths: list[str]
    ids: list[str]
    labels: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)


def find_files(source: str | os.PathLike[str], need_labels: bool = True, columns: Columns = USUAL) -> FileList:
    """The pictures behind a path: a folder, a `.csv` or `.tsv` table, or a single picture file.

    Cost: folder listings only; no picture is opened.

    Raises:
        PictureError: the path is missing, empty, or not laid out as needed.
    """
    path = Path(source).expanduser()
    name = readable(path)
    if path.is_dir():
        return _class_folders(path) if need_labels else _flat_folder(path)
    if not path.exists():
        message = f"{name} does not exist; give a folder of pictures, a CSV file, or a picture."
        raise PictureError(message)
    if path.suffix.lower() in (".csv", ".tsv"):
        return FileList(*read_table(path, need_labels, columns))
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return FileList([os.fspath(path)], [readable(path.name)])
    message = f"{name} is neither a folder, nor a .csv file with columns path,label, nor a picture."
    raise PictureError(message)


def from_paths(paths: Iterable[str | os.PathLike[str]]) -> FileList:
    """A list of picture paths, kept in the order given."""
    given = list(paths)
    for position, path in enumerate(given):
        if not isinstance(path, (str, os.PathLike)):
            message = f"Entry {position} of the list of paths is {type(path).__name__}, not a path."
            raise InputError(message)
    return FileList([os.path.expanduser(os.fspath(path)) for path in given], [readable(path) for path in given])


@dataclass
class _Findings:
    """What a walk through one folder met."""

    pictures: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[str, str]] = field(default_factory=list)

    def other_files(self) -> str:
        """Such as " (it holds 3 .dng, 1 .txt)", or nothing."""
        counts = ", ".join(f"{n} {suffix or 'without ending'}" for suffix, n in self.others.most_common(4))
        return f" (it holds {counts})" if counts else ""


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Entries sorted by name, without hidden ones and system leftovers."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    return (e for e in entries if not e.name.startswith(".") and e.name not in _JUNK_FOLDERS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: it will be named when it is read
        return False


def _walk(folder: str, root: str, found: _Findings, above: frozenset[tuple[int, int]] = frozenset()) -> None:
    """Collect the pictures below `folder`, names in order, following links but never in a circle."""
    here = readable(os.path.relpath(folder, root))
    try:
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in above:
            found.lost.append((here, "it is a symbolic link back to a folder that contains it"))
            return
        entries = list(_entries(folder))
    except OSError as error:
        found.lost.append((here, f"the folder cannot be opened ({error.strerror})"))
        return
    for entry in entries:
        if _is_folder(entry):
            _walk(entry.path, root, found, above | {(info.st_dev, info.st_ino)})
        elif is_picture_name(entry.name):
            found.pictures.append(entry.path)
        elif entry.name.lower() not in ("thumbs.db", "desktop.ini"):
            found.others[os.path.splitext(entry.name)[1].lower()] += 1


def _list_root(root: Path) -> list[os.DirEntry[str]]:
    try:
        return list(_entries(os.fspath(root)))
    except OSError as error:
        message = f"The folder {readable(root)} cannot be opened ({error.strerror})."
        raise PictureError(message) from error


def _flat_folder(root: Path) -> FileList:
    """All pictures below a folder, without labels."""
    _list_root(root)
    found = _Findings()
    _walk(os.fspath(root), os.fspath(root), found)
    if not found.pictures and not found.lost:
        message = f"The folder {readable(root)} holds no picture{found.other_files()}."
        raise PictureError(message)
    return FileList(found.pictures, _relative(found.pictures, root), None, [], found.lost)


def _relative(paths: Sequence[str], root: Path) -> list[str]:
    return [readable(os.path.relpath(path, root)) for path in paths]


def _class_folders(root: Path) -> FileList:
    """Layout root/class/file; files nested deeper belong to their first folder."""
    name, entries = readable(root), _list_root(root)
    folders = [entry for entry in entries if _is_folder(entry)]
    loose = [entry.name for entry in entries if not _is_folder(entry) and is_picture_name(entry.name)]
    if not folders:
        _refuse_folder_without_classes(name, entries, loose)
    paths, labels, notes, lost, empty = [], [], [], [], []
    info = root.stat()
    for entry in folders:
        found = _Findings()
        _walk(entry.path, os.fspath(root), found, frozenset({(info.st_dev, info.st_ino)}))
        paths += found.pictures
        labels += [readable(entry.name)] * len(found.pictures)
        lost += found.lost
        if not found.pictures and not found.lost:
            empty.append(f"{readable(entry.name)}{found.other_files()}")
    if not paths and not lost:
        message = f"None of the class folders in {name} holds a picture: {some(empty)}."
        raise PictureError(message)
    inside = [os.path.relpath(path, root).split(os.sep) for path in paths]
    nested = all(len(parts) > 2 for parts in inside)
    # `train` and `test` are splits when folders lie between them and their pictures, not classes.
    if paths and nested and all(entry.name.lower() in _SPLIT_NAMES for entry in folders):
        message = (
            f"{name} holds the splits {some([entry.name for entry in folders])}, not classes; "
            f"give one of them, such as {readable(root / folders[0].name)}."
        )
        raise PictureError(message)
    if empty:
        notes.append(f"Class folders of {name} without a picture are left out: {some(empty)}.")
    if loose:
        named = some([readable(picture) for picture in loose])
        notes.append(f"Pictures beside the class folders of {name} are left out ({len(loose)}): {named}.")
    below = {parts[1] for parts in inside}
    if len(folders) == 1 and len(below) > 1 and nested:  # unpacking an archive often puts one around the class folders
        only = readable(root / folders[0].name)
        notes.append(f"All pictures lie in {only}; if the {len(below)} folders in it are the classes, give that.")
    return FileList(paths, _relative(paths, root), labels, notes, lost)


def _refuse_folder_without_classes(name: str, entries: list[os.DirEntry[str]], loose: list[str]) -> None:
    if loose:
        message = (
            f"The folder {name} holds {len(loose)} picture(s) but no class folders; put each class's "
            "pictures into a folder of its own (name/class/picture), or give a CSV file with path,label."
        )
    elif entries:
        others = some([readable(entry.name) for entry in entries])
        message = f"The folder {name} holds neither class folders nor pictures, only {others}."
    else:
        message = f"The folder {name} is empty."
    raise PictureError(message)
