"""What the settings and arrays of a saved model may be: what no fit can have left is refused by a Misfit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.estimators.packing import KIND
from tangentune.estimators.record import (
    COUNT,
    DIGEST,
    FLAG,
    LEAST0,
    NUMBER,
    PLAIN,
    POSITIVE,
    TEXT,
    Check,
    Misfit,
    anything,
    by_name,
    each,
    fields,
    is_a,
    maybe,
    one_of,
    whole,
)
from tangentune.networks.parameters import block_of

MOST_BYTES = 2**26  # that labels may take beyond what the longest of them needs
MOST_VALUES = 2**28  # of one picture
_SIDE = whole(1, 2**16)
_IS_TYPE = is_a("the type of labels", lambda v: isinstance(v, str) and bool(re.fullmatch(r"[<>|=][biufU]\d{1,9}", v)))
_LABELS = fields({"dtype": _IS_TYPE, "values": each(anything)})
_OF_A_FIT = (  # options that may be of any type, checked as those of a fit once they are unpacked
    "augment", "batch_size", "body_scale", "class_weight", "damping", "input_size", "likelihood", "memory_budget",
    "metric_power", "normalize", "outer_steps", "probe_space", "probes",
)  # fmt: skip
LATER_OPTIONS: dict[str, Any] = {"solver": "auto", "landmarks": None, "autocast": None}  # what older models do not say
AUTOCAST: dict[str, Check] = {"autocast": maybe(one_of("bfloat16"))}  # which older models do not say
_DEVICE = is_a("a device", lambda v: isinstance(v, str) or (isinstance(v, dict) and v.get(KIND) == "device"))
_PARAMETERS: dict[str, Check] = dict.fromkeys(_OF_A_FIT, anything) | {
    "device": maybe(_DEVICE),
    "n_jobs": maybe(is_a("a number of processes", lambda v: type(v) is int and 0 < abs(v) < 2**20)),
    "random_state": maybe(whole(-(2**63), 2**63)),
    "subset": TEXT,
    "verbose": whole(-1000, 1000),
}
_CONTRACT = fields(
    {"input_size": maybe(each(_SIDE, 1, 4)), "mean": each(NUMBER), "std": each(NUMBER), "crop": maybe(POSITIVE)}
    | dict.fromkeys(("interpolation", "licence", "source"), TEXT) | {"sha256": maybe(TEXT)}, more=True
)  # fmt: skip
BACKBONE: dict[str, Check] = dict.fromkeys(("name", "class", "dtype", "digest"), TEXT)
BACKBONE |= {"parameters": COUNT, "fingerprint": maybe(each(NUMBER, 2)), "contract": _CONTRACT}
_STAGE = fields({"stage": TEXT, "seconds": LEAST0}, {"peak_bytes": maybe(LEAST0)})
_LEFT_OUT = fields({"pictures": COUNT, "error": LEAST0}, {"accuracy": LEAST0, "nll": LEAST0})
_SUMS = fields({"map": DIGEST, "width": COUNT, "counts": each(COUNT), "error": LEAST0}, {"left_out": _LEFT_OUT})
_REPORT = fields(
    {},
    {"sums": _SUMS, "n": COUNT, "stages": each(_STAGE), "total_seconds": LEAST0, "peak_bytes": maybe(LEAST0)},
    more=True,
)
_TRIED = each(fields({"loo_error": NUMBER, "damping": NUMBER}, {"pictures": COUNT}, more=True))
_GAINED = fields(
    {"pictures": COUNT, "strength": LEAST0, "loo_error": NUMBER, "loo_error_without": NUMBER}
    | {"classes": each(fields({"class": TEXT, "weight": LEAST0}, more=True))},
    more=True,
)
_FITTED: dict[str, Check] = {
    "damping_": POSITIVE, "relative_damping_": POSITIVE, "metric_power_": one_of(0.0, 0.25, 0.5, 0), "normalize_": FLAG,
    "body_scale_": LEAST0, "block_scales_": by_name(LEAST0), "block_shares_": by_name(NUMBER), "selection_": _TRIED,
    "fit_report_": _REPORT, "loo_score_": maybe(NUMBER), "ids_": each(TEXT),
}  # fmt: skip
_LATER: dict[str, Check] = {  # of some kinds of models, or not of older ones
    "temperature_": POSITIVE, "flat_": FLAG, "n_features_in_": whole(1, 2**40), "likelihood_": by_name(POSITIVE),
    "outer_steps_": COUNT, "outer_rate_": LEAST0, "outer_selection_": each(by_name(PLAIN)), "source_": maybe(_GAINED),
    "source_ids_": each(TEXT), "softness_": maybe(POSITIVE),
}  # fmt: skip
MAP: dict[str, Check] = {"ruled": each(TEXT), "generic": each(TEXT), "mirrored": FLAG}
MAP |= {"block_scales": by_name(LEAST0), "length_scales": by_name(LEAST0)}
_SOURCE = {"classes": each(TEXT, 1), "strength": POSITIVE, "deviation": LEAST0, "damping": POSITIVE}
_MODEL = fields({
    "estimator": TEXT,
    "parameters": fields(_PARAMETERS, dict.fromkeys(LATER_OPTIONS, anything) | AUTOCAST),
    "backbone": fields(BACKBONE, AUTOCAST, more=True),
    "map": fields(MAP),
    "fitted": fields(_FITTED, _LATER),
    "classes": maybe(_LABELS),
    "targets": _LABELS,
    "skipped": each(each(TEXT, 2, 2)),
    "points": each(whole(-1, 2**20)),
    "next_number": COUNT,
    "seed": whole(-(2**63), 2**63),
    "source": maybe(fields(_SOURCE)),
})  # fmt: skip
# Arrays by their sizes: n pictures, C outputs, d features, R probes, k dampings, m source pictures, S source classes.
_SHAPES = {
    "head": "Cd", "intercept": "C", "probes": "Rd", "probes_": "Rd", "loo_predictions_": "nC",
    "dual_coef_": "nC", "intercept_": "C", "path.damping": "k", "path.loo_error": "k", "sample_weight": "n",
    "numbers": "n",
}  # fmt: skip
_KERNELS = {"kernel_": "nn"}, {"rows_": "nD", "landmarks.root": "lr", "landmarks.numbers": "l"}
LABEL_ARRAYS = ("slopes_", "offsets_", "thresholds_")  # of several labels a picture, as `LabelCalibration` has them
_SOURCE_SHAPES = {"positions": "m", "given": "m", "class_weights": "S", "own": "mm", "cross": "nm", "plain": "nn"}
_WHOLE = ("numbers", "hashes", "source.positions", "landmarks.numbers")
_NOT_NEGATIVE = (
    "sample_weight", "noise_", "loo_proba_", "slopes_", "thresholds_", "source.given", "source.class_weights", *_WHOLE,
)  # fmt: skip
_OTHERS = ("pixels", "hashes", "source.pixels", "source_effects_")
_MAY_BE_INFINITE = ("path.loo_error", "source_effects_")


def check_settings(settings: dict[str, Any]) -> None:
    """Settings by themselves, before any array is read."""
    _MODEL(settings, "")
    fitted, moving, size = settings["fitted"], settings["map"], settings["backbone"]["contract"]["input_size"]
    classifier, targets = settings["estimator"] == "TangentClassifier", read_labels(settings["targets"], "targets")
    _require(math.prod(size or (1,)) <= MOST_VALUES, "backbone.contract.input_size is larger than any picture")
    summed = fitted["fit_report_"].get("sums")  # then it has no pictures
    fits = (summed is None) == (len(targets) > 0) == (fitted["loo_score_"] is not None)
    _require(fits, "targets, loo_score_ and fit_report_ are not those of a fit, nor of sums")
    if classifier and has_several(settings):
        names = settings["classes"]["values"]
        fits = all(isinstance(name, str) and name and "\0" not in name for name in names)
        fits = fits and len(set(names)) == len(names) == np.shape(targets)[1] and bool(np.isin(targets, (0, 1)).all())
        _require(fits, "targets are not 0 and 1 for each of the classes, which are names")
    elif classifier:
        names = read_labels(settings["classes"] or {"dtype": "|b1", "values": []}, "classes")
        fits = "temperature_" in fitted and targets.ndim == 1
        fits = fits and np.array_equal(np.unique(targets if summed is None else names), names)
        fits = fits and (summed is None or len(summed["counts"]) == len(names) > 1)
        _require(fits, "classes are not those of the targets in order, or temperature_ is missing")
    else:
        fits = targets.dtype.kind in "iuf" and targets.ndim <= 2
        fits = fits and (summed is not None or fitted.get("flat_") == (targets.ndim == 1))
        _require(fits and settings["classes"] is None, "targets, flat_ or classes are not those of a regressor")
    for where, found in (("fitted.ids_", fitted["ids_"]), ("points", settings["points"])):
        _require(len(found) == len(targets), f"{where} has {len(found)} entries for {len(targets)} pictures")
    for name in (*moving["ruled"], *moving["generic"]):
        fits = block_of(name) in moving["block_scales"] and block_of(name) in moving["length_scales"]
        _require(fits, f"map.block_scales or map.length_scales have no entry for the block of {name}")


def has_several(settings: Mapping[str, Any]) -> bool:
    """Whether the pictures have several labels each: names of classes, and a row of targets for a picture."""
    values = settings["targets"]["values"]  # none of a model of sums
    return bool(settings["classes"] and values) and np.ndim(values[0]) == 1


def read_labels(saved: Mapping[str, Any], where: str) -> NDArray:
    """Labels as they were given, (n,) or (n, k), of the type they had."""
    values, dtype = saved["values"], np.dtype(saved["dtype"])
    if not values:
        return np.empty(0, dtype)
    longest = max((4 * len(value) if isinstance(value, str) else 16 for value in values), default=0)
    fits = len(values) * (dtype.itemsize - longest) <= MOST_BYTES
    _require(fits, f"{where}.dtype is {saved['dtype']!r} for labels of at most {longest // 4} characters")
    with suppress(ValueError, OverflowError, TypeError):
        given = np.array(values)
        found = given.astype(dtype)
        if given.dtype.kind in ("iuf" if dtype.kind in "iuf" else dtype.kind) and (found == given).all():
            return found
    raise Misfit(f"{where}.values are not all labels of the type {saved['dtype']!r}")


def check_arrays(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Arrays against the settings, and against the parameters of the network by name."""
    moving, source = [*settings["map"]["ruled"], *settings["map"]["generic"]], settings["source"]
    names, targets = settings["classes"], settings["targets"]["values"]
    sizes = {"n": len(settings["points"]), "R": settings["parameters"]["probes"]}
    if names or targets:  # else of sums of numbers: as many as the arrays say
        sizes["C"] = len(names["values"] if names else np.atleast_1d(targets[0]))
    shapes = _SHAPES | ({"loo_proba_": "nC"} if settings["classes"] else {"noise_": "C"})
    shapes = shapes | _KERNELS["rows_" in tensors]
    shapes |= dict.fromkeys(LABEL_ARRAYS, "C") if has_several(settings) else {}
    if source is not None:
        sizes |= {"S": len(source["classes"]), "m": len(settings["fitted"].get("source_ids_", ()))}
        shapes |= {f"source.{name}": shape for name, shape in _SOURCE_SHAPES.items()}
    for name in moving:
        _require(name in parameters, f"map names the parameter {name}, which the network has not")
        sizes[name] = sizes["R"] * check_metric(name, tensors, parameters[name].numel())
    wanted: dict[str, tuple[str, ...]] = {name: tuple(shape) for name, shape in shapes.items()}
    wanted |= {f"body.{name}": ("C", name) for name in moving}
    missing = min(wanted.keys() - tensors.keys(), default=None)
    _require(missing is None, f"the array {missing} is missing")
    for name, tensor in tensors.items():
        shape = wanted.get(name)
        fits = shape is None or (
            len(shape) == tensor.ndim
            and all(sizes.setdefault(key, length) == length for key, length in zip(shape, tensor.shape, strict=True))
        )
        _require(fits, f"the array {name} has the shape {tuple(tensor.shape)}, which does not fit the others")
        kind, _, rest = name.partition(".")
        known = shape or name in _OTHERS or (kind == "metric" and rest.rpartition(".")[0] in moving)
        _require(bool(known) or kind in ("moved", "point"), f"the array {name} is unknown")
        if kind in ("moved", "point"):
            parameter = parameters.get(name.split(".", 1 if kind == "moved" else 2)[-1])
            fits = parameter is not None and parameter.shape == tensor.shape
            _require(fits, f"the array {name} is not of the shape of a parameter of the network")
        whole_numbers = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
        picture = name in ("pixels", "source.pixels")
        fits = whole_numbers if name in _WHOLE else tensor.is_floating_point() or (picture and whole_numbers)
        fits = fits and (whole_numbers or tensor.dtype in _dtypes(name, parameters))
        fits = fits and (name in _MAY_BE_INFINITE or whole_numbers or bool(torch.isfinite(tensor).all()))
        fits = fits and (name not in _NOT_NEGATIVE or bool((tensor >= 0).all()))
        _require(fits, f"the array {name} holds what cannot be: NaN, numbers below 0, or of another type")
    _check_sets(settings, tensors)


def _dtypes(name: str, parameters: Mapping[str, Tensor]) -> set[torch.dtype]:
    """Types that an array of numbers may have: the network's where it meets the network's numbers, if that has one."""
    found = {parameter.dtype for parameter in parameters.values() if parameter.is_floating_point()}
    plain = {torch.float32, torch.float64}
    meets = name in ("head", "probes", "probes_") or name.startswith(("body.", "metric."))
    return found if meets and len(found) == 1 and found < plain else plain


def check_metric(name: str, tensors: Mapping[str, Tensor], width: int) -> int:
    """Numbers of a row in its metric: both sides or none, (g, o, k) and (g, i, l), for a parameter of g o i numbers."""
    sides = [tensors[key] for key in (f"metric.{name}.left", f"metric.{name}.right") if key in tensors]
    if not sides:
        return width
    shapes = [side.shape for side in sides if side.ndim == 3 and 0 < side.shape[2] <= side.shape[1]]
    fits = len(shapes) == 2 and shapes[0][0] == shapes[1][0] and shapes[0][0] * shapes[0][1] * shapes[1][1] == width
    _require(fits, f"the metric of {name} does not fit the parameter")
    return shapes[0][0] * shapes[0][2] * shapes[1][2]


def _check_sets(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Numbers, points of expansion and classes that pictures name."""
    if "rows_" in tensors:
        marked, width = tensors["landmarks.numbers"], tensors["head"].shape[1] + tensors["landmarks.root"].shape[1]
        fits = bool(torch.isin(marked, tensors["numbers"]).all()) and len(marked.unique()) == len(marked)
        _require(fits, "the array landmarks.numbers names a picture twice, or one that is not there")
        _require(tensors["rows_"].shape[1] == width, "the array rows_ is not as wide as the map that makes its rows")
    numbers, folds = tensors["numbers"], {key.split(".")[1] for key in tensors if key.startswith("point.")}
    fits = len(numbers.unique()) == len(numbers) and bool((numbers < settings["next_number"]).all())
    _require(fits, "the array numbers names a picture twice, or one that is to come")
    fits = folds == {str(fold) for fold in range(len(folds))} and max(settings["points"], default=-1) < len(folds)
    _require(fits or "pixels" not in tensors, "points names a network that is not there")
    for name, count in (
        ("pixels", len(numbers)),
        ("hashes", len(numbers)),
        ("source.pixels", len(tensors.get("source.positions", ()))),
    ):
        _require(name not in tensors or len(tensors[name]) == count, f"the array {name} is not of {count} pictures")
    fits = "hashes" not in tensors or (tensors["hashes"].dtype, tensors["hashes"].shape[1:]) == (torch.uint8, (32,))
    _require(fits, "the array hashes holds no SHA-256")
    if settings["source"] is not None:
        fits = int(tensors["source.positions"].max()) < len(settings["source"]["classes"])
        _require(fits, "the array source.positions names a class that is not there")


def _require(fits: bool, otherwise: str) -> None:
    if not fits:
        raise Misfit(otherwise)
