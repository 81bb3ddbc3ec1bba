"""What commands share that use a model: reading a saved one, and pictures for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import click

from tangentune.cli.options import STREAMS, option
from tangentune.cli.run import check_device

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tangentune import Backbone, Pictures, TangentClassifier, TangentRegressor
    from tangentune.pictures.encoded import Listing
    from tangentune.pictures.ranks import Rank

    Estimator = TangentClassifier | TangentRegressor

PICTURES = click.Path(exists=True)
MODEL = click.Path(exists=True, file_okay=False)
_KEEPS = "Folder that keeps what is done, so that a stopped run goes on, and that torchrun's processes share."
work_option = option(STREAMS, "--work", _KEEPS, type=click.Path(file_okay=False), metavar="DIR")


def saved_model(directory: str, quiet: bool, options: dict[str, Any]) -> Estimator:
    """A fitted estimator from its directory, with the user's options for this machine."""
    import tangentune
    from tangentune.errors import StoreError
    from tangentune.estimators.model_directory import read_config

    name = read_config(directory).get("estimator")
    if name not in ("TangentClassifier", "TangentRegressor"):
        kind = "feature map" if name == "TangentFeatures" else name
        raise StoreError(f"{directory} holds a {kind}, which this command cannot use")
    check_device(options.get("device"))
    network = own_network(directory, options.get("backbone"))
    fitted = getattr(tangentune, name).from_pretrained(directory, backbone=network, device=options.get("device"))
    given = {key: value for key, value in options.items() if key not in ("device", "backbone") and value is not None}
    return fitted.set_params(verbose=0 if quiet else 1, **given)


def own_network(directory: str, name: str | None) -> Backbone | None:
    """The network that a user has named for a saved model; what the model file names is shown, and never imported."""
    from tangentune.estimators.model_directory import read_config
    from tangentune.estimators.saving import saved_size
    from tangentune.networks.own_code import named_backbone

    return None if name is None else named_backbone(name, saved_size(read_config(directory)))


def reading(options: dict[str, Any]) -> dict[str, Any]:
    """Taken out of a command's options: how pictures are read."""
    read = {name: options.pop(name) for name in ("on_error", "path_column", "label_column")}
    separator, columns = (options.pop(name, None) for name in ("label_separator", "label_columns"))
    names = [name.strip() for name in (columns or "").split(",")]
    return read | {"label_separator": separator, "label_columns": [name for name in names if name]}


def own_rank(options: dict[str, Any]) -> Rank:
    """Which of torchrun's processes this is; its own accelerator and decoders go into the options."""
    from tangentune.pictures.ranks import Rank

    rank = Rank.here()
    options |= {"device": rank.device(options["device"]), "n_jobs": rank.jobs(options["n_jobs"])}
    return rank


def check_folder(rank: Rank, folder: str | None, sentence: str) -> None:
    """Refuse to share without a folder: one process says so, and the others end quietly."""
    if folder is None and rank.count > 1:
        raise click.UsageError(sentence) if rank.leads else click.exceptions.Exit


def shards_place(work: str | None, rank: Rank, command: str, digest: str) -> Path | None:
    """Where a command that writes no file keeps its shards, if it has any."""
    from pathlib import Path

    check_folder(rank, work, f"several processes share {command} in a folder that all of them see; give --work DIR")
    return None if work is None else Path(work) / f"{command}-{digest}.parts"


def listed(path: str, model: Estimator, read: dict[str, Any], labelled: bool) -> Listing:
    """Pictures that are found but not yet read, with their labels where these are needed."""
    from tangentune.pictures.listing import list_pictures, refuse_unlabelled
    from tangentune.pictures.tables import Columns

    how = _read_as(model, read)
    names = (how["path_column"], how["label_column"], how["label_separator"], tuple(how["label_columns"]))
    listing = list_pictures(path, labelled, Columns(*names))
    assert listing is not None, "a path always names pictures"
    refuse_unlabelled(labelled, listing.labels, listing.sets)
    return listing


def _read_as(model: Estimator, read: dict[str, Any]) -> dict[str, Any]:
    """How labels are read: several a picture where the model has several."""
    if several(model) and not read["label_columns"] and read["label_separator"] is None:
        from tangentune.pictures.label_sets import SEPARATOR

        return read | {"label_separator": SEPARATOR}
    return read


def load(path: str, backbone: Backbone, model: Estimator, read: dict[str, Any], labelled: bool) -> Pictures:
    """Pictures as a network takes them."""
    from tangentune.pictures.load import load_pictures

    contract, jobs, verbose = backbone.contract, model.n_jobs, model.verbose
    how = {"n_jobs": jobs, "verbose": verbose, "need_labels": labelled, **_read_as(model, read)}
    return load_pictures(path, contract=contract, **how)


def several(model: Estimator) -> TypeGuard[TangentClassifier]:
    """Whether an estimator is fitted to pictures with several labels each."""
    return hasattr(model, "fitted_") and getattr(model, "thresholds_", None) is not None


def folder_of(pictures: str) -> Path:
    """Where the files of PICTURES lie: itself, or the folder of a table or of one picture."""
    from pathlib import Path

    place = Path(pictures)
    return place if place.is_dir() else place.parent


def skipped(left_out: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Pictures that could not be read, with the reason, for JSON."""
    return [{"id": str(name), "reason": str(reason)} for name, reason in left_out]
