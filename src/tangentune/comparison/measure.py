"""Draw pictures for the test and for training; fit one method to them, under the same conditions as every other."""

from __future__ import annotations

import gc
import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from tangentune._files import plain
from tangentune._version import __version__
from tangentune.comparison.methods import METHODS, MethodSettings
from tangentune.comparison.plan import ALL, Shots
from tangentune.comparison.summary import Cell, pack_right
from tangentune.errors import InputError, TangentuneError, first_line, number
from tangentune.estimators.scores import class_scores
from tangentune.memory import Meter, reset_peak, warm_pages
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.networks.backbone import Backbone
from tangentune.pictures.checks import one_class_each
from tangentune.pictures.contract import PREPARATION
from tangentune.pictures.load import Pictures, check_classes

_FAILURES = (TangentuneError, MemoryError, RuntimeError, ArithmeticError)  # torch's own are RuntimeErrors
TEST_SEED = 12345
IntArray = NDArray[np.int64]


def split_test(labels: NDArray[Any], share: float) -> tuple[IntArray, IntArray]:
    """Sorted positions `(train, test)`: of every class (n,) a rounded share, at least one picture of two, never all."""
    if number(share) is None or not 0 < share < 1:
        raise InputError(f"the test share is {share!r}; it must be between 0 and 1")
    train, test = split_rows(np.unique(labels, return_inverse=True)[1], share, TEST_SEED)
    if not len(test):
        raise InputError("no class has two pictures, so none can be kept for the test; give test pictures of their own")
    return train, test


def draw(labels: NDArray[Any], shots: int | None, seed: int) -> IntArray:
    """Sorted positions of `shots` (None: all) random pictures of every class (n,); those of one seed are nested."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


@final
@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells have in common; refuses labels that are missing, of one class only, or of the test only."""

    backbone: Backbone  # at the pictures' size
    train: Pictures  # to draw from, with labels
    test: Pictures  # to score on, with labels that `train` has too
    settings: MethodSettings  # what methods are told; the seed is each cell's own

    def __post_init__(self) -> None:
        known, given = class_labels(self.train), class_labels(self.test)
        check_classes(known, self.train.ids)
        strange = np.flatnonzero(~np.isin(given, known))
        if len(strange):
            raise InputError(
                f"{len(strange)} of {len(self.test)} test pictures have labels that no training picture has, such "
                f"as {given[strange[0]].item()!r} of {self.test.ids[strange[0]]}"
            )

    def describe(self, test_share: float | None) -> dict[str, Any]:
        """Settings that make cells comparable, for JSON; warns of test pictures that are training pictures as well."""
        counts = Counter(str(label) for label in class_labels(self.train).tolist())
        given = set(self.train.digests)
        shared = sum(digest in given for digest in self.test.digests)
        if shared:
            sentence = (
                f"{shared} of {len(self.test)} test pictures are also among the training pictures, equal in every "
                "pixel, so all accuracies are optimistic"
            )
            warnings.warn(sentence, stacklevel=3)
        known, contract = self.backbone.describe(), self.backbone.contract
        settings = {  # likely causes of a difference first: a refusal names the first three
            "tangentune": __version__,
            "backbone": self.backbone.name,
            "features": known["features"],
            "input_size": None if contract.input_size is None else list(contract.input_size),
            **{name: getattr(contract, name) for name in PREPARATION if name != "input_size"},
            "test_share": test_share,
            "flip": self.settings.flip,
            "batch_size": self.settings.batch_size,
            "device": str(self.backbone.device),
            "threads": torch.get_num_threads(),
            "backbone_digest": known["digest"],
            "train_digest": _digest(self.train),
            "test_digest": _digest(self.test),
            "classes": dict(sorted(counts.items())),
            "train_pictures": len(self.train),
            "test_pictures": len(self.test),
            "shared_pictures": shared,
            "peak_of": "each fit" if reset_peak(self.backbone.device) else "the process so far",
        }
        return plain(settings)

    def size(self, shots: Shots) -> int:
        """Training pictures of a cell."""
        return len(self._rows(shots, 0))

    def warm_up(self, methods: Collection[str]) -> None:
        """Import what the methods need and run the network once, so that the first cell does not pay for it."""
        for name in methods:
            import_module(METHODS[name].module)
        contract, dtype, device = self.backbone.contract, self.backbone.dtype, self.backbone.device
        few = self.train.select(slice(0, 2))
        self.backbone.check(next(few.batches(contract, 2, dtype, device)))

    def measure(self, method: str, shots: Shots, seed: int) -> Cell:
        """Fit, predict and score; a failure is the cell's result. Warnings become its notes."""
        train = self.train.select(self._rows(shots, seed))
        cell = Cell(method, shots, seed, len(train))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                cell = self._fit_and_score(cell, train)
            except _FAILURES as error:
                name = "" if isinstance(error, TangentuneError) else f"{type(error).__name__}: "
                cell = replace(cell, failed=name + first_line(error))
        return replace(cell, notes=list(dict.fromkeys(str(warning.message) for warning in caught)))

    def _rows(self, shots: Shots, seed: int) -> NDArray[np.int64]:
        return draw(class_labels(self.train), None if shots == ALL else int(shots), seed)

    def _fit_and_score(self, cell: Cell, train: Pictures) -> Cell:
        gc.collect()
        device = self.backbone.device
        meter, cpu = Meter(device), time.process_time()
        with meter.stage("before"):
            pass
        with warm_pages(), meter.stage("fit"):
            fitted = METHODS[cell.method].fit(self.backbone, train, replace(self.settings, seed=cell.seed))
            if device.type == "cuda":  # accelerators work on after a call returns
                torch.cuda.synchronize(device)
        cpu = time.process_time() - cpu
        with warm_pages(), meter.stage("predict"):
            # One precision for all: a probability of zero then costs every method the same.
            proba: NDArray[Any] = np.asarray(fitted.predict_proba(self.test), np.float32)
        before, fit, predict = meter.stages
        if not np.isfinite(proba).all():
            raise InputError("its probabilities are not all finite numbers")
        positions = np.searchsorted(fitted.classes, class_labels(self.test))
        return replace(
            cell,
            scores=class_scores(positions, proba),
            right=pack_right(proba.argmax(axis=1) == positions),
            seconds=fit["seconds"],
            cpu_seconds=cpu,
            predict_seconds=predict["seconds"],
            peak_bytes=fit["peak_bytes"],
            before_bytes=before["peak_bytes"],
            chosen=plain(fitted.chosen),
        )


def class_labels(pictures: Pictures) -> NDArray[Any]:
    """The (n,) class labels; an InputError where there are none, or they are numbers to predict."""
    labels = None if pictures.labels is None else one_class_each(pictures.labels)
    if labels is None or labels.dtype.kind == "f":
        raise InputError("a comparison needs one class label per picture; give class folders or a CSV file with labels")
    return labels


def _digest(pictures: Pictures) -> str:
    """One hash over pixels and labels, in their order."""
    labels = class_labels(pictures).tolist()
    lines = [f"{digest} {label}" for digest, label in zip(pictures.digests, labels, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
