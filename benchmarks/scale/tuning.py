"""Ordinary fine-tuning of many pictures, what the fits of the study of scale are held against."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.datasets import ArrayData, few_shot
from benchmarks.record import Row
from benchmarks.study import scores, stopwatch
from tangentune import Backbone, load_pictures
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune

RATES = (1e-4, 3e-4, 1e-3)
EPOCHS = (1, 3, 10)  # the first by all rates; the others by the best of them on the test pictures, which flatters it


def tuned(key: Row, data: ArrayData, backbone: Backbone) -> Row:
    """All layers moved at a rate for some epochs, pictures mirrored at random; judged on all test pictures."""
    torch.set_num_threads(1)
    index = few_shot(data.train_labels, key["a_class"], key["seed"])
    pictures = load_pictures(data.train[index], data.train_labels[index], contract=backbone.contract)
    settings = FineTuneSettings(learning_rate=key["rate"], epochs=key["epochs"])
    with stopwatch() as spent:
        found = fine_tune(backbone, pictures, settings)
    new = load_pictures(data.test, data.test_labels, contract=backbone.contract)
    proba = found.predict_proba(new, flip=True)
    truth = np.eye(len(found.classes))[np.searchsorted(found.classes, data.test_labels)]
    error = float(np.square(proba.numpy() - truth).sum(1).mean())
    return {"pictures": len(pictures), **spent, **scores(proba, found.classes, new), "error": error}
