"""The commands by which owners who do not share pictures fit one network: `tangentune map`, `sums` and `merge`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import PICTURES, reading
from tangentune.cli.options import (
    COUNT,
    STREAMS,
    Command,
    damping_option,
    described,
    map_options,
    run_options,
    site_options,
)
from tangentune.cli.run import check_device, print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_facts, print_table
from tangentune.errors import InputError, nice_number, shown

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.estimators.features import TangentFeatures
    from tangentune.estimators.site import SiteJob
    from tangentune.pictures.ranks import Rank
    from tangentune.solvers.home_scores import Judge
    from tangentune.solvers.sums import TangentSums

MAP = click.Path(exists=True, file_okay=False)
_SUMS = click.Path(exists=True, dir_okay=False)
_HELP = {
    "landmarks": "Pictures that span the map, at most; whoever gets the map sees them.",
    "data_independent": "A map that no picture enters: random numbers of the network's tangents. Worth no more than "
    "the head alone, --body-scale 0.",
    "width": "Random numbers a picture, of a data-independent map.",
    "map": "The feature map, as `tangentune map` wrote it; the same for everybody.",
    "minimum": "Fewest pictures that sums may be of: sums over few tell much of each.",
    "without": "Sums to take out again, of an owner who withdraws; may be given again.",
    "total": "Also write the merged sums, to which others can be added later.",
    "shard": "Pictures of a shard, which is done again if its process dies; 256, or 1/64 of many, if not given.",
    "scores": "Scores of an owner, as `tangentune score` made them; of every owner, given again for each.",
}
_option = partial(described, _HELP)
map_option = _option(STREAMS, "--map", required=True, metavar="MAP", type=MAP)
_minimum = _option("Owners", "--minimum", type=COUNT, default=20, metavar="COUNT")
shard_option = _option("Machine", "--shard", type=COUNT, metavar="COUNT")


def _out(metavar: str, sentence: str) -> Any:
    return described({"out": sentence}, STREAMS, "--out", required=True, metavar=metavar, type=click.Path())


@click.command("map", cls=Command, short_help="Freeze a feature map that several owners share.")
@click.argument("pictures", type=PICTURES, required=False)
@_out("MAP", "Directory of the new map.")
@_option("Map", "--landmarks", type=click.IntRange(min=2), default=500, metavar="COUNT")
@_option("Map", "--data-independent", is_flag=True)
@_option("Map", "--width", type=COUNT, default=4096, metavar="COUNT")
@map_options
def map_command(
    pictures: str | None, out: str, landmarks: int, data_independent: bool, regression: bool, as_json: bool,
    quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Choose landmarks among the labelled PICTURES and write the feature map that they span to the directory MAP.

    The map is part of no fit: it says into which numbers a picture is turned. Every owner needs the same one, and sees
    its landmarks, so they must be pictures that may be shown. Where there are none, --data-independent makes a map
    without PICTURES.
    """
    from tangentune import TangentFeatures
    from tangentune.estimators.model_directory import check_destination
    from tangentune.networks.backbone import as_backbone, load_backbone
    from tangentune.pictures.checks import numeric_labels
    from tangentune.pictures.load import load_pictures
    from tangentune.pictures.ranks import Rank

    if data_independent != (pictures is None):
        raise click.UsageError("give PICTURES with landmarks among them, or --data-independent, not both")
    read = reading(options)
    check_destination(out)
    if not Rank.here().leads:
        return  # one process makes it
    with working(quiet) as stdout:
        check_device(options["device"])
        options = {key: value for key, value in options.items() if key != "batch_size" or value is not None}
        options["backbone"] = as_backbone(load_backbone(options["backbone"]), options["input_size"])
        features = TangentFeatures(**options, landmarks=None if data_independent else landmarks, verbose=not quiet)
        loaded = None
        if pictures is not None:
            contract, jobs = options["backbone"].contract, options["n_jobs"]
            loaded = load_pictures(pictures, contract=contract, n_jobs=jobs, verbose=not quiet, **read)
            if regression and loaded.labels is not None:
                loaded = loaded.relabelled(numeric_labels(loaded.labels, loaded.ids))
        features.fit(loaded).save(out)
    facts = {"map": out, "fingerprint": features.fingerprint_, "width": features.frozen_.finite.width}
    facts |= {"landmarks": len(features.landmarks_), "backbone": features.frozen_.backbone.name}
    if as_json:
        print_json(facts)
        return
    rows = [("numbers a picture", f"{facts['width']:,}"), ("landmark pictures", f"{facts['landmarks']:,}")]
    print_facts([*rows, ("fingerprint", features.fingerprint_[:12])], stdout)
    stdout.write(f"Map written to {shown(out)}\n")


@click.command(cls=Command, short_help="Add up an owner's pictures in a shared map.")
@click.argument("pictures", type=PICTURES)
@map_option
@_out("SITE.sums", "The file of the sums: all that leaves this owner.")
@_minimum
@shard_option
@site_options
def sums(pictures: str, out: str, minimum: int, as_json: bool, quiet: bool, **options: Any) -> None:
    """Add up the labelled PICTURES of one owner in a feature map, for `tangentune merge`.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label. The file holds
    sums of the map's numbers and of their products, and counts of the classes: no picture, but not nothing about them.
    `torchrun -m tangentune sums ...` shares the work among processes; what was killed goes on when it is started again.
    """
    place = _file_place(out)
    with site_job(pictures, place, quiet, options) as (job, folder, rank, stdout):
        found = job.sums(folder, rank)
        if found is None:
            return
        few = _checked(found, minimum, pictures)
        found.save(place)
    if few and not quiet:
        click.echo(f"note: {shown(few)}", err=True)
    skipped = len(job.files.pictures) - found.pictures
    facts = {"sums": out, "map": found.fingerprint, "n": found.pictures, "skipped": skipped, "classes": _counts(found)}
    if as_json:
        print_json(facts)
        return
    rows = [("pictures", f"{found.pictures:,}")]
    rows += [("pictures left out", f"{skipped:,}")] if skipped else []
    rows += [("classes", ", ".join(f"{name} {count:,}" for name, count in _counts(found).items()))]
    print_facts([row for row in rows if row[1]], stdout)
    stdout.write(f"Sums written to {shown(out)} ({place.stat().st_size / 2**20:.1f} MiB)\n")


@click.command(cls=Command, short_help="Judge an owner's pictures by the merged sums.")
@click.argument("pictures", type=PICTURES)
@map_option
@described({"total": "The merged sums of all owners."}, STREAMS, "--total", required=True, metavar="FILE", type=_SUMS)
@_out("SITE.scores", "The file of the scores: all that leaves this owner.")
@shard_option
@site_options
def score(pictures: str, out: str, total: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Judge the PICTURES of one owner, which are in the merged sums, by the fit without each (leave-one-out, exact).

    The second round, if owners want one: `tangentune merge --total FILE` wrote the sums, and `tangentune merge FILE
    --scores ...` takes the scores of all owners for its damping and probabilities. They are totals over the pictures.
    """
    from tangentune.solvers.home_scores import Judge
    from tangentune.solvers.sums import TangentSums

    place = _file_place(out)
    with site_job(pictures, place, quiet, options, lambda: Judge.of(TangentSums.load(total))) as parts:
        job, folder, rank, stdout = parts
        found = job.scores(folder, rank)
        if found is None:
            return
        found.save(place)
    facts = {"scores": out, **found.summary()}
    if as_json:
        print_json(facts)
        return
    print_facts(_left_out_rows(found.summary()), stdout)
    stdout.write(f"Scores written to {shown(out)}\n")


def _left_out_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("pictures judged", f"{found['pictures']:,}"), ("squared error without each", f"{found['error']:.3f}")]
    if "accuracy" in found:
        rows += [("accuracy", percent(found["accuracy"])), ("negative log-likelihood", f"{found['nll']:.4f}")]
    return rows


@contextlib.contextmanager
def site_job(
    pictures: str, place: Path, quiet: bool, options: dict[str, Any], judge: Callable[[], Judge] | None = None
) -> Iterator[tuple[SiteJob, Path, Rank, IO[str]]]:
    """The work on an owner's pictures, where its shards lie, and this rank. They are kept until this ends well."""
    from tangentune.estimators.site import SiteJob
    from tangentune.pictures.files import find_files
    from tangentune.pictures.ranks import Rank, leave
    from tangentune.pictures.tables import Columns

    rank, read = Rank.here(), reading(options)
    with working(quiet or not rank.leads) as stdout:
        features = read_map(options["map"], rank, options["device"], options["batch_size"])
        files = find_files(pictures, True, Columns(read["path_column"], read["label_column"]))
        jobs, verbose = rank.jobs(options["n_jobs"]), int(not quiet)
        found, size = None if judge is None else judge(), options["shard"]
        job = SiteJob(features, files, options["regression"], read["on_error"], jobs, verbose, size, found)
        folder = job.folder(place)
        yield job, folder, rank, stdout
        leave(folder, rank)


def read_map(path: str, rank: Rank, device: str | None, batch_size: int | None) -> TangentFeatures:
    """A saved map on the device of a rank."""
    from tangentune import TangentFeatures

    device = rank.device(device)
    check_device(device)
    features = TangentFeatures.load(path, device=device)
    return features if batch_size is None else features.set_params(batch_size=batch_size)


@click.command(cls=Command, short_help="Fit one network to the sums of several owners.")
@click.argument("sites", nargs=-1, required=True, type=_SUMS, metavar="SITE.sums...")
@map_option
@_out("MODEL", "Directory of the new model.")
@_option("Owners", "--without", multiple=True, type=_SUMS, metavar="SITE.sums")
@_minimum
@_option(STREAMS, "--total", type=click.Path(dir_okay=False), metavar="FILE.sums")
@_option("Owners", "--scores", multiple=True, type=_SUMS, metavar="SITE.scores")
@damping_option
@run_options
def merge(
    sites: tuple[str, ...], map: str, out: str, without: tuple[str, ...], minimum: int, total: str | None,
    scores: tuple[str, ...], damping: str | float, as_json: bool, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Solve for the network that all pictures behind the SITE.sums together would give, and write it to MODEL.

    Owners may come in any order, and may lack classes or bring their own. An owner who withdraws is taken out by
    --without, exactly. The damping is chosen by generalised cross-validation from the sums, or, given the --scores of
    all owners, by exact leave-one-out.
    """
    from tangentune.estimators.model_directory import check_destination
    from tangentune.estimators.site import added
    from tangentune.pictures.ranks import Rank
    from tangentune.solvers.home_scores import HomeScores
    from tangentune.solvers.sums import TangentSums

    place = check_destination(out)
    total_place = None if total is None else _file_place(total)
    if not Rank.here().leads:
        return
    with working(quiet) as stdout:
        features = read_map(map, Rank(), options["device"], options["batch_size"])
        _refuse_twice([*sites, *without, *scores])
        parts = {site: TangentSums.load(site) for site in sites}
        gone = {site: TangentSums.load(site) for site in without}
        notes = [_checked(part, minimum, site) for site, part in (parts | gone).items()]
        merged = added(parts.values())
        for part in gone.values():
            merged = merged - part
        judged = added([HomeScores.load(file) for file in scores]) if scores else None
        if judged is not None and judged.pictures != merged.pictures:
            notes.append(f"scores of {judged.pictures} of {merged.pictures} pictures; give those of every owner")
        model = features.solve(merged, chosen_damping(damping), scores=judged)
        if total_place is not None:
            merged.save(total_place)
        model.save_pretrained(place)
    for note in notes:
        if note and not quiet:
            click.echo(f"note: {shown(note)}", err=True)
    facts = merged_facts(model, merged) | {"model": out, "sites": {name: _counts(one) for name, one in parts.items()}}
    if as_json:
        print_json(facts | {"without": list(without)})
        return
    if merged.classes:
        names = [shown(Path(name).name) for name in parts]
        table = new_table("Class", *names, "All", numbers=tuple(range(1, len(parts) + 2)))
        for name in merged.classes:
            counts = [_counts(one).get(str(name), 0) for one in (*parts.values(), merged)]
            table.add_row(*folded(str(name)), *(f"{count:,}" for count in counts))
        print_table(table, stdout)
    show_merged(facts, stdout)
    stdout.write(f"Model written to {shown(out)}\n")


def _refuse_twice(files: list[str]) -> None:
    """The same file twice would count its pictures twice."""
    from tangentune._files import file_digest

    seen = dict[str, str]()
    for file in files:
        digest = file_digest(file)
        if digest in seen:
            what = f"{file} is given twice" if seen[digest] == file else f"{file} and {seen[digest]} are the same"
            raise InputError(f"{what}; give the sums of every owner once")
        seen[digest] = file


def chosen_damping(damping: str | float) -> float | None:
    """What was given, None if it is to be chosen; from sums that is generalised cross-validation."""
    if damping == "evidence":
        raise InputError("sums choose their damping by generalised cross-validation; give damping=loo or a number")
    return None if isinstance(damping, str) else damping


def merged_facts(model: Estimator, merged: TangentSums) -> dict[str, Any]:
    """What a model from sums says of itself."""
    found = model.fit_report_["sums"]
    facts = {"n": merged.pictures, "damping": model.damping_, "error": found["error"], "classes": _counts(merged)}
    return facts | {"left_out": found.get("left_out")}


def show_merged(facts: dict[str, Any], stream: IO[str]) -> None:
    """The same for people."""
    rows = [("pictures", f"{facts['n']:,}"), ("damping", nice_number(facts["damping"]))]
    left_out = facts["left_out"]
    more = _left_out_rows(left_out) if left_out else [("squared error, estimated", f"{facts['error']:.3f}")]
    print_facts(rows + more, stream)


def _counts(found: TangentSums) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(found.classes, found.counts.tolist(), strict=False)}


def _checked(found: TangentSums, minimum: int, name: str) -> str:
    from tangentune.estimators.site import check_site

    return check_site(found, minimum, name)


def _file_place(out: str) -> Path:
    """Where a file is to be written, refused before the work where that cannot be."""
    from tangentune.methods.source_selection.manifest import check_place

    check_place(Path(out))
    return Path(out)
