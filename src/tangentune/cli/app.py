"""The command line: its entry, and tangentune fit, predict, evaluate, report.

Torch and everything heavy is imported when a command runs, so that help and mistakes in the options are quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from tangentune import __version__
from tangentune.cli.compare import compare
from tangentune.cli.edit import add, forget, relabel
from tangentune.cli.explain import explain, suspects
from tangentune.cli.models import MODEL, PICTURES, load, saved_model, skipped
from tangentune.cli.options import STREAMS, Command, fit_options, option, shared_options, with_hyphens
from tangentune.cli.run import check_device, print_json, run, working
from tangentune.cli.select import select


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code (0 done, 2 the user's mistake, 130 interrupted, 1 nobody reads on)."""
    return run(lambda: cli.main(arguments, prog_name="tangentune", standalone_mode=False))


@click.group(
    context_settings={"help_option_names": ["--help", "-h"], "token_normalize_func": with_hyphens},
)
@click.version_option(__version__, prog_name="tangentune", message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune a whole pre-trained network by solving one least-squares problem."""


@cli.command(cls=Command, short_help="Fit a model to labelled pictures.")
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
def fit(
    pictures: str,
    out: str,
    source: str | None,
    regression: bool,
    on_error: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fit a model to the labelled PICTURES and write it to the directory MODEL.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.

    Says first what it will cost. Every choice left to "loo" is made by exact leave-one-out error, so no
    picture has to be set aside. How much a source counts, and whether at all, is chosen in the same way.
    """
    from tangentune.cli.tables import show_fit, show_plan
    from tangentune.estimators.model_directory import check_destination
    from tangentune.estimators.summary import summarise

    check_destination(out)
    with working(quiet) as stdout:
        model = _new_model(regression, quiet, options)
        if source is not None:
            model.check_source()
        loaded = load(pictures, model.backbone.with_size(model.input_size), model, on_error, True)
        plan = model.plan(loaded)
        if not quiet:
            show_plan(plan, model.backbone.name, sys.stderr)
        model.fit(loaded, source=source)
        model.save_pretrained(out)
        facts = summarise(model)
    if not as_json:
        show_fit(facts, out, stdout)
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
        "source": facts.source,
        "planned": {key: plan[key] for key in ("seconds", "peak_bytes", "passes", "parameters")},
        "skipped": skipped(loaded),
    }
    print_json(document)


@cli.command(cls=Command, short_help="Predict the labels of pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def predict(model: str, pictures: str, on_error: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Predict the labels of PICTURES with the saved MODEL.

    PICTURES is a picture, any folder of pictures, or a CSV file with the column path.
    """
    from tangentune.cli.tables import show_predictions

    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, on_error, False)
        rows = _predictions(fitted, loaded)
    if as_json:
        print_json({"model": model, "n": len(rows), "predictions": rows, "skipped": skipped(loaded)})
    else:
        show_predictions(rows, stdout)


@cli.command(cls=Command, short_help="Score a model on labelled pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def evaluate(model: str, pictures: str, on_error: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Score the saved MODEL on labelled PICTURES that it has not seen.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.
    """
    from tangentune.cli.tables import show_scores
    from tangentune.estimators.scores import score_pictures
    from tangentune.metrics import accuracy_interval

    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, on_error, True)
        scores = score_pictures(fitted, loaded)
    if as_json:
        print_json({**scores, "n": len(loaded), "skipped": skipped(loaded)})
        return
    interval = accuracy_interval(scores["accuracy"], len(loaded)) if "accuracy" in scores else None
    show_scores(scores, len(loaded), interval, stdout)


@cli.command(cls=Command, short_help="Write an HTML page about a model.")
@click.argument("model", type=MODEL)
@option(
    STREAMS,
    "--out",
    "The page to write; MODEL/report.html if not given.",
    metavar="FILE.html",
    type=click.Path(dir_okay=False),
)
def report(model: str, out: str | None) -> None:
    """Write an HTML page about the saved MODEL.

    Scores, hardest pictures (the likely label mistakes), which blocks moved, and what was tried. The page
    stands alone: it loads nothing.
    """
    from tangentune.reports.model_page import write_report

    with working(quiet=False):
        fitted = saved_model(model, True, {})
        path = write_report(fitted, Path(model) / "report.html" if out is None else out)
    click.echo(f"Report written to {path}")


def _new_model(regression: bool, quiet: bool, options: dict[str, Any]) -> Any:
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


def _predictions(model: Any, pictures: Any) -> list[dict[str, Any]]:
    """One row a picture: id, label, confidence and all probabilities; or id and value."""
    if not hasattr(model, "classes_"):
        values = model.predict(pictures).tolist()
        return [{"id": name, "value": value} for name, value in zip(pictures.ids, values, strict=True)]
    names = [str(name) for name in model.classes_]
    rows = []
    for name, proba in zip(pictures.ids, model.predict_proba(pictures).tolist(), strict=True):
        best = max(range(len(proba)), key=proba.__getitem__)
        probabilities = dict(zip(names, proba, strict=True))
        rows.append({"id": name, "label": names[best], "confidence": proba[best], "probabilities": probabilities})
    return rows


for command in (select, compare, explain, suspects, forget, add, relabel):
    cli.add_command(command)
