"""The command `tangentune fit`."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections import defaultdict
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import PICTURES, load, own_rank, reading, skipped
from tangentune.cli.options import MACHINE, NETWORK, SOLVER, STREAMS, Command, described, fit_options
from tangentune.cli.run import check_device, print_json, working
from tangentune.cli.tables import new_table, print_facts, print_labels, print_table, score_rows
from tangentune.errors import StoreError, shown

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.estimators.model_directory import Version
    from tangentune.estimators.summary import Plan, Summary

_HELP = {
    "out": "Directory of the new model; a model that is there is replaced at the end.",
    "map": "Fit in a feature map that `tangentune map` wrote: of any number of pictures, and by as many processes as "
    "torchrun starts. The choices of the fit are then those of the map.",
    "source": "Pictures of related data to learn from as well: what `tangentune select` wrote, or a folder of class "
    "folders.",
    "work": "Where a fit on landmarks keeps what it has; stopped and called again, it goes on from there. Processes of "
    "torchrun share it; beside MODEL if not given.",
    "verbose": "Also show how the layers' kernels will be computed.",
}
_option = partial(described, _HELP)
_QUICK = 96  # pixels; what the documents say to start with


@click.command(cls=Command, short_help="Fit a model to labelled pictures.")
@click.argument("pictures", type=PICTURES)
@_option(STREAMS, "--out", required=True, metavar="MODEL", type=click.Path())
@_option(STREAMS, "--source", metavar="MANIFEST", type=PICTURES)
@_option(STREAMS, "--work", metavar="DIR", type=click.Path(file_okay=False))
@_option(STREAMS, "--map", metavar="MAP", type=click.Path(exists=True, file_okay=False))
@fit_options
@_option(STREAMS, "--verbose -v", is_flag=True)
def fit(
    pictures: str, out: str, source: str | None, work: str | None, map: str | None, as_json: bool, quiet: bool,
    verbose: bool, **options: Any,
) -> None:  # fmt: skip
    """Fit a model to the labelled PICTURES and write it to the directory MODEL.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label. Pictures may
    have several labels each: --label-separator or --label-columns say where they are.

    Says first what it will cost. Every choice left to "loo" is made by exact leave-one-out error, so no
    picture has to be set aside. How much a source counts, and whether at all, is chosen in the same way.
    """
    from tangentune._files import locked
    from tangentune.estimators.model_directory import check_destination, version_of
    from tangentune.estimators.source import MANIFESTS
    from tangentune.estimators.summary import summarise
    from tangentune.networks.backbone import as_backbone
    from tangentune.pictures.ranks import job_digest, parts_folder, sharing

    if quiet and verbose:
        raise click.UsageError("give --quiet or --verbose, not both")
    place, before = check_destination(out), version_of(out)
    if map is not None:
        _fit_in_map(pictures, out, map, as_json, quiet, options)
        return
    told = (pictures, source, sorted(options.items(), key=str))
    read, rank = reading(options), own_rank(options)
    quiet |= not rank.leads
    with working(quiet) as stdout:
        model = _new_model(quiet, **options)
        if source is not None:
            model.check_source()
        backbone = as_backbone(model.backbone, model.input_size)
        loaded = load(pictures, backbone, model, read, True)
        related = source  # a manifest as it is, whose pictures are checked; others are read as those of the fit
        if source is not None and Path(source).suffix.lower() not in MANIFESTS:
            related = load(source, backbone, model, read, True)
        plans: list[Plan] = []

        def tell(plan: Plan) -> None:
            plans.append(plan)
            if not quiet:
                _show_plan(plan, sys.stderr, layers=verbose)
            size = (backbone.contract.input_size or (0,))[-1]
            if options["input_size"] is None and size > _QUICK and plan["seconds"] > 60:
                less = f"start with --size {_QUICK}, about {100 * (_QUICK / size) ** 2:.0f} % of the work"
                warnings.warn(f"pictures are {size} pixels wide, the network's own size; {less}", stacklevel=2)

        folder = None if rank.count == 1 else parts_folder(out, job_digest((told, loaded.digests), ()), work)
        asked = rank.leads and (as_json or not quiet)
        with sharing(folder, rank) as shared:
            model.fit(loaded, source=related, tell=tell if asked else None, work=work if shared is None else shared)
            with locked(place):
                out = _still_free(out, before)
                model.save_pretrained(out)
    if not rank.leads:
        return
    facts = summarise(model)
    if not as_json:
        _show_fit(facts, out, stdout)
        return
    shown_facts = ("backbone", "n", "settings", "seconds", "peak_bytes", "probe", "source")
    document = {"model": out, "estimator": type(model).__name__} | {key: getattr(facts, key) for key in shown_facts}
    document |= {"classes": dict(zip(facts.classes, facts.counts, strict=True)), "loo": facts.scores}
    document |= {"labels": [asdict(row) for row in facts.labels]} if facts.several else {}
    planned = {key: plans[0][key] for key in ("seconds", "peak_bytes", "passes", "parameters")}
    print_json(document | {"planned": planned, "skipped": skipped(loaded.skipped)})


def _fit_in_map(pictures: str, out: str, map: str, as_json: bool, quiet: bool, options: dict[str, Any]) -> None:
    """Fit to sums in a frozen map: what `tangentune sums` and `merge` do, in one command."""
    from tangentune.cli.owners import chosen_damping, merged_facts, show_merged, site_job

    context, free = click.get_current_context(), ("damping", "regression", "batch_size", "device", "memory_budget")
    for one in context.command.params:
        chosen = getattr(one, "section", STREAMS) in (NETWORK, SOLVER, MACHINE) and one.name not in (*free, "n_jobs")
        given = one.name and context.get_parameter_source(one.name) is not click.core.ParameterSource.DEFAULT
        if (chosen and given) or (given and one.name in ("source", "work")):
            raise click.UsageError(f"{one.opts[0]} belongs to a fit of its own choices; with --map they are the map's")
    damping = chosen_damping(options["damping"])
    with site_job(pictures, Path(out), quiet, options | {"map": map, "shard": None}) as (job, folder, rank, stdout):
        total = job.sums(folder, rank)
        if total is None:
            return
        model = job.features.solve(total, damping)
        model.save_pretrained(out)
    facts = merged_facts(model, total) | {"model": out, "skipped": len(job.files.pictures) - total.pictures}
    if as_json:
        print_json(facts)
        return
    show_merged(facts, stdout)
    stdout.write(f"Model written to {shown(out)}\n")


def _still_free(out: str, before: Version | None) -> str:
    """The place of the new model, or one beside it if something came there since: neither that nor the fit is lost."""
    from tangentune.estimators.model_directory import check_destination, version_of

    with contextlib.suppress(StoreError):
        place = check_destination(out)
        if version_of(place) in (before, None):
            return out
    beside = next(other for i in count(2) if not os.path.lexists(other := f"{os.path.realpath(out)}-{i}"))
    warnings.warn(f"{out} was changed by another process meanwhile and stays; see {beside}", stacklevel=2)
    return beside


def _new_model(quiet: bool, regression: bool, **options: Any) -> Estimator:
    """An estimator with the user's options, its backbone loaded."""
    from tangentune import TangentClassifier, TangentRegressor
    from tangentune.memory import parse_bytes
    from tangentune.networks.own_code import named_backbone

    if options["memory_budget"] is not None:
        parse_bytes(options["memory_budget"])
    check_device(options["device"])
    options = {key: value for key, value in options.items() if key != "batch_size" or value is not None}
    options["outer_steps"] = options["outer_steps"] if options["outer_steps"] == "loo" else int(options["outer_steps"])
    options["backbone"] = named_backbone(options["backbone"], options["input_size"])
    kind = TangentRegressor if regression else TangentClassifier
    return kind(**options, verbose=0 if quiet else 1)


def _show_plan(plan: Plan, stream: IO[str], *, layers: bool) -> None:
    """The cost of a fit before it starts: one sentence, and how the layers' kernels will be computed if wanted."""
    from tangentune.estimators.summary import nice_bytes

    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for layer in plan["layers"]:
        groups[layer["held_as"], layer["gram"]].append(layer["bytes_per_picture"])
    stream.write(f"{shown(str(plan))}\n")
    table = new_table("Layers", "Kept as", "Kernel from", "Memory a picture", numbers=(0, 3))
    for ways, sizes in sorted(groups.items(), key=lambda item: -sum(item[1])):
        names = ("patch pairs" if way == "pairs" else way for way in ways)
        table.add_row(str(len(sizes)), *names, nice_bytes(sum(sizes)))
    if groups and layers:
        print_table(table, stream)


def _show_fit(facts: Summary, directory: str, stream: IO[str]) -> None:
    """The leave-one-out scores and the choices of a finished fit."""
    from tangentune.estimators.summary import nice_bytes, nice_seconds, nice_settings
    from tangentune.estimators.worth import next_steps, verdict

    rows = [(f"leave-one-out {name}", value) for name, value in score_rows(facts.scores, facts.interval)]
    rows += nice_settings(facts)
    rows.append(("time, peak memory", f"{nice_seconds(facts.seconds)}, {nice_bytes(facts.peak_bytes)}"))
    if facts.skipped:
        rows.append(("pictures left out", str(len(facts.skipped))))
    rows += [("linear probe", sentence) for sentence in (verdict(facts),) if sentence]
    rows += [("to try next", f"{step.command}: {step.why}") for step in next_steps(facts)]
    print_facts(rows, stream)
    if facts.several:
        print_labels(facts.labels, stream)
    stream.write(f"Model written to {shown(directory)}\n")
