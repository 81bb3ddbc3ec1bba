"""The commands that take a model where its pictures are not: `tangentune export` and `tangentune strip`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tangentune.cli.models import MODEL, saved_model
from tangentune.cli.options import STREAMS, Command, model_options, option
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import percent, print_facts
from tangentune.errors import InputError, shown

_OUT = option(STREAMS, "--out", "FILE.onnx for ONNX Runtime, FILE.pt2 for torch.", metavar="FILE", required=True)
_BARS = option(STREAMS, "--error-bar", "Also the standard deviation of every score; many times the size.", is_flag=True)


@click.command(cls=Command, short_help="Write a model as one file that predicts without tangentune.")
@click.argument("model", type=MODEL)
@_OUT
@_BARS
@model_options
def export(model: str, out: str, error_bar: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the saved MODEL as one file that predicts without tangentune, for ONNX Runtime or for torch.

    It takes pictures as bytes, prepared to the network's size, and gives scores and probabilities. The file is put in
    place once its answers are those of the model on made-up pictures; how long a picture takes is told.
    """
    from tangentune.deployment.export import check_path
    from tangentune.estimators.summary import nice_bytes

    check_path(out)
    with working(quiet) as stdout:
        made = saved_model(model, quiet, options).export(out, error_bar=error_bar)
    if as_json:
        facts = {"out": out, "bytes": made.bytes, "runtime": made.runtime, "outputs": list(made.outputs)}
        times = {"seconds": made.seconds, "plain_seconds": made.plain_seconds, "ratio": made.ratio}
        print_json({"model": model, **facts, "difference": made.difference, "excess": made.excess, **times})
        return
    times = f"{made.ratio:.1f} times the network alone"
    bars = [] if made.excess is None else [("error bars", f"{percent(made.excess)} too wide on average")]
    rows = [
        ("size", nice_bytes(made.bytes)),
        ("gives", ", ".join(made.outputs)),
        ("difference from the model", f"{made.difference:.1e}"),
        ("time of one picture", f"{1e3 * made.seconds:.1f} ms in {made.runtime}, {times}"),
    ]
    print_facts([*rows, *bars], stdout)
    stdout.write(f"Written to {shown(out)}\n")


@click.command(cls=Command, short_help="Write a model without its pictures.")
@click.argument("model", type=MODEL)
@option(STREAMS, "--out", "Directory of the new model.", metavar="DIR", required=True, type=click.Path(file_okay=False))
@model_options
def strip(model: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the saved MODEL without its training pictures to another directory: a model that only predicts.

    It still names pictures and holds their kernel and leave-one-out predictions; edits and explanations of new pictures
    need the whole MODEL, which stays as it is.
    """
    from tangentune.estimators.model_directory import check_destination
    from tangentune.estimators.summary import nice_bytes

    if os.path.realpath(out) == os.path.realpath(model):
        raise InputError(f"{out} is the model itself, whose pictures would be lost; name another directory with --out")
    check_destination(out)
    with working(quiet) as stdout:
        saved_model(model, quiet, options).save_pretrained(out, pictures=False)
        files = ([file for file in Path(folder).iterdir() if file.is_file()] for folder in (model, out))
        before, after = (sum(file.stat().st_size for file in own) for own in files)
    if as_json:
        print_json({"model": model, "out": out, "bytes": {"before": before, "after": after}})
        return
    stdout.write(f"Written to {shown(out)}: {nice_bytes(after)}, where the whole model has {nice_bytes(before)}\n")
