"""Changing a fitted model: pictures forgotten, added, relabelled, weighed anew; each as exact as a fit without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators import audit
from tangentune.estimators.base import check_weights
from tangentune.estimators.explanations import AbstractExplained
from tangentune.estimators.fitted import Choice, State, Step, edited, solved
from tangentune.estimators.outer_steps import Expansion
from tangentune.estimators.source_kernels import extended, source_kernels, with_source
from tangentune.estimators.training_set import TrainingSet, extend, first_set
from tangentune.estimators.user_input import find_pictures, join_labels, read_weights
from tangentune.jacobian.task_vector import TaskVector
from tangentune.kernels.feature_map import TangentMap
from tangentune.kernels.reestimate import reestimate
from tangentune.memory import warm_pages
from tangentune.pictures.checks import label_array
from tangentune.pictures.load import Pictures, pictures_digest
from tangentune.solvers.system import refinement


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
        gone = np.unique(np.concatenate(self._found(ids)))
        rest = np.setdiff1d(np.arange(len(self.ids_)), gone)
        choice, pictures = self._choice.keep(rest), self._hashes(gone)
        self._check(choice, [self.ids_[i] for i in rest])
        return self._forget_strictly(pictures, choice) if strict else self._edit("forget", pictures, choice)

    def forget_class(self, name: Any, *, strict: bool = False) -> Self:
        """Take a whole class out, with its column of scores; as `forget` of its pictures."""
        check_is_fitted(self)
        classes = getattr(self, "classes_", np.empty(0))
        known = classes.tolist()
        if not known:
            message = "a regressor has no classes to forget; name the pictures in forget"
            raise InputError(message)
        if np.ndim(name) or name not in known:
            shown = " ".join(repr(name).split())
            message = f"there is no class {shown} to forget; the classes are: {', '.join(map(str, known))}"
            raise InputError(message)
        members = self._choice.active[self.targets_ == classes[known.index(name)]]
        return self.forget(self._training.numbers[members], strict=strict)

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
        self._check_pictures()
        loaded = self._load(X, y, self.backbone_, labelled=True, reset=False)
        labels, before = self._read_labels(loaded), self._choice
        ids, numbers = self._named(loaded)
        pictures = Pictures(self._like_ours(loaded.pixels), None, ids)
        choice = Choice(
            np.concatenate([before.active, len(self._training) + np.arange(len(ids))]),
            join_labels(before.labels, labels),
            np.concatenate([before.sample_weight, read_weights(sample_weight, len(ids))]),
        )
        self._check(choice, self.ids_ + ids)
        with warm_pages(), torch.no_grad():
            training = extended(self._with_rows(), self.model_.map, self._opened, pictures, numbers, self._room)
        self._edit("add", pictures_digest(pictures.pixels), choice, training)
        self._next_number += len(ids)
        return self

    def relabel(self, ids: Any, y: Any) -> Self:
        """Give pictures other labels.

        Args:
            ids: one id or several.
            y: one label for all, or one for each, in the order of the ids.

        Returns:
            The estimator. Cost n^2 C.

        Raises:
            InputError: an id is unknown, or the labels do not fit.
        """
        found, old = self._found(ids), self._choice.labels
        single = np.ndim(y) < (1 if old.size == len(old) else 2)
        given = label_array([y] if single else y)
        given = np.repeat(given, len(found), 0) if len(given) == 1 else given
        if len(given) != len(found):
            message = f"{len(given)} labels for {len(found)} ids; give one for all or one for each"
            raise InputError(message)
        counts, places = [len(same) for same in found], np.concatenate(found)
        bare = Pictures(torch.empty(len(places), 1), given.repeat(counts, 0), [self.ids_[i] for i in places])
        joined = join_labels(old, self._read_labels(bare))
        labels = joined[: len(old)]
        labels[places] = joined[len(old) :]
        choice, pictures = replace(self._choice, labels=labels), self._hashes(np.unique(places))
        self._check(choice, self.ids_)
        return self._edit("relabel", pictures, choice)

    def reweight(self, weights: ArrayLike) -> Self:
        """Give every picture another sample weight.

        Args:
            weights: (n,), 0 or more; 0 leaves a picture without a say.

        Returns:
            The estimator. Cost n^2 for every changed weight, at most n^3.

        Raises:
            InputError: there are not n weights, one is negative or not finite, or fewer than two are positive.
        """
        self._check_pictures()
        given = read_weights(weights, len(self.ids_))
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
        step, before = self._undo[-1], self._solved().error
        state = solved(step.training or self._training, step.choice, self._encode, self.damping_)
        with self._all_or_nothing():
            self._undo = self._undo[:-1]
            if step.feature_map is not None:
                self._adopt_map(step.feature_map, step.task)
            self._finish("undo", [], state, before, undone=step.edit)
        return self

    # -- how an edit is carried out ----------------------------------------------------------------------------------

    def _edit(self, name: str, pictures: list[str], choice: Choice, training: TrainingSet | None = None) -> Self:
        state = self._solved()
        after = edited(state, choice, self._encode, training)
        with self._all_or_nothing():
            self._undo = [*self._undo, Step(name, self._choice)]
            self._finish(name, pictures, after, state.error, strict=False)
        return self

    def _forget_strictly(self, pictures: list[str], choice: Choice) -> Self:
        state = self._solved()
        feature_map, expansion, training = self._reestimated(choice)
        after = solved(training, replace(choice, active=np.argsort(training.numbers)), self._encode, self.damping_)
        former = replace(self._training, rows=None)  # they can be taken again
        with self._all_or_nothing():
            step = Step("forget", self._choice, former, self.model_.map, self.task_vector_)
            self._undo = [*self._undo, step]
            self._adopt_map(feature_map, None if expansion is None else expansion.task)
            self._finish("forget", pictures, after, state.error, strict=True)
        return self

    def _finish(self, name: str, pictures: list[str], state: State, before: float, **facts: Any) -> None:
        """Set all that follows from a new state, and write it down."""
        figures = {
            "n": len(state),
            "residual_before": before,
            "residual_after": state.error,
            "verification": refinement(state.system),
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

    def _adopt_map(self, feature_map: TangentMap, task: TaskVector | None) -> None:
        """Another feature map; the weights of the model are summed anew when they are asked for."""
        self.model_, self.task_vector_ = replace(self.model_, map=feature_map), task
        self.probes_ = feature_map.probes.cpu().numpy()

    def _reestimated(self, choice: Choice) -> tuple[TangentMap, Expansion | None, TrainingSet]:
        """Probes, metric and outer steps taken from fewer pictures; the kernel's choice stays."""
        pictures, backbone = self._training.pictures.select(choice.active), self.backbone_
        pictures, numbers = replace(pictures, labels=choice.labels), self._training.numbers[choice.active]
        kept = self._encode(choice.labels, choice.sample_weight).weights.numpy() > 0
        used, settings = pictures.select(kept), replace(self._settings(backbone), seed=self._seed)
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
                rest = replace(pictures.select(~kept), labels=None)
                training = extend(training, feature_map, self._opened, rest, numbers[~kept], self._room)
            if (source := self._training.source) is not None:
                found = source_kernels(training, feature_map, self._reading, source.pictures, self._room)
                training = with_source(training, *found, source.setting)
        return feature_map, expansion, training

    # -- what the user names -----------------------------------------------------------------------------------------

    def _found(self, ids: Any) -> list[list[int]]:
        """Positions in `ids_` of the pictures that each id means, of a model that can be edited."""
        self._check_pictures()
        return find_pictures(ids, self.ids_, self._training.numbers[self._choice.active])

    def _hashes(self, places: NDArray) -> list[str]:
        return pictures_digest(self._training.pictures.select(self._choice.active[places]).pixels)

    def _named(self, loaded: Pictures) -> tuple[list[str], NDArray[np.int64]]:
        """Ids and numbers of new pictures: their paths, or, of arrays, the next numbers."""
        if not len(loaded):
            message = "there is no picture to add"
            raise InputError(message)
        numbers = self._next_number + np.arange(len(loaded))
        if all(name.isdecimal() for name in loaded.ids):  # positions in an array
            return [str(number) for number in numbers], numbers
        known = set(self.ids_)
        for name in loaded.ids:
            if name in known:
                message = (
                    f"the model already stands on a picture {name!r}; relabel or forget that one, or give the new one "
                    "another name"
                )
                raise InputError(message)
        return loaded.ids, numbers

    def _like_ours(self, pixels: Tensor) -> Tensor:
        """New pixels in the type of the model's own."""
        ours = self._training.pictures.pixels.dtype
        if pixels.dtype != ours and torch.uint8 in (pixels.dtype, ours):
            message = (
                f"the new pictures are {pixels.dtype}, but those of the model {ours}, which have another scale; give "
                "them as the others were given"
            )
            raise InputError(message.replace("torch.", ""))
        return pixels.to(ours)

    def _check(self, choice: Choice, ids: list[str]) -> None:
        """Refuse what could not be fitted."""
        check_weights(choice.sample_weight, ids)
        self._check_labels(choice.labels, ids)
