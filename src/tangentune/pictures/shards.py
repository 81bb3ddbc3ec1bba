"""Pictures in tar files, as WebDataset keeps them: found by one walk over the headers, read where they lie.

A sample is a run of members whose names are equal up to the first dot: `0001.jpg`, `0001.cls`. Nothing is extracted, so
no name in an archive leads anywhere, and a picture passes the same decoders with the same limits as a file.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tangentune._files import from_json, user_path
from tangentune.errors import PictureError
from tangentune.pictures.encoded import Encoded, Listing, Part
from tangentune.pictures.names import PICTURE_SUFFIXES, readable, some
from tangentune.pictures.tables import USUAL, Columns, find_column

_TAR = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MOST_WORDS = 1 << 20  # bytes of a header or of a label, which a hostile archive may say to be as long as it likes
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABELS = ("cls", "json")  # members that may hold a label, the first goes before the other


def shard_paths(source: Any) -> list[Path]:
    """The tar files that a source names: one, several, `part-{000..009}.tar`, or a folder of nothing else; or none.

    Example:
        >>> [path.name for path in shard_paths("train-{08..10}.tar")]
        ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    several = source if isinstance(source, list) else [source]
    if not several or not all(isinstance(one, str | os.PathLike) for one in several):
        return []
    texts = [os.fspath(one) for one in several]
    if len(texts) == 1 and os.path.isdir(texts[0]):
        inside = sorted(name for name in os.listdir(texts[0]) if not name.startswith("."))
        others = [name for name in inside if not name.endswith((_TAR, ".json", ".txt", ".md"))]
        return [] if others else [Path(texts[0], name) for name in inside if name.endswith(_TAR)]
    if any(text.lower().endswith(_PACKED) for text in texts):
        raise PictureError(
            f"{readable(texts[0])} is compressed, so that no picture in it can be read by itself; unpack it to a .tar"
        )
    if not all(text.lower().endswith(_TAR) for text in texts):
        return []
    return [user_path(one) for text in texts for one in _expanded(text)]


def _expanded(text: str) -> list[str]:
    """All names that a range in braces stands for."""
    found = _RANGE.search(text)
    if found is None or os.path.exists(text):
        return [text]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + 1_000_000:
        raise PictureError(f"{readable(text)} names a range that runs from {first} to {last}; give the lower end first")
    numbers = (str(number).zfill(len(found[1])) for number in range(first, last + 1))
    return [one for number in numbers for one in _expanded(text[: found.start()] + number + text[found.end() :])]


def read_shards(paths: Sequence[Path], need_labels: bool = True, columns: Columns = USUAL) -> Listing:
    """The pictures of tar files, none of them decoded, and their labels as text.

    A label is the text of the member `cls`, or the field label (or class, target, ...) of the member `json`; the column
    of the labels may name another ending or field, that of the pictures one of several pictures of a sample.

    Raises:
        PictureError: a file is no tar file or is damaged, a sample has several pictures or no label, or none has any.
    """
    pictures: list[Encoded] = []
    ids, labels, odd = list[str](), list[str](), list[str]()
    for path in paths:
        name = readable(path)
        front = f"{path.name}/" if len(paths) > 1 else ""
        for sample in _samples(path):
            member = _picture(sample, columns.path, name)
            if member is None:
                odd.append(f"{name}: {sample.key}")
                continue
            pictures.append(sample.parts[member])
            ids.append(front + _safe(f"{sample.key}.{member}"))
            label = _label(sample, columns.label, name) if need_labels else ""
            if need_labels and not label:
                raise PictureError(
                    f"{ids[-1]} of {name} has no label; put it beside the picture as {sample.key}.cls, or name "
                    "its ending or its field of the .json with load_pictures(..., label_column=...)."
                )
            labels.append(label)
    if not pictures:
        raise PictureError(f"{readable(paths[0])}{' and the others hold' if paths[1:] else ' holds'} no picture.")
    notes = [f"Samples without a picture are left out ({len(odd)}): {some(odd)}."] if odd else []
    return Listing(pictures, ids, labels if need_labels else None, notes)


@dataclass
class _Sample:
    """Members of one sample, by their endings."""

    key: str
    parts: dict[str, Part] = field(default_factory=dict)


def _samples(path: Path) -> Iterator[_Sample]:
    """Every sample of one tar file; links, devices, folders and hidden files are passed over."""
    sample, name = _Sample(""), readable(path)
    try:
        size = path.stat().st_size
        with _Headers(path) as file, tarfile.TarFile(fileobj=file, mode="r") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or all headers would stay in memory
                head, _, base = member.name.rpartition("/")
                key, _, ending = base.partition(".")
                if not member.isreg() or member.issparse() or not key or not ending:
                    continue
                if member.offset_data + member.size > size:
                    raise PictureError(f"{name} is truncated: it ends within {readable(member.name)}.")
                key = f"{head}/{key}" if head else key
                if key != sample.key:
                    if sample.parts:
                        yield sample
                    sample = _Sample(key)
                sample.parts[ending.lower()] = Part(os.fspath(path), member.offset_data, member.size)
    except FileNotFoundError:
        raise PictureError(f"{name} does not exist; give tar files of pictures.") from None
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{name} cannot be read as a tar file: {error}.") from error
    if sample.parts:
        yield sample


class _Headers(io.FileIO):
    """A tar file of which only headers are read; one that claims to be longer than any would be is not believed."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_WORDS:
            raise tarfile.ReadError("a header in it is too long")
        return super().read(size) or b""


def _picture(sample: _Sample, wanted: str | None, shard: str) -> str | None:
    """The ending of the sample's picture."""
    if wanted is not None:
        return wanted.lower().lstrip(".") if wanted.lower().lstrip(".") in sample.parts else None
    found = [ending for ending in sample.parts if PurePosixPath(f"a.{ending}").suffix in PICTURE_SUFFIXES]
    if len(found) > 1:
        raise PictureError(
            f"{readable(sample.key)} of {shard} has several pictures: {some(found)}; "
            f'say which with load_pictures(..., path_column="{found[0]}").'
        )
    return found[0] if found else None


def _label(sample: _Sample, wanted: str | None, shard: str) -> str:
    """The label of a sample as text, empty where there is none."""
    if wanted is not None and wanted.lower().lstrip(".") in sample.parts:
        return _words(sample.parts[wanted.lower().lstrip(".")], sample, shard)
    for ending in _LABELS:
        if ending not in sample.parts or (wanted is not None and ending != "json"):
            continue
        words = _words(sample.parts[ending], sample, shard)
        if ending != "json":
            return words
        try:
            facts = from_json(words)
        except ValueError as error:  # also numbers of thousands of digits
            raise PictureError(f"{readable(sample.key)}.json of {shard} cannot be read as JSON: {error}.") from error
        names = list(facts) if isinstance(facts, dict) else []
        column = find_column(names, "label", f"{readable(sample.key)}.json of {shard}", wanted) if names else None
        value = None if column is None else facts[names[column]]
        if isinstance(value, str | int | float):
            return str(value).strip()
    return ""


def _words(part: Part, sample: _Sample, shard: str) -> str:
    if part.size > _MOST_WORDS:
        raise PictureError(f"The label of {readable(sample.key)} in {shard} has {part.size:,} bytes.")
    with open(part.file, "rb") as file:
        file.seek(part.start)
        try:
            return file.read(part.size).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise PictureError(f"The label of {readable(sample.key)} in {shard} is no UTF-8 text.") from error


def _safe(name: str) -> str:
    """A member's name as an id: no way out of any folder."""
    return "/".join(part for part in readable(name).split("/") if part not in ("", ".", ".."))
