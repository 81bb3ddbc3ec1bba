"""The commands that change a saved model in place: `tangentune forget`, `add`, `relabel`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, reading, saved_model, skipped
from tangentune.cli.options import Command, label_options, model_options, option
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import new_table, print_table, score_rows
from tangentune.errors import InputError, shown

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator

    _Change = Callable[[Estimator], dict[str, Any]]  # gives what joins the facts of the change

_edits = partial(option, "Edit")
_OF_THIS_RUN = ("batch_size", "n_jobs", "verbose")  # options that a changed model does not take over
_DRY_RUN = _edits("--dry-run", "Calculate and show everything, but leave the saved model as it is.", is_flag=True)
_NEW_CLASS = _edits("--new-class", "Labels may name classes that the model does not know.", is_flag=True)
_file = partial(_edits, type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE")


@click.command(cls=Command, short_help="Take pictures out of a model, exactly.")
@click.argument("model", type=MODEL)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_file("--ids-from", "A file with one id a line; - reads standard input.")
@_edits("--class classes", "All pictures of this class; may be given again.", multiple=True, metavar="NAME")
@_edits("--strict", "Also estimate anew, without them, what the features took from pictures.", is_flag=True)
@_DRY_RUN
@model_options
def forget(
    model: str, ids: tuple[str, ...], ids_from: str | None, classes: tuple[str, ...], strict: bool, **options: Any
) -> None:
    """Take the training pictures ID... out of the saved MODEL, as if it had never been fitted to them.

    An ID is the path that the picture had in the folder or table of the fit, as `tangentune suspects` shows it, or
    the end of that path where no other picture has the same (cat/1.png, 1.png or 1).
    The model is solved without them, exactly, and replaced in one step; their pixels go as well.
    """
    if not (ids or ids_from or classes):
        raise click.UsageError("name at least one picture: ID..., --ids-from FILE or --class NAME")
    listed = [*ids, *(_lines(ids_from) if ids_from else [])]

    def change(fitted: Estimator) -> dict[str, Any]:
        members = [number for name in classes for number in _members(fitted, name)]
        fitted.forget([*listed, *members], strict=strict)
        return {}

    _edit(model, change, **options)


@click.command(cls=Command, short_help="Add labelled pictures to a model, exactly.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@_NEW_CLASS
@_DRY_RUN
@label_options
def add(model: str, pictures: str, new_class: bool, **options: Any) -> None:
    """Add the labelled PICTURES to the saved MODEL, as if it had been fitted to them as well.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label. The
    features, kernel and damping stay as the fit chose them.
    """
    read = reading(options)

    def change(fitted: Estimator) -> dict[str, Any]:
        loaded = load(pictures, fitted.backbone_, fitted, read, True)
        assert loaded.labels is not None
        own = loaded.labels
        if fitted.fitted_.outcome.labels is None:
            own = _own_labels(fitted, own.tolist(), loaded.ids, new_class)
        fitted.add(loaded.relabelled(own), new_class=True)
        return {"skipped": skipped(loaded.skipped)}

    _edit(model, change, **options)


@click.command(cls=Command, short_help="Correct labels of a model's pictures, exactly.")
@click.argument("model", type=MODEL)
@click.argument("name", required=False, metavar="[ID]")
@click.argument("label", required=False)
@_file("--from table", "A CSV file with the columns id,label instead; - reads standard input.")
@_NEW_CLASS
@_DRY_RUN
@model_options
def relabel(
    model: str, name: str | None, label: str | None, table: str | None, new_class: bool, **options: Any
) -> None:
    """Give the training picture ID of the saved MODEL another LABEL, as if it had been fitted with that.

    Where pictures have several labels, LABEL is all of them with ; between, or '' for none.
    The likely mistakes are listed by `tangentune suspects`.
    """
    if table is not None and name is not None:
        raise click.UsageError("give an ID and its LABEL or --from FILE, not both")
    if table is None and (name is None or label is None):
        raise click.UsageError("give an ID and its LABEL, or --from FILE")
    wanted = {str(name): str(label)} if table is None else _pairs(table)

    def change(fitted: Estimator) -> dict[str, Any]:
        labels = _own_labels(fitted, list(wanted.values()), list(wanted), new_class)
        fitted.relabel(list(wanted), labels, new_class=True)
        return {}

    _edit(model, change, **options)


def _edit(directory: str, change: _Change, as_json: bool, quiet: bool, **options: Any) -> None:
    """Read a model, change it, put it back in one step, and say what changed."""
    with working(quiet) as stdout:
        facts = _change_saved(directory, change, quiet=quiet, **options)
    if as_json:
        print_json(facts)
    else:
        show_change(facts, stdout)


def _change_saved(directory: str, change: _Change, dry_run: bool, quiet: bool, **options: Any) -> dict[str, Any]:
    """The facts of the change; "edit" is its line of the audit log. Whatever fails, the directory stays.

    The `options` (batch size, device) are for this run only.
    """
    from tangentune._files import locked
    from tangentune.estimators.model_directory import REPORT, check_destination, read_config
    from tangentune.estimators.summary import summarise

    start = time.perf_counter()
    with nullcontext() if dry_run else locked(check_destination(directory)):
        model = saved_model(directory, quiet, options)
        before = summarise(model)
        more = change(model)
        after = summarise(model)
        if not dry_run:
            model.model_  # noqa: B018  summed with the options of this run
            kept = read_config(directory)["parameters"]
            model.set_params(**{name: kept[name] for name in _OF_THIS_RUN})
            reported = (Path(directory) / REPORT).exists()
            model.save_pretrained(directory)
            if reported:
                warnings.warn(f"{REPORT} showed the model as it was and is gone; write it anew", stacklevel=2)
    return {
        "model": directory,
        "saved": not dry_run,
        "edit": model.edits_[-1],
        "n": {"before": before.n, "after": after.n},
        "loo": {"before": before.scores, "after": after.scores},
        "classes": {"new": _others(after.classes, before.classes), "gone": _others(before.classes, after.classes)},
        "seconds": time.perf_counter() - start,
    } | more


def _others(names: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    return [name for name in names if name not in known]


def show_change(facts: dict[str, Any], stream: IO[str]) -> None:
    """What an edit did to a model, and how exactly it was done."""
    from tangentune.estimators.summary import nice_seconds

    edit, n, loo = facts["edit"], facts["n"], facts["loo"]
    table = new_table("", "before", "after", numbers=(1, 2))
    table.add_row("pictures", f"{n['before']:,}", f"{n['after']:,}")
    before, after = (score_rows(loo[when], None) for when in ("before", "after"))
    for (name, former), (_, value) in zip(before, after, strict=True):
        table.add_row(f"leave-one-out {name}", former, value)
    table.add_row("error of the solution", *[f"{edit[f'residual_{when}']:.1e}" for when in ("before", "after")])
    print_table(table, stream)
    for word, names in facts["classes"].items():
        if names:
            kind = "class" if len(names) == 1 else "classes"
            stream.write(f"{word.capitalize()} {kind}: {shown(', '.join(names))}\n")
    if facts.get("skipped"):
        stream.write(f"Pictures left out: {len(facts['skipped'])}\n")
    done = f"replaced; seal of the edit {edit['seal'][:16]}" if facts["saved"] else "left as it was"
    stream.write(
        f"Checked by one step of iterative refinement, which moves the solution by {edit['verification']:.1e} of its "
        f"size. Pictures concerned: {len(edit['pictures'])}; time with reading and writing: "
        f"{nice_seconds(facts['seconds'])}\nModel in {shown(facts['model'])} {done}\n"
    )


def _members(fitted: Estimator, name: str) -> list[int]:
    """Numbers of all pictures of a class, which is named as text whatever its kind."""
    from tangentune.estimators.edits import class_members

    known = {str(one): one for one in fitted.fitted_.outcome.classes.tolist()}
    return class_members(fitted.fitted_, known.get(name, name)).tolist()


def _own_labels(fitted: Estimator, given: list[Any], ids: list[str], new_class: bool) -> Any:
    """Labels from the command line or a file, which are text, in the kind of the model's own, and none of them new."""
    import numpy as np

    from tangentune import TangentRegressor
    from tangentune.estimators.user_input import as_classes, check_classes_known
    from tangentune.pictures.label_sets import split_texts
    from tangentune.workbench.edits import own_label

    if isinstance(fitted, TangentRegressor):
        return np.array(given)
    if fitted.thresholds_ is not None:
        return split_texts(given)
    classes = fitted.classes_
    if classes.dtype.kind in "biuf":  # whole numbers or truth values like the classes
        given = [own_label(classes, text, f" of {name}") for text, name in zip(given, ids, strict=True)]
    labels = as_classes(np.array(given), classes)
    if not new_class:
        check_classes_known(labels, classes, ids, "give --new-class")
    return labels


def _text(path: str) -> str:
    try:
        with click.open_file(path, encoding="utf-8-sig") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (see byte {error.start}); save it as UTF-8") from error


def _lines(path: str) -> list[str]:
    """Ids of a file, one a line; blank lines count for nothing."""
    found = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not found:
        raise InputError(f"{'standard input' if path == '-' else path} names no picture; write one id a line")
    return found


def _pairs(path: str) -> dict[str, str]:
    """Columns id and label of a CSV table, or of such names as tables of pictures have."""
    from tangentune.pictures.tables import read_columns

    where, pairs = "standard input" if path == "-" else Path(path).name, dict[str, str]()
    for name, label in zip(*read_columns(_text(path), where, key="id"), strict=True):
        if pairs.setdefault(name, label) != label:
            raise InputError(f"{where} gives {name} two labels, {pairs[name]!r} and {label!r}")
    return pairs
