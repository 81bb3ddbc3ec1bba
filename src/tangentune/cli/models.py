"""What commands share that use a model: reading a saved one, and pictures for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import click

from tangentune.cli.run import check_device

if TYPE_CHECKING:
    from tangentune import Backbone, Pictures, TangentClassifier, TangentRegressor

    Estimator = TangentClassifier | TangentRegressor

PICTURES = click.Path(exists=True)
MODEL = click.Path(exists=True, file_okay=False)


def saved_model(directory: str, quiet: bool, options: dict[str, Any]) -> Estimator:
    """A fitted estimator from its directory, with the user's options for this machine."""
    import tangentune
    from tangentune.errors import StoreError
    from tangentune.estimators.model_directory import read_config

    name = read_config(directory).get("estimator")
    if name not in ("TangentClassifier", "TangentRegressor"):
        raise StoreError(f"{directory} holds a {name}, which this command cannot use")
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


def load(path: str, backbone: Backbone, model: Estimator, read: dict[str, Any], labelled: bool) -> Pictures:
    """Pictures as a network takes them."""
    from tangentune.pictures.load import load_pictures

    contract, jobs, verbose = backbone.contract, model.n_jobs, model.verbose
    if several(model) and not read["label_columns"] and read["label_separator"] is None:
        from tangentune.pictures.label_sets import SEPARATOR

        read = read | {"label_separator": SEPARATOR}
    return load_pictures(path, contract=contract, n_jobs=jobs, verbose=verbose, need_labels=labelled, **read)


def several(model: Estimator) -> TypeGuard[TangentClassifier]:
    """Whether an estimator is fitted to pictures with several labels each."""
    return hasattr(model, "fitted_") and getattr(model, "thresholds_", None) is not None


def skipped(pictures: Pictures) -> list[dict[str, str]]:
    """Pictures that could not be read, with the reason."""
    return [{"id": str(name), "reason": str(reason)} for name, reason in pictures.skipped]
