"""The fitted model: one frozen record that predictions, explanations, edits and saving start from.

An edit makes a new record. What costs something and need not be there at once (the solution of a loaded model, the
primal weights after an edit, rows in memory) is None until it is needed; the functions here give what is there, or
make it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import PurePath
from typing import Any, TypeVar, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.estimators.model_directory import Version
from tangentune.estimators.outer_steps import RATE
from tangentune.estimators.row_file import read_rows
from tangentune.estimators.solution import ActivePictures, Solution, Targets, solve, update
from tangentune.estimators.tasks import Outcome, Task
from tangentune.estimators.training_set import PictureReader, RowReader, TrainingSet, class_facts
from tangentune.estimators.user_input import check_pictures_known
from tangentune.jacobian.task_vector import TaskVector
from tangentune.kernels.batches import with_progress
from tangentune.kernels.feature_map import FeatureRows, TangentMap, TangentModel, decision, own_diagonal, primal
from tangentune.memory import warm_pages
from tangentune.networks.backbone import Backbone
from tangentune.pictures.label_sets import is_sets, label_matrix
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel
from tangentune.solvers.system import held

T = TypeVar("T")
PORTION = 256  # new pictures whose rows are in memory at once
DUAL = 64  # pictures that are predicted from the kernel after an edit, before the primal weights are summed for more
UNDO_BYTES = 2**27  # that solutions of former edits may take: touching more memory for the first time slows edits down


@final
@dataclass(frozen=True, eq=False)
class FitFacts:
    """What a fit chose and found; edits leave it alone. The names are those of the fitted attributes."""

    damping: float
    relative_damping: float
    metric_power: float
    normalize: bool
    body_scale: float
    block_scales: dict[str, float]
    block_shares: dict[str, float]
    selection: list[dict[str, Any]]
    damping_path: dict[str, NDArray[np.float64]]
    outer_steps: int = 0
    outer_rate: float = RATE  # of the learning in these steps
    outer_selection: list[dict[str, float | None]] = field(default_factory=list)
    fit_report: dict[str, Any] = field(default_factory=dict)
    source_ids: list[str] = field(default_factory=list)
    source_effects: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@final
@dataclass(frozen=True, eq=False)
class UndoStep:
    """What taking an edit back needs: its name, which pictures counted; the rest only where the feature map changed.

    The solution of that time goes with the latest steps; it is None of former ones, and then solved anew.
    """

    edit: str
    active: ActivePictures
    solution: Solution | None = None
    training: TrainingSet | None = None
    feature_map: TangentMap | None = None
    task_vector: TaskVector | None = None


@final
@dataclass(frozen=True, eq=False, repr=False)
class FittedModel:
    """Everything of a fitted estimator but its options."""

    task: Task
    backbone: Backbone  # the network as it came
    feature_map: TangentMap  # frozen after the fit
    task_vector: TaskVector | None  # what outer steps changed of the weights; None at the pre-trained ones
    training: TrainingSet  # pictures, kernel, rows
    active: ActivePictures  # which of them count, as what
    solution: Solution | None  # None of a loaded model, until it is needed; so of a state that was put by
    outcome: Outcome
    primal: TangentModel | None  # weights; None after an edit, until they are needed
    facts: FitFacts
    source: dict[str, Any] | None  # what came of a source, as plain values; None without one
    next_number: int  # of the next picture that is added
    seed: int  # of the probes and the outer steps
    room: int  # bytes that the rows of the training set may take
    edits: list[dict[str, Any]]
    undo: tuple[UndoStep, ...] = ()
    asked: int = 0  # pictures that were predicted from the kernel since the primal weights were last there
    former: tuple[Solution, ActivePictures] | None = None  # of an earlier state, from which this one's is found
    version: Version | None = None  # of the saved model that this one was read from or written to last, and follows

    @cached_property
    def ids(self) -> list[str]:
        """Names of the pictures the model stands on."""
        names = self.training.pictures.ids
        return [names[i] for i in self.active.positions]

    @cached_property
    def landmark_ids(self) -> list[str]:
        """Names of the pictures whose rows span the kernel; none where all do."""
        landmarks = self.training.landmarks
        if landmarks is None:
            return []
        names = dict(zip(self.training.numbers.tolist(), self.training.pictures.ids, strict=True))
        return [names[number] for number in landmarks.numbers.tolist()]

    @property
    def pictures(self) -> Pictures:
        """The pictures the model stands on, as the network sees them."""
        pictures, active = self.training.pictures, self.active.positions
        whole = np.array_equal(active, np.arange(len(pictures)))
        return pictures if whole else pictures.select(active)

    @property
    def labels(self) -> NDArray[Any]:
        """Labels (n,) or (n, k), as given; of several labels a picture the matrix (n, L) of 0 and 1."""
        labels = self.active.labels
        return label_matrix(labels) if is_sets(labels) else labels

    @property
    def numbers(self) -> NDArray[np.int64]:
        """What each picture is called for good."""
        return self.training.numbers[self.active.positions]

    def copies_of(self, pictures: Pictures) -> list[list[int]]:
        """For each picture the positions of those of the model that are equal in every pixel."""
        found = [self.training.by_digest.get(name, []) for name in pictures.digests]
        return [np.flatnonzero(np.isin(self.active.positions, same)).tolist() if same else [] for same in found]

    def fitted_on(self, pictures: Pictures) -> list[list[int]]:
        """The same of pictures that counted in the fit, weight 0 does not; vectors may be equal by chance."""
        if pictures.pixels.dim() != 4:
            return [[]] * len(pictures)
        counts = self.active.sample_weight > 0
        return [[i for i in same if counts[i]] for same in self.copies_of(pictures)]

    def warn_of_copies(self, pictures: Pictures) -> None:
        """Say that answers to pictures of the fit itself prove nothing."""
        if count := sum(map(bool, self.fitted_on(pictures))):
            sentence = f"{count} of {len(pictures)} pictures are ones that the model was fitted on"
            hint = "for honest answers take theirs from loo_predictions_ and loo_proba_, which are in the order of ids_"
            warnings.warn(f"{sentence}, so that it knows their labels; {hint}.", stacklevel=6)

    def check_pictures(self) -> None:
        """Refuse what needs the training pictures where a loaded model has none."""
        check_pictures_known(self.ids)
        if not self.training.has_pictures:
            raise InputError(
                "this model was saved without its pictures, which explanations of new pictures and edits need; fit it "
                "again and save it with them"
            )

    def rows(self, reader: PictureReader) -> RowReader:
        """Rows of training pictures, with a progress bar."""
        return RowReader(self.feature_map, reader.open_training, self.room)


def fitted_attribute(read: Callable[[FittedModel], T]) -> T:
    """A property of an estimator that is read from its `fitted_`, and so is there once it is fitted."""
    return cast(T, property(lambda estimator: read(estimator.fitted_)))


def solved(fitted: FittedModel) -> Solution:
    """The solution; a loaded model's from its kernel, n^3, and that of a state put by from an earlier one."""
    if fitted.solution is not None:
        return fitted.solution
    check_pictures_known(fitted.ids)
    if fitted.former is not None:
        return update(*fitted.former, fitted.active, fitted.task.encode, fitted.training)
    return solve(fitted.training, fitted.active, fitted.task.encode, fitted.facts.damping)


def with_solution(fitted: FittedModel, solution: Solution) -> FittedModel:
    """All that follows from another solution; the primal weights are summed anew when they are needed."""
    outcome = fitted.task.outcome(solution, fitted.outcome.parameters)
    training = _without_folders(fitted.training, set(fitted.outcome.classes.tolist()) - set(outcome.classes.tolist()))
    source = source_facts(fitted.source, fitted.training, solution.targets)
    found = replace(fitted, solution=solution, outcome=outcome, training=training, source=source)
    return replace(found, primal=None, asked=0, former=None)


def _without_folders(training: TrainingSet, gone: set[Any]) -> TrainingSet:
    """The same set, unreadable pictures in the folders of forgotten classes no longer named."""
    known, names = training.pictures.skipped, {str(name) for name in gone}
    kept = [one for one in known if names.isdisjoint(PurePath(one[0]).parts)]
    return training if len(kept) == len(known) else replace(training, pictures=replace(training.pictures, skipped=kept))


def source_facts(facts: dict[str, Any] | None, training: TrainingSet, targets: Targets) -> dict[str, Any] | None:
    """Facts of a source with what its classes stand for at the moment."""
    if facts is None or training.source is None or targets.source is None:
        return facts
    assert targets.classes is not None
    return {**facts, "classes": class_facts(training.source, targets.source.labels, targets.classes)}


def bounded(steps: tuple[UndoStep, ...], room: int, beside: Solution | None = None) -> tuple[UndoStep, ...]:
    """The steps with the solutions of the latest ones only, such as fit into `room` bytes beside that which counts."""
    kept, seen = list[UndoStep](), dict[int, int]()
    if beside is not None:
        seen = held(beside.system, beside.wary)
    for step in reversed(steps):
        if step.solution is not None:
            new = held(step.solution.system, step.solution.wary)
            room -= sum(size for part, size in new.items() if part not in seen)
            seen |= new
            step = step if room >= 0 else replace(step, solution=None)
        kept.append(step)
    return tuple(reversed(kept))


def compacted(fitted: FittedModel) -> FittedModel:
    """The same model without the pictures that it has forgotten; what was edited cannot be undone."""
    active = fitted.active
    if np.array_equal(active.positions, np.arange(len(fitted.training))):
        return replace(fitted, undo=(), former=None)
    training, solution = fitted.training.select(torch.from_numpy(active.positions)), fitted.solution
    if solution is not None and isinstance(training.kernel, FeatureKernel):
        solution = solution.on_rows(training.kernel)
    active = replace(active, positions=np.arange(len(active)))
    return replace(fitted, training=training, active=active, solution=solution, undo=(), former=None)


def with_rows(fitted: FittedModel, reader: PictureReader) -> FittedModel:
    """The same model with the rows of its training pictures from now on: mapped, or in memory if there is room."""
    fitted.check_pictures()
    missing = fitted.training.rows is None and fitted.training.landmarks is None
    if missing and fitted.version is not None and fitted.backbone.device.type == "cpu":
        found = read_rows(fitted.version, fitted.training)
        fitted = fitted if found is None else replace(fitted, training=replace(fitted.training, rows=found))
    with warm_pages(), torch.no_grad():
        training = fitted.training.with_rows(fitted.rows(reader))
    return fitted if training is fitted.training else replace(fitted, training=training)


def with_primal(fitted: FittedModel, reader: PictureReader) -> FittedModel:
    """The same model with its primal weights; after an edit they are summed again, in one pass over the rows."""
    if fitted.primal is not None:
        return fitted
    solution, count = solved(fitted), len(fitted.training)
    with warm_pages(), torch.no_grad():
        fitted = with_rows(fitted, reader)
        if isinstance(solution.system.inverse, FeatureInverse) and fitted.training.landmarks is not None:
            found = fitted.training.landmarks.map(fitted.feature_map).primal(solution.system.inverse.coef)
            return replace(fitted, solution=solution, primal=found)
        training, rows = fitted.training, fitted.rows(reader)
        dual = solution.system.dual.new_zeros(count, len(fitted.outcome.intercept))
        dual[torch.from_numpy(fitted.active.positions)] = solution.system.dual
        parts: Iterator[tuple[Tensor, FeatureRows]] = rows.parts(training)
        if (source := training.source) is not None:  # after the training pictures those of the source
            assert solution.targets.source is not None
            active = torch.from_numpy(fitted.active.positions).to(dual.device)
            parts = chain(parts, ((index + count, found) for index, found in rows.parts(source.pictures)))
            dual = torch.cat([dual, source.dual(active, solution.system.dual, solution.targets.source.labels)])
        model = primal(fitted.feature_map, parts, dual, solution.system.bias)
    return replace(fitted, solution=solution, primal=model)


@final
@dataclass(frozen=True, eq=False)
class KernelToTraining:
    """New pictures as the solved problem sees them: kernels less what a source takes of them."""

    kernel: Tensor  # (m, n) with the pictures of the model
    own: Tensor  # (m,) of each with itself
    source: Tensor  # (m, C) what a source alone predicts for them, zeros without one
    rows: FeatureRows


def scored(fitted: FittedModel, reader: PictureReader, pictures: Pictures) -> tuple[FittedModel, Tensor]:
    """Raw scores (m, C) of new pictures, and the model with what they took to find.

    The first few after an edit come from the kernel with the training pictures, `k(x, X) c`, where their rows are in
    memory; for more of them the primal weights are summed.
    """
    if fitted.primal is None and fitted.asked + len(pictures) <= DUAL:
        fitted = with_rows(replace(fitted, solution=solved(fitted)), reader)
        if fitted.training.rows is not None or fitted.training.landmarks is not None:
            system, found = solved(fitted).system, kernel_to_training(fitted, reader, pictures)
            scores = torch.cat([new.kernel @ system.dual + system.bias + new.source for new in found])
            return replace(fitted, asked=fitted.asked + len(pictures)), scores
    fitted = with_primal(fitted, reader)
    assert fitted.primal is not None
    with warm_pages(), torch.no_grad():
        parts = [decision(fitted.primal, x) for x in with_progress(reader.open(pictures), reader.verbose)]
    return fitted, torch.cat(parts)


@usual_torch
def kernel_to_training(
    fitted: FittedModel, reader: PictureReader, pictures: Pictures, *, whole: bool = False
) -> Iterator[KernelToTraining]:
    """New pictures as the solved problem sees them; in portions, unless they are wanted as a whole."""
    fitted.check_pictures()
    training, rows = fitted.training, fitted.rows(reader)
    new = RowReader(fitted.feature_map, reader.open, fitted.room)
    active = torch.from_numpy(fitted.active.positions).to(solved(fitted).system.dual.device)
    step = len(pictures) if whole else PORTION

    @torch.no_grad()  # of a portion, not of what its reader does with it
    def seen(portion: Pictures) -> KernelToTraining:
        found = new.collect(portion)
        if training.landmarks is not None and isinstance(training.kernel, FeatureKernel):
            mapped = training.landmarks.map(fitted.feature_map).rows(found)
            kernel, own = training.kernel.times(mapped.T).T[:, active], mapped.square().sum(1)  # what they span alone
        else:
            kernel, own = rows.cross(found, training)[:, active], own_diagonal(fitted.feature_map, found)
        if (source := training.source) is None:
            return KernelToTraining(kernel, own, kernel.new_zeros(len(kernel), len(fitted.outcome.intercept)), found)
        crossed, alone = rows.cross(found, source.pictures), solved(fitted).targets.source
        assert alone is not None
        taken = crossed @ source.prior.gain  # of the kernel k(x, x') the source leaves k - k_xs Q k_sx'
        own = own - (taken * crossed).sum(1)
        kernel = kernel - taken @ source.cross[active].T
        return KernelToTraining(kernel, own, crossed @ source.prior.response @ alone.labels, found)

    with warm_pages():
        for start in range(0, len(pictures), step):
            yield seen(pictures.select(slice(start, start + step)))
