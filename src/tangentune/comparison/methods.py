"""Ways to learn a task from a pre-trained network and labelled pictures: one name and one function each.

Nothing heavy is imported before a method runs, so that the command line can list the names at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tangentune.methods.fine_tuning.classifier import Classifier
    from tangentune.networks.backbone import Backbone
    from tangentune.pictures.load import Pictures


@final
@dataclass(frozen=True)
class MethodSettings:
    """What every method is told; all else each method chooses from the pictures it is given."""

    seed: int = 0  # of everything a method draws at random
    flip: bool = True  # a picture and its mirror image show the same class; of no effect on vectors
    batch_size: int = 32  # pictures that go through the network at a time where this does not change the result


@final
@dataclass(frozen=True, eq=False)
class FittedMethod:
    """What a method learnt, whatever the method."""

    classes: NDArray[Any]  # (C,) labels, sorted; the columns of the probabilities
    predict_proba: Callable[[Pictures], Any]  # n pictures to (n, C), an array or a tensor on the processor
    chosen: dict[str, Any]  # damping, rate, ..., as JSON can hold it, for the record


@final
@dataclass(frozen=True)
class Method:
    """A way to learn, and where its code is."""

    title: str  # what it is, in a few words
    module: str  # in tangentune, what `fit` imports; imported beforehand where time is measured
    fit: Callable[[Backbone, Pictures, MethodSettings], FittedMethod]  # the backbone is left as it is


def _least_squares(
    subset: str, outer_steps: int | str, backbone: Backbone, train: Pictures, settings: MethodSettings
) -> FittedMethod:
    from tangentune.estimators.classifier import TangentClassifier

    model: TangentClassifier = TangentClassifier(
        backbone,
        subset=subset,
        augment="flip" if settings.flip else None,
        outer_steps=outer_steps,
        batch_size=settings.batch_size,
        random_state=settings.seed,
    ).fit(train)
    names = ("outer_steps", "outer_rate", "damping", "body_scale", "metric_power", "normalize")
    chosen = {name: getattr(model, f"{name}_") for name in names} | {"loo_accuracy": model.loo_score_}
    return FittedMethod(model.classes_, model.predict_proba, chosen)


def _finetune(backbone: Backbone, train: Pictures, settings: MethodSettings) -> FittedMethod:
    from tangentune.methods.fine_tuning import FineTuneSettings, sweep

    variants = ({"head_start": "probe"}, {"layer_decay": 0.9})
    found = sweep(backbone, train, FineTuneSettings(flip=settings.flip), variants=variants, seed=settings.seed)
    names = ("learning_rate", "epochs", "head_start", "layer_decay")
    chosen = {name: getattr(found.tuned.settings, name) for name in names}
    return _trained(found, settings, chosen | {"problem": found.problem})


def _gaf(backbone: Backbone, train: Pictures, settings: MethodSettings) -> FittedMethod:
    from tangentune.methods.gradient_features import GradientFeatureSettings, fit_gradient_features

    found = fit_gradient_features(backbone, train, GradientFeatureSettings(flip=settings.flip, seed=settings.seed))
    return _trained(found, settings, {"cut": found.cut, "problem": found.problem, "last_loss": found.losses[-1]})


def _lqf(backbone: Backbone, train: Pictures, settings: MethodSettings) -> FittedMethod:
    from tangentune.methods.lqf import LQFSettings, fit_lqf

    chosen = LQFSettings.moved(flip=settings.flip, seed=settings.seed)
    found = fit_lqf(backbone, train, chosen)
    facts = {"solver": chosen.solver, "damping": found.damping, "suboptimality": found.records[-1].suboptimality()}
    facts["moved_at"] = None if found.move is None else found.move.rate
    return _trained(found, settings, facts)


def _trained(model: Classifier, settings: MethodSettings, chosen: dict[str, Any]) -> FittedMethod:
    """A model that predicts by passes through the network, mirrored pictures averaged where the method may."""

    def predict_proba(pictures: Pictures) -> Tensor:
        return model.predict_proba(pictures, batch_size=settings.batch_size, flip=settings.flip).cpu()

    return FittedMethod(model.classes, predict_proba, chosen)


_CLASSIFIER = "tangentune.estimators.classifier"
METHODS: dict[str, Method] = {
    "probe": Method("linear probe, damping by leave-one-out", _CLASSIFIER, partial(_least_squares, "none", 0)),
    "finetune": Method(
        "ordinary fine-tuning of all layers; rate, head and layer-wise rates by a validation split",
        "tangentune.methods.fine_tuning",
        _finetune,
    ),
    "gaf": Method(
        "gradient features of the last layers, default settings", "tangentune.methods.gradient_features", _gaf
    ),
    "lqf": Method("linear quadratic fine-tuning of all layers, default settings", "tangentune.methods.lqf", _lqf),
    "tangent": Method(
        "tangent kernel of all layers, choices by leave-one-out", _CLASSIFIER, partial(_least_squares, "all", "loo")
    ),
}
