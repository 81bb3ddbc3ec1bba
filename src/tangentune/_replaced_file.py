"""Write a file under another name first, so that a crash leaves the old one untouched."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tangentune.errors import StoreError


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to beside `path`; at the end, without an error, it takes its place in one move.

    Raises:
        StoreError: if the file system refuses.
    """
    target = Path(path)
    part = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        message = f"cannot write {target}: {error.strerror or error}"
        raise StoreError(message) from error
    finally:
        with suppress(OSError):  # not even the folder could be used
            part.unlink(missing_ok=True)
