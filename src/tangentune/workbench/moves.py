"""Corrected labels taken back to where the pictures came from: files to other class folders, or a corrected table.

First a plan, which refuses what could not be done; then its moves, one by one, never onto anything that is there. If
one fails, those before it are taken back. A plan carried out is found done when it is made again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tangentune._files import locked, move_new, write_new
from tangentune.errors import InputError, PictureError, StoreError
from tangentune.estimators import audit
from tangentune.estimators.fitted import FittedModel
from tangentune.pictures.files import FileList, find_files
from tangentune.pictures.label_sets import is_sets
from tangentune.pictures.names import readable, some
from tangentune.pictures.tables import LABELS, Columns, label_cells, quoted
from tangentune.workbench.corrections import forgotten, label_rows

Hashes = Callable[[list[str]], list[str | None]]  # SHA-256 of the pixels of files; None of what cannot be read


@final
@dataclass(frozen=True)
class Move:
    """A picture whose place, or whose label in a table, changes."""

    id: str
    original: str  # class that the folder or table gives it
    current: str  # class that the model gives it; empty for one that was forgotten
    source: str  # file
    target: str  # file; of a table the same


@final
@dataclass(frozen=True)
class Plan:
    """What taking corrections back would do; nothing is done yet."""

    moves: tuple[Move, ...]
    text: str | None  # of a corrected table; None for a folder
    target: Path  # the folder, or where the corrected table goes
    done: int  # corrections that are there already
    changed: tuple[str, ...]  # ids whose label or picture was changed there since the fit, and are left alone
    missing: tuple[str, ...]  # ids of corrected pictures that are not there
    gone: tuple[str, ...]  # pictures there that the model has forgotten
    renamed: dict[str, str]  # ids of the model whose files are, or will be, at another path of the folder


def plan_moves(fitted: FittedModel, source: str, hashes: Hashes, columns: Columns, aside: str | None = None) -> Plan:
    """What has to change in the folder or table `source` that a model was fitted from.

    Args:
        fitted: the model.
        source: the folder of class folders, or the CSV file, of the fit.
        hashes: reads files as the fit did. It is given those that change, and those that the model does not know.
        columns: of a table.
        aside: a folder that files go to that the model has forgotten; None leaves them.

    Raises:
        InputError: it is not what the model was fitted from, or a move could not be made.
        PictureError: it cannot be read.
        StoreError: the corrected table is there already.
    """
    if is_sets(fitted.active.labels):
        raise InputError("pictures of this model have several labels each; take corrections out with --out, as a table")
    root = Path(os.path.expanduser(source))
    files = find_files(root, True, columns)
    if files.labels is None:
        raise InputError(f"{readable(root)} is a picture; give the folder or table that the model was fitted from")
    table = not root.is_dir()
    if table and aside is not None:
        raise InputError(f"{readable(root)} is a table, from which forgotten pictures are left out; nothing is moved")
    current, digests = _corrected(fitted), _digests(fitted)
    places = {name: i for i, name in enumerate(files.ids)}
    if not places.keys() & set(fitted.ids):
        first = f"{readable(root)} holds no picture of the model, such as {fitted.ids[0]}"
        raise InputError(f"{first}; give the folder or table that the model was fitted from")
    stays = [name for name in current if name in places and files.labels[places[name]] != current[name][0]]
    missing = [name for name in current if name not in places]
    known, lost = set(fitted.ids), forgotten(fitted)
    others = [name for name in files.ids if name not in known] if lost or missing else []
    asked = [*stays, *others]
    found = dict(zip(asked, hashes([files.pictures[places[name]] for name in asked]), strict=True))
    left = {(found[name], files.labels[places[name]]): name for name in others}
    gone = tuple(name for name in others if found[name] in lost)
    renamed = {name: left[one] for name in missing if (one := (digests[name], current[name][0])) in left}
    done = [*renamed]
    done += [name for name in current if name in places and files.labels[places[name]] == current[name][0]]
    changed = [name for name in stays if not _as_at_the_fit(found[name], files.labels[places[name]], current[name])]
    moved = [name for name in stays if name not in set(changed)]
    facts = (len(done), tuple(changed), tuple(name for name in missing if name not in set(done)), gone)
    if table:
        given = {i: current[name][0] for i, name in enumerate(files.ids) if name in set(moved)}
        target = root.with_name(f"{root.stem}-corrected{root.suffix}")
        if given and target.exists():
            raise StoreError(f"{readable(target)} is there already, and is not overwritten; move it away")
        text = _corrected_table(root, columns, given, {i for i, name in enumerate(files.ids) if name in set(gone)})
        named = [(name, files.labels[places[name]], current[name][0], files.pictures[places[name]]) for name in moved]
        return Plan(tuple(Move(*one, one[3]) for one in named), text, target, *facts, {})
    wanted = {name: current[name][0] for name in moved}
    moves = tuple(_file_moves(root, files, places, wanted, gone, aside))
    renamed |= {one.id: readable(os.path.relpath(one.target, root)) for one in moves if one.current}
    return Plan(moves, None, root, *facts, renamed)


def carry_out(plan: Plan) -> None:
    """Make the moves, or write the table; a StoreError, or an interrupt, leaves all as it was."""
    if plan.text is not None:
        write_new(plan.target, plan.text)
        return
    made: list[Callable[[], object]] = []  # what takes each step back
    with locked(plan.target):
        try:
            for move in plan.moves:
                source, target = Path(move.source), Path(move.target)
                for folder in reversed([target.parent, *target.parent.parents]):
                    if not folder.exists():
                        folder.mkdir()
                        made.append(folder.rmdir)
                made.append(lambda source=source, target=target: move_new(target, source))
                try:
                    move_new(source, target)
                except BaseException:
                    made.pop()
                    raise
        except BaseException as error:
            lost = [problem for back in reversed(made) if (problem := _problem(back))]
            if not isinstance(error, OSError):
                raise
            state = f"taking the moves back failed too: {some(lost)}" if lost else "everything is where it was"
            where = error.filename or plan.target
            raise StoreError(f"cannot move to {where}: {error.strerror or error}; {state}") from error


def _problem(back: Callable[[], object]) -> str:
    try:
        back()
    except OSError as error:
        return str(error)
    return ""


def _corrected(fitted: FittedModel) -> dict[str, tuple[str, str, set[str]]]:
    """Id -> label, hash of the pixels, and seals of former labels, of each picture that was relabelled."""
    seals: dict[str, set[str]] = {}
    for line in audit.standing(fitted.edits):
        if line["edit"] == "relabel":
            for picture, seal in zip(line["pictures"], line.get("former") or line["pictures"], strict=True):
                seals.setdefault(picture, set()).add(seal)
    digests = _digests(fitted)
    rows = ((row, digests[row.id]) for row in label_rows(fitted))
    return {row.id: (row.current, own, seals[own]) for row, own in rows if own in seals and row.corrected}


def _digests(fitted: FittedModel) -> dict[str, str]:
    hashes = fitted.training.digests
    return {name: hashes[i] for name, i in zip(fitted.ids, fitted.active.positions.tolist(), strict=True)}


def _as_at_the_fit(found: str | None, label: str, corrected: tuple[str, str, set[str]]) -> bool:
    """Whether a file is the picture of the fit, under a label that the model had for it; older logs tell no labels."""
    _, own, seals = corrected
    return found == own and (own in seals or audit.former(own, label) in seals)


def _file_moves(
    root: Path, files: FileList, places: dict[str, int], moved: dict[str, str], gone: Sequence[str], aside: str | None
) -> Iterator[Move]:
    """Each move, to a name that is free, after a look at what could be in its way."""
    assert files.labels is not None
    inside = [Path(os.path.relpath(path, root)) for path in files.pictures]
    folders = {label: part.parts[0] for label, part in zip(files.labels, inside, strict=True)}
    taken: set[Path] = set()
    for name, label in [*moved.items(), *((name, "") for name in gone if aside is not None)]:
        place = places[name]
        source, old = Path(files.pictures[place]), files.labels[place]
        if source.is_symlink():
            raise InputError(f"{name} is a link; put the picture itself there, for a moved link may lead nowhere")
        if not os.access(source.parent, os.W_OK):
            raise InputError(f"the folder of {name} cannot be written to, so that no file can be moved out of it")
        if label:
            base = root / folders.get(label, _new_folder(label, name)) / Path(*inside[place].parts[1:])
        else:
            base = Path(os.path.expanduser(str(aside))) / inside[place]
            if root in [base, *base.parents]:
                raise InputError(f"{aside} lies in {readable(root)}, where forgotten pictures would be a class")
        _check_parents(base)
        target = _free(base, old, taken)
        taken.add(target)
        yield Move(name, old, label, os.fspath(source), os.fspath(target))


def _new_folder(label: str, name: str) -> str:
    """A label as the name of a folder, if it can be one that is read as that label again."""
    if label.startswith(".") or set(label) & set('/\\:*?"<>|') or label != label.strip() or readable(label) != label:
        raise InputError(f"{name} is now {label!r}, which cannot be the name of a folder; give the class another name")
    return label


def _check_parents(target: Path) -> None:
    """Refuse a place below a file, or in a folder that cannot be written to."""
    there = next(folder for folder in target.parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"no file can be moved to {readable(target.parent)}, because {readable(there)} is in the way")


def _free(base: Path, old: str, taken: set[Path]) -> Path:
    """A name that no file has: the same, or one that says which class it comes from."""
    ends = ["", f"-from-{old}", *(f"-from-{old}-{i}" for i in range(2, 10_000))]
    for end in ends:
        target = base.with_name(f"{base.stem}{end}{base.suffix}")
        if target not in taken and not os.path.lexists(target):
            return target
    raise InputError(f"there are too many files named like {readable(base)}")


def _corrected_table(path: Path, columns: Columns, labels: dict[int, str], gone: set[int]) -> str:
    """The table with other labels on some of its pictures, and without some; every other cell is as it was."""
    header, rows, column, delimiter = label_cells(path, columns)
    known = {row[column].strip() for row in rows}
    for label in labels.values():
        if label not in known and label[:1] in "=+-@":
            raise InputError(f"the new label {label!r} would be a formula in a table; give the class another name")
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", delimiter=delimiter)
    writer.writerow(header)
    for place, row in enumerate(rows):
        if place not in gone:
            padded = [*row, *[""] * (column + 1 - len(row))]
            if place in labels:
                padded[column] = quoted(labels[place]) if tuple(header) == LABELS else labels[place]
            writer.writerow(padded)
    return out.getvalue()


def read_hashes(fitted: FittedModel, jobs: int | None, verbose: int) -> Hashes:
    """Files read as those of the fit were."""
    from tangentune.pictures.load import load_pictures

    def hashes(paths: list[str]) -> list[str | None]:
        if not paths:
            return []
        settings = {"contract": fitted.backbone.contract, "n_jobs": jobs, "verbose": verbose}
        with suppress(PictureError):  # none of them can be read
            found = load_pictures(paths, need_labels=False, on_error="skip", **settings)
            known = dict(zip(found.ids, found.digests, strict=True))
            return [known.get(readable(path)) for path in paths]
        return [None] * len(paths)

    return hashes
