"""A fitted estimator as settings and tensors, and back."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tangentune.errors import StoreError
from tangentune.estimators.card import render_card
from tangentune.estimators.fitted import Choice
from tangentune.estimators.model_directory import read_edits, read_model, write_model
from tangentune.estimators.outer_steps import moved
from tangentune.estimators.source_store import pack, unpack
from tangentune.estimators.training_set import ROWS_SHARE, TrainingSet
from tangentune.jacobian.rows import RowPlan
from tangentune.jacobian.task_vector import TaskVector, difference
from tangentune.kernels.feature_map import TangentMap, TangentModel
from tangentune.kernels.metric import Whitening
from tangentune.memory import default_budget, parse_bytes
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.contract import DataContract
from tangentune.pictures.pictures import Pictures, take_rows

PLAIN = (
    "damping_", "relative_damping_", "metric_power_", "normalize_", "body_scale_", "block_scales_", "block_shares_",
    "loo_score_", "selection_", "fit_report_", "ids_", "temperature_", "flat_", "n_features_in_", "outer_steps_",
    "outer_selection_", "likelihood_", "source_", "source_ids_",
)  # fmt: skip
ARRAYS = (
    "loo_predictions_", "loo_proba_", "kernel_", "dual_coef_", "intercept_", "probes_", "noise_",
    "source_effects_",
)  # fmt: skip


def save(estimator: Any, directory: str | os.PathLike[str], pictures: bool) -> None:
    """Write a fitted estimator with `store.write_model`: nothing of pictures that it has forgotten.

    Raises:
        StoreError: the place cannot be used.
    """
    model: TangentModel = estimator._current_model()
    choice, active = estimator._choice, torch.from_numpy(estimator._choice.active)
    training = estimator._training
    tensors: dict[str, Tensor] = {"head": model.head, "intercept": model.intercept, "probes": model.map.probes}
    tensors |= {f"body.{name}": weights for name, weights in model.body.items()}
    for name, metric in model.map.metric.items():
        tensors |= {f"metric.{name}.left": metric.left, f"metric.{name}.right": metric.right}
    if estimator.task_vector_ is not None:
        tensors |= {f"moved.{name}": tensor for name, tensor in estimator.task_vector_.items()}
    tensors |= {key: _tensor(getattr(estimator, key)) for key in ARRAYS if hasattr(estimator, key)}
    tensors |= {f"path.{key}": _tensor(values) for key, values in estimator.damping_path_.items()}
    tensors |= {"sample_weight": _tensor(choice.sample_weight), "numbers": _tensor(training.numbers[choice.active])}
    if pictures and estimator.task_vector_ is not None:
        tensors |= _points(estimator)
    behind = None
    if training.source is not None:
        behind, more = pack(training.source, active, pictures and training.has_pictures)
        tensors |= more
    parameters = {k: v for k, v in estimator.get_params(deep=False).items() if k != "backbone"}
    parameters["device"] = None if parameters["device"] is None else str(parameters["device"])
    state = parameters["random_state"]
    parameters["random_state"] = int(state) if isinstance(state, int | np.integer) else None
    config = {
        "estimator": type(estimator).__name__,
        "parameters": parameters,
        "backbone": estimator.backbone_.describe(),
        "map": {
            "ruled": list(model.map.tangent.ruled),
            "generic": list(model.map.tangent.generic),
            "mirrored": model.map.mirrored,
            "block_scales": model.map.block_scales,
            "length_scales": model.map.length_scales,
        },
        "fitted": {key: getattr(estimator, key) for key in PLAIN if hasattr(estimator, key)},
        "classes": _labels(estimator.classes_) if hasattr(estimator, "classes_") else None,
        "targets": _labels(estimator.targets_),
        "skipped": [list(pair) for pair in training.pictures.skipped],
        "points": [training.points[i] for i in choice.active],
        "next_number": estimator._next_number,
        "seed": estimator._seed,
        "source": behind,
    }
    pixels = take_rows(training.pictures.pixels, active) if pictures and training.has_pictures else None
    write_model(directory, config, tensors, render_card(estimator, pixels is not None), pixels, estimator.edits_)


def load(cls: Any, directory: str | os.PathLike[str], backbone: Backbone | None, device: Any) -> Any:
    """Read what `save` wrote.

    Raises:
        StoreError: if it is another estimator's model, or a network of the user's own must be given.
    """
    config, tensors = read_model(directory)
    if config.get("estimator") != cls.__name__:
        kind = config.get("estimator")
        message = f"{directory} holds a {kind}; read it with {kind}.from_pretrained"
        raise StoreError(message)
    backbone = _backbone(config["backbone"], backbone, device, directory)
    name = config["backbone"]["name"]
    parameters = config["parameters"] | {"backbone": backbone if name == "custom" else name}
    if isinstance(parameters["input_size"], list):
        parameters["input_size"] = tuple(parameters["input_size"])
    estimator = cls(**parameters)
    fitted = config["fitted"]
    estimator.source_, estimator.source_ids_, estimator.source_effects_ = None, [], np.zeros(0)
    for key, value in fitted.items():
        setattr(estimator, key, value)
    for key in ARRAYS:
        if key in tensors and key != "kernel_":
            setattr(estimator, key, tensors[key].numpy())
    if config["classes"] is not None:
        estimator.classes_ = _array(config["classes"])
    estimator.targets_ = _array(config["targets"])
    estimator.damping_path_ = {key: tensors[f"path.{key}"].numpy() for key in ("damping", "loo_error")}
    estimator.backbone_ = backbone
    estimator.edits_ = read_edits(directory)
    estimator.task_vector_ = _task(tensors, "moved.")
    module = backbone.module if estimator.task_vector_ is None else moved(backbone.module, estimator.task_vector_)
    estimator.model_ = _model(config["map"], fitted, tensors, backbone, module)
    _stand(estimator, config, tensors)
    return estimator


def _stand(estimator: Any, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """What explanations and edits of a loaded model start from."""
    ids = estimator.ids_
    pixels = tensors.get("pixels", torch.empty(len(ids), 0))
    pictures = Pictures(pixels, None, list(ids), [(path, reason) for path, reason in config["skipped"]])
    kernel = tensors["kernel_"].to(estimator.backbone_.device)
    numbers = tensors["numbers"].numpy()
    training = TrainingSet(pictures, numbers, tuple(config["points"]), kernel, None)
    behind = config.get("source")
    estimator._training = training if behind is None else unpack(training, behind, tensors, estimator.source_ids_)
    weights = tensors["sample_weight"].numpy()
    estimator._choice = Choice(np.arange(len(ids)), estimator.targets_, weights)
    estimator._system, estimator._likelihood, estimator._stale, estimator._undo = None, None, False, []
    estimator._next_number, estimator._seed = config["next_number"], config["seed"]
    budget = estimator.memory_budget
    room = default_budget(estimator.backbone_.device) if budget is None else parse_bytes(budget)
    estimator._room = room // ROWS_SHARE


def _points(estimator: Any) -> dict[str, Tensor]:
    """What each fold's network differs by from the pre-trained one."""
    start = dict(estimator.backbone_.module.named_parameters())
    out: dict[str, Tensor] = {}
    for fold, point in enumerate(estimator.model_.map.tangent.points):
        task = difference(dict(point.named_parameters()), start)
        out |= {f"point.{fold}.{name}": tensor for name, tensor in task.items()}
    return out


def _task(tensors: dict[str, Tensor], prefix: str) -> TaskVector | None:
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return TaskVector(found) if found else None


def _model(
    saved: dict[str, Any], fitted: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone, module: nn.Module
) -> TangentModel:
    device = backbone.device
    folds = range(len({key.split(".")[1] for key in tensors if key.startswith("point.")}))
    tasks = [_task(tensors, f"point.{fold}.") for fold in folds]
    points = tuple(moved(backbone.module, task) for task in tasks if task is not None)
    tangent = RowPlan(module, backbone.feature_function, tuple(saved["ruled"]), tuple(saved["generic"]), points)
    metric = {
        name: Whitening(tensors[f"metric.{name}.left"].to(device), tensors[f"metric.{name}.right"].to(device))
        for name in tangent.names
        if f"metric.{name}.left" in tensors
    }
    feature_map = TangentMap(
        tangent, tensors["probes"].to(device), saved["mirrored"], metric, saved["block_scales"], fitted["body_scale_"],
        fitted["normalize_"], saved["length_scales"],
    )  # fmt: skip
    body = {key.removeprefix("body."): tensor.to(device) for key, tensor in tensors.items() if key.startswith("body.")}
    ordered = {name: body[name] for name in tangent.names if name in body}
    return TangentModel(feature_map, tensors["intercept"].to(device), tensors["head"].to(device), ordered)


def _backbone(description: dict[str, Any], given: Backbone | None, device: Any, directory: Any) -> Backbone:
    """The network of a saved model: given, or loaded by name; verified either way."""
    if given is None:
        if description["name"] == "custom":
            message = (
                f"the model in {directory} was fitted on a network of your own ({description['class']}); give it: "
                "from_pretrained(directory, backbone=Backbone(...))"
            )
            raise StoreError(message)
        given = load_backbone(description["name"])
    given.verify(description)
    contract = DataContract.from_dict(description["contract"])
    size = contract.input_size
    backbone = given.with_size(size[1:] if size is not None and len(size) == 3 else None)
    return backbone if device is None else backbone.to(device)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _labels(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": values.dtype.str, "values": values.tolist()}


def _array(saved: dict[str, Any]) -> np.ndarray:
    return np.asarray(saved["values"], dtype=saved["dtype"])
