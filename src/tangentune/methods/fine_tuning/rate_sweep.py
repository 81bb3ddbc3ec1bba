"""Ordinary fine-tuning with its learning rate chosen on pictures kept aside, as one has to without leave-one-out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import DivergedError, InputError
from tangentune.memory import progress
from tangentune.methods.fine_tuning.classifier import Classifier, spent
from tangentune.methods.fine_tuning.fit import FineTuned, fine_tune
from tangentune.methods.fine_tuning.labelled import class_positions
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.methods.fine_tuning.validation import Validation, split_rows
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures

Candidate = Callable[[list["Trial"]], FineTuneSettings]  # settings to try, given all trials before
RATES = (5e-5, 1e-4, 2e-4, 4e-4)


@final
@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        settings: all of them.
        validation: how it did on the pictures kept aside; None where it diverged.
        seconds: wall time.
        problem: why there is no validation, else empty.
    """

    settings: FineTuneSettings
    validation: Validation | None
    seconds: float
    problem: str = ""


@final
@usual_torch
@dataclass(frozen=True, eq=False)
class Sweep(Classifier):
    """A fine-tuned network whose settings were chosen on pictures kept aside; the time is that of all trials.

    Attributes:
        tuned: the network that predicts, with the settings that were chosen in `tuned.settings`.
        trials: all that was tried, in order; empty where nothing could be kept aside.
        problem: why nothing was chosen, or why the best trial was not; else empty.
    """

    tuned: FineTuned
    trials: tuple[Trial, ...]
    problem: str

    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) logits; `flip` averages them over each picture and its mirror image."""
        return self.tuned.logits(pictures, batch_size=batch_size, flip=flip)


@usual_torch
def sweep(
    backbone: Backbone,
    pictures: Pictures,
    settings: FineTuneSettings | None = None,
    *,
    rates: Sequence[float] = RATES,
    variants: Sequence[Mapping[str, Any]] = (),
    validation_share: float = 0.2,
    refit: bool = True,
    seed: int = 0,
    verbose: int = 0,
) -> Sweep:
    """Fine-tune with every rate on a part of the pictures, and with the best on all of them.

    Args:
        backbone: stays as it is.
        pictures: at the backbone's size, with class labels.
        settings: what all trials share; None takes the defaults.
        rates: learning rates to try.
        variants: changes of the settings to try after the rates, each on top of the best so far, such as
            `{"head_start": "probe"}`.
        validation_share: of each class, kept aside during the trials, in (0, 1); at least one picture of every class
            that has two. Where no class has two, the rate of `settings` is used unseen.
        refit: train again on all pictures with the chosen settings, for as many epochs as early stopping (if `patience`
            is set) found best, at the chosen trial's temperature. Else the network of the best trial is kept.
        seed: takes the place of that of `settings`.
        verbose: 1 shows progress bars with the time left.

    Returns:
        The network with the table of trials: highest validation accuracy, ties by log-loss. A rate that diverges is
        noted and passed over. Cost: a fine-tuning for each trial, and one more with `refit`.

    Raises:
        InputError: labels are missing or of one class only, there is nothing to try, a setting is out of range, or
            everything diverged (`DivergedError`).
        BackboneError: the backbone's `features` function uses another module than it is given.

    Example:
        >>> import numpy as np, torch
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> backbone = Backbone(torch.nn.Linear(2, 3))
        >>> chosen = sweep(backbone, train, FineTuneSettings(head_start="probe"), rates=(1e-3, 1e-2))
        >>> len(chosen.trials), chosen.predict(train).tolist()
        (2, ['low', 'low', 'high', 'high'])
    """
    began = spent()
    shared = dataclasses.replace(settings or FineTuneSettings(), seed=seed, validation_share=validation_share)
    if not rates or not validation_share:
        raise InputError("a sweep needs a rate and a validation_share above 0")
    plain = [dataclasses.replace(shared, learning_rate=rate) for rate in rates]
    candidates: list[Candidate] = [lambda _, settings=settings: settings for settings in plain]
    candidates += [partial(_changed, change=change) for change in variants]
    trials: list[Trial] = []
    problem = ""
    if len(split_rows(class_positions(pictures)[1], validation_share, seed)[1]):
        trials, tuned = _try_all(backbone, pictures, candidates, not refit, verbose)
        if tuned is None:
            tuned, problem = _refit(backbone, pictures, trials, verbose)
    else:
        problem = "no class has two pictures, so none could be kept aside; the given rate was used unseen"
        tuned = fine_tune(backbone, pictures, dataclasses.replace(shared, validation_share=0.0), verbose=verbose)
    found = (tuned, tuple(trials), problem)
    return Sweep(tuned.backbone, tuned.classes, *spent(began), *found, temperature=tuned.temperature)


def _try_all(
    backbone: Backbone, pictures: Pictures, candidates: list[Candidate], keep: bool, verbose: int
) -> tuple[list[Trial], FineTuned | None]:
    """Every trial, and the best network if it is to be kept."""
    trials, best = [], None
    for candidate in progress(candidates, label="settings", total=None, unit="setting", verbose=verbose):
        settings = candidate(trials)
        start = time.perf_counter()
        try:
            tuned = fine_tune(backbone, pictures, settings, verbose=verbose)
        except DivergedError as error:
            trials.append(Trial(settings, None, time.perf_counter() - start, str(error)))
            continue
        trials.append(Trial(settings, tuned.validation, tuned.seconds))
        if keep and _ranked(trials)[0][0] is trials[-1]:
            best = tuned
    if not _ranked(trials):
        lowest = min(trial.settings.learning_rate for trial in trials)
        raise DivergedError(f"fine-tuning diverged at every rate, down to {lowest:g}; go lower")
    return trials, best


def _changed(trials: list[Trial], change: Mapping[str, Any]) -> FineTuneSettings:
    """The best settings so far, changed; the first where all diverged."""
    best = _ranked(trials)[0][0] if _ranked(trials) else trials[0]
    return dataclasses.replace(best.settings, **change)


def _refit(backbone: Backbone, pictures: Pictures, trials: list[Trial], verbose: int) -> tuple[FineTuned, str]:
    """Train on all pictures with the best settings, or the next best where those diverge; say so."""
    problems = []
    for trial, validation in _ranked(trials):
        settings = dataclasses.replace(trial.settings, validation_share=0.0, epochs=validation.kept)
        try:
            tuned = fine_tune(backbone, pictures, settings, verbose=verbose)
        except DivergedError as error:
            problems.append(f"rate {settings.learning_rate:g} on all pictures: {error}")
            continue
        judged = dataclasses.replace(tuned, validation=validation, temperature=validation.temperature)
        return judged, "; ".join(problems)
    raise DivergedError("; ".join(problems))


def _ranked(trials: list[Trial]) -> list[tuple[Trial, Validation]]:
    """Trials that did not diverge, best first; of equals the first tried."""
    pairs = [(trial, trial.validation) for trial in trials if trial.validation is not None]
    return sorted(pairs, key=lambda pair: (-pair[1].accuracy, pair[1].nll))
