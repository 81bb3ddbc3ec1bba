"""What commands share that use a saved model: reading it and pictures for it, and saving it changed."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tangentune.cli.run import check_device

PICTURES = click.Path(exists=True)
MODEL = click.Path(exists=True, file_okay=False)
OF_THIS_RUN = ("batch_size", "n_jobs", "verbose")  # options that a changed model does not take over


def saved_model(directory: str, quiet: bool, options: dict[str, Any]) -> Any:
    """A fitted estimator from its directory, with the user's options for this machine."""
    import tangentune
    from tangentune.errors import StoreError
    from tangentune.estimators.model_directory import read_config

    name = read_config(directory).get("estimator")
    if name not in ("TangentClassifier", "TangentRegressor"):
        message = f"{directory} holds a {name}, which this command cannot use"
        raise StoreError(message)
    check_device(options.get("device"))
    fitted = getattr(tangentune, name).from_pretrained(directory, device=options.get("device"))
    given = {key: value for key, value in options.items() if key != "device" and value is not None}
    return fitted.set_params(verbose=0 if quiet else 1, **given)


def load(path: str, backbone: Any, model: Any, on_error: str, labelled: bool) -> Any:
    """Pictures as a network takes them."""
    from tangentune.pictures.load import load_pictures

    return load_pictures(
        path,
        contract=backbone.contract,
        on_error=on_error,
        n_jobs=model.n_jobs,
        verbose=model.verbose,
        need_labels=labelled,
    )


def skipped(pictures: Any) -> list[dict[str, str]]:
    """Pictures that could not be read, with the reason."""
    return [{"id": str(name), "reason": str(reason)} for name, reason in pictures.skipped]


def change_saved(
    directory: str, change: Callable[[Any], Any], quiet: bool, options: dict[str, Any], *, dry_run: bool = False
) -> dict[str, Any]:
    """Read a model, change it, and put it back in one step; whatever fails, the directory stays as it was.

    Args:
        directory: the model's.
        change: does one edit of the estimator in place.
        quiet: no progress bars.
        options: batch size, device and the like, for this run only.
        dry_run: do not write.

    Returns:
        The facts of the change, for JSON: "edit" is its line of the audit log.

    Raises:
        StoreError: the model cannot be read or written, or changed on the disk meanwhile.
    """
    from tangentune.errors import StoreError
    from tangentune.estimators.model_directory import check_destination, read_config
    from tangentune.estimators.model_files import REPORT, read_text
    from tangentune.estimators.summary import summarise

    start = time.perf_counter()
    if not dry_run:
        check_destination(directory)
    known = read_text(Path(directory))
    model = saved_model(directory, quiet, options)
    before = summarise(model)
    change(model)
    after = summarise(model)
    if not dry_run:
        model.model_  # noqa: B018  summed with the options of this run
        kept = read_config(directory)["parameters"]
        model.set_params(**{name: kept[name] for name in OF_THIS_RUN})
        if read_text(Path(directory)) != known:
            message = f"the model in {directory} was changed by another process meanwhile; run this command again"
            raise StoreError(message)
        reported = (Path(directory) / REPORT).exists()
        model.save_pretrained(directory)
        if reported:
            warnings.warn(f"{REPORT} showed the model as it was and is gone; write it anew", stacklevel=2)
    return {
        "model": directory,
        "saved": not dry_run,
        "edit": model.edits_[-1],
        "n": {"before": before.n, "after": after.n},
        "loo": {"before": _finite(before.scores), "after": _finite(after.scores)},
        "classes": {
            "new": [name for name in after.classes if name not in before.classes],
            "gone": [name for name in before.classes if name not in after.classes],
        },
        "seconds": time.perf_counter() - start,
    }


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
