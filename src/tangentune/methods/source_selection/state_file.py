"""The file a stopped pass goes on from: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tangentune._files import plain, replaced_file
from tangentune.errors import StoreError


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where the state of one pass is kept, if anywhere, and what the pass is.

    Attributes:
        path: of the file; None keeps nothing.
        kind: what it is a state of, such as "tangentune scan 1".
        identity: what the pass depends on, JSON-able; read back only if it is the same.
    """

    path: str | os.PathLike[str] | None
    kind: str
    identity: dict[str, Any]

    @classmethod
    def of(cls, path: str | os.PathLike[str] | None, kind: str, identity: Callable[[], dict[str, Any]]) -> Checkpoint:
        """A checkpoint whose identity is worked out only if there is a path."""
        return cls(path, kind, {} if path is None else identity())

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `write` wrote last, as `read_state`; None where there is nothing."""
        return None if self.path is None else read_state(self.path, self.kind, self.identity)

    def write(self, tensors: Mapping[str, Tensor], **book: Any) -> None:
        """Replace the file in one move, as `write_state`."""
        if self.path is not None:
            write_state(self.path, self.kind, self.identity, tensors, **book)


def write_state(
    path: str | os.PathLike[str], kind: str, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], **book: Any
) -> None:
    """Replace the file in one move.

    Args:
        path: of the file.
        kind: what it is a state of, such as "tangentune scan 1".
        identity: what the pass depends on, JSON-able, compared when it is read.
        tensors: the state.
        book: JSON-able values that go with them.

    Raises:
        StoreError: if it cannot be written.
    """
    header = {"kind": kind, "identity": json.dumps(plain(identity)), "book": json.dumps(plain(book))}
    with replaced_file(path) as part:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=header)


def read_state(
    path: str | os.PathLike[str], kind: str, identity: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write_state` wrote last, `(tensors, book)`; None where there is no file yet.

    Args:
        path: of the file.
        kind: as written.
        identity: as written; None takes any.

    Raises:
        StoreError: the file is damaged, of another kind, or of a pass over other data or with other settings.
    """
    if not Path(path).exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("kind") != kind:
                message = f"{path} is no {kind.rsplit(' ', 1)[0]} file of this version; give another path"
                raise StoreError(message)
            if identity is not None:
                _refuse_other(path, json.loads(header["identity"]), plain(identity))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(header["book"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        message = f"{path} cannot be read ({error}); delete it to start over"
        raise StoreError(message) from error


def _refuse_other(path: str | os.PathLike[str], was: dict[str, Any], now: dict[str, Any]) -> None:
    different = [name for name in now if now[name] != was.get(name)]
    if different:
        message = f"{path} was written with other {' and '.join(different)}; delete it to start over"
        raise StoreError(message)
