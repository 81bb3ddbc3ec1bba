"""Where picture files come from: a class folder, a flat folder, a CSV table, a list of paths, one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import final

from tangentune._files import user_path
from tangentune.errors import InputError, PictureError
from tangentune.pictures.encoded import Listing
from tangentune.pictures.names import (
    PICTURE_SUFFIXES,
    is_picture_name,
    looks_like_picture,
    may_be_picture,
    readable,
    some,
)
from tangentune.pictures.tables import USUAL, Columns, read_table

# What operating systems, archives and disk stations leave behind.
_JUNK_FOLDERS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_JUNK_FILES = {"thumbs.db", "desktop.ini"}
_MOST_OTHERS = 100  # files of one ending that are opened in vain, which takes long on a network disk
_SPLIT_NAMES = {"train", "training", "trn", "test", "testing", "tst", "val", "valid", "validation", "dev", "eval"}


@final
@dataclass(frozen=True)
class FileList(Listing):
    """Picture files in their fixed order, found but not yet read; ids are relative to the source's root."""

    pictures: list[str]


def find_files(source: str | os.PathLike[str], need_labels: bool = True, columns: Columns = USUAL) -> FileList:
    """The pictures behind a path: a folder, a `.csv` or `.tsv` table, or a single picture file; none is opened.

    A path that is missing, empty, or not laid out as needed is a PictureError.
    """
    path = user_path(source)
    name = readable(path)
    if path.is_dir():
        return _class_folders(path) if need_labels else _flat_folder(path)
    if not path.exists():
        raise PictureError(f"{name} does not exist; give a folder of pictures, a CSV file, or a picture.")
    if path.suffix.lower() in (".csv", ".tsv"):
        paths, ids, labels = read_table(path, need_labels, columns)
        known = isinstance(labels, list)
        return FileList(paths, ids, labels if known else None, sets=None if known else labels)
    if path.suffix.lower() in PICTURE_SUFFIXES or looks_like_picture(path):
        return FileList([os.fspath(path)], [readable(path.name)])
    raise PictureError(f"{name} is neither a folder, nor a .csv file with columns path,label, nor a picture.")


def from_paths(paths: Iterable[str | os.PathLike[str]]) -> FileList:
    """A list of picture paths, kept in the order given."""
    given = list(paths)
    for position, path in enumerate(given):
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"Entry {position} of the list of paths is {type(path).__name__}, not a path.")
    return FileList([os.path.expanduser(os.fspath(path)) for path in given], [readable(path) for path in given])


@dataclass
class _Findings:
    """What a walk through one folder met."""

    pictures: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[str, str]] = field(default_factory=list)

    def other_files(self) -> str:
        """Such as " (it holds 3 .dng, 1 .txt)", or nothing."""
        counts = _endings(self.others)
        return f" (it holds {counts})" if counts else ""


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Entries sorted by name, without hidden ones and system leftovers."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    return (entry for entry in entries if _is_kept(entry.name))


def _is_kept(name: str) -> bool:
    return not name.startswith(".") and name not in _JUNK_FOLDERS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: it will be named when it is read
        return False


@dataclass
class _Walk:
    """A way through all folders below a root that enters each real folder once, however many links lead to it."""

    root: str
    entered: set[tuple[int, int]] = field(default_factory=set)
    repeated: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @cached_property
    def real(self) -> set[tuple[int, int]]:
        """Folders that are reached without a link: their pictures are found there, not where a link leads to them."""
        found = set()
        for folder, below, _ in os.walk(self.root):
            below[:] = [name for name in below if _is_kept(name)]
            info = os.stat(folder)
            found.add((info.st_dev, info.st_ino))
        return found

    def collect(self, folder: str, found: _Findings, above: frozenset[tuple[int, int]] = frozenset()) -> None:
        """Add the pictures below a folder, names in order."""
        here = readable(os.path.relpath(folder, self.root))
        try:
            info = os.stat(folder)
            place = info.st_dev, info.st_ino
            if place in above:
                found.lost.append((here, "it is a symbolic link back to a folder that contains it"))
                return
            if place in self.entered or (above and os.path.islink(folder) and place in self.real):
                self.repeated.append(here)
                return
            self.entered.add(place)
            entries = list(_entries(folder))
        except OSError as error:
            found.lost.append((here, f"the folder cannot be opened ({error.strerror})"))
            return
        for entry in entries:
            if _is_folder(entry):
                self.collect(entry.path, found, above | {place})
            elif is_picture_name(entry.name):
                found.pictures.append(entry.path)
            elif entry.name.lower() not in _JUNK_FILES:
                found.others[os.path.splitext(entry.name)[1].lower()] += 1
                self.look_at(entry)

    def look_at(self, entry: os.DirEntry[str]) -> None:
        """Remember a file that is not read but may be a picture; of an ending with many that are none, no more."""
        suffix = os.path.splitext(entry.name)[1].lower()
        if self.others[suffix] < _MOST_OTHERS:
            if may_be_picture(entry.path):
                self.unread.append(entry.path)
            else:
                self.others[suffix] += 1

    def notes(self) -> list[str]:
        """What was left out, counted."""
        notes = []
        if self.repeated:
            notes.append(
                f"Links to folders that are read already are left out ({len(self.repeated)}): {some(self.repeated)}."
            )
        if self.unread:
            counts = _endings(Counter(os.path.splitext(path)[1].lower() for path in self.unread))
            first = readable(os.path.relpath(self.unread[0], self.root))
            notes.append(
                f"Files of {readable(self.root)} that may be pictures are left out because of their endings ({counts}; "
                f"the first is {first}); give them an ending such as .jpg, or convert them, to have them read."
            )
        return notes


def _endings(counts: Counter[str]) -> str:
    """Such as "3 .dng, 1 without ending"."""
    return some([f"{n} {readable(suffix) or 'without ending'}" for suffix, n in counts.most_common()], 4)


def _list_root(root: Path) -> list[os.DirEntry[str]]:
    try:
        return list(_entries(os.fspath(root)))
    except OSError as error:
        raise PictureError(f"The folder {readable(root)} cannot be opened ({error.strerror}).") from error


def _flat_folder(root: Path) -> FileList:
    """All pictures below a folder, without labels."""
    _list_root(root)
    found, walk = _Findings(), _Walk(os.fspath(root))
    walk.collect(walk.root, found)
    if not found.pictures and not found.lost:
        raise PictureError(f"The folder {readable(root)} holds no picture{found.other_files()}.")
    return FileList(found.pictures, _relative(found.pictures, root), None, walk.notes(), found.lost)


def _relative(paths: Sequence[str], root: Path) -> list[str]:
    return [readable(os.path.relpath(path, root)) for path in paths]


def _class_folders(root: Path) -> FileList:
    """Layout root/class/file; files nested deeper belong to their first folder."""
    name, entries = readable(root), _list_root(root)
    folders = [entry for entry in entries if _is_folder(entry)]
    loose = [entry.name for entry in entries if not _is_folder(entry) and is_picture_name(entry.name)]
    if not folders:
        _refuse_folder_without_classes(name, entries, loose)
    paths, labels, lost, empty = [], [], [], []
    info, walk = root.stat(), _Walk(os.fspath(root))
    for entry in entries:
        if not _is_folder(entry):
            if not is_picture_name(entry.name):
                walk.look_at(entry)
            continue
        found, unread = _Findings(), len(walk.unread)
        walk.collect(entry.path, found, frozenset({(info.st_dev, info.st_ino)}))
        paths += found.pictures
        labels += [readable(entry.name)] * len(found.pictures)
        lost += found.lost
        if not found.pictures and not found.lost and readable(entry.name) not in walk.repeated:
            empty.append(f"{readable(entry.name)}{found.other_files()}")
            del walk.unread[unread:]  # told with the class
    if not paths and not lost:
        raise PictureError(f"None of the class folders in {name} holds a picture: {some(empty)}.")
    inside = [os.path.relpath(path, root).split(os.sep) for path in paths]
    nested = all(len(parts) > 2 for parts in inside)
    notes = _check_splits(root, inside) + walk.notes()
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


def _check_splits(root: Path, inside: list[list[str]]) -> list[str]:
    """Refuse splits as classes where folders lie between them and their pictures; else a sentence that they are odd."""
    filled = sorted({parts[0] for parts in inside})
    splits = [name for name in filled if name.lower() in _SPLIT_NAMES]
    nested = all(len(parts) > 2 for parts in inside if parts[0] in splits)
    if splits and nested and (len(splits) > 1 or splits == filled):
        raise PictureError(
            f"{readable(root)} holds the splits {some(splits)}, not classes; "
            f"give one of them, such as {readable(root / max(splits, key=lambda name: 'train' in name.lower()))}."
        )
    if len(splits) < 2:
        return []
    return [f"The classes of {readable(root)} are named like splits ({some(splits)}); make sure that they are classes."]


def _refuse_folder_without_classes(name: str, entries: list[os.DirEntry[str]], loose: list[str]) -> None:
    if loose:
        pictures = "1 picture" if len(loose) == 1 else f"{len(loose)} pictures"
        message = (
            f"The folder {name} holds {pictures} but no class folders; put each class's "
            "pictures into a folder of its own (name/class/picture), or give a CSV file with path,label."
        )
    elif entries:
        others = some([readable(entry.name) for entry in entries])
        message = f"The folder {name} holds neither class folders nor pictures, only {others}."
    else:
        message = f"The folder {name} is empty."
    raise PictureError(message)
