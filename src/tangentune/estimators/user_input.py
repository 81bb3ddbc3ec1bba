"""What users give to fits and edits, read with care: options, pictures, labels, weights."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_random_state, validate_data
from torch import Tensor
from torch.utils.data import Dataset

from tangentune.errors import InputError, number, whole
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.stages import FitSettings
from tangentune.memory import default_budget, parse_bytes, resident_bytes
from tangentune.networks.backbone import Backbone
from tangentune.pictures.checks import named_sets, refuse_nul
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import picture_shape
from tangentune.pictures.load import Pictures, load_pictures
from tangentune.pictures.names import composed, readable, some

CRITERIA = ("loo", "evidence")
POWERS = (0.0, 0.25, 0.5)
SOLVERS = ("auto", "dual", "landmarks")
# Weights, where they are positive: squares of lighter ones are 0; with heavier ones nothing is left out, for in
# 1 - leverage no digit is right.
LIGHTEST, HEAVIEST = 1e-100, 1e15


def read_settings(options: dict[str, Any], backbone: Backbone, seed: int) -> FitSettings:
    """The options of an estimator, all checked; an InputError names the option, its value and what it may be."""
    power = _choice(options, "metric_power", lambda v: v in POWERS, "0, 0.25 or 0.5")
    scale = _choice(options, "body_scale", lambda v: 0 <= v < math.inf, "a number >= 0")
    damping = _choice(options, "damping", lambda v: 0 < v < math.inf, "a number > 0")
    normalize = options["normalize"] if options["normalize"] not in CRITERIA else None
    if normalize is not None and not isinstance(normalize, bool | np.bool_):
        _refuse(options, "normalize", "true or false, 'loo' or 'evidence'")
    names = ("metric_power", "body_scale", "damping", "normalize")
    criteria = {options[name] for name in names if isinstance(options[name], str)}
    if len(criteria) > 1:
        raise InputError(
            "metric_power, body_scale, normalize and damping mix 'loo' and 'evidence'; use one of them throughout"
        )
    if options["probe_space"] not in ("pca", "isotropic"):
        _refuse(options, "probe_space", "'pca' or 'isotropic'")
    if options["augment"] not in (None, "none", "flip", "loo"):
        _refuse(options, "augment", "'loo', 'flip' or None")
    verbose, budget, device = options["verbose"], options["memory_budget"], backbone.device
    return FitSettings(
        probes=read_count(options, "probes"),
        probe_space=options["probe_space"],
        power=power,
        fixed=FixedChoices(None if normalize is None else bool(normalize), scale, damping),
        criterion=criteria.pop() if criteria else "loo",
        mirrored=options["augment"] == "flip" and backbone.contract.input_size is not None,
        seed=seed,
        memory_budget=resident_bytes(device) + default_budget(device) if budget is None else parse_bytes(budget),
        verbose=int(verbose) if isinstance(verbose, bool) else read_count(options, "verbose", 0),
    )


def read_count(options: Mapping[str, Any], name: str, lowest: int = 1) -> int:
    """An option that is a whole number, 20.0 and numpy's included; whatever else is an InputError."""
    found = whole(options[name])
    if found is None or not lowest <= found < 2**31:  # more than any loop could count
        _refuse(options, name, f"a whole number >= {lowest}")
    return found


def read_steps(options: Mapping[str, Any]) -> str | int:
    """The option `outer_steps`."""
    given = options["outer_steps"]
    found = given if isinstance(given, str) and given == "loo" else whole(given)
    if found is None or (found != "loo" and int(found) < 0):
        _refuse(options, "outer_steps", "a whole number >= 0 or 'loo'")
    return found


def read_solver(options: Mapping[str, Any]) -> tuple[str, int | None]:
    """The options `solver` and `landmarks`."""
    solver, wanted = options["solver"], options["landmarks"]
    if solver not in SOLVERS:
        _refuse(options, "solver", "'auto', 'dual' or 'landmarks'")
    if wanted is None:
        return solver, None
    if solver == "dual":
        raise InputError("landmarks= is of solver='landmarks'; leave it out, or choose that solver")
    return solver, read_count(options, "landmarks", 2)


def read_seed(state: Any) -> int:
    """The option `random_state` as a number: given, or drawn from a generator of numpy's, old or new."""
    if (found := whole(state)) is not None:
        return found
    if isinstance(state, np.random.Generator):
        return int(state.integers(2**31))
    if state is not None and state is not np.random and not isinstance(state, np.random.RandomState):
        _refuse({"random_state": state}, "random_state", "a whole number, a random generator of numpy's, or None")
    return int(check_random_state(state).randint(2**31))


def _choice(options: Mapping[str, Any], name: str, fits: Callable[[float], bool], what: str) -> float | None:
    """The fixed value of an option, or None if it is left to a criterion."""
    if isinstance(options[name], str) and options[name] in CRITERIA:
        return None
    found = number(options[name])
    if found is None or not fits(found):
        _refuse(options, name, f"{what}, 'loo' or 'evidence'")
    return float(found)


def _refuse(options: Mapping[str, Any], name: str, what: str) -> NoReturn:
    raise InputError(f"{name} is {options[name]!r}; it must be {what}")


def load_inputs(estimator: BaseEstimator, X: Any, y: Any, backbone: Backbone, labelled: bool, reset: bool) -> Pictures:
    """What an estimator was given, as its backbone takes it: pictures, or vectors where that has no input size."""
    if backbone.contract.input_size is None:
        return load_vectors(estimator, X, y, labelled, reset)
    options, contract = estimator.get_params(deep=False), backbone.contract
    jobs, verbose = options["n_jobs"], options["verbose"]
    return load_pictures(X, y, contract=contract, n_jobs=jobs, verbose=verbose, need_labels=labelled)


def load_vectors(estimator: BaseEstimator, X: Any, y: Any, labelled: bool, reset: bool) -> Pictures:
    """Vectors (n, k) checked as scikit-learn does, for a backbone without input size."""
    if isinstance(X, Pictures):
        X, y = X.pixels, X.labels if y is None else y
    if _are_pictures(X) or (isinstance(X, list | tuple) and len(X) and _are_pictures(X[0])):
        picture_shape(DataContract(None))  # says what a backbone for them needs
    X = X.numpy() if isinstance(X, Tensor) else X
    if labelled and (sets := named_sets(y)) is not None:
        X = validate_data(estimator, X, dtype="numeric", reset=reset)
        if len(X) != len(sets):
            raise InputError(f"There are {len(sets)} labels for {len(X)} vectors; give one list for each.")
        y = sets
    elif labelled:
        refuse_nul(y)
        rules: dict[str, Any] = {"multi_output": True, "y_numeric": False, "ensure_min_samples": 2 if reset else 1}
        X, y = validate_data(estimator, X, y, dtype="numeric", reset=reset, **rules)
    else:
        X, y = validate_data(estimator, X, dtype="numeric", reset=reset), None
    X = X if X.dtype.kind == "f" else X.astype(np.float64)
    X = np.require(X, requirements=["C", "W"])  # a copy if the array is read-only, which torch does not take
    return Pictures(torch.from_numpy(X), y, [str(i) for i in range(len(X))])


def with_labels(X: Any, y: Any, contract: DataContract, n_jobs: int | None, verbose: int) -> tuple[Any, NDArray]:
    """Pictures and their labels, those of a folder or a column where none are given, loaded once for both."""
    if y is None or isinstance(y, str):
        X = load_pictures(X, y, contract=contract, n_jobs=n_jobs, verbose=verbose)
        y = X.labels
    return X, np.asarray(y)


def _are_pictures(X: Any) -> bool:
    """Whether something, or an entry of a list, is a path, a dataset, or of the form of pictures."""
    return isinstance(X, str | os.PathLike | Dataset | Image) or getattr(X, "ndim", 0) in (3, 4)


def check_weights(weights: NDArray, ids: list[str]) -> None:
    """Refuse negative weights, and fewer than two pictures that count."""
    if not (weights >= 0).all():
        odd = int(np.argmin(weights))  # NaN is the least
        what = "a negative weight" if weights[odd] < 0 else f"the weight {weights[odd]}"
        raise InputError(f"picture {ids[odd]} has {what}; weights must be 0 or more")
    positive = weights[weights > 0]
    if len(positive) < 2:
        raise InputError(f"{len(positive)} pictures of positive weight are not enough; least squares needs at least 2")
    if positive.max() > HEAVIEST or positive.min() < LIGHTEST:
        extremes = f"{positive.min():.3g} to {positive.max():.3g}"
        message = f"weights go from {extremes}, further than double precision carries; give 0 to pictures that do not "
        message += f"count, and to the others weights from {LIGHTEST:g} to {HEAVIEST:g}"
        raise InputError(message)


def known_weights(class_weight: Any, classes: NDArray) -> Any:
    """Class weights as given, less those of classes that have been forgotten."""
    if not isinstance(class_weight, dict):
        return class_weight
    return {name: weight for name, weight in class_weight.items() if name in classes.tolist()}


def find_pictures(ids: Any, names: Sequence[str], numbers: NDArray[np.int64]) -> list[list[int]]:
    """Positions of the pictures that each id means, in the order of the ids: numbers, or names, which may be shared.

    A name may be shortened to whole parts of its end, with or without the file's ending, where it stays unique.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids  # arrays, tensors and their numbers
    given = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str | bytes | os.PathLike) else [ids]
    check_pictures_known(names)
    if not given:
        raise InputError("no id is given; name at least one picture, as in ids_")
    numbered = {one: i for i, one in enumerate(numbers.tolist())}
    found, named, shortened = [], dict[str, list[int]](), None  # made when they are needed
    for one in given:
        whole_one = isinstance(one, int | np.integer) and not isinstance(one, bool)
        places = [numbered[int(one)]] if whole_one and int(one) in numbered else None
        if not places:
            named = named or _named(names)
            places = named.get(str(one))
        if not places:
            shortened = shortened or [_shortened(named, bare) for bare in (False, True)]
            places = named[_meant(one, shortened, named)]
        found.append(places)
    return found


def check_pictures_known(names: Sequence[str]) -> None:
    """Refuse questions about the pictures of a model that has none."""
    if not names:
        raise InputError(
            "this model was solved from sums of pictures that it does not have, so it predicts and nothing else; "
            "other sums make another model"
        )


def _named(names: Iterable[str]) -> dict[str, list[int]]:
    """Positions by name."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return found


def _shortened(names: Iterable[str], bare: bool) -> dict[str, list[str]]:
    """Names by each whole part of their end: "a/b.png" by itself and "b.png"; or bare, by "a/b" and "b".

    Nothing else is a short form: "1" does not mean "21.png", nor "21" once that is gone "21 (copy).png".
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = composed(os.path.splitext(name)[0] if bare else name).split("/")
        for start in range(len(parts)):
            found.setdefault("/".join(parts[start:]), []).append(name)
    return found


def _meant(given: Any, shortened: Sequence[Mapping[str, list[str]]], names: Collection[str]) -> str:
    """The one name that an id is a short form of; an InputError where there is none, or lists those there are."""
    text = composed(readable(given)) if isinstance(given, str | os.PathLike) else ""
    fitting = next((found for known in shortened if (found := known.get(text))), [])
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"{given!r} is short for {len(fitting)} pictures: {some(fitting)}; give more of the id")
    like = difflib.get_close_matches(text, names, 3) or [next(iter(names))]
    raise InputError(
        f"the model does not stand on a picture {given!r}; its {len(names)} are in ids_, such as {some(like)}"
    )


def as_classes(labels: NDArray, classes: NDArray) -> NDArray:
    """Labels (n,); text that reads as one class does, its accents put together otherwise, is that class."""
    known = classes.tolist()
    if labels.ndim != 1 or labels.dtype.kind != "U" or classes.dtype.kind != "U" or np.isin(labels, known).all():
        return labels
    alike: dict[str, list[str]] = {}
    for name in known:
        alike.setdefault(composed(name), []).append(name)
    meant = [alike.get(composed(label), []) for label in labels.tolist()]
    pairs = zip(labels.tolist(), meant, strict=True)
    return np.array([label if label in known or len(found) != 1 else found[0] for label, found in pairs])


def check_classes_known(labels: NDArray, classes: NDArray, ids: Sequence[str], remedy: str) -> None:
    """Refuse labels that are none of the classes, with the nearest one; `remedy` is for a class that is to be new."""
    known = classes.tolist()
    for label, name in zip(labels.tolist(), ids, strict=True):
        if label not in known:
            near = difflib.get_close_matches(label, known, 1) if isinstance(label, str) else []
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {some(list(map(str, known)), 8)}."
            raise InputError(f"{name} is to be {label!r}, but there is no such class; {hint} For a new class, {remedy}")


def join_labels(old: NDArray, new: NDArray) -> NDArray:
    """Labels one after the other, of the old ones' type where it holds the new; another kind or width is refused."""
    if new.size == len(new) and old.size == len(old):  # (n,) and (n, 1) hold the same
        new = new.reshape(len(new), *old.shape[1:])
    if new.shape[1:] != old.shape[1:]:
        raise InputError(
            f"new labels are {new.shape[1:] or (1,)} for each picture, those of the model {old.shape[1:] or (1,)}"
        )
    if _kind(old) != _kind(new):
        first = f"the new label {new.tolist()[0]!r} is of another kind ({_kind(new)})"
        raise InputError(f"{first} than those of the model ({_kind(old)}), such as {old.tolist()[0]!r}")
    if _kind(old) == "numbers":
        with np.errstate(invalid="ignore"):
            same = new.astype(old.dtype)
        new = same if (same == new).all() else new
    return np.concatenate([old, new])


def _kind(labels: NDArray) -> str:
    return {"b": "truth values", "i": "numbers", "u": "numbers", "f": "numbers"}.get(labels.dtype.kind, "text")


def read_weights(given: Any, count: int) -> NDArray[np.float64]:
    """(count,) finite sample weights; None means ones."""
    try:
        weights = np.ones(count) if given is None else np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"sample weights must be {count} numbers ({error})") from error
    if weights.shape != (count,):
        raise InputError(f"sample weights are {weights.shape} for {count} pictures; give one number for each")
    if not np.isfinite(weights).all():
        position = int(np.argmax(~np.isfinite(weights)))
        raise InputError(f"sample weight {position} is {weights[position]}; weights must be finite numbers, 0 or more")
    return weights
