"""What was chosen, from where, for what, and with which weight: the manifest of a selection, and its pictures.

A manifest is JSON with a digest over its content. It holds no time and nothing of the machine, so the same selection
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tangentune._files import existing_ancestor, file_digest, from_json, plain, replaced_file, user_path
from tangentune._torch import usual_torch
from tangentune.errors import InputError, PictureError, StoreError
from tangentune.memory import progress
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import find_files
from tangentune.pictures.load import Pictures, load_pictures, pictures_digest
from tangentune.pictures.names import readable, some

FORMAT, VERSION = "tangentune-selection", 1
_SHARE_DIGITS = 6
# Columns of a picture by their names in the file.
_COLUMNS = {
    "ids": "id", "sha256": "sha256", "classes": "class", "scores": "score", "weights": "weight", "targets": "target",
}  # fmt: skip
_HEAD = ("settings", "backbone", "source", "target", "class_table", "coverage", "notes")


@final
@dataclass(frozen=True, eq=False)
class Manifest:
    """A selection of source pictures for a target set; arrays are kept as they are written.

    Attributes:
        settings: how it was chosen, as JSON-able values.
        backbone: whose features were compared: "name", "contract", "digest".
        source: "root" (absolute folder, None for arrays) and "count" of the pictures there were.
        target: "root", "count", "classes" (names, in the order of the columns of `shares`), "digest".
        ids: n paths below the root, or positions in arrays.
        sha256: of each file's bytes, or of its pixels for arrays; None where only features were known.
        classes: n source classes or clusters.
        scores: (n,) higher is better; 9 significant digits.
        weights: (n,) importance, mean 1; 9 significant digits.
        targets: n names of the target class that each picture serves best.
        shares: (n, K) for which targets it serves, rows sum to 1; rounded to 6 digits.
        class_table: for each source class "class", "chosen", "of", "mass".
        coverage: for each target class "target", "pictures", "share" and what the method adds.
        notes: sentences the user should know.

    Raises:
        InputError: lengths differ, a number is not finite, a target is not among the target's classes, or settings
            hold something that JSON cannot.
    """

    settings: dict[str, Any]
    backbone: dict[str, Any]
    source: dict[str, Any]
    target: dict[str, Any]
    ids: tuple[str, ...]
    sha256: tuple[str | None, ...]
    classes: tuple[str, ...]
    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    targets: tuple[str, ...]
    shares: NDArray[np.float64]
    class_table: tuple[dict[str, Any], ...] = ()
    coverage: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _HEAD:  # as JSON gives it back
            object.__setattr__(self, name, plain(getattr(self, name), name))
        for name in ("ids", "sha256", "classes", "targets", "class_table", "coverage", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "scores", _significant(self.scores))
        object.__setattr__(self, "weights", _significant(self.weights))
        shares = np.round(np.asarray(self.shares, np.float64), _SHARE_DIGITS) + 0.0  # no -0.0
        object.__setattr__(self, "shares", shares)
        n, names = len(self.ids), self.target["classes"]
        lengths = {len(column) for column in (self.sha256, self.classes, self.scores, self.weights, self.targets)}
        if lengths != {n} or self.shares.shape != (n, len(names)):
            raise InputError(f"{n} ids with columns of {sorted(lengths)} rows and shares of shape {self.shares.shape}")
        if not n:
            raise InputError("nothing is selected; give a larger budget")
        if not all(np.isfinite(values).all() for values in (self.scores, self.weights, self.shares)):
            raise InputError("scores, weights and shares must be finite")
        if self.weights.min() < 0 or not self.weights.any():
            raise InputError("weights must be at least 0, and not all 0")
        if len(set(names)) < len(names) or not set(self.targets) <= set(names):
            raise InputError("targets must be among the target's classes, whose names must differ")
        if len(set(self.ids)) < n:
            raise InputError("a picture is selected twice")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def effective(self) -> float:
        """Pictures of equal weight that would say as much."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())


@final
@dataclass(frozen=True, eq=False)
class SelectedPictures:
    """Selected source pictures, ready for a fit.

    Attributes:
        pictures: labels are the source classes, ids those of the manifest.
        weights: (n,) importance, mean 1.
        shares: (n, K) for which target classes each serves, rows sum to 1.
        targets: K names of the target classes.
    """

    pictures: Pictures
    weights: NDArray[np.float64]
    shares: NDArray[np.float64]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)


@usual_torch
def write_manifest(path: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Write a manifest, whole or not at all; the same selection gives the same bytes.

    The source's root is written relative to the manifest where it lies below the manifest's folder or below the
    one above it, else absolute.

    Args:
        path: ends in .json; folders above it are made.
        manifest: what to write.

    Raises:
        StoreError: the place cannot be written to.
    """
    target = check_manifest_path(path)
    names = manifest.target["classes"]
    columns = [np.array(getattr(manifest, name), dtype=object).tolist() for name in _COLUMNS]
    pictures = [dict(zip(_COLUMNS.values(), row, strict=True)) for row in zip(*columns, strict=True)]
    for picture, shares in zip(pictures, manifest.shares.tolist(), strict=True):
        picture["shares"] = {key: share for key, share in zip(names, shares, strict=True) if share != 0}
    head = {key: getattr(manifest, key) for key in _HEAD}
    head["source"] = {**manifest.source, "root": _relative(manifest.source["root"], target.absolute().parent)}
    document = {**head, "pictures": pictures, "format": FORMAT, "format_version": VERSION}
    document["digest"] = content_digest(document)
    with replaced_file(target) as part:
        part.write_text(_lines(document), encoding="ascii", newline="\n")
    return target


@usual_torch
def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest; its version, digest and content are checked, its pictures are not looked at.

    Raises:
        StoreError: missing, damaged, edited by hand, or of a newer tangentune.
    """
    place = user_path(path)
    name, document = readable(place), _read_document(place)
    try:
        rows, names, root = document["pictures"], document["target"]["classes"], document["source"]["root"]
        if root is not None:
            document["source"]["root"] = os.path.normpath(place.absolute().parent / root)
        return Manifest(
            **{column: [row[key] for row in rows] for column, key in _COLUMNS.items()},
            shares=np.array([[row["shares"].get(name, 0.0) for name in names] for row in rows], np.float64),
            **{key: document[key] for key in _HEAD},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise StoreError(f"{name} is no valid manifest: {problem}") from error


def _read_document(path: Path) -> dict[str, Any]:
    """What the file holds, once its format, version and digest are seen to be right."""
    name = readable(path)
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise StoreError(f"cannot read the manifest {name}: {what}")
    try:
        document = from_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"cannot read the manifest {name}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{name} is damaged or no manifest: it cannot be read as JSON") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StoreError(f"{name} is no manifest of tangentune; `tangentune select` writes them")
    version = document.get("format_version")
    if isinstance(version, int) and version > VERSION:
        message = f"{name} has format version {version}, but this tangentune reads up to {VERSION}; "
        message += "update it with: pip install --upgrade tangentune"
        raise StoreError(message)
    if document.get("digest") != content_digest(document):
        raise StoreError(f"{name} is damaged or was edited by hand: it does not match its own digest; select again")
    return document


def check_manifest_path(path: str | os.PathLike[str]) -> Path:
    """Refuse, before the work, a path that no manifest could be written to."""
    target = user_path(path)
    if target.suffix.lower() != ".json":
        raise StoreError(f"a manifest ends in .json, which {readable(target)} does not")
    check_place(target)
    return target


def check_place(target: Path) -> None:
    """Refuse, before the work, a path that no file could be written to: a folder, or where nothing can be made."""
    if target.is_dir():
        raise StoreError(f"cannot write {readable(target)}: it is a folder")
    above = existing_ancestor(target.absolute())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "may not be written to" if above.is_dir() else "is no folder"
        raise StoreError(f"cannot write {readable(target)}: {readable(above)} {reason}")


def content_digest(document: dict[str, Any]) -> str:
    """The sha256 of a document without its own "digest", as compact JSON with sorted keys."""
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(_compact(content).encode("ascii")).hexdigest()


@usual_torch
def load_selected(
    manifest: Manifest | str | os.PathLike[str],
    contract: DataContract,
    *,
    source: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> SelectedPictures:
    """Load the pictures of a selection, after checking that they are still those that were chosen.

    Args:
        manifest: of a selection, or the path of its file.
        contract: what the network takes; may be another one than the selection's.
        source: where the pictures are now, where the manifest does not know or they have moved: a folder, the
            CSV file, or the arrays or Pictures that were given to the selection.
        n_jobs: processes that decode; the result does not depend on it.
        verbose: 1 shows progress bars.

    Raises:
        PictureError: pictures are missing or have changed; the message names the first and counts them.
        InputError: the selection was made from arrays and `source` is not given.
        StoreError: the manifest cannot be read.

    Cost: reads the chosen files twice (once to check them) and holds their pixels.
    """
    known = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    source = known.source["root"] if source is None else source
    if source is None:
        raise InputError("the manifest's pictures were given as arrays or features, not as files; give them as source=")
    labels = np.array(known.classes)
    if isinstance(source, str | os.PathLike):
        paths = _checked_paths(known, user_path(source), verbose)
        loaded = load_pictures(paths, labels, contract=contract, n_jobs=n_jobs, verbose=verbose)
        pictures = replace(loaded, ids=list(known.ids))
    else:
        pictures = replace(_checked_rows(known, source, contract, verbose), labels=labels)
    weights, shares = known.weights / known.weights.mean(), known.shares / known.shares.sum(1, keepdims=True)
    return SelectedPictures(pictures, weights, shares, tuple(known.target["classes"]))


def _checked_paths(known: Manifest, source: Path, verbose: int) -> list[str]:
    """Files of the selection, each with the bytes it had when it was chosen."""
    root = source if source.is_dir() else source.parent  # of a table, or of a folder that is not there
    paths = [os.path.join(root, name) for name in known.ids]
    if source.is_dir() and not all(map(os.path.exists, paths)):
        found = find_files(source, need_labels=False)  # names of files that are no text have another id
        named = dict(zip(found.ids, found.pictures, strict=True))
        paths = [named.get(name, path) for name, path in zip(known.ids, paths, strict=True)]
    problems = []
    rows = list(zip(known.ids, known.sha256, paths, strict=True))
    for name, sha256, path in progress(rows, label="checking pictures", total=None, unit="picture", verbose=verbose):
        try:
            if sha256 not in (None, file_digest(path)):
                problems.append(f"{name} has changed")
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            problems.append(f"{name} {'is missing' if missing else f'cannot be read ({error.strerror})'}")
    _refuse(problems, len(known), f" in {root}")
    return paths


def _checked_rows(known: Manifest, source: Any, contract: DataContract, verbose: int) -> Pictures:
    """Rows of arrays or Pictures, each with the pixels it had when it was chosen."""
    before = known.backbone["contract"]
    chosen = contract if before is None else DataContract.from_dict(before)
    given = load_pictures(source, contract=chosen, verbose=verbose, need_labels=False)
    places = {name: i for i, name in enumerate(picture_names(given))}
    _refuse([f"{name} is missing" for name in known.ids if name not in places], len(known))
    rows = [places[name] for name in known.ids]
    digests = pictures_digest(given.pixels[rows])
    pairs = zip(known.ids, known.sha256, digests, strict=True)
    _refuse([f"{name} has changed" for name, old, new in pairs if old not in (None, new)], len(known))
    if contract != chosen:
        given = load_pictures(source, contract=contract, verbose=verbose, need_labels=False)
    return replace(given.select(rows), ids=list(known.ids))


def picture_names(pictures: Pictures) -> list[str]:
    """The pictures' ids, or their positions where two share an id."""
    return pictures.ids if len(set(pictures.ids)) == len(pictures) else [str(i) for i in range(len(pictures))]


def _refuse(problems: Sequence[str], count: int, where: str = "") -> None:
    if problems:
        message = f"{len(problems)} of {count} selected pictures{where} are not those that were chosen: "
        message += f"{some(problems, 1)}; give source= where they are, or select again"
        raise PictureError(message)


def _relative(root: str | None, folder: Path) -> str | None:
    """A root below `folder` or beside it as a relative path with `/`, any other as it is."""
    if root is None:
        return None
    path, folder = Path(root).resolve(), folder.resolve()
    near = path.is_relative_to(folder) or (folder.parent != folder.parent.parent and path.is_relative_to(folder.parent))
    return Path(os.path.relpath(path, folder)).as_posix() if near else str(path)


def _significant(values: ArrayLike) -> NDArray[np.float64]:
    return np.array([float(f"{value:.9g}") for value in np.asarray(values, np.float64).tolist()], np.float64)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _lines(content: dict[str, Any]) -> str:
    """JSON with one line a picture, so that two selections can be compared line by line."""
    head = {key: value for key, value in content.items() if key != "pictures"}
    text = json.dumps(head, sort_keys=True, indent=2, allow_nan=False)
    rows = ",\n".join(f"    {_compact(row)}" for row in content["pictures"])
    return f'{text.removesuffix(chr(10) + "}")},\n  "pictures": [\n{rows}\n  ]\n}}\n'
