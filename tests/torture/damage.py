"""Damaged pictures, and saved models damaged by accident or forged on purpose."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from cli_cases import small
from forging import reseal, with_arrays
from PIL import Image
from torture.common import Failed, Outcomes, X, model_in, one_sentence, template

import tangentune.estimators.saving
from tangentune import TangentClassifier
from tangentune.errors import TangentuneError
from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import load_pictures

# -- damaged pictures --------------------------------------------------------------------------------------------------


ENDINGS = {"jpeg2000": "jp2"}  # of the files, where the format has another name


@cache
def samples() -> list[tuple[str, bytes]]:
    """Pictures in many formats, modes and ways to pack them, with their endings."""
    wide = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    colour, found = Image.fromarray(wide), []
    deep = Image.fromarray(np.asarray(colour.convert("L"), np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    ways: list[tuple[str, dict[str, Any]]] = [
        (name, {}) for name in ("png", "jpeg", "gif", "bmp", "tiff", "ppm", "pcx")
    ]
    ways += [("png", {"optimize": True, "exif": turned}), ("jpeg", {"progressive": True, "exif": turned})]
    ways += [("tiff", {"compression": one}) for one in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    ways += [("webp", {}), ("webp", {"lossless": True}), ("jpeg2000", {}), ("avif", {}), ("tga", {"rle": True})]
    ways += [
        (name, {"save_all": True, "append_images": [colour.rotate(90)]}) for name in ("gif", "png", "webp", "tiff")
    ]
    for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "F", "I;16"):
        image = deep if mode == "I;16" else colour.convert(mode)
        for name, options in ways:
            if "jpeg" in options.values() and mode not in ("RGB", "L"):  # libtiff complains itself, on stderr
                continue
            stream = io.BytesIO()
            try:
                image.save(stream, name, **options)
            except (OSError, ValueError, KeyError, AttributeError):  # the format has not this mode, or is not here
                continue
            found.append((f".{ENDINGS.get(name, name)}", stream.getvalue()))
    return found


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes from some place on changed, cut, put in, taken out, or mixed with those of another picture."""
    start, length = rng.randrange(len(data)), rng.choice((1, 1, 4, 64, 3000))
    rest, share = data[start:], length / len(data)
    ways: dict[str, Callable[[], bytes]] = {
        "flip": lambda: bytes(byte ^ 1 << rng.randrange(8) if rng.random() < share else byte for byte in rest),
        "cut": lambda: b"",
        "insert": lambda: rng.randbytes(length) + rest,
        "drop": lambda: rest[length:],
        "splice": lambda: rng.choice(samples())[1][start:],
        "blank": lambda: bytes([rng.choice((0, 255))]) * length + rest[length:],
    }
    return data[:start] + ways[rng.choice(sorted(ways))]()


def damaged_pictures(number: int, place: Path) -> Outcomes:
    """A folder of twenty damaged pictures is read, and the unreadable ones are left out with a reason."""
    rng = Random(number)
    for i in range(20):
        ending, data = rng.choice(samples())
        (place / f"{i}{rng.choice((ending, ending, '.png'))}").write_bytes(damaged(rng, data))
    try:
        loaded = load_pictures(place, contract=DataContract((3, 16, 16)), on_error="skip", need_labels=False, n_jobs=1)
    except TangentuneError as error:
        one_sentence(str(error))
        return Outcomes(refused=20)
    if loaded.pixels.shape[1:] != (3, 16, 16) or len(loaded) + len(loaded.skipped) != 20:
        raise Failed(f"{len(loaded)} of shape {tuple(loaded.pixels.shape)} and {len(loaded.skipped)} left out")
    for _, reason in loaded.skipped:
        one_sentence(reason)
    return Outcomes(read=len(loaded), skipped=len(loaded.skipped))


# -- damaged models ----------------------------------------------------------------------------------------------------


def damaged_model(number: int, place: Path) -> Outcomes:
    """Files changed by accident: refused, or what was damaged does not count."""
    rng = Random(number)
    model = model_in(place)
    file = rng.choice(sorted(model.iterdir()))
    if rng.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(damaged(rng, file.read_bytes()))
    loaded = _load(model)
    if loaded is None:
        return Outcomes(refused=1)
    if not np.array_equal(loaded.decision_function(X[20:24]), _answers()):
        raise Failed(f"damage to {file.name} changed the answers")
    return Outcomes(same=1)


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 10**400, 1e308, -0.5, "", "../x", "<U400000000", "x" * 9999, [], [[]], {}, {"a": 1}, [None]
)  # fmt: skip


def forged_model(number: int, place: Path) -> Outcomes:
    """Settings or arrays changed, and the checksums too: refused, or it is a model that answers and can be edited."""
    rng = Random(number)
    model = model_in(place)
    config = json.loads((model / "config.json").read_text())
    if rng.random() < 0.7:
        places = [one for one in _places(config) if one[0] != "config_sha256"]
        *inside, last = rng.choice(places)
        target = config
        for name in inside:
            target = target[name]
        if rng.random() < 0.2:
            del target[last]
        else:
            target[last] = rng.choice(VALUES)
        reseal(model, config)
    else:
        with_arrays(model, lambda arrays: _forge(rng, arrays), rng.choice(("tensors", "pictures")))
    loaded = _load(model)
    if loaded is None:
        return Outcomes(refused=1)
    if not np.isfinite(loaded.decision_function(X[20:24])).all():
        raise Failed("a forged model answers NaN")
    try:
        loaded.forget([loaded.ids_[0]]).save_pretrained(place / "again")
    except TangentuneError as error:
        one_sentence(str(error))
    return Outcomes(answers=1)


def _places(config: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a document."""
    if not isinstance(config, dict | list):
        return []
    inside = config.items() if isinstance(config, dict) else enumerate(config)
    return [place for key, value in inside for place in ((*before, key), *_places(value, (*before, key)))]


def _forge(rng: Random, arrays: dict[str, torch.Tensor]) -> None:
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    ways: dict[str, Callable[[], Any]] = {
        "gone": lambda: None, "NaN": lambda: torch.full_like(array.double(), torch.nan), "shorter": lambda: array[1:],
        "deeper": lambda: array[None], "other": lambda: array.to(rng.choice((torch.float16, torch.int8, torch.bool))),
        "longer": lambda: torch.cat([array, array]), "zero": lambda: torch.zeros_like(array),
    }  # fmt: skip
    if (made := ways[rng.choice(sorted(ways))]()) is None:
        del arrays[name]
    else:
        arrays[name] = made


@cache
def _answers() -> Any:
    return TangentClassifier.from_pretrained(template() / "models" / "m", backbone=small()).decision_function(X[20:24])


def _load(model: Path) -> TangentClassifier | None:
    try:
        with patch.object(tangentune.estimators.saving, "load_backbone", small):
            return TangentClassifier.from_pretrained(model)
    except TangentuneError as error:
        one_sentence(str(error))
        return None
