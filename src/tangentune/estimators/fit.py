"""The fitting procedure: from labelled pictures to a fitted model, or to what that would cost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import BudgetError, InputError
from tangentune.estimators.first_look import mirroring_helps
from tangentune.estimators.fitted import FitFacts, FittedModel, source_facts
from tangentune.estimators.outer_steps import RATE
from tangentune.estimators.packing import check_savable
from tangentune.estimators.solution import ActivePictures, solve
from tangentune.estimators.source import fit_source, read_source
from tangentune.estimators.summary import Plan
from tangentune.estimators.tasks import Outcome, Task
from tangentune.estimators.training_set import ROWS_SHARE, PictureReader, RowReader, extend, first_set
from tangentune.estimators.user_input import (
    check_weights,
    read_count,
    read_seed,
    read_settings,
    read_solver,
    read_steps,
)
from tangentune.estimators.worth import compare_classes, compare_numbers
from tangentune.jacobian.rows import RowPlan
from tangentune.jacobian.survey import survey
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.collect import restrict
from tangentune.kernels.cost import Problem, has_pilot, measure_rates, pilot_bytes, usually_kept
from tangentune.kernels.fit import Fitted, fit_tangent
from tangentune.kernels.landmark_cost import landmark_count, plan, settled
from tangentune.kernels.landmark_cost import seconds as foreseen
from tangentune.kernels.row_shards import RowShards
from tangentune.kernels.stages import FitSettings
from tangentune.kernels.trial import Trial, run_trial
from tangentune.memory import Meter, nice_mebibytes, resident_bytes
from tangentune.networks.backbone import Backbone, as_backbone, usable_device
from tangentune.networks.parameters import select_parameters, used_parameters
from tangentune.pictures.copies import duplicate_sentences
from tangentune.pictures.load import Pictures
from tangentune.pictures.ranks import Shared

MOVED_NETWORKS = 6  # copies of the network that outer steps leave behind: points, their mean, the task vector
Tell = Callable[[Plan], None] | None
Work = str | os.PathLike[str] | Shared | None
PROOF_COPIES = 8  # of the network, in its own precision, that the proof of the rows holds


@final
@dataclass(frozen=True)
class Look:
    """What was seen of a fit before it costs much: the rows that it takes, how a few of them came, and the problem."""

    tangent: RowPlan
    trial: Trial
    problem: Problem


@final
@dataclass(frozen=True)
class Procedure:
    """What a fit works with; the meter is filled with the seconds and bytes of each stage."""

    task: Task
    settings: FitSettings
    reader: PictureReader
    subset: str
    outer_steps: str | int
    solver: tuple[str, int | None]  # and the number of landmarks that was asked for
    mirroring: bool  # whether it is still to be chosen
    meter: Meter

    @classmethod
    def of(cls, task: Task, options: dict[str, Any]) -> Procedure:
        """From the options of an estimator, checked."""
        check_savable(options)
        if (device := options["device"]) is not None:
            usable_device(device, dtype=torch.float64)  # before the network is loaded
        backbone = as_backbone(options["backbone"], options["input_size"], device, options["autocast"])
        settings, steps = read_settings(options, backbone, read_seed(options["random_state"])), read_steps(options)
        augment = options["augment"]
        reader = PictureReader(backbone, read_count(options, "batch_size"), augment == "flip", settings.verbose)
        if steps == "loo" and (options["subset"] != "all" or settings.fixed.body_scale == 0):
            steps = 0  # the network is to stay, or most of it
        subset, solver, meter = options["subset"], read_solver(options), Meter(backbone.device)
        return cls(task, settings, reader, subset, steps, solver, augment == "loo", meter)

    @property
    def backbone(self) -> Backbone:
        """The network."""
        return self.reader.backbone

    def suited(self, pictures: Pictures) -> Procedure:
        """With the task that these labels ask for."""
        return replace(self, task=self.task.suited(pictures.labels))

    def read_source(self, source: Any, pictures: Pictures, n_jobs: int | None) -> tuple[Pictures, NDArray]:
        """Pictures of a source with their weights; refused where the labels of the pictures can use none."""
        self.suited(pictures).task.check_source(self.outer_steps)
        contract, verbose = self.backbone.contract, self.settings.verbose
        return read_source(source, pictures, contract, n_jobs=n_jobs, verbose=verbose)

    def decided(self, pictures: Pictures, targets: Tensor, *, source: bool = False) -> Procedure:
        """With mirroring and solver chosen, if they were left open, and no steps or landmarks beside a source."""
        steps, (solver, wanted) = 0 if source and self.outer_steps == "loo" else self.outer_steps, self.solver
        if source and solver == "landmarks":
            raise InputError("source= needs the kernel of all pictures; leave solver at 'auto', or choose 'dual'")
        solver = "dual" if source else solver
        settings = replace(self.settings, landmarks=landmark_count(solver, wanted, len(pictures)))
        if not self.mirroring:
            return replace(self, settings=settings, outer_steps=steps, solver=(solver, wanted))
        flip = mirroring_helps(self.backbone, pictures, targets, max(1, self.reader.batch_size // 2))
        settings = replace(settings, mirrored=flip, may_unmirror=True)
        reader = replace(self.reader, flip=flip)
        solver = (solver, wanted)
        return replace(self, settings=settings, reader=reader, outer_steps=steps, solver=solver, mirroring=False)

    def plan(self, pictures: Pictures) -> Plan:
        """What `fit` would cost, from a trial with a few pictures."""
        chosen = self.suited(pictures)
        labels = chosen.task.read_labels(pictures)
        chosen.task.check_options(labels)
        chosen.task.check_labels(labels, pictures.ids)
        with self.meter.stage("survey"):
            targets = chosen.task.encode(labels, np.ones(len(pictures))).targets
            procedure = chosen.decided(pictures, targets)
            look = procedure.look(pictures, targets.shape[1], timed=True)
        settings = settled(*procedure.solver, look.trial, procedure.settings, look.problem)
        return procedure.foresee(look, pictures, settings)

    def foresee(self, look: Look, pictures: Pictures, settings: FitSettings) -> Plan:
        """The cost of a fit that was looked at, timed."""
        task, trial, problem = self.task, look.trial, look.problem
        memory, usual, survey = plan(trial, settings, problem), trial, self.meter.of("survey")
        peaks = {"survey": survey["peak_bytes"]} | memory.peaks
        most = max(peaks.values())
        seconds = {"survey": survey["seconds"]}
        seconds["outer steps"] = task.moving_seconds(self.backbone, pictures, settings, self.outer_steps)
        if has_pilot(settings, problem):  # after the steps: what training leaves in memory counts from here on
            usual = self.try_rows(restrict(look.tangent, usually_kept(trial)), pictures, timed=True)
            trial = replace(trial, resident=max(trial.resident, usual.resident))
            peaks |= plan(usual, settings, problem).peaks | {"pilot": pilot_bytes(trial, settings, problem)}
        rates = measure_rates(next(p for p in self.backbone.module.parameters() if p.is_floating_point()))
        seconds |= foreseen(trial, usual, settings, problem, rates, len(memory.passes))
        stages = dict.fromkeys([*seconds, *peaks])
        return Plan(
            network=self.backbone.name,
            n=problem.pictures,
            seconds=sum(seconds.values()),
            peak_bytes=max(peaks.values()),
            most_bytes=most,
            passes=len(memory.passes),
            parameters=count_parameters(look.tangent),
            layers=[
                {
                    "name": name,
                    "held_as": "pairs" if layer.positions else "rows",
                    "gram": layer.gram,
                    "bytes_per_picture": layer.size,
                }
                for name, layer in trial.layers.items()
            ],
            stages={stage: {"seconds": seconds.get(stage), "peak_bytes": peaks.get(stage)} for stage in stages},
        )

    def look(self, pictures: Pictures, outputs: int, *, timed: bool) -> Look:
        """The network and a few pictures looked at, within the memory budget, before anything costs much."""
        inputs = self.reader.open(pictures)
        tangent = survey_network(self.backbone, inputs, self.subset, self.settings.memory_budget)
        if self.settings.fixed.body_scale == 0:
            tangent = restrict(tangent, ())
        network = sum(p.nbytes for p in self.backbone.module.parameters())
        moved = MOVED_NETWORKS * network if self.outer_steps != 0 else 0
        problem = Problem(inputs.count, inputs.batch, outputs, self.task.likelihood, moved)
        return Look(tangent, self.try_rows(tangent, pictures, timed=timed), problem)

    def try_rows(self, tangent: RowPlan, pictures: Pictures, *, timed: bool) -> Trial:
        """Rows of a few pictures, within the memory budget."""
        settings, inputs = self.settings, self.reader.open(pictures)
        return run_trial(tangent, inputs, settings.probes, settings.mirrored, settings.memory_budget, timed=timed)

    def fit(
        self,
        pictures: Pictures,
        given: NDArray,
        source: tuple[Pictures, NDArray] | None,
        tell: Tell = None,
        work: Work = None,
    ) -> FittedModel:
        """Solve for the whole network: labelled pictures, (n,) sample weights, perhaps a source with its weights."""
        task, backbone, meter = self.task, self.backbone, self.meter
        labels = task.read_labels(pictures)
        task.check_options(labels)
        warn(task.check_labels(labels, pictures.ids), pictures)
        targets = task.encode(labels, given)
        check_weights(targets.weights.numpy(), pictures.ids)
        kept = np.flatnonzero(targets.weights.numpy() > 0)
        index = torch.from_numpy(kept)
        used = pictures if len(kept) == len(pictures) else pictures.select(kept)
        with meter.stage("survey"):
            chosen = self.decided(used, targets.targets[index], source=source is not None)
            settings, reader = task.decidable(chosen.settings, targets.targets[index]), chosen.reader
            look = chosen.look(used, targets.targets.shape[1], timed=tell is not None)
            settings = settled(*chosen.solver, look.trial, settings, look.problem)
            tangent, free = look.tangent, plan(look.trial, settings, look.problem).room
        if isinstance(work, Shared) and not settings.landmarks:
            work.lead()
            raise InputError(
                "a fit that compares every picture with every other is not shared among processes; start one alone, or "
                "choose solver='landmarks'"
            )
        if tell is not None:
            with meter.stage("survey"):
                cost = chosen.foresee(look, used, settings)
            tell(cost)
        with meter.stage("outer steps"):
            expansion, moves = task.expand(backbone, used, settings, chosen.outer_steps, RATE)
        if expansion is not None and expansion.flip != settings.mirrored:
            settings, reader = replace(settings, mirrored=expansion.flip), replace(reader, flip=expansion.flip)
        points = (-1,) * len(used) if expansion is None else tuple(expansion.fold.tolist())
        inputs = reader.open(used, points)
        if expansion is not None:
            tangent = replace(tangent, module=expansion.mean, points=expansion.points)
        wanted, weights = targets.targets[index], targets.weights[index]
        shards = RowShards.of(work, used.digests) if work is not None and settings.landmarks else None
        found = fit_tangent(tangent, inputs, wanted, weights, settings, meter, look.trial, free, shards)
        if found.flat:
            words = "the network sees the same in every picture, to rounding: every answer is the mean of the labels"
            warnings.warn(words, stacklevel=3)
        room, feature_map = settings.memory_budget // ROWS_SHARE, found.model.map
        with meter.stage("system"):
            training = first_set(used, kept, points, found.kernel, found.rows, min(room, free), found.landmarks)
            found = replace(found, rows=None)
            if len(used) < len(pictures):  # pictures of weight 0: known, but they do not count
                rest = np.flatnonzero(targets.weights.numpy() == 0)
                training = extend(training, RowReader(feature_map, reader.open, room), pictures.select(rest), rest)
            active = ActivePictures(np.argsort(training.numbers), labels, given)
        facts, gained = fit_facts(found), None
        if source is not None:
            fixed = self.settings.fixed.damping is not None
            with meter.stage("source"), torch.no_grad():
                rows = RowReader(feature_map, reader.open_training, room)
                training, facts, gained = fit_source(training, rows, source, active, targets, facts, fixed=fixed)
        with meter.stage("system"):
            solution = solve(training, active, task.encode, facts.damping)
            outcome = task.outcome(solution, {})
        report = meter.report() | {
            "n": len(pictures),
            "outputs": targets.targets.shape[1],
            "passes": found.passes,
            "probe": probe_facts(found, outcome, targets.targets[index].numpy(), kept),
            "parameters": count_parameters(tangent),
            "threads": torch.get_num_threads(),
            "device": str(backbone.device),
        }
        task_vector = None if expansion is None else expansion.task
        if expansion is not None:
            facts = replace(facts, outer_steps=expansion.steps, outer_rate=expansion.rate)
        facts = replace(facts, outer_selection=moves, fit_report=report)
        if shards is not None:
            shards.clear()
        return FittedModel(
            task=task,
            backbone=backbone,
            feature_map=feature_map,
            task_vector=task_vector,
            training=training,
            active=active,
            solution=solution,
            outcome=outcome,
            primal=found.model if training.source is None else None,
            facts=facts,
            source=source_facts(gained, training, solution.targets),
            next_number=len(pictures),
            seed=settings.seed,
            room=room,
            edits=[],
        )


def fit_facts(found: Fitted) -> FitFacts:
    """What the kernel's choice was, and what it was made from."""
    choice = found.scored.choice
    scales = {block: choice.body_scale * scale for block, scale in found.model.map.block_scales.items()}
    dampings, errors = found.path
    return FitFacts(
        damping=found.scored.damping,
        relative_damping=found.scored.relative_damping,
        metric_power=choice.power,
        normalize=choice.normalize,
        body_scale=choice.body_scale,
        block_scales={"head": 1.0, **scales},
        block_shares=found.shares,
        selection=[scored.row() for scored in found.tried],
        damping_path={"damping": dampings.cpu().numpy(), "loo_error": errors.cpu().numpy()},
    )


def probe_facts(found: Fitted, outcome: Outcome, truth: NDArray, kept: NDArray) -> dict[str, Any] | None:
    """How a linear probe compares on the pictures that count, by leave-one-out of both; None where none was tried."""
    if found.probe is None:
        return None
    probe = found.probe.cpu().numpy()
    if len(outcome.classes) and outcome.labels is None:
        compared = compare_classes(truth.argmax(1), outcome.proba[kept].argmax(1), probe.argmax(1))
    else:
        compared = compare_numbers(truth, outcome.loo[kept], probe)
    return compared | {"seconds": found.probe_seconds}


def survey_network(backbone: Backbone, source: PictureBatches, subset: str, budget: int) -> RowPlan:
    """The network and the parameters that move, seen with two pictures; BudgetError without room for the proof."""
    module, features, meter = backbone.module, backbone.feature_function, Meter(backbone.device)
    x = next(iter(source.batches(list(range(min(2, source.count))))))
    backbone.check(x)
    with meter.stage("gradients"):
        held = resident_bytes(backbone.device)
        used = used_parameters(module, features, x)
    moving = select_parameters(module, subset, used)
    # The proof has a copy in float64, its gradients and its rows, and twice of what a pass holds.
    network = sum(p.nbytes for p in module.parameters())
    needed = meter.stages[0]["peak_bytes"] + PROOF_COPIES * network + (meter.stages[0]["peak_bytes"] - held)
    if needed > budget:
        raise BudgetError(
            f"the network needs {nice_mebibytes(needed - held)} to be looked at, beside the {nice_mebibytes(held)} "
            f"that this process already holds, more than the memory budget of {nice_mebibytes(budget)}, which counts "
            "the whole process; raise memory_budget or use a smaller network"
        )
    return survey(module, features, moving, x)


def count_parameters(tangent: RowPlan) -> int:
    """Numbers in the parameters that move."""
    parameters = tangent.parameters()
    return sum(parameters[name].numel() for name in tangent.names)


def warn(sentences: list[str], pictures: Pictures) -> None:
    """Warnings of what looks odd about labelled pictures; vectors may look as they like."""
    if pictures.pixels.dim() == 4:
        for sentence in sentences + duplicate_sentences(pictures):
            warnings.warn(sentence, stacklevel=4)
