"""A source behind a fit as settings and tensors, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tangentune.estimators.source_kernels import SourcePictures, SourceSet, with_source
from tangentune.estimators.training_set import TrainingSet
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.source.choice import SourceSetting


def pack(source: SourceSet, active: Tensor, pixels: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a source, with the kernels of the training pictures at some positions only.

    Args:
        source: behind a training set.
        active: (n,) positions.
        pixels: whether to keep the source pictures.
    """
    pictures, setting = source.pictures, source.setting
    settings = {
        "classes": list(pictures.classes),
        "strength": setting.strength,
        "deviation": setting.deviation,
        "damping": setting.damping,
    }
    tensors = {
        "source.positions": pictures.positions,
        "source.given": pictures.given,
        "source.class_weights": setting.class_weights,
        "source.own": source.own,
        "source.cross": source.cross[active],
        "source.plain": source.plain[active][:, active],
    }
    return settings, tensors | ({"source.pixels": pictures.pictures.pixels} if pixels else {})


def unpack(training: TrainingSet, settings: dict[str, Any], tensors: dict[str, Tensor], ids: list[str]) -> TrainingSet:
    """The training set with the source behind it that `pack` packed; 10 m^3.

    Args:
        training: without source.
        settings: of `pack`.
        tensors: of `pack`, among others.
        ids: of the source pictures.
    """
    found = {key.removeprefix("source."): tensor for key, tensor in tensors.items() if key.startswith("source.")}
    here = {key: tensor.to(training.kernel.device) for key, tensor in found.items() if key != "pixels"}
    pixels = found.get("pixels", torch.empty(len(ids), 0))
    classes = tuple(settings["classes"])
    pictures = SourcePictures(Pictures(pixels, None, list(ids)), classes, here["positions"], here["given"])
    numbers = (settings["strength"], settings["deviation"], settings["damping"])
    setting = SourceSetting(*numbers, here["class_weights"])
    plain = TrainingSet(training.pictures, training.numbers, training.points, here["plain"], None)
    return with_source(plain, pictures, here["own"], here["cross"], setting)
