"""One file that a killed run goes on from: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tangentune._files import plain, replaced_file
from tangentune.errors import StoreError
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.networks.backbone import Backbone, parameter_digest
from tangentune.pictures.checks import pictures_digest
from tangentune.pictures.pictures import Pictures

KIND = "tangentune LQF checkpoint 1"


def identity(backbone: Backbone, pictures: Pictures, settings: LQFSettings) -> dict[str, Any]:
    """What a run depends on, as JSON-able values."""
    seen = hashlib.sha256("".join(pictures_digest(pictures.pixels)).encode())
    seen.update(json.dumps([] if pictures.labels is None else pictures.labels.tolist()).encode())
    network = {"parameters": parameter_digest(backbone.module), "contract": backbone.contract.to_dict()}
    return plain({"settings": asdict(settings), "pictures": seen.hexdigest(), "network": network})


@final
@dataclass(frozen=True)
class Checkpoint:
    """Where a run's state is kept, and what the run is."""

    path: Path
    identity: dict[str, Any]

    def write(self, tensors: dict[str, Tensor], book: dict[str, Any]) -> None:
        """Replace the file in one move.

        Raises:
            StoreError: if it cannot be written.
        """
        header = {"format": "pt", "kind": KIND, "identity": json.dumps(self.identity), "book": json.dumps(plain(book))}
        with replaced_file(self.path) as part:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=header)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `write` wrote last; None where there is no file yet.

        Raises:
            StoreError: the file is damaged, no checkpoint, or one of another run.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("kind") != KIND:
                    message = f"{self.path} is no checkpoint of an LQF run; give another path"
                    raise StoreError(message)
                self._refuse_other(json.loads(header["identity"]))
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return tensors, json.loads(header["book"])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            message = f"the checkpoint {os.fspath(self.path)} cannot be read ({error}); delete it to start over"
            raise StoreError(message) from error

    def _refuse_other(self, other: dict[str, Any]) -> None:
        if other == self.identity:
            return
        mine, theirs = self.identity["settings"], other["settings"]
        different = [name for name in mine if mine[name] != theirs.get(name)]
        if different:
            name = different[0]
            what = f"other settings ({name} was {theirs.get(name)!r} and is {mine[name]!r})"
        else:
            what = "other pictures or labels" if other["pictures"] != self.identity["pictures"] else "another network"
        message = f"the checkpoint {self.path} is of a run with {what}; delete it or give another path"
        raise StoreError(message)
