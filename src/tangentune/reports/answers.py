"""What a model says of new pictures, a row for each: its choice, the second one, and how unlike the training pictures.

A picture that the model was fitted on is answered, and held against the others, by the model without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from tangentune._files import replaced_file
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.explanations import known_shares, ood_scores, open_share
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.scores import answers_by
from tangentune.estimators.tasks import as_given
from tangentune.pictures.encoded import Listing
from tangentune.pictures.label_sets import SEPARATOR
from tangentune.pictures.load import refusal
from tangentune.pictures.pictures import Pictures
from tangentune.pictures.ranks import Shared, job_digest
from tangentune.pictures.stream import check_listing, portion_count, read_portion, stream_pictures
from tangentune.reports.explanation import EDGE
from tangentune.reports.pages import Estimator
from tangentune.solvers import balancing
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.posterior import variance


@final
@dataclass(frozen=True)
class Answer:
    """What a model says of one picture."""

    id: str
    values: tuple[float, ...]  # probabilities of the classes, or the predicted numbers
    distance: float | None  # its `ood_score`, if that was asked for
    fitted_on: str | None  # the id of the equal picture of the fit, without which it was answered


def answer_all(
    model: Estimator, portions: Iterable[Pictures], asked: KernelAnswers | None = None
) -> Iterator[list[Answer]]:
    """Answers to pictures, a portion at a time; by `asked` also how far each lies from the training pictures."""
    predict = model.predict if isinstance(model, TangentRegressor) else model.predict_proba
    for pictures in portions:
        found = answers_by(predict if asked is None else asked.predict, model.fitted_, pictures)
        distances = [None] * len(pictures) if asked is None else asked.distances(found.fitted_on)
        values = found.values.reshape(len(pictures), -1).tolist()
        rows = zip(pictures.ids, values, distances, found.fitted_on, strict=True)
        yield [Answer(name, tuple(row), distance, known) for name, row, distance, known in rows]


@final
@dataclass(frozen=True)
class AnswerJob:
    """Answers to all pictures of a listing: by this process, or shared among ranks, a portion a shard."""

    model: Estimator
    listing: Listing
    on_error: str
    unlike: bool  # whether to ask how far each lies from the training pictures

    @property
    def digest(self) -> str:
        """Of what the answers depend on."""
        model, version = self.model, self.model.fitted_.version
        facts = (version and version.seal, model.batch_size, self.on_error, self.unlike, portion_count(self.listing))
        return job_digest((*facts, self.listing.ids), self.listing.pictures)

    def answers(self, left_out: list[tuple[str, str]], shared: Shared | None = None) -> Iterator[list[Answer]]:
        """A portion at a time, in order; `left_out` is given `(id, reason)` of what cannot be read.

        Shared, they come once all shards are there, with the bits of one process, and to the rank that leads; ShareDone
        for the others. Raises as `stream_pictures` does.
        """
        model, listing, reading = self.model, self.listing, (self.model.backbone_.contract, left_out)

        @cache
        def asked() -> KernelAnswers | None:  # takes rows of the training pictures: not where nothing is left to do
            return KernelAnswers.of(model) if self.unlike else None

        if shared is None:
            portions = stream_pictures(listing, *reading, on_error=self.on_error, n_jobs=model.n_jobs)
            yield from answer_all(model, portions, asked())
            return

        def make(number: int, file: Path) -> None:
            lost = list[tuple[str, str]]()
            found = read_portion(listing, number, reading[0], lost, self.on_error, model.n_jobs)
            rows = [] if found is None else next(answer_all(model, [found], asked()))
            told = [(one.id, one.values, one.distance, one.fitted_on) for one in rows]
            with replaced_file(file) as part:  # JSON writes the shortest text that gives the same float again
                part.write_text(json.dumps({"answers": told, "lost": lost}), encoding="utf-8")

        check_listing(listing, *reading, self.on_error)
        files, read = shared.run(portion_count(listing), make), 0
        shared.lead()
        for file in files:
            found = json.loads(file.read_text(encoding="utf-8"))
            left_out += [(name, reason) for name, reason in found["lost"]]
            rows = [Answer(name, tuple(values), *rest) for name, values, *rest in found["answers"]]
            read += len(rows)
            if rows:
                yield rows
        if not read:
            raise refusal(left_out, len(listing))


@final
class KernelAnswers:
    """A model that answers from the kernel with its training pictures, which tells how far off a picture lies too."""

    def __init__(self, model: Estimator, known: NDArray[np.float64], own: dict[str, float]) -> None:
        self._model, self._known, self._own = model, known, own
        self._new: list[float] = []  # of the pictures that were predicted last

    @classmethod
    def of(cls, model: Estimator) -> KernelAnswers:
        """With the rows of the training pictures in memory, if they fit; else each portion takes them anew."""
        solution = model.solution_
        next(model.kernel_to_training(model.pictures_.select([0])))
        known, system = known_shares(solution), solution.system
        left_out = balancing.left_out_variance(system, solution.targets.balance)
        own = ood_scores(known, open_share(left_out, system.kernel.diagonal())).tolist()
        return cls(model, known, dict(zip(model.ids_, own, strict=True)))

    def predict(self, pictures: Pictures) -> NDArray[np.float64]:
        """As the model itself predicts."""
        model, system, scores, shares = self._model, self._model.solution_.system, [], []
        for new in model.kernel_to_training(pictures):
            scores.append(new.kernel @ system.dual + system.bias + new.source)
            shares.append(open_share(variance(system, new.kernel, new.own), new.own))
        self._new = ood_scores(self._known, torch.cat(shares)).tolist()
        if isinstance(model, TangentRegressor):
            return as_given(torch.cat(scores).cpu().numpy(), model.targets_)
        if model.likelihood != LEAST_SQUARES:
            return model.predict_proba(pictures)
        return model.fitted_.outcome.probabilities(torch.cat(scores)).cpu().numpy()

    def distances(self, fitted_on: list[str | None]) -> list[float | None]:
        """Of the pictures that were answered last, in their order."""
        new = iter(self._new)
        return [next(new) if name is None else self._own[name] for name in fitted_on]


def columns(model: Estimator) -> dict[str, type]:
    """The columns of a table of answers, and whether they hold text or numbers."""
    if isinstance(model, TangentRegressor):
        count = model.loo_predictions_.shape[1]
        own = {f"prediction_{i + 1}" if count > 1 else "prediction": float for i in range(count)}
    elif model.thresholds_ is not None:
        own = {"labels": str, **{f"probability of {name}": float for name in model.classes_.tolist()}}
    else:
        own = {"prediction": str, "probability": float, "second_choice": str, "second_probability": float}
    return {"id": str, **own, "unlike_training": float, "familiarity": str, "fitted_on": str}


def cells(model: Estimator, answer: Answer) -> list[Any]:
    """An answer as a row of these columns, with None where there is nothing to say."""
    end = [answer.distance, None if answer.distance is None else familiar(answer.distance), answer.fitted_on]
    if isinstance(model, TangentRegressor):
        return [answer.id, *answer.values, *end]
    if model.thresholds_ is not None:
        return [answer.id, SEPARATOR.join(name for name, _ in given_labels(model, answer)), *answer.values, *end]
    first, second = np.argsort(-np.array(answer.values), kind="stable")[:2].tolist()
    names, values = model.classes_, answer.values
    return [answer.id, str(names[first]), values[first], str(names[second]), values[second], *end]


def given_labels(model: TangentClassifier, answer: Answer) -> list[tuple[str, float]]:
    """The labels of a picture that are at their thresholds or above, with their probabilities."""
    assert model.thresholds_ is not None
    rows = zip(model.classes_.tolist(), answer.values, model.thresholds_.tolist(), strict=True)
    return [(str(name), share) for name, share, least in rows if share >= least]


def familiar(distance: float) -> str:
    """An out-of-distribution score in one word.

    Example:
        >>> familiar(0.2), familiar(0.9), familiar(0.97), familiar(1.4)
        ('familiar', 'usual', 'unusual', 'unlike')
    """
    return "unlike" if distance > 1 else "unusual" if distance > EDGE else "usual" if distance > 0.5 else "familiar"
