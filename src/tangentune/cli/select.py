"""The command `tangentune select`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import PICTURES, check_folder, own_rank
from tangentune.cli.options import MACHINE, STREAMS, Command, described, network_options, page_option, set_options
from tangentune.cli.run import check_device, print_json, working
from tangentune.errors import TangentuneError, shown

if TYPE_CHECKING:
    from tangentune.methods.source_selection.manifest import Manifest

_ROWS = 15  # source classes that are listed
_POSITIVE = click.FloatRange(0, min_open=True)
_HELP = {
    "target": "The labelled pictures to learn.",
    "source": "The pictures to choose from.",
    "out": "The manifest to write, .json; one that is there is replaced at the end.",
    "budget": "How much to choose: a number of pictures or classes, or a share of the mass (see --unit).",
    "unit": "pictures; classes: the best ones with all their pictures; mass: as many as together hold that share of "
    "it.",
    "method": "uot: unbalanced optimal transport; the others are what it is held to.",
    "granularity": "pictures: each by itself; classes: whole; nested: the mass of a class is divided between its "
    "pictures (uot). If not given: classes for a budget of classes, else nested, or pictures for other methods.",
    "quota": "At least so many pictures (or classes) for every target class; an even share of the budget where nested, "
    "else none, if not given.",
    "clusters": "Divide the source into so many clusters; for a source without classes.",
    "cost_scale": "What the distance 1 - cosine is divided by; smaller ones tell near classes apart.",
    "marginals": "uniform: every class counts the same; counts: as much as it has pictures.",
    "seed": "Seed of random and of the clusters.",
    "cache": "Folder that keeps the features, so that a stopped run goes on and the next one is quick; processes of "
    "torchrun share it.",
}
_option = partial(described, _HELP)
_selection = partial(_option, "Selection")


@click.command(cls=Command, short_help="Choose pre-training pictures for a target set.")
@_option(STREAMS, "--target", type=PICTURES, required=True, metavar="PICTURES")
@_option(STREAMS, "--source", type=PICTURES, required=True, metavar="PICTURES")
@_option(STREAMS, "--out", required=True, metavar="MANIFEST", type=click.Path(dir_okay=False))
@_selection("--budget", type=_POSITIVE, metavar="AMOUNT")
@_selection("--unit", type=click.Choice(["pictures", "classes", "mass"]), default="pictures")
@_selection("--method", type=click.Choice(["uot", "random", "all", "nearest"]), default="uot")
@_selection("--granularity", type=click.Choice(["pictures", "classes", "nested"]))
@_selection("--quota", type=click.IntRange(min=0), metavar="COUNT")
@_selection("--clusters", type=click.IntRange(min=2), metavar="COUNT")
@_selection("--cost-scale", type=_POSITIVE, default=0.05, metavar="VALUE")
@_selection("--marginals", type=click.Choice(["uniform", "counts"]), default="uniform")
@_selection("--seed", type=int, default=0, metavar="SEED")
@network_options
@page_option("--page", "Also write an HTML page that shows what was chosen for what.")
@_option(MACHINE, "--cache", metavar="DIR", type=click.Path(file_okay=False))
@set_options
def select(target: str, source: str, out: str, page: str | None, **options: Any) -> None:
    """Choose, from the pictures of a source set, those that are worth learning from beside a target set.

    The target is a folder with one sub-folder for each class, or a CSV file with the columns path,label. So is the
    source; with --clusters it may be any folder of pictures. Either may be a folder of features as well.

    The manifest names the chosen pictures with their weights; `tangentune fit TARGET --source MANIFEST` reads it.
    """
    from tangentune.methods.source_selection.extract import holds_features
    from tangentune.methods.source_selection.manifest import check_manifest_path, write_manifest
    from tangentune.methods.source_selection.select import select_source
    from tangentune.networks.own_code import named_backbone
    from tangentune.pictures.ranks import ShareDone
    from tangentune.reports.selection_page import write_selection_page

    rank = own_rank(options)
    where = "several processes share the features in a folder that all see; give --cache DIR"
    check_folder(rank, options["cache"], where)
    budget = options["budget"]
    read = {name: options[name] for name in ("on_error", "path_column", "label_column", "n_jobs")}
    backbone, size, batch_size = (options.pop(name) for name in ("backbone", "input_size", "batch_size"))
    device, as_json, quiet = (options.pop(name) for name in ("device", "as_json", "quiet"))
    if (budget is None) != (options["method"] == "all"):
        raise click.UsageError("--method all takes every picture; leave --budget out" if budget else "give a --budget")
    check_manifest_path(out)
    if page is not None:
        held = [place for place in (target, source) if holds_features(place)]
        if held:
            raise click.UsageError(f"--page shows pictures, but {held[0]} holds features")
    check_device(device)
    quiet, found = quiet or not rank.leads, None
    with working(quiet, options["cache"]) as stdout, suppress(ShareDone):
        network = named_backbone(backbone, size).with_size(size)
        network = network if device is None else network.to(device)
        options |= {"batch_size": batch_size or 32, "verbose": 0 if quiet else 1}
        found = select_source(target, source, network, rank=rank, **options)
        write_manifest(out, found.manifest)
        if page is not None:
            try:
                write_selection_page(page, found.manifest, target, **read)
            except TangentuneError as error:
                raise TangentuneError(
                    f"{str(error).rstrip('.')}; the manifest is in {out}, only the page is missing"
                ) from error
    if found is None:  # the rest is the work of the rank that leads
        return
    if as_json:
        print_json(_document(found.manifest, out, page))
    else:
        show_selection(found.manifest, target, out, page, stdout)


def _document(manifest: Manifest, out: str, page: str | None) -> dict[str, Any]:
    return {
        "manifest": out,
        "page": page,
        "n": len(manifest),
        "effective": manifest.effective,
        **{key: getattr(manifest, key) for key in ("settings", "backbone", "source", "target")},
        "classes": list(manifest.class_table),
        "coverage": list(manifest.coverage),
        "notes": list(manifest.notes),
    }


def show_selection(manifest: Manifest, target: str, out: str, page: str | None, stream: IO[str]) -> None:
    """What was chosen from which classes and for which, and how to go on."""
    from tangentune.cli.tables import folded, new_table, percent, print_table
    from tangentune.reports.pages import shell_word
    from tangentune.reports.selection_page import class_rows, coverage_rows

    stream.write(f"{len(manifest):,} of {manifest.source['count']:,} pictures chosen, ")
    stream.write(f"worth {manifest.effective:,.0f} of equal weight.\n\n")
    rows = class_rows(manifest)
    taken = [row for row in rows if row["chosen"]]
    massive = any(row["mass"] is not None for row in rows)
    names = ("Source class", "Chosen", "of", *(["Mass"] if massive else []), "Mostly for")
    table = new_table(*names, numbers=(1, 2, 3) if massive else (1, 2))
    for row in taken[:_ROWS]:
        mass = [percent(row["mass"])] if massive else []
        table.add_row(*folded(row["name"], f"{row['chosen']:,}", f"{row['of']:,}", *mass, row["target"]))
    print_table(table, stream)
    if len(taken) > _ROWS:
        rest = sum(row["chosen"] for row in taken[_ROWS:])
        stream.write(f"and {rest:,} pictures of {len(taken) - _ROWS:,} more classes\n")
    stream.write("\n")
    table = new_table("Target class", "Chosen for it", "Weight", "Covered", "Likeness", numbers=(1, 2, 3, 4))
    for row in coverage_rows(manifest):
        likeness = "" if row["similarity"] is None else f"{row['similarity']:.2f}"
        cells = (row["target"], f"{row['pictures']:,}", percent(row["share"]), percent(row["covered"]), likeness)
        table.add_row(*folded(*cells))
    print_table(table, stream)
    for note in manifest.notes:
        stream.write(f"Note: {shown(note)}\n")
    stream.write(f"\nManifest written to {shown(out)}\n")
    if page is not None:
        stream.write(f"Page written to {shown(page)}\n")
    paths = f"{shell_word(target)} --source {shell_word(out)}"
    stream.write(f"Learn from both with: tangentune fit {paths} --out MODEL\n")
