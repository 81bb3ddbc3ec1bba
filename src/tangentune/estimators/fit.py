"""The fitting procedure: from labelled pictures to a fitted model, or to what that would cost."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from tangentune.estimators.fitted import FitFacts, FittedModel, source_facts
from tangentune.estimators.packing import check_savable
from tangentune.estimators.solution import ActivePictures, solve
from tangentune.estimators.source import fit_source
from tangentune.estimators.tasks import Task
from tangentune.estimators.training_set import ROWS_SHARE, PictureReader, RowReader, extend, first_set
from tangentune.estimators.user_input import check_weights, read_count, read_seed, read_settings, read_steps
from tangentune.jacobian.rows import RowPlan
from tangentune.jacobian.survey import survey
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.choice import damping_unit
from tangentune.kernels.cost import estimate_cost
from tangentune.kernels.fit import Fitted, fit_tangent
from tangentune.kernels.stages import FitSettings
from tangentune.memory import Meter
from tangentune.networks.backbone import Backbone, as_backbone, usable_device
from tangentune.networks.parameters import select_parameters, used_parameters
from tangentune.pictures.load import Pictures, duplicate_sentences


@final
@dataclass(frozen=True)
class Procedure:
    """What a fit works with; the meter is filled with the seconds and bytes of each stage."""

    task: Task
    settings: FitSettings
    reader: PictureReader
    subset: str
    outer_steps: str | int
    meter: Meter

    @classmethod
    def of(cls, task: Task, options: dict[str, Any]) -> Procedure:
        """From the options of an estimator, checked."""
        check_savable(options)
        if (device := options["device"]) is not None:
            usable_device(device, dtype=torch.float64)  # before the network is loaded
        backbone = as_backbone(options["backbone"], options["input_size"])
        backbone = backbone if device is None else backbone.to(device)
        settings, steps = read_settings(options, backbone, read_seed(options["random_state"])), read_steps(options)
        batch_size, flip = read_count(options, "batch_size"), options["augment"] == "flip"
        reader = PictureReader(backbone, batch_size, flip, settings.verbose)
        return cls(task, settings, reader, options["subset"], steps, Meter(backbone.device))

    @property
    def backbone(self) -> Backbone:
        """The network."""
        return self.reader.backbone

    def plan(self, pictures: Pictures) -> dict[str, Any]:
        """What `fit` would cost, from one small trial batch."""
        task, settings, inputs = self.task, self.settings, self.reader.open(pictures)
        labels = task.read_labels(pictures)
        task.check_options(labels)
        task.check_labels(labels, pictures.ids)
        tangent = survey_network(self.backbone, inputs, self.subset)
        plan = estimate_cost(tangent, inputs, settings, task.outputs(pictures))
        plan["seconds"] += task.moving_seconds(self.backbone, pictures, settings, self.outer_steps)
        return plan

    def fit(self, pictures: Pictures, given: NDArray, source: tuple[Pictures, NDArray] | None) -> FittedModel:
        """Solve for the whole network: labelled pictures, (n,) sample weights, perhaps a source with its weights."""
        task, backbone, reader, meter = self.task, self.backbone, self.reader, self.meter
        labels = task.read_labels(pictures)
        task.check_options(labels)
        warn(task.check_labels(labels, pictures.ids), pictures)
        targets = task.encode(labels, given)
        check_weights(targets.weights.numpy(), pictures.ids)
        kept = np.flatnonzero(targets.weights.numpy() > 0)
        index = torch.from_numpy(kept)
        settings = task.decidable(self.settings, targets.targets[index])
        used = pictures if len(kept) == len(pictures) else pictures.select(kept)
        with meter.stage("outer steps"):
            expansion, moves = task.expand(backbone, used, settings, self.outer_steps)
        points = (-1,) * len(used) if expansion is None else tuple(expansion.fold.tolist())
        inputs = reader.open(used, points)
        with meter.stage("survey"):
            tangent = survey_network(backbone, inputs, self.subset)
        if expansion is not None:
            tangent = replace(tangent, module=expansion.mean, points=expansion.points)
        found = fit_tangent(tangent, inputs, targets.targets[index], targets.weights[index], settings, meter)
        if damping_unit(found.factor) != found.factor.mean_eigenvalue:
            words = "the network sees the same in every picture, to rounding: every answer is the mean of the labels"
            warnings.warn(words, stacklevel=3)
        room, feature_map = settings.memory_budget // ROWS_SHARE, found.model.map
        with meter.stage("system"):
            training = first_set(used, kept, points, found.factor.kernel, found.rows, room)
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
            "parameters": sum(dict(tangent.module.named_parameters())[name].numel() for name in tangent.names),
            "threads": torch.get_num_threads(),
            "device": str(backbone.device),
        }
        steps, task_vector = (0, None) if expansion is None else (expansion.steps, expansion.task)
        facts = replace(facts, outer_steps=steps, outer_selection=moves, fit_report=report)
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


def survey_network(backbone: Backbone, source: PictureBatches, subset: str) -> RowPlan:
    """The network and the parameters that move, looked at with two pictures."""
    module, features = backbone.module, backbone.feature_function
    x = next(iter(source.batches(list(range(min(2, source.count))))))
    backbone.check(x)
    moving = select_parameters(module, subset, used_parameters(module, features, x))
    return survey(module, features, moving, x)


def warn(sentences: list[str], pictures: Pictures) -> None:
    """Warnings of what looks odd about labelled pictures; vectors may look as they like."""
    if pictures.pixels.dim() == 4:
        for sentence in sentences + duplicate_sentences(pictures.pixels, pictures.labels, pictures.ids):
            warnings.warn(sentence, stacklevel=4)
