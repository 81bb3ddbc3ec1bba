"""A fitted model as one file that predicts without this library, compared with the model before it takes its place."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune._files import existing_ancestor, replaced_file
from tangentune._torch import usual_torch
from tangentune._version import __version__
from tangentune.deployment.error_bars import ErrorBars, error_bars, stacked
from tangentune.deployment.formats import Runner, format_of, traced
from tangentune.deployment.network_graph import network_graph
from tangentune.deployment.predictor import Predictor
from tangentune.errors import InputError, LayerError
from tangentune.estimators.fitted import FittedModel, kernel_to_training, solved, with_rows
from tangentune.estimators.tasks import Classification, Multilabel, Outcome
from tangentune.estimators.training_set import PictureReader
from tangentune.kernels.feature_map import TangentModel, decision
from tangentune.kernels.metric import Whitening
from tangentune.pictures.contract import DataContract
from tangentune.pictures.pictures import Pictures, normalise
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.posterior import variance

TOLERANCE = 1e-4
FRESH = 9  # made-up inputs that file and model are compared on, at three sizes of batch
KINKS = 2  # of them may differ more, up to a hundred times: where rounding takes a unit across ReLU's kink
RUNS = 5


@final
@dataclass(frozen=True)
class Exported:
    """What was written: `difference` is that from the model's answers; `seconds` are of one picture, on the CPU."""

    path: Path
    bytes: int
    runtime: str
    outputs: tuple[str, ...]
    difference: float
    seconds: float
    plain_seconds: float
    excess: float | None  # by which share error bars are too wide, on average over made-up pictures; None without

    @property
    def ratio(self) -> float:
        """Time of a prediction in forward passes of the network alone."""
        return self.seconds / self.plain_seconds


@final
class Answers(nn.Module):
    """Pictures as the data contract has them in, and what a person wants to know out."""

    def __init__(
        self, predictor: Predictor, contract: DataContract, outcome: Outcome | None, bars: ErrorBars | None = None
    ):
        super().__init__()
        self.bars = bars
        self.predictor, self.contract, self.outcome = predictor, contract, outcome

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Scores and probabilities, or predicted numbers, and error bars if there are some: (n, C) each, float32."""
        scores, own = self.predictor(normalise(pixels, self.contract))
        count = scores.shape[1] - (0 if self.bars is None else len(self.bars.signs))
        answers = [scores[:, :count]]
        if self.outcome is not None:
            answers.append(self.outcome.probabilities(answers[0]))
        if self.bars is not None:
            answers.append(self.bars.deviations(scores[:, count:], own))
        return tuple(answers)


@final
class _Plain(nn.Module):
    """The network alone, from the same pictures: what a prediction's time is measured against."""

    def __init__(self, model: TangentModel, contract: DataContract):
        super().__init__()
        self.body, self.features = model.map.tangent.module, model.map.tangent.features
        self.contract = contract

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """Features (n, d)."""
        return (self.features(self.body, normalise(pixels, self.contract)),)


def plain_network(model: TangentModel, contract: DataContract) -> nn.Module:
    """The network of a model, from pictures to features, in single precision."""
    return _Plain(in_single_precision(model), contract)


@usual_torch
def export(fitted: FittedModel, path: str | os.PathLike[str], reader: PictureReader | None = None) -> Exported:
    """Write a model with its primal weights at hand as FILE.onnx or FILE.pt2.

    It takes pictures as the data contract prepares them, bytes (n, channels, height, width), any number of them. The
    file is put in place once its answers are those of the model, to 1e-4, on made-up pictures, one, two and nine at a
    time. With a `reader` of the training pictures also the standard deviation of every score, by leading directions
    (error_bars.py).

    Raises:
        InputError: the ending is another, or the model's probabilities need its training pictures.
        LayerError: a layer has no rule here, or the file's answers are not the model's.
        MissingExtraError: the packages that write ONNX are not there.
        StoreError: the file cannot be written.
    """
    target = check_path(path)
    kind = format_of(target)
    _check(fitted)
    kind.check()
    backbone, fresh = fitted.backbone, fresh_inputs(fitted)
    if backbone.device.type != "cpu":
        raise InputError("files are made on the CPU; read the model there (device cpu) and export it again")
    assert fitted.primal is not None
    bars = None if reader is None else error_bars(fitted, reader)
    model = in_single_precision(fitted.primal if bars is None else stacked(fitted.primal, bars.columns))
    prepared = normalise(fresh, backbone.contract)
    with torch.no_grad():
        network = network_graph(model.map.tangent.module, model.map.tangent.features, prepared[:3])
    outcome = fitted.outcome if isinstance(fitted.task, Classification) else None
    predictor = Predictor(model, network, prior=bars is not None)
    answers = Answers(predictor, backbone.contract, outcome, bars)
    outputs = ("values",) if outcome is None else ("scores", "probabilities")
    outputs += () if bars is None else ("std",)
    content = kind.write(traced(answers, fresh[:2]), outputs, facts(fitted, fresh))
    run = kind.open(content)
    wanted, excess = _answers(fitted, fresh, outcome, bars, reader)
    difference = _compare(run, fresh, wanted)
    plain = kind.plain(plain_network(model, backbone.contract), fresh[:2])
    own, bare = latencies([run, plain], fresh[:1].numpy())
    with replaced_file(target) as part:
        part.write_bytes(content)
    return Exported(target, len(content), kind.runtime, outputs, difference, own, bare, excess)


def check_path(path: str | os.PathLike[str]) -> Path:
    """Where a file goes, if one could be written there, found out before the work; else an InputError."""
    target = Path(os.path.abspath(path))
    format_of(target)
    if target.is_dir():
        raise InputError(f"{target} is a directory; name a file in it")
    if not os.access(existing_ancestor(target), os.W_OK | os.X_OK) or existing_ancestor(target).is_file():
        raise InputError(f"{target} cannot be written: no permission in {existing_ancestor(target)}, or it is a file")
    return target


def in_single_precision(model: TangentModel) -> TangentModel:
    """The same function in float32: runtimes have no convolution in float64, and lose nothing that matters."""
    own = model.map
    module = own.tangent.module
    if any(p.dtype != torch.float32 for p in module.parameters()):
        module = copy.deepcopy(module).float()
    metric = {name: Whitening(one.left.float(), one.right.float()) for name, one in own.metric.items()}
    tangent = replace(own.tangent, module=module, points=())
    return TangentModel(
        replace(own, tangent=tangent, probes=own.probes.float(), metric=metric), model.intercept.float(),
        model.head.float(), {name: weights.float() for name, weights in model.body.items()},
    )  # fmt: skip


def _check(fitted: FittedModel) -> None:
    """Refuse what a file cannot answer, before the work."""
    if isinstance(fitted.task, Multilabel):
        raise InputError("this model gives a picture several labels, which files cannot answer yet; use it as it is")
    if fitted.backbone.feature_function.autocast is not None:
        raise InputError("this model's passes run under autocast, and files are in float32; fit it without autocast")
    if fitted.task.likelihood != LEAST_SQUARES:
        raise InputError(
            f"probabilities of likelihood={fitted.task.likelihood!r} need the training pictures, which a file does not "
            "hold; fit the model with likelihood='least_squares'"
        )


def facts(fitted: FittedModel, pixels: Tensor) -> dict[str, Any]:
    """What a file says about itself, as JSON can hold it."""
    contract, outcome = fitted.backbone.contract, fitted.outcome
    classes = [str(name) for name in outcome.classes.tolist()]
    known = {"classes": classes, "temperature": outcome.temperature, "softness": outcome.softness}
    own = known if classes else {"targets": len(outcome.intercept)}
    return {
        "tangentune": __version__,
        "input": {
            "name": "pixels",
            "type": str(pixels.dtype).removeprefix("torch."),
            "shape": ["n", *pixels.shape[1:]],
            "interpolation": contract.interpolation,
            "crop": contract.crop,
        },
        "network": fitted.backbone.name,
        "pictures": len(fitted.ids),
        **own,
    }


def fresh_inputs(fitted: FittedModel, count: int = FRESH) -> Tensor:
    """Made-up inputs that the model was not fitted on: blots of colour with noise, over pictures of the fit if kept.

    Of vectors those of the fit, each entry from another of them.
    """
    own, contract = fitted.training.pictures.pixels, fitted.backbone.contract
    generator = torch.Generator().manual_seed(0)
    kept = own[torch.from_numpy(fitted.active.positions)] if fitted.training.has_pictures else None
    if contract.input_size is None:
        if kept is None:
            raise InputError("this model of vectors was saved without them, and a file is compared on such; keep them")
        rows = torch.randint(len(kept), (count, kept[0].numel()), generator=generator)
        return kept.flatten(1).gather(0, rows).reshape(count, *kept.shape[1:])
    size = contract.input_size
    blots = F.interpolate(torch.rand(count, size[0], 4, 4, generator=generator), size[1:], mode="bilinear")
    made = 0.85 * blots + 0.15 * torch.rand(count, *size, generator=generator)
    floats = kept is not None and kept.is_floating_point()
    if kept is not None:
        shown = kept[torch.randint(len(kept), (count,), generator=generator)].float()
        made = (made + (shown if floats else shown / 255)) / 2
    return made.to(own.dtype) if floats else (255 * made).round().to(torch.uint8)


def _answers(
    fitted: FittedModel, fresh: Tensor, outcome: Outcome | None, bars: ErrorBars | None, reader: PictureReader | None
) -> tuple[list[Tensor], float | None]:
    """What the engine answers, and how much too wide the error bars of leading directions are, as a share."""
    assert fitted.primal is not None
    x = normalise(fresh, fitted.backbone.contract, fitted.backbone.dtype)
    with torch.no_grad():
        scores = decision(fitted.primal, x)
        wanted = [scores] if outcome is None else [scores, outcome.probabilities(scores)]
        if bars is None or reader is None:
            return wanted, None
        pictures = Pictures(fresh, None, [str(i) for i in range(len(fresh))])
        (found,) = kernel_to_training(with_rows(fitted, reader), reader, pictures, whole=True)
        exact = (variance(solved(fitted).system, found.kernel, found.own)[:, None] * bars.scale).sqrt()
        wanted.append(bars.deviations(decision(bars.columns, x), found.own))
        return wanted, float((wanted[-1] / exact).mean()) - 1


def _compare(run: Runner, fresh: Tensor, wanted: list[Tensor]) -> float:
    """The difference of a file's answers from the model's that all but a few inputs keep; a LayerError if it matters.

    Gradients jump where a unit's input crosses the kink of a ReLU: there another order of summing changes an answer,
    as float32 does against float64, and neither answer is the right one.
    """
    differences = list[NDArray]()
    for count in (1, 2, len(fresh)):  # a constant in the place of the count would show
        for got, true in zip(run(fresh[:count].numpy()), wanted, strict=True):
            own = true[:count].numpy()
            if got.shape != own.shape:
                raise LayerError(f"the file would answer {got.shape} for {count} pictures, not {own.shape}")
            differences.append(np.abs(got - own).max(1) / max(1.0, np.abs(own).max()))
    worst = np.sort(np.stack(differences[-len(wanted) :]).max(0))  # of the whole batch
    few = float(np.concatenate(differences).max())
    usual = float(worst[-1 - KINKS])
    if not (usual <= TOLERANCE and few <= 100 * TOLERANCE):
        raise LayerError(
            f"the file's answers would differ from the model's by {usual:.1e} (at most {few:.1e}), more than "
            f"{TOLERANCE:.0e}"
        )
    return usual


def latencies(runs: list[Callable[[NDArray], Any]], pixels: NDArray) -> list[float]:
    """Median seconds of each, in turn."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(RUNS + 1):
        for run, own in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run(pixels)
            own.append(time.perf_counter() - start)
    return [statistics.median(own[1:]) for own in taken]
