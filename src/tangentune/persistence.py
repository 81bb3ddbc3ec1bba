"""A fitted estimator as settings and tensors, and back."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tangentune.backbone import Backbone, load_backbone
from tangentune.card import render_card
from tangentune.contract import DataContract
from tangentune.errors import StoreError
from tangentune.expansion import moved
from tangentune.imaging.pictures import Pictures
from tangentune.metric import Whitening
from tangentune.metrics import case_nll
from tangentune.model import TangentMap, TangentModel
from tangentune.rows import Tangent
from tangentune.store import read_model, write_model
from tangentune.summary import label_positions
from tangentune.task_vector import TaskVector

PLAIN = (
    "damping_", "relative_damping_", "metric_power_", "normalize_", "body_scale_", "block_scales_", "block_shares_",
    "loo_score_", "selection_", "fit_report_", "ids_", "temperature_", "flat_", "n_features_in_", "outer_steps_",
    "outer_selection_",
)  # fmt: skip
ARRAYS = ("loo_predictions_", "loo_proba_", "kernel_", "dual_coef_", "intercept_", "probes_")
SHOWN = 24


def save(estimator: Any, directory: str | os.PathLike[str]) -> None:
    """Write a fitted estimator with `store.write_model`.

    The pictures stay behind, except small copies of the ones the report shows.
    """
    model: TangentModel = estimator.model_
    tensors: dict[str, Tensor] = {"head": model.head, "intercept": model.intercept, "probes": model.map.probes}
    tensors |= {f"body.{name}": weights for name, weights in model.body.items()}
    for name, metric in model.map.metric.items():
        tensors |= {f"metric.{name}.left": metric.left, f"metric.{name}.right": metric.right}
    if estimator.task_vector_ is not None:
        tensors |= {f"moved.{name}": tensor for name, tensor in estimator.task_vector_.items()}
    tensors |= {key: _tensor(getattr(estimator, key)) for key in ARRAYS if hasattr(estimator, key)}
    tensors |= {f"path.{key}": _tensor(values) for key, values in estimator.damping_path_.items()}
    shown = _most_wrong(estimator)
    if estimator.pictures_.pixels.dim() == 4:
        pixels = estimator.pictures_.pixels
        loaded = isinstance(estimator.pictures_, Shown)  # which holds only those, in this order
        tensors["shown"] = pixels if loaded else pixels[torch.from_numpy(shown)]
    parameters = {k: v for k, v in estimator.get_params(deep=False).items() if k != "backbone"}
    parameters["device"] = None if parameters["device"] is None else str(parameters["device"])
    parameters["random_state"] = parameters["random_state"] if isinstance(parameters["random_state"], int) else None
    config = {
        "estimator": type(estimator).__name__,
        "parameters": parameters,
        "backbone": estimator.backbone_.describe(),
        "map": {
            "ruled": list(model.map.tangent.ruled),
            "generic": list(model.map.tangent.generic),
            "mirrored": model.map.mirrored,
            "block_scales": model.map.block_scales,
        },
        "fitted": {key: getattr(estimator, key) for key in PLAIN if hasattr(estimator, key)},
        "classes": _labels(estimator.classes_) if hasattr(estimator, "classes_") else None,
        "targets": _labels(estimator.targets_),
        "skipped": [list(pair) for pair in estimator.pictures_.skipped],
        "shown": shown.tolist(),
    }
    write_model(directory, config, tensors, render_card(estimator))


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
    for key, value in fitted.items():
        setattr(estimator, key, value)
    for key in ARRAYS:
        if key in tensors:
            setattr(estimator, key, tensors[key].numpy())
    if config["classes"] is not None:
        estimator.classes_ = _array(config["classes"])
    estimator.targets_ = _array(config["targets"])
    estimator.damping_path_ = {key: tensors[f"path.{key}"].numpy() for key in ("damping", "loo_error")}
    estimator.backbone_ = backbone
    estimator.pictures_ = Shown(fitted["ids_"], config["shown"], tensors.get("shown"), config["skipped"])
    task = {key.removeprefix("moved."): tensor for key, tensor in tensors.items() if key.startswith("moved.")}
    estimator.task_vector_ = TaskVector(task) if task else None
    module = backbone.module if estimator.task_vector_ is None else moved(backbone.module, estimator.task_vector_)
    estimator.model_ = _model(config["map"], fitted, tensors, backbone, module)
    return estimator


def _model(
    saved: dict[str, Any], fitted: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone, module: nn.Module
) -> TangentModel:
    device = backbone.device
    tangent = Tangent(module, backbone.feature_function, tuple(saved["ruled"]), tuple(saved["generic"]))
    metric = {
        name: Whitening(tensors[f"metric.{name}.left"].to(device), tensors[f"metric.{name}.right"].to(device))
        for name in tangent.names
        if f"metric.{name}.left" in tensors
    }
    feature_map = TangentMap(
        tangent, tensors["probes"].to(device), saved["mirrored"], metric, saved["block_scales"], fitted["body_scale_"],
        fitted["normalize_"],
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


class Shown:
    """Stands in for the pictures of a loaded model: names of all, pixels of those the report shows."""

    def __init__(self, ids: list[str], positions: list[int], pixels: Tensor | None, skipped: list[list[str]]):
        self.ids, self.skipped = ids, [(path, reason) for path, reason in skipped]
        self._place = {position: i for i, position in enumerate(positions)}
        self.pixels = torch.empty(0, 1) if pixels is None else pixels

    def __len__(self) -> int:
        """Number of pictures the model was fitted to."""
        return len(self.ids)

    def thumbnail(self, position: int) -> Any:
        """A picture the report shows, or None."""
        place = self._place.get(position)
        if place is None or self.pixels.dim() != 4:
            return None
        return Pictures(self.pixels[place : place + 1], None, [self.ids[position]]).thumbnail(0)


def _most_wrong(estimator: Any) -> np.ndarray:
    """Positions of the pictures with the largest leave-one-out error, worst first, as the report orders them."""
    if hasattr(estimator, "classes_"):
        error = case_nll(label_positions(estimator), estimator.loo_proba_)
    else:
        targets = estimator.targets_.astype(np.float64).reshape(estimator.loo_predictions_.shape)
        error = ((targets - estimator.loo_predictions_) ** 2).sum(1)
    return np.argsort(-error, kind="stable")[:SHOWN]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _labels(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": values.dtype.str, "values": values.tolist()}


def _array(saved: dict[str, Any]) -> np.ndarray:
    return np.asarray(saved["values"], dtype=saved["dtype"])
