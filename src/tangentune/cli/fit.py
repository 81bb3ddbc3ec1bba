"""The command `tangentune fit`."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import PICTURES, load, skipped
from tangentune.cli.options import STREAMS, Command, fit_options, option
from tangentune.cli.run import check_device, print_json, working
from tangentune.cli.tables import new_table, print_facts, print_table, score_rows

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.estimators.summary import Summary


@click.command(cls=Command, short_help="Fit a model to labelled pictures.")
@click.argument("pictures", type=PICTURES)
@option(
    STREAMS,
    "--out",
    "Directory of the new model; a model that is there is replaced at the end.",
    required=True,
    metavar="MODEL",
    type=click.Path(),
)
@option(
    STREAMS,
    "--source",
    "Pictures of related data to learn from as well: what `tangentune select` wrote, or a folder of class folders.",
    metavar="MANIFEST",
    type=PICTURES,
)
@fit_options
def fit(pictures: str, out: str, source: str | None, on_error: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Fit a model to the labelled PICTURES and write it to the directory MODEL.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.

    Says first what it will cost. Every choice left to "loo" is made by exact leave-one-out error, so no
    picture has to be set aside. How much a source counts, and whether at all, is chosen in the same way.
    """
    from tangentune.estimators.model_directory import check_destination
    from tangentune.estimators.summary import summarise

    check_destination(out)
    with working(quiet) as stdout:
        model = _new_model(quiet, **options)
        if source is not None:
            model.check_source()
        backbone = model.backbone
        assert not isinstance(backbone, str)
        loaded = load(pictures, backbone.with_size(model.input_size), model, on_error, True)
        plan = model.plan(loaded)
        if not quiet:
            _show_plan(plan, backbone.name, sys.stderr)
        model.fit(loaded, source=source)
        model.save_pretrained(out)
        facts = summarise(model)
    if not as_json:
        _show_fit(facts, out, stdout)
        return
    document = {
        "model": out,
        "estimator": type(model).__name__,
        "backbone": facts.backbone,
        "n": facts.n,
        "classes": dict(zip(facts.classes, facts.counts, strict=True)),
        "loo": facts.scores,
        "settings": facts.settings,
        "seconds": facts.seconds,
        "peak_bytes": facts.peak_bytes,
        "probe": facts.probe,
        "source": facts.source,
        "planned": {key: plan[key] for key in ("seconds", "peak_bytes", "passes", "parameters")},
        "skipped": skipped(loaded),
    }
    print_json(document)


def _new_model(quiet: bool, regression: bool, **options: Any) -> Estimator:
    """An estimator with the user's options, its backbone loaded."""
    from tangentune import TangentClassifier, TangentRegressor
    from tangentune.memory import parse_bytes
    from tangentune.networks.backbone import load_backbone

    if options["memory_budget"] is not None:
        parse_bytes(options["memory_budget"])
    check_device(options["device"])
    options = {key: value for key, value in options.items() if key != "batch_size" or value is not None}
    options["outer_steps"] = options["outer_steps"] if options["outer_steps"] == "loo" else int(options["outer_steps"])
    options["backbone"] = load_backbone(options["backbone"])
    kind = TangentRegressor if regression else TangentClassifier
    return kind(**options, verbose=0 if quiet else 1)


def _show_plan(plan: dict[str, Any], name: str, stream: IO[str]) -> None:
    """The cost of a fit before it starts: one sentence, and how the layers' kernels will be computed."""
    from tangentune.estimators.summary import nice_bytes, nice_seconds

    passes = "one pass" if plan["passes"] == 1 else f"{plan['passes']} passes"
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for layer in plan["layers"]:
        groups[layer["held_as"], layer["gram"]].append(layer["bytes_per_picture"])
    most = f" (at most {nice_bytes(plan['most_bytes'])})" if plan["most_bytes"] > 1.1 * plan["peak_bytes"] else ""
    stream.write(
        f"Fitting {plan['parameters']:,} parameters of {name} to {plan['n']:,} pictures will take about "
        f"{nice_seconds(plan['seconds'])} and {nice_bytes(plan['peak_bytes'])} of memory{most}, in {passes} over the "
        "pictures.\n"
    )
    table = new_table("Layers", "Kept as", "Kernel from", "Memory a picture", numbers=(0, 3))
    for ways, sizes in sorted(groups.items(), key=lambda item: -sum(item[1])):
        names = ("patch pairs" if way == "pairs" else way for way in ways)
        table.add_row(str(len(sizes)), *names, nice_bytes(sum(sizes)))
    if groups:
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
    stream.write(f"Model written to {directory}\n")
