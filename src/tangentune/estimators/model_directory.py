"""A model on disk: a directory with tensors, settings and a card; written whole or not at all.

    MODEL/config.json         settings, format version, and the checksums of itself and of the tensors
    MODEL/model.safetensors   every array (no code can hide in it; nothing is ever unpickled)
    MODEL/pictures.safetensors the training pictures, if they are kept
    MODEL/rows.safetensors    their rows, if they were asked for (row_file.py); gone with every save
    MODEL/audit.jsonl         what was changed after the fit, if anything was
    MODEL/README.md           the model card, for people

A model is written into a hidden sibling directory, flushed to the disk, and only then takes its place, in one
step where the file system can swap two directories. Readers need no lock: they notice a swap and read again. Writers
take one beside the model, so that whatever else lies beside it is dead, and is removed before they say that they are
done: it may hold what was forgotten.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from torch import Tensor

from tangentune import _files
from tangentune.errors import InputError, StoreError
from tangentune.estimators import audit
from tangentune.estimators.record import COUNT, DIGEST, TEXT, Check, Misfit, each, fields, maybe, one_of

FORMAT, FORMAT_VERSION = "tangentune-model", 2
CONFIG, TENSORS, CARD, REPORT = "config.json", "model.safetensors", "README.md", "report.html"
PICTURES, ROWS, AUDIT = "pictures.safetensors", "rows.safetensors", "audit.jsonl"
ENVELOPE = ("format", "format_version", "tensors", "pictures", "edits", "card_sha256", "config_sha256")
_OURS = re.compile(
    rf"{CONFIG}|{TENSORS}|{CARD}|{REPORT}|{PICTURES}|{ROWS}|{AUDIT}|\.({REPORT}|{ROWS})\.[0-9a-f]{{12}}\.part"
    rf"|\.{REPORT}\.partial"  # as an earlier version left it
)
_READ_ATTEMPTS = 5


def _file(name: str) -> Check:
    return fields({"file": one_of(name), "bytes": COUNT, "sha256": DIGEST, "names": each(TEXT)})


_CHECK_ENVELOPE = fields(
    {
        "tensors": _file(TENSORS),
        "pictures": maybe(_file(PICTURES)),
        "edits": fields({"lines": COUNT, "seal": DIGEST}),
        "config_sha256": DIGEST,
    },
    {"card_sha256": DIGEST},  # older models have none
    more=True,
)


@final
@dataclass(frozen=True)
class Version:
    """A model as it stood in a directory when it was read or written there: the checksum of its settings."""

    directory: Path
    seal: str


class Contents(NamedTuple):
    """All of a model: settings without the keys of this module, tensors on the CPU, log of edits, which version."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    edits: list[dict[str, Any]]
    version: Version


# -- writing -----------------------------------------------------------------------------------------------------------


def write_model(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str,
    pictures: Tensor | None = None,
    edits: Sequence[dict[str, Any]] = (),
    known: Version | None = None,
) -> Version:
    """Write a model directory, or leave everything as it was.

    An older model in the same place is replaced after the new one is complete and on the disk. The keys in `ENVELOPE`
    belong to this module; `pictures` are pixels to keep in a file of their own, `edits` lines of the audit log, `known`
    the version that the new one follows. A StoreError: the place cannot be used (see `check_destination`), another
    version is there, the disk is full, an older version cannot be removed, or the settings hold something JSON cannot.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> version = write_model(folder, {"damping": 0.1}, {"weights": torch.arange(3.0)}, "# A card")
        >>> model = read_model(folder)
        >>> model.settings["damping"], model.tensors["weights"].tolist()
        (0.1, [0.0, 1.0, 2.0])
    """
    target = check_destination(directory)
    if taken := sorted(set(ENVELOPE) & set(config)):
        raise StoreError(f"the settings may not use the key {taken[0]!r}, which belongs to the store")
    try:
        settings = _files.plain(config, "config")
    except InputError as error:
        raise StoreError(f"cannot write the model to {target}: {error}") from error
    contents = {TENSORS: _own_storage(tensors)}
    if pictures is not None:
        contents[PICTURES] = _own_storage({"pixels": pictures})
    needed = sum(t.nbytes for arrays in contents.values() for t in arrays.values())
    with _files.locked(target):
        check_destination(target)  # as it is now
        if known is not None and known.directory == target:
            check_version(target, known)
        _files.remove_leftovers(target)  # they need room
        partial = None
        try:
            _check_space(target, needed)
            partial = _files.make_partial(target)
            seal = _fill(partial, settings, contents, card, edits)
            _files.put_in_place(partial, target)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = f"the disk {'is full' if full else 'refused'} ({error.strerror or error})"
            raise StoreError(f"cannot write the model to {target}: {reason}; nothing was changed") from error
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
        _files.remove_leftovers(target, "the model is written, but ")
    return Version(target, seal)


def check_destination(directory: str | os.PathLike[str]) -> Path:
    """The resolved path, if a model could be written here, found out before the work; else a StoreError: it is a file,
    a mount point, a directory of something else or of links, holds files that would be lost, or is read-only.
    """
    target = Path(os.path.abspath(directory))
    try:
        target = Path(os.path.realpath(directory))
        _files.check_exchangeable(target)
        parent, exists = _files.existing_ancestor(target), target.exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = "; name a folder in it, or mount the one above it" if getattr(error, "errno", 0) == errno.EBUSY else ""
        raise _not_writable(target, f"{reason}{hint}") from error
    if exists:
        _check_replaceable(target)
    if not parent.is_dir():
        raise _not_writable(target, f"{parent} is a file, not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _not_writable(target, f"no permission to write in {parent}")
    return target


def version_of(directory: str | os.PathLike[str]) -> Version | None:
    """What is in a directory; None where there is no model."""
    target = Path(os.path.realpath(directory))
    try:
        return Version(target, _files.from_json((target / CONFIG).read_bytes())["config_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def saved_seal(directory: Path) -> str:
    """With which seal the log of a saved model ends."""
    return _parse(directory, read_text(directory))["edits"]["seal"]


def check_version(directory: Path, known: Version | None) -> None:
    """Refuse to go on where another model than the known one is in a directory; the lock should be held."""
    found = version_of(directory)
    if found is not None and (known is None or found.seal != known.seal):
        raise StoreError(
            f"the model in {directory} was changed by another process meanwhile; read it again and repeat this"
        )


@contextmanager
def beside_version(folder: Path, known: Version | None) -> Iterator[None]:
    """Write a file into a folder; if a model is there, only while it is the known version: edits remove such files."""
    target = Path(os.path.realpath(folder))
    if version_of(target) is None:
        yield
        return
    writable = os.access(target.parent, os.W_OK | os.X_OK)  # else nobody can edit the model either
    with _files.locked(target) if writable else nullcontext():
        check_version(target, known)
        yield


def _check_replaceable(target: Path) -> None:
    """Refuse what must not be replaced; looked at again if another writer has put another version there meanwhile."""
    seen = _identity(target)
    try:
        _check_directory(target)
    except (StoreError, OSError):
        if _identity(target) == seen:
            raise
        _check_replaceable(target)


def _identity(target: Path) -> tuple[int, int] | None:
    """Which directory it is; one that is exchanged and comes back has another time of change."""
    try:
        found = target.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _check_directory(target: Path) -> None:
    if not target.is_dir():
        raise _not_writable(target, "it is a file; name a directory")
    if not os.access(target, os.W_OK | os.X_OK):
        raise _not_writable(target, "no permission to write there")
    inside = sorted(target.iterdir())
    if not inside:
        return
    try:
        config = _files.from_json((target / CONFIG).read_bytes())
        ours, card = config.get("format") == FORMAT, config.get("card_sha256")
    except (OSError, ValueError, AttributeError):
        ours, card = False, None
    if not ours:
        hint = "choose another directory or empty this one"
        raise StoreError(f"{target} exists and is not a tangentune model, so it is left alone; {hint}")
    if any(entry.is_symlink() for entry in inside):
        hint = "copy what they point to (cp -rL) and use the copy"
        raise StoreError(
            f"the files of the model in {target} are links, and what they point to would stay as it is; {hint}"
        )
    foreign = [entry for entry in inside if not (_OURS.fullmatch(entry.name) and entry.is_file())]
    if card is not None and (target / CARD).is_file() and _files.file_digest(target / CARD) != card:
        foreign.append(target / CARD)
    if foreign:
        lost = f"{foreign[0].name!r}, which tangentune did not write; move it away or choose another directory"
        raise StoreError(f"replacing the model in {target} would delete {lost}")


def _not_writable(target: Path, why: str) -> StoreError:
    return StoreError(f"cannot write a model to {target}: {why}")


def _fill(
    folder: Path,
    config: dict[str, Any],
    contents: dict[str, dict[str, Tensor]],
    card: str,
    edits: Sequence[dict[str, Any]],
) -> str:
    """Write all files; config.json, which makes a directory a model, last; gives its checksum."""
    (folder / CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
    listed: dict[str, Any] = {}
    for name, tensors in contents.items():
        file = folder / name
        _files.save_tensors(file, {"format": "pt"}, tensors)
        shutil.copymode(folder / CARD, file)  # the library lets nobody else read its file
        listed[name] = {
            "file": name,
            "bytes": file.stat().st_size,
            "sha256": _files.file_digest(file),
            "names": sorted(tensors),
        }
    if edits:
        (folder / AUDIT).write_text(audit.dump(edits), encoding="utf-8")
    envelope = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **config,
        "tensors": listed[TENSORS],
        "pictures": listed.get(PICTURES),
        "edits": {"lines": len(edits), "seal": edits[-1]["seal"] if edits else audit.FIRST},
        "card_sha256": _files.file_digest(folder / CARD),
    }
    envelope["config_sha256"] = audit.seal(envelope, "config_sha256")
    text = json.dumps(envelope, indent=2, ensure_ascii=False, allow_nan=False)
    # Names of files may hold bytes that are no text; as escapes they are still JSON and come back the same.
    (folder / CONFIG).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
    for path in (*sorted(folder.iterdir()), folder):
        _files.flush(path)
    return envelope["config_sha256"]


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory (the file format has no views)."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != plain.nbytes
        result[name] = plain.clone() if plain.numel() and shared else plain
        seen.add(result[name].untyped_storage().data_ptr())
    return result


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(_files.existing_ancestor(target)).free
    if free < needed:
        text = f"{needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free"
        raise OSError(errno.ENOSPC, text)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_model(directory: str | os.PathLike[str], check: Callable[[dict[str, Any]], None] | None = None) -> Contents:
    """Read what `write_model` wrote, after checking every byte of it against its checksum; a StoreError if that fails.

    The tensors come in fresh memory, laid out as any new tensor, so that products with them give the same bits as
    before saving: a file mapped into memory has another alignment, and products may round otherwise. Kept pictures are
    among them as "pixels". `check` sees the settings before any tensor is read; it raises a Misfit.
    """
    folder = Path(directory)
    for attempt in range(_READ_ATTEMPTS):  # a writer may put another model in its place meanwhile
        before = read_text(folder)
        try:
            found = _read_all(folder, _parse(folder, before), check)
        except StoreError:
            if attempt + 1 == _READ_ATTEMPTS or read_text(folder) == before:
                raise
            continue
        if read_text(folder) == before:
            return found
    raise StoreError(f"{folder} is being rewritten over and over; read it when its writer has ended")


def _read_all(folder: Path, config: dict[str, Any], check: Callable[[dict[str, Any]], None] | None) -> Contents:
    settings = {k: v for k, v in config.items() if k not in ENVELOPE}
    if check is not None:
        with told(folder):
            check(settings)
    tensors = _read_tensors(folder, config["tensors"])
    if config["pictures"] is not None:
        tensors |= _read_tensors(folder, config["pictures"])
    version = Version(Path(os.path.realpath(folder)), config["config_sha256"])
    return Contents(settings, tensors, _read_edits(folder, config["edits"]), version)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """What does not fit in the settings of a model, said of its file."""
    try:
        yield
    except Misfit as error:
        reason = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))  # keys are foreign text
        reason = reason if len(reason) < 200 else f"{reason[:197]}..."
        raise StoreError(f"{folder / CONFIG} does not describe a model that tangentune wrote: {reason}") from error


def _read_edits(folder: Path, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """The audit log, every line checked; empty if the model was never changed."""
    file = folder / AUDIT
    try:
        text = file.read_text(encoding="utf-8") if expected["lines"] or file.exists() else ""
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}") from error
    lines = audit.parse(text, str(file))
    if len(lines) != expected["lines"] or (lines[-1]["seal"] if lines else audit.FIRST) != expected["seal"]:
        raise StoreError(
            f"{file} is damaged: it has {len(lines)} whole lines where {CONFIG} counts {expected['lines']}"
        )
    return lines


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a model, checked as by `read_model`, without reading its tensors."""
    folder = Path(directory)
    return {k: v for k, v in _parse(folder, read_text(folder)).items() if k not in ENVELOPE}


def read_text(folder: Path) -> bytes:
    """The bytes of config.json; a clear refusal where there is none."""
    try:
        return (folder / CONFIG).read_bytes()
    except FileNotFoundError:
        message = f"{folder} is not a tangentune model: it has no {CONFIG}"
        if not folder.exists():
            former = _files.find_former(folder)
            hint = f"; an interrupted save left the former one in {former}, rename it back" if former else ""
            message = f"there is no model in {folder}: the directory does not exist{hint}"
        raise StoreError(message) from None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot read {folder / CONFIG}: {error.strerror if isinstance(error, OSError) else error}"
        ) from error


def _parse(folder: Path, text: bytes) -> dict[str, Any]:
    """The content of config.json, after checking version, completeness and checksum."""
    file = folder / CONFIG
    try:
        config = _files.from_json(text)
    except ValueError as error:
        raise StoreError(f"{file} is damaged: it is not valid JSON ({error})") from error
    ours = isinstance(config, dict) and config.get("format") == FORMAT
    version = config.get("format_version") if ours else None
    problem = ""
    if not ours:
        problem = "does not describe a tangentune model"
    elif isinstance(version, int) and version > FORMAT_VERSION:
        known = f"this tangentune reads up to {FORMAT_VERSION}; update it with: pip install --upgrade tangentune"
        problem = f"has format version {version}, but {known}"
    elif isinstance(version, int) and 0 < version < FORMAT_VERSION:
        problem = f"has format version {version} of an older tangentune; fit the model again"
    elif version != FORMAT_VERSION:
        problem = "is damaged: 'format_version' is missing or wrong"
    else:
        with told(folder):
            _CHECK_ENVELOPE(config, "")
        if config["config_sha256"] != audit.seal(config, "config_sha256"):
            problem = "is damaged or was edited by hand: it does not match its own checksum"
    if problem:
        raise StoreError(f"{file} {problem}")
    return config


def _read_tensors(folder: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    """The arrays of one file, copied into fresh memory, after checking size, checksum and names."""
    file = folder / expected["file"]
    try:
        if (size := file.stat().st_size) != expected["bytes"]:
            problem = f"it has {size} bytes instead of {expected['bytes']}"
        elif _files.file_digest(file) != expected["sha256"]:
            problem = f"its sha256 is not the one in {CONFIG}"
        elif sorted(tensors := _files.load_tensors(file)[1]) != expected["names"]:
            problem = f"it does not hold the arrays that {CONFIG} names"
        else:
            return tensors
    except FileNotFoundError:
        raise StoreError(f"{file} is missing; save the model again") from None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error}") from error
    raise StoreError(f"{file} is damaged: {problem}")
