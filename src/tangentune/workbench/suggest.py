"""Which unlabelled pictures are worth labelling next, by a fitted model.

What is asked of a picture follows what the model can do so far, as leave-one-out measures it (`acquisition.stage_of`):
to stand for many others, to take much off the error bars of the others, or that where answers are open as well.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune._files import replaced_file
from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.fitted import FittedModel, kernel_to_training, solved, with_rows
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.training_set import PictureReader, RowReader, block_kernels
from tangentune.estimators.user_input import load_inputs, read_count
from tangentune.memory import progress, warm_pages
from tangentune.pictures.pictures import Pictures
from tangentune.pictures.ranks import Shared
from tangentune.solvers.acquisition import Stage, next_pictures, skill, stage_of
from tangentune.solvers.posterior import variance

PORTION = 2_000  # unlabelled pictures that are held against one another at once
MOST = PORTION // 2  # that can be asked for
Tell = Callable[[str], None] | None
Share = Shared | None


@final
@dataclass(frozen=True)
class Suggestion:
    """A picture worth labelling."""

    id: str
    position: int  # among the unlabelled pictures given
    guess: Any  # the class, or the number, that the model predicts
    probability: float | None  # of that class; None of numbers
    margin: float | None  # by which it is likelier than the next class
    unseen: float  # share of the prior variance that the labelled pictures leave open: 1 is like none of them


@final
@dataclass(frozen=True)
class Suggestions:
    """What to label next, most useful first, and why these."""

    pictures: tuple[Suggestion, ...]
    stage: Stage
    skill: float  # of the model, by leave-one-out: 0 as good as guessing, 1 always right; R^2 of numbers
    unlabelled: int  # pictures that were considered
    known: int  # pictures left out because the model stands on an equal one
    copies: int  # pictures left out because they equal another unlabelled one
    portions: int  # they were held against one another in so many; 1 is all at once


@final
@dataclass(frozen=True, eq=False)
class Candidates:
    """Kernels of m unlabelled pictures, less what a source takes of them, and what the model says of each."""

    kernel: Tensor  # (m, m)
    cross: Tensor  # (m, n) with the pictures of the model
    scores: Tensor  # (m, C)


def suggest_next(
    estimator: TangentClassifier | TangentRegressor, X: Any, budget: int, tell: Tell = None, shared: Share = None
) -> Suggestions:
    """The unlabelled pictures of X that are worth labelling next, most useful first, none twice.

    Args:
        estimator: a fitted model, which stays as it is.
        X: unlabelled pictures, as for `predict`.
        budget: how many, up to 1,000.
        tell: is told before the work what it will cost, if it is more than one pass over the pictures.
        shared: with other processes, which take portions as they are free; `ShareDone` ends those that do not lead.

    Cost: rows of each picture, again for each block of rows that does not fit into memory; for m pictures up to 2,000
    the kernel m^2 and m^2 a choice. More are taken in portions, whose winners meet in a last one.

    Raises:
        InputError: budget or pictures cannot be used, or the model was saved without its pictures.

    Example:
        >>> import numpy as np, torch
        >>> from tangentune import Backbone
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
        >>> model = TangentClassifier(Backbone(network)).fit(x[:20], x[:20, 0] > 0)
        >>> found = suggest_next(model, x[20:], 3)
        >>> len({one.position for one in found.pictures}), found.unlabelled
        (3, 40)
    """
    if not hasattr(estimator, "fitted_"):
        raise InputError("this model is not fitted yet, and has no opinion of what to label; fit it first")
    fitted = estimator.fitted_
    check_suggests(fitted)
    _check_budget(budget)  # before the pictures are read
    fitted.check_pictures()
    pictures = load_inputs(estimator, X, None, fitted.backbone, labelled=False, reset=False)
    batch = read_count(estimator.get_params(deep=False), "batch_size")
    reader = PictureReader(fitted.backbone, batch, fitted.feature_map.mirrored, int(estimator.verbose))
    return suggest_from(fitted, reader, pictures, budget, tell, shared)


def check_suggests(fitted: FittedModel) -> None:
    """Refuse a model whose pictures have several labels each: what one teaches is measured by classes or numbers."""
    if fitted.outcome.labels is not None:
        raise InputError(
            "what to label next is measured for one class a picture, or numbers, and not for several labels"
        )


@usual_torch
def suggest_from(
    fitted: FittedModel, reader: PictureReader, pictures: Pictures, budget: int, tell: Tell = None, shared: Share = None
) -> Suggestions:
    """The same for a fitted model by itself, and pictures that are loaded."""
    _check_budget(budget)
    fitted = with_rows(replace(fitted, solution=solved(fitted)), reader)
    places, known = _distinct(fitted, pictures)
    count = len(places)
    if not count:
        raise InputError(
            f"the model stands on all {len(pictures)} of these pictures already; give some that it does not"
        )
    if budget > count:
        warnings.warn(
            f"there are {count} different unlabelled pictures, fewer than the {budget} asked for", stacklevel=2
        )
    stage, measured = _stage(fitted)
    block = max(1, fitted.room // _row_bytes(fitted, reader, pictures))
    if tell is not None and (sentence := _cost(count, min(budget, count), block)):
        tell(sentence)
    rounds, left = 0, places
    with warm_pages(), torch.no_grad():
        while len(left) > PORTION:
            parts = -(-len(left) // PORTION)  # each a mixture: files lie in the order of their names
            best = partial(_best, fitted, reader, pictures, budget=budget, stage=stage)
            chosen = _winners(best, [left[k::parts] for k in range(parts)], shared, rounds)
            rounds, left = rounds + parts, np.sort(np.concatenate(chosen))
        if shared is not None:
            if tell is not None and not rounds and shared.rank.count > 1:
                tell(f"up to {PORTION:,} unlabelled pictures are held against one another by one process alone")
            shared.lead()
        chosen, found = _best(fitted, reader, pictures, left, budget, stage)
        rows = _described(fitted, pictures, chosen, left, found)
    return Suggestions(rows, stage, measured, count, known, len(pictures) - known - count, rounds + 1)


def _check_budget(budget: int) -> None:
    if not 1 <= budget <= MOST:
        again = f"ask for 1 to {MOST:,} pictures at a time, and again once they are labelled"
        raise InputError(f"the budget is {budget}; {again}")


def reason(found: Suggestions) -> str:
    """Why these pictures, in a sentence."""
    measured = f"by leave-one-out the model is {max(0.0, found.skill):.0%} of the way from guessing to always right"
    why = {
        "typical": f"{measured}, so these are typical pictures, which stand for many others",
        "variance": "these are the pictures whose labels would take most off the error bars of all",
        "doubt": f"{measured}, so these are pictures whose labels would say most about answers that are open",
    }[found.stage]
    return why[0].upper() + why[1:] + "."


def candidates(fitted: FittedModel, reader: PictureReader, pictures: Pictures) -> Candidates:
    """Kernels of unlabelled pictures, their rows block by block as memory allows."""
    training, new, ours = fitted.training, RowReader(fitted.feature_map, reader.open, fitted.room), fitted.rows(reader)
    if training.landmarks is not None:
        return _on_landmarks(fitted, reader, pictures)
    source, solution, m = training.source, solved(fitted), len(pictures)
    active = torch.from_numpy(fitted.active.positions).to(solution.system.targets.device)
    total = _passes(m, max(1, min(m, fitted.room // _row_bytes(fitted, reader, pictures))))
    with progress(label="comparing pictures", total=total, unit="row", verbose=reader.verbose) as bar:
        sets = [training] if source is None else [training, source.pictures]
        kernel, crossed, _ = block_kernels(new, pictures, ours, sets, bar.update)
    cross = crossed[0][:, active]
    offset = solution.system.bias
    if source is not None:
        alone, theirs = solution.targets.source, crossed[1]
        assert alone is not None
        offset = offset + theirs @ source.prior.response @ alone.labels
        kernel, cross = source.left(kernel, theirs, theirs), source.left(cross, theirs, source.cross[active])
    return Candidates(kernel, cross, cross @ solution.system.dual + offset)


def _on_landmarks(fitted: FittedModel, reader: PictureReader, pictures: Pictures) -> Candidates:
    """The same where the kernel is one of rows of fixed width."""
    found = list(kernel_to_training(fitted, reader, pictures))
    training, cross = fitted.training, torch.cat([new.kernel for new in found])
    assert training.landmarks is not None
    made = training.landmarks.map(fitted.feature_map)
    rows = torch.cat([made.rows(new.rows) for new in found])
    system = solved(fitted).system
    return Candidates(rows @ rows.T, cross, cross @ system.dual + system.bias)


def _best(
    fitted: FittedModel, reader: PictureReader, pictures: Pictures, places: NDArray, budget: int, stage: Stage
) -> tuple[NDArray[np.int64], Candidates]:
    """Positions of the best of some pictures, and the kernels of all of these."""
    found, system = candidates(fitted, reader, pictures.select(places)), solved(fitted).system
    margins = _margins(fitted, found.scores)[1] if stage == "doubt" else None
    count = min(budget, len(places))
    return places[next_pictures(system, found.cross, found.kernel, count, stage, margins)], found


def _winners(
    best: Callable[[NDArray], tuple[NDArray[np.int64], Candidates]], portions: list[NDArray], shared: Share, rounds: int
) -> list[NDArray[np.int64]]:
    """The best of each; where ranks share them, each leaves its positions in a file."""
    if shared is None:
        return [best(portion)[0] for portion in portions]

    def make(number: int, file: Path) -> None:
        with replaced_file(file) as part:
            part.write_text(json.dumps(best(portions[number])[0].tolist()))

    files = shared.run([f"{rounds + k:06d}" for k in range(len(portions))], make)
    return [np.array(json.loads(file.read_text()), np.int64) for file in files]


def _distinct(fitted: FittedModel, pictures: Pictures) -> tuple[NDArray[np.int64], int]:
    """Positions of the pictures that the model does not stand on, one of several equal ones; how many it stands on."""
    if pictures.pixels.dim() != 4:  # vectors may be equal by chance
        return np.arange(len(pictures)), 0
    known = np.array([bool(same) for same in fitted.copies_of(pictures)], bool)
    first = np.unique(np.array(pictures.digests), return_index=True)[1]
    return np.setdiff1d(first, np.flatnonzero(known)), int(known.sum())


def _stage(fitted: FittedModel) -> tuple[Stage, float]:
    """The criterion, and the skill that decided it."""
    solution = solved(fitted)
    if solution.targets.classes is None:
        return stage_of(fitted.outcome.score, doubts=False), fitted.outcome.score
    kept = solution.targets.weights > 0
    found = skill(solution.loo.cpu()[kept], solution.targets.targets.argmax(1)[kept])
    return stage_of(found), found


def _margins(fitted: FittedModel, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (m, C) and margins (m,), by the temperature of leave-one-out."""
    proba = fitted.outcome.probabilities(scores)
    top = proba.topk(2, 1).values
    return proba, top[:, 0] - top[:, 1]


def _described(
    fitted: FittedModel, pictures: Pictures, chosen: NDArray, places: NDArray, found: Candidates
) -> tuple[Suggestion, ...]:
    """What the model says of the chosen ones."""
    rows = torch.from_numpy(np.searchsorted(places, chosen))
    scores, own, cross = found.scores[rows], found.kernel.diagonal()[rows], found.cross[rows]
    unseen = (variance(solved(fitted).system, cross, own) / own.clamp_min(1e-300)).tolist()
    names, places_, guesses = [pictures.ids[i] for i in chosen], chosen.tolist(), scores.squeeze(1).tolist()
    sure: list[float | None] = [None] * len(names)
    margins = sure
    if len(fitted.outcome.classes):
        proba, apart = _margins(fitted, scores)
        guesses = fitted.outcome.classes[proba.argmax(1).numpy()].tolist()
        sure, margins = proba.max(1).values.tolist(), apart.tolist()
    return tuple(Suggestion(*row) for row in zip(names, places_, guesses, sure, margins, unseen, strict=True))


def _row_bytes(fitted: FittedModel, reader: PictureReader, pictures: Pictures) -> int:
    return max(1, RowReader(fitted.feature_map, reader.open, fitted.room).one_row_bytes(pictures))


def _cost(count: int, budget: int, block: int) -> str:
    """What it will cost beyond one pass, in words; nothing where it is not more."""
    left, passes = count, 0
    while left > PORTION:
        parts = -(-left // PORTION)
        passes += parts * _passes(-(-left // parts), block)
        left = parts * budget
    passes += _passes(left, block)
    if passes <= 1.5 * count:
        return ""
    how = f", in portions of at most {PORTION:,}, whose best meet in a last one" if count > PORTION else ""
    return f"{count:,} unlabelled pictures are held against one another{how}: {passes:,} rows are taken"


def _passes(count: int, block: int) -> int:
    """Rows taken for a kernel of so many pictures, of which `block` fit into memory."""
    blocks = -(-count // block)
    return count + block * (blocks * (blocks - 1) // 2)
