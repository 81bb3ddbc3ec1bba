"""A fitted model as settings and tensors, and back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune.errors import StoreError
from tangentune.estimators.fitted import FitFacts, FittedModel
from tangentune.estimators.model_directory import Contents, Version, read_model, told, write_model
from tangentune.estimators.model_record import (
    LABEL_ARRAYS,
    LATER_OPTIONS,
    check_arrays,
    check_settings,
    has_several,
    read_labels,
)
from tangentune.estimators.outer_steps import moved
from tangentune.estimators.packing import pack, unpack
from tangentune.estimators.record import Misfit
from tangentune.estimators.solution import ActivePictures
from tangentune.estimators.tasks import Classification, Multilabel, Outcome, Regression, Task
from tangentune.estimators.training_set import (
    ROWS_SHARE,
    Landmarks,
    SourcePictures,
    SourceSet,
    TrainingSet,
    with_source,
)
from tangentune.estimators.user_input import known_weights, read_count, read_settings, read_solver, read_steps
from tangentune.jacobian.rows import RowPlan
from tangentune.jacobian.task_vector import TaskVector, difference
from tangentune.kernels.feature_map import TangentMap, TangentModel
from tangentune.kernels.metric import Whitening
from tangentune.memory import default_budget, parse_bytes
from tangentune.networks.backbone import (
    FUNCTION,
    AnyBackbone,
    Backbone,
    as_backbone,
    is_known,
    load_backbone,
    usable_device,
)
from tangentune.pictures.contract import DataContract
from tangentune.pictures.label_sets import label_sets
from tangentune.pictures.pictures import Pictures, take_rows
from tangentune.solvers.label_calibration import LabelCalibration
from tangentune.solvers.low_rank import FeatureKernel
from tangentune.solvers.source.choice import SourceSetting

T = TypeVar("T")
Tensors = dict[str, Tensor]
PLAIN_FACTS = [one.name for one in fields(FitFacts) if one.name not in ("damping_path", "source_effects")]
_SETTING = ("strength", "deviation", "damping")  # of a source


def save(
    directory: str | os.PathLike[str], name: str, options: dict[str, Any], fitted: FittedModel, card: str,
    *, pictures: bool, features: int | None,
) -> Version:  # fmt: skip
    """Write a fitted model, its primal weights at hand: nothing of pictures and classes that it has forgotten.

    `name` is that of the estimator's class, `features` the length of vectors, None for pictures; StoreErrors as of
    `write_model`.
    """
    training, active, feature_map = fitted.training, torch.from_numpy(fitted.active.positions), fitted.feature_map
    tensors, source = _tensors(fitted), None
    if pictures and fitted.task_vector is not None:  # what each fold's network differs by from the pre-trained one
        start = dict(fitted.backbone.module.named_parameters())
        for fold, point in enumerate(feature_map.tangent.points):
            tensors |= named(difference(dict(point.named_parameters()), start), f"point.{fold}.")
    if training.source is not None:
        source, more = _pack_source(training.source, active, pictures)
        tensors |= more
    options = options | {"class_weight": known_weights(options["class_weight"], fitted.outcome.classes)}
    if not isinstance(options["random_state"], int | np.integer | None):
        options["random_state"] = fitted.seed  # what the fit took from it
    config = {
        "estimator": name,
        "parameters": {name: pack(value, name) for name, value in options.items() if name != "backbone"},
        "backbone": fitted.backbone.describe(),
        "map": pack_map(feature_map),
        "fitted": _facts(fitted, features),
        "classes": None if isinstance(fitted.task, Regression) else _labels(fitted.outcome.classes),
        "targets": _labels(fitted.labels),
        "skipped": [list(pair) for pair in training.pictures.skipped],
        "points": [training.points[i] for i in fitted.active.positions],
        "next_number": fitted.next_number,
        "seed": fitted.seed,
        "source": source,
    }
    pixels = take_rows(training.pictures.pixels, active) if pictures else None
    if not pictures:  # what tells a picture of the fit from a new one
        digests = training.digests
        own = [list(bytes.fromhex(digests[i])) for i in active.tolist()]
        tensors["hashes"] = torch.tensor(own, dtype=torch.uint8).reshape(-1, 32)
    return write_model(directory, config, tensors, card, pixels, fitted.edits, fitted.version)


def pack_map(feature_map: TangentMap) -> dict[str, Any]:
    """What of a feature map is plain values, body scale and normalisation apart."""
    tangent = feature_map.tangent
    scales = {"block_scales": feature_map.block_scales, "length_scales": feature_map.length_scales}
    moving = {"ruled": list(tangent.ruled), "generic": list(tangent.generic)}
    return moving | {"mirrored": feature_map.mirrored} | scales


def metric_tensors(feature_map: TangentMap) -> Tensors:
    """The metric of a feature map as arrays by name."""
    tensors = dict[str, Tensor]()
    for name, metric in feature_map.metric.items():
        tensors |= {f"metric.{name}.left": metric.left, f"metric.{name}.right": metric.right}
    return tensors


def named(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors by longer names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _tensors(fitted: FittedModel) -> Tensors:
    """The feature map and its weights, fitted attributes that are arrays, and the pictures' weights and numbers."""
    outcome, facts, model = fitted.outcome, fitted.facts, fitted.primal
    assert model is not None
    arrays = {"noise_": outcome.noise} if isinstance(fitted.task, Regression) else {"loo_proba_": outcome.proba}
    if outcome.labels is not None:
        arrays |= {name: getattr(outcome.labels, name[:-1]).numpy() for name in LABEL_ARRAYS}
    arrays |= {"loo_predictions_": outcome.loo, "dual_coef_": outcome.dual, "intercept_": outcome.intercept}
    arrays |= {"sample_weight": fitted.active.sample_weight, "numbers": fitted.numbers}
    arrays |= {"source_effects_": facts.source_effects, **named(facts.damping_path, "path.")}
    tensors = {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in arrays.items()}
    tensors |= {"head": model.head, "intercept": model.intercept, "probes": model.map.probes}
    tensors |= _kernel_tensors(fitted.training, torch.from_numpy(fitted.active.positions))
    tensors |= {"probes_": fitted.feature_map.probes} | metric_tensors(model.map)
    return tensors | named(model.body, "body.") | named(fitted.task_vector or {}, "moved.")


def _kernel_tensors(training: TrainingSet, active: Tensor) -> Tensors:
    """The kernel of the pictures at some positions: a matrix, or rows of a map with what makes new ones."""
    kernel, landmarks = training.kernel, training.landmarks
    if isinstance(kernel, Tensor):
        whole = len(active) == len(kernel) and bool((active == torch.arange(len(active))).all())
        return {"kernel_": kernel if whole else kernel[active][:, active]}
    assert landmarks is not None
    own = kernel.select(active).compacted().parts[0]
    return {"rows_": own, "landmarks.root": landmarks.root, "landmarks.numbers": torch.from_numpy(landmarks.numbers)}


def _facts(fitted: FittedModel, features: int | None) -> dict[str, Any]:
    """Fitted attributes that are plain values."""
    outcome, plain = fitted.outcome, {f"{name}_": getattr(fitted.facts, name) for name in PLAIN_FACTS}
    score = None if np.isnan(outcome.score) else outcome.score  # of sums nothing was left out
    plain |= {"loo_score_": score, "ids_": fitted.ids, "likelihood_": outcome.parameters}
    plain |= {"source_": fitted.source} | ({} if features is None else {"n_features_in_": features})
    if isinstance(fitted.task, Multilabel):
        return plain
    if isinstance(fitted.task, Classification):
        plain |= {"temperature_": outcome.temperature}
        return plain if outcome.softness is None else plain | {"softness_": outcome.softness}
    return plain | {"flat_": fitted.active.labels.ndim == 1}


def _pack_source(source: SourceSet, active: Tensor, pixels: bool) -> tuple[dict[str, Any], Tensors]:
    """Settings and tensors of a source, with the kernels of the training pictures at some positions (n,) only."""
    pictures, setting = source.pictures, source.setting
    settings = {"classes": list(pictures.classes)}
    settings |= {name: getattr(setting, name) for name in _SETTING}
    tensors = {"positions": pictures.positions, "given": pictures.given, "class_weights": setting.class_weights}
    tensors |= {"own": source.own, "cross": source.cross[active], "plain": source.plain[active][:, active]}
    return settings, named(tensors | ({"pixels": pictures.pictures.pixels} if pixels else {}), "source.")


def _labels(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": values.dtype.str, "values": values.tolist()}


def load(
    name: str, directory: str | os.PathLike[str], given: AnyBackbone | None, device: Any
) -> tuple[dict[str, Any], FittedModel, int | None]:
    """What `save` wrote: options of the estimator, the model, which is not solved, and the length of vectors.

    Another estimator's model, or a network of the user's own not given, is a StoreError.
    """

    def check(config: dict[str, Any]) -> None:
        if (kind := config.get("estimator")) != name:
            raise StoreError(f"{directory} holds a {kind}; read it with {kind}.from_pretrained")
        check_settings(config)

    contents = read_model(directory, check)
    config, folder = contents.settings, contents.version.directory
    with _reading_options(folder):
        options = LATER_OPTIONS | unpack(config["parameters"])
        DataContract.from_dict(config["backbone"]["contract"]).with_size(options["input_size"])
    if isinstance(options["input_size"], list):
        options["input_size"] = tuple(options["input_size"])
    backbone, again = saved_backbone(config["backbone"], given, device, directory, options["input_size"])
    options |= {"backbone": again}
    likelihood, weights = options["likelihood"], options["class_weight"]
    kind = Multilabel if has_several(config) else Classification if config["classes"] else Regression
    with _reading_options(folder):
        read_settings(options, backbone, config["seed"])
        read_count(options, "batch_size")
        read_steps(options)
        read_solver(options)
        labels = read_labels(config["targets"], "targets")
        if kind is Multilabel:
            labels = label_sets(labels, config["classes"]["values"])
        kind(likelihood, known_weights(weights, np.unique(labels))).check_options(labels)
    with told(folder):
        check_arrays(config, contents.tensors, dict(backbone.module.named_parameters()))
    fitted = _fitted_model(contents, backbone, kind(likelihood, weights), labels)
    return options, fitted, config["fitted"].get("n_features_in_")


def saved_size(settings: dict[str, Any]) -> tuple[int, ...] | None:
    """The picture size of a saved model, from its settings as they stand; None where they name none."""
    try:
        size = settings["backbone"]["contract"]["input_size"]
        return None if size is None else tuple(int(side) for side in size)
    except (KeyError, TypeError, ValueError):  # reading the model says what is wrong with them
        return None


@contextmanager
def _reading_options(folder: Path) -> Iterator[None]:
    """What a fit would refuse in a model's options is said of its file."""
    with told(folder):
        try:
            yield
        except (ValueError, TypeError) as error:  # also scikit-learn's, of class weights
            raise Misfit(f"parameters: {error}") from error


def _fitted_model(contents: Contents, backbone: Backbone, task: Task, labels: NDArray) -> FittedModel:
    """The model of settings and arrays that were checked; its problem is not solved, for it predicts without."""
    config, plain, tensors = contents.settings, contents.settings["fitted"], contents.tensors
    arrays = {key: tensor.numpy() for key, tensor in tensors.items() if key.endswith("_")}
    vector = TaskVector(steps) if (steps := under(tensors, "moved.")) else None
    primal = _primal(contents, backbone, backbone.module if vector is None else moved(backbone.module, vector))
    dual, intercept, loo = (arrays[f"{name}_"] for name in ("dual_coef", "intercept", "loo_predictions"))
    score = float("nan") if plain["loo_score_"] is None else plain["loo_score_"]
    outcome = Outcome(dual, intercept, loo, score, parameters=plain.get("likelihood_", {}))
    if isinstance(task, Regression):
        outcome = replace(outcome, noise=arrays["noise_"])
        labels = labels if len(labels) or plain["flat_"] else labels.reshape(0, len(intercept))
    else:
        outcome = replace(outcome, classes=read_labels(config["classes"], "classes"), proba=arrays["loo_proba_"])
    if isinstance(task, Multilabel):
        outcome = replace(outcome, labels=LabelCalibration(*[tensors[name] for name in LABEL_ARRAYS]))
    elif isinstance(task, Classification):
        outcome = replace(outcome, temperature=plain["temperature_"], softness=plain.get("softness_"))
    facts = FitFacts(
        **{name: plain[f"{name}_"] for name in PLAIN_FACTS if f"{name}_" in plain},
        damping_path={key: tensors[f"path.{key}"].numpy() for key in ("damping", "loo_error")},
        source_effects=arrays.get("source_effects_", np.zeros(0)),
    )
    budget = config["parameters"]["memory_budget"]
    room = default_budget(backbone.device) if budget is None else parse_bytes(budget)
    return FittedModel(
        task=task,
        backbone=backbone,
        feature_map=primal.map,
        task_vector=vector,
        training=_training(contents, backbone.device),
        active=ActivePictures(np.arange(len(labels)), labels, tensors["sample_weight"].numpy()),
        solution=None,
        outcome=outcome,
        primal=primal,
        facts=facts,
        source=plain.get("source_"),
        next_number=config["next_number"],
        seed=config["seed"],
        room=room // ROWS_SHARE,
        edits=contents.edits,
        version=contents.version,
    )


def _training(contents: Contents, device: torch.device) -> TrainingSet:
    """What explanations and edits start from; with the source behind it that `_pack_source` packed 10 m^3."""
    config, tensors = contents.settings, contents.tensors
    skipped = [(path, reason) for path, reason in config["skipped"]]
    pictures = _saved_pictures(tensors, list(config["fitted"]["ids_"]), skipped)
    hashes = tuple(bytes(row).hex() for row in tensors["hashes"].tolist()) if "hashes" in tensors else ()
    numbers, points = tensors["numbers"].numpy(), tuple(config["points"])
    if "rows_" in tensors:
        kernel = FeatureKernel.of(tensors["rows_"].to(device))
        landmarks = Landmarks(tensors["landmarks.numbers"].numpy(), tensors["landmarks.root"].to(device), None)
        return TrainingSet(pictures, numbers, points, kernel, None, landmarks=landmarks, hashes=hashes)
    training = TrainingSet(pictures, numbers, points, tensors["kernel_"].to(device), None, hashes=hashes)
    if (settings := config.get("source")) is None:
        return training
    found = under(tensors, "source.")
    bare = _saved_pictures(found, list(config["fitted"]["source_ids_"]), [])
    here = {key: tensor.to(device) for key, tensor in found.items() if key != "pixels"}
    source = SourcePictures(bare, tuple(settings["classes"]), here["positions"], here["given"])
    setting = SourceSetting(**{name: settings[name] for name in _SETTING}, class_weights=here["class_weights"])
    return with_source(replace(training, kernel=here["plain"]), source, here["own"], here["cross"], setting)


def _saved_pictures(tensors: Tensors, ids: list[str], skipped: list[tuple[str, str]]) -> Pictures:
    """The pictures, without pixels where those were not kept."""
    return Pictures(tensors.get("pixels", torch.empty(len(ids), 0)), None, ids, skipped)


def unpack_map(
    saved: dict[str, Any], tensors: Tensors, tangent: RowPlan, body_scale: float, normalize: bool
) -> TangentMap:
    """The feature map of checked settings and arrays, where the network is."""
    device = next(tangent.module.parameters()).device
    sides = {key: tensor.to(device) for key, tensor in under(tensors, "metric.").items()}
    whitened = [name for name in tangent.names if f"{name}.left" in sides]
    metric = {name: Whitening(sides[f"{name}.left"], sides[f"{name}.right"]) for name in whitened}
    probes, scales, lengths = tensors["probes"].to(device), saved["block_scales"], saved["length_scales"]
    return TangentMap(tangent, probes, saved["mirrored"], metric, scales, body_scale, normalize, lengths)


def _primal(contents: Contents, backbone: Backbone, module: nn.Module) -> TangentModel:
    """Feature map and weights at a network that has been moved already."""
    saved, plain, tensors = contents.settings["map"], contents.settings["fitted"], contents.tensors
    device = backbone.device
    folds = range(len({key.split(".")[1] for key in tensors if key.startswith("point.")}))
    points = tuple(moved(backbone.module, TaskVector(under(tensors, f"point.{fold}."))) for fold in folds)
    tangent = RowPlan(module, backbone.feature_function, tuple(saved["ruled"]), tuple(saved["generic"]), points)
    feature_map = unpack_map(saved, tensors, tangent, plain["body_scale_"], plain["normalize_"])
    weights = under(tensors, "body.")
    body = {name: weights[name].to(device) for name in tangent.names if name in weights}
    return TangentModel(feature_map, tensors["intercept"].to(device), tensors["head"].to(device), body)


def saved_backbone(
    description: dict[str, Any], given: Any, device: Any, directory: Any, size: Any
) -> tuple[Backbone, str | Backbone]:
    """The network of a saved model, verified, with the data contract of the fit; and what another fit starts from."""
    if device is not None:
        usable_device(device, dtype=torch.float64)  # before the network is loaded
    name, contract = description["name"], DataContract.from_dict(description["contract"])
    origin: str = description.get("origin", name if is_known(name) else None) or ""  # old models have the name alone
    if given is None and not origin:
        raise StoreError(
            f"the model in {directory} was fitted on a network of your own ({name}, {description['class']}); give it: "
            "from_pretrained(directory, backbone=Backbone(...))"
        )
    if isinstance(given, nn.Module):
        extract = description.get("features")
        given = Backbone(given, features=None if extract == FUNCTION else extract, name=name)
    known = as_backbone(given) if given is not None else load_backbone(origin)
    known.verify(description)
    if given is not None:
        _tell_differences(known, contract)
    rounded = description.get("autocast")  # the passes are those of the fit, whatever the network that was given says
    backbone = as_backbone(known.with_contract(contract), device=device).with_autocast(rounded)
    same = given is None and rounded is None and not contract.differences(known.with_size(size).contract)
    return backbone, origin if same else backbone


def _tell_differences(given: Backbone, contract: DataContract) -> None:
    """Warn of what a given backbone states about pictures, other than their size, and the fit did otherwise."""
    stated, usual = given.contract, DataContract(None)
    names = [name for name in contract.differences(stated) if getattr(stated, name) != getattr(usual, name)]
    told = [f"{name}={getattr(contract, name)} instead of {getattr(stated, name)}" for name in names]
    if told := [one for one in told if not one.startswith("input_size")]:
        sentence = f"pictures are prepared as for the fit, not as the given backbone states: {', '.join(told)}"
        warnings.warn(sentence, stacklevel=4)
