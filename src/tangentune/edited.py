"""Changing a fitted model: pictures forgotten, added, relabelled, weighed anew; each as exact as a fit without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from tangentune import audit
from tangentune.data import Pictures, pictures_digest
from tangentune.edits import Choice, State, edited, solved, verification
from tangentune.errors import InputError
from tangentune.estimator_base import check_weights
from tangentune.explained import AbstractExplained
from tangentune.memory import warm_pages
from tangentune.model import TangentMap, TangentModel
from tangentune.reestimate import reestimate
from tangentune.training_set import TrainingSet, extend, first_set


class AbstractEdited(AbstractExplained):
    """Exact edits in place; abstract.

    Everything equals a fit to the changed set with the same feature map, kernel and damping, which stay as they were
    chosen. Pictures are named by their id: the path, or the position at `fit`; added ones get new ids, and no id is
    used twice. `edits_` is the log.
    """

    def forget(self, ids: Any, *, strict: bool = False) -> Self:
        """Take pictures out, as if they had never been fitted.

        Args:
            ids: one id or several.
            strict: also estimate anew without them what the feature map took from the pictures: probes, metric, outer
                steps. Costs a fit whose choices are made.

        Returns:
            The estimator. Cost n^2 |ids|; the next `predict` pays for one pass over the rows.

        Raises:
            InputError: an id is unknown, or too little would be left.
        """
        gone = self._positions(ids)
        rest = np.setdiff1d(np.arange(len(self.ids_)), gone)
        choice = self._choice.keep(rest)
        self._check(choice, [self.ids_[i] for i in rest])
        carry_out = self._forget_strictly if strict else partial(self._edit, "forget")
        return carry_out(self._hashes(gone), choice)

    def forget_class(self, name: Any) -> Self:
        """Take a whole class out, with its column of scores; as `forget` of its pictures."""
        members = np.flatnonzero(np.asarray(self.targets_) == name)
        if not len(members) or not hasattr(self, "classes_"):
            known = ", ".join(map(str, getattr(self, "classes_", ())))
            message = f"there is no class {name!r} to forget; the classes are: {known}"
            raise InputError(message)
        return self.forget([self.ids_[i] for i in members])

    def add(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Add pictures, of known classes or new ones.

        Args:
            X: k pictures, as in `fit`.
            y: labels; None takes those of the source.
            sample_weight: (k,); None means ones.

        Returns:
            The estimator; the last k of `ids_` are the new pictures'. Cost: their rows, their kernel with the others,
            and n^2 k.

        Raises:
            InputError: pictures or labels cannot be used, or a path is there already.
        """
        check_is_fitted(self)
        loaded = self._load(X, y, self.backbone_, labelled=True, reset=False)
        labels = self._read_labels(loaded)
        ids, numbers = self._named(loaded)
        given = np.ones(len(ids)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        before = self._choice
        choice = Choice(
            np.concatenate([before.active, len(self._training) + np.arange(len(ids))]),
            _joined(before.labels, labels),
            np.concatenate([before.sample_weight, given]),
        )
        self._check(choice, self.ids_ + ids)
        pictures = Pictures(loaded.pixels, None, ids)
        with warm_pages(), torch.no_grad():
            training = extend(self._with_rows(), self.model_.map, self._opened, pictures, numbers)
        self._edit("add", pictures_digest(pictures.pixels), choice, training)
        self._next_number += len(ids)
        return self

    def relabel(self, ids: Any, y: Any) -> Self:
        """Give pictures other labels.

        Args:
            ids: one id or several.
            y: one label for all, or one for each.

        Returns:
            The estimator. Cost n^2 C.

        Raises:
            InputError: an id is unknown, or the labels do not fit.
        """
        places = self._positions(ids)
        given = np.asarray(y)
        given = np.broadcast_to(given, (len(places), *given.shape[1:])) if given.ndim == 0 else given
        if len(given) != len(places):
            message = f"{len(given)} labels for {len(places)} pictures; give one for all or one for each"
            raise InputError(message)
        bare = Pictures(torch.empty(len(places), 1), np.array(given), [self.ids_[i] for i in places])
        joined = _joined(self._choice.labels, self._read_labels(bare))
        labels = joined[: len(self.ids_)]
        labels[places] = joined[len(self.ids_) :]
        choice = replace(self._choice, labels=labels)
        self._check(choice, self.ids_)
        return self._edit("relabel", self._hashes(places), choice)

    def reweight(self, weights: ArrayLike) -> Self:
        """Give every picture another sample weight.

        Args:
            weights: (n,), 0 or more; 0 leaves a picture without a say.

        Returns:
            The estimator. Cost n^2 for every changed weight, at most n^3.

        Raises:
            InputError: there are not n weights, one is negative or not finite, or fewer than two are positive.
        """
        check_is_fitted(self)
        given = np.asarray(weights, np.float64)
        choice = replace(self._choice, sample_weight=given)
        self._check(choice, self.ids_)
        return self._edit("reweight", self._hashes(np.flatnonzero(given != self._choice.sample_weight)), choice)

    def undo(self) -> Self:
        """Take the last edit of this session back; called again, the one before.

        Returns:
            The estimator, solved anew from its kernel: n^3.

        Raises:
            InputError: there is none left. A loaded model starts without.
        """
        check_is_fitted(self)
        if not self._undo:
            message = "there is no edit to undo; only edits since this estimator was fitted or loaded can be"
            raise InputError(message)
        name, choice, training, model = self._undo[-1]
        before = self._solved().error
        state = solved(training or self._training, choice, self._encode, self.damping_)
        with self._all_or_nothing():
            self._undo = self._undo[:-1]
            if model is not None:
                self._adopt_model(model)
            self._finish("undo", [], state, before, undone=name)
        return self

    # -- how an edit is carried out ----------------------------------------------------------------------------------

    def _edit(self, name: str, pictures: list[str], choice: Choice, training: TrainingSet | None = None) -> Self:
        state = self._solved()
        after = edited(state, choice, self._encode, training)
        with self._all_or_nothing():
            self._undo = [*self._undo, (name, self._choice, None, None)]
            self._finish(name, pictures, after, state.error, strict=False)
        return self

    def _forget_strictly(self, pictures: list[str], choice: Choice) -> Self:
        state = self._solved()
        feature_map, training = self._reestimated(choice)
        after = solved(training, replace(choice, active=np.argsort(training.numbers)), self._encode, self.damping_)
        model = TangentModel(feature_map, after.system.bias, self.model_.head, self.model_.body)
        with self._all_or_nothing():
            self._undo = [*self._undo, ("forget", self._choice, self._training, self._current_model())]
            self._adopt_model(model)
            self._finish("forget", pictures, after, state.error, strict=True)
        return self

    def _finish(self, name: str, pictures: list[str], state: State, before: float, **facts: Any) -> None:
        """Set all that follows from a new state, and write it down."""
        figures = {
            "n": len(state),
            "residual_before": before,
            "residual_after": state.error,
            "verification": verification(state.system),
        }
        self._publish(state)
        self._stale = True
        self.edits_ = [*self.edits_, audit.entry(self.edits_, name, pictures, **facts, **figures)]

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """If anything fails, every attribute is as before."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _adopt_model(self, model: TangentModel) -> None:
        self.model_, self.probes_ = model, model.map.probes.cpu().numpy()

    def _reestimated(self, choice: Choice) -> tuple[TangentMap, TrainingSet]:
        """Probes, metric and outer steps taken from fewer pictures; the kernel's choice stays."""
        pictures, backbone = self._training.pictures.select(choice.active), self.backbone_
        pictures, numbers = replace(pictures, labels=choice.labels), self._training.numbers[choice.active]
        kept = choice.sample_weight > 0
        used, settings = pictures.select(kept), self._settings(backbone)
        expansion, _ = self._expand(backbone, used, settings, self.outer_steps_)
        tangent = replace(self.model_.map.tangent, module=backbone.module, points=())
        points = (-1,) * len(used)
        if expansion is not None:
            tangent = replace(tangent, module=expansion.mean, points=expansion.points)
            points = tuple(expansion.fold.tolist())
        with warm_pages():
            source = self._opened(used, points)
            outputs = len(self.intercept_)
            feature_map, kernel = reestimate(self.model_.map, tangent, source, settings, self.metric_power_, outputs)
            training = first_set(used, numbers[kept], points, kernel, None, self._room)
            if not kept.all():
                rest = pictures.select(~kept)
                training = extend(training, feature_map, self._opened, rest, numbers[~kept])
        return feature_map, training

    # -- what the user names -----------------------------------------------------------------------------------------

    def _positions(self, ids: Any) -> NDArray[np.int64]:
        """Positions in `ids_` of pictures named by path or number, each once."""
        check_is_fitted(self)
        given = [ids] if isinstance(ids, str | int | np.integer) else list(ids)
        if not given:
            message = "no id is given; name at least one picture, as in ids_"
            raise InputError(message)
        numbers = {int(n): i for i, n in enumerate(self._training.numbers[self._choice.active])}
        paths: dict[str, list[int]] = {}
        for i, name in enumerate(self.ids_):
            paths.setdefault(name, []).append(i)
        found: set[int] = set()
        for one in given:
            places = [numbers[int(one)]] if _whole(one) and int(one) in numbers else paths.get(str(one), [])
            if not places:
                message = (
                    f"the model does not stand on a picture {one!r}; its {len(self.ids_)} pictures are in ids_, "
                    f"the first is {self.ids_[0]!r}"
                )
                raise InputError(message)
            found.update(places)
        return np.array(sorted(found))

    def _hashes(self, places: NDArray) -> list[str]:
        return pictures_digest(self._training.pictures.select(self._choice.active[places]).pixels)

    def _named(self, loaded: Pictures) -> tuple[list[str], NDArray[np.int64]]:
        """Ids and numbers of new pictures: their paths, or, of arrays, the next numbers."""
        numbers = self._next_number + np.arange(len(loaded))
        if loaded.ids == [str(i) for i in range(len(loaded))]:
            return [str(number) for number in numbers], numbers
        known = set(self.ids_)
        for name in loaded.ids:
            if name in known:
                message = f"the model already stands on a picture {name!r}; forget it first, or relabel it"
                raise InputError(message)
        return loaded.ids, numbers

    def _check(self, choice: Choice, ids: list[str]) -> None:
        """Refuse what could not be fitted."""
        weights = choice.sample_weight
        if weights.shape != (len(ids),) or not np.isfinite(weights).all():
            message = f"weights are {weights.shape} for {len(ids)} pictures; give one finite number for each"
            raise InputError(message)
        check_weights(weights, ids)
        self._check_labels(choice.labels, ids)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _joined(old: NDArray, new: NDArray) -> NDArray:
    """Labels one after the other, refused if one kind is text and the other numbers."""
    new = new.reshape(len(new), *old.shape[1:]) if old.ndim > 1 or new.ndim > 1 else new
    if (old.dtype.kind in "biuf") != (new.dtype.kind in "biuf"):
        message = f"the new label {new.flat[0]!r} is of another kind than those of the model, such as {old.flat[0]!r}"
        raise InputError(message)
    return np.concatenate([old, new])
