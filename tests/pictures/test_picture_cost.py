"""What a picture may cost: strips, floods of scans, hidden sizes and texts, transparent giants."""

from __future__ import annotations

import io
import math
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tangentune.errors import InputError
from tangentune.pictures import cost, decode
from tangentune.pictures.arrays import load_array
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import prepare_picture, try_decode
from tangentune.pictures.decode_pool import decode_files

RGB = DataContract(input_size=(3, 8, 8))


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("crop", [None, 0.5, 0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("sides", [(700, 20), (20, 700), (2000, 3), (3, 2000), (1, 500), (40, 50)])
def test_only_the_part_that_is_kept_gives_the_same(
    sides: tuple[int, int], interpolation: str, crop: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(noise(*sides))
    contract = DataContract(input_size=(3, 24, 32), crop=crop, interpolation=interpolation)
    whole = prepare_picture(picture, contract)
    monkeypatch.setattr(decode, "MOST_PIXELS", 1)
    part = prepare_picture(picture, contract)
    assert abs(part.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("sides", [(20_000, 1), (1, 20_000), (300_000, 1), (1, 300_000)])
@pytest.mark.parametrize("crop", [None, 0.875])
def test_strips_cost_what_their_target_costs(
    sides: tuple[int, int], crop: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(noise(*sides)).save(tmp_path / "strip.png")
    sizes, resize = [], Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        sizes.append(max(math.prod(size), size[0] * self.height))
        return resize(self, size, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    contract = DataContract(input_size=(3, 224, 224), crop=crop)
    assert not isinstance(try_decode(tmp_path / "strip.png", contract), str)
    assert max(sizes) <= decode.MOST_PIXELS


def test_float_strips_are_refused_in_a_sentence() -> None:
    strip, contract = np.zeros((2, 3, 1, 20_000), np.float32), DataContract((3, 224, 224), crop=0.875)
    with pytest.raises(InputError, match=r"20000 x 1 pixels would have to be resized to 5120000 x 256; cut them first"):
        load_array(strip, contract)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_pictures_are_converted_in_bands(mode: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = noise(30, 41, 1)[..., 0]
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(grey / np.float32(255))
    else:
        picture = Image.fromarray(noise(30, 41, 4)).convert(mode)
    contract = DataContract(input_size=(channels, 41, 30))
    whole = prepare_picture(picture, contract)
    monkeypatch.setattr(decode, "_BAND_PIXELS", 95)
    np.testing.assert_array_equal(prepare_picture(picture, contract), whole)


# ---------------------------------------------------------------- limits


def small_limit(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)


def test_formats_that_take_much_memory_are_held_to_fewer_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.webp", "a.png"):
        Image.fromarray(noise(40, 30)).save(tmp_path / name)
    small_limit(monkeypatch, 1200)
    reason = str(try_decode(tmp_path / "a.webp", RGB))
    assert reason.startswith("decoding its 1,200 pixels of WEBP takes ")
    assert reason.endswith("save it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it")
    assert not isinstance(try_decode(tmp_path / "a.png", RGB), str)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not isinstance(try_decode(tmp_path / "a.webp", RGB), str)


def test_jpeg_2000_is_read_smaller_where_it_would_take_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[0:200, 0:300]
    Image.fromarray((120 + 60 * np.sin(x / 30) + 60 * np.cos(y / 20)).astype(np.uint8)).save(tmp_path / "a.jp2")
    whole = try_decode(tmp_path / "a.jp2", RGB)
    small_limit(monkeypatch, 60_000)
    half = try_decode(tmp_path / "a.jp2", RGB)
    assert isinstance(half, np.ndarray)
    assert isinstance(whole, np.ndarray)
    assert 0 < abs(half.astype(int) - whole).max() <= 4
    assert "pixels of JPEG2000" in str(try_decode(tmp_path / "a.jp2", DataContract(input_size=(3, 64, 64))))


def flood(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG with its last scan again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 99).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_floods_of_scans_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "usual.jpg").write_bytes(flood(1))
    (tmp_path / "flood.jpg").write_bytes(flood(3000))
    assert not isinstance(try_decode(tmp_path / "flood.jpg", RGB), str)  # a small one is quick
    small_limit(monkeypatch, 64 * 64)
    assert not isinstance(try_decode(tmp_path / "usual.jpg", RGB), str)
    assert re_scans(str(try_decode(tmp_path / "flood.jpg", RGB))) > 3000


def re_scans(reason: str) -> int:
    assert reason.startswith("it is a JPEG of "), reason
    return int(reason.split()[5].replace(",", ""))


def test_a_decoder_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_SECONDS_ALLOWED", -1.0)
    for suffix in ("jpg", "png", "gif", "bmp", "tif", "ppm"):
        Image.fromarray(noise(300, 200)).save(tmp_path / f"a.{suffix}")
        assert "takes more than -1 seconds" in str(try_decode(tmp_path / f"a.{suffix}", RGB)), suffix


def test_texts_in_a_png_say_nothing_about_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    long = zlib.compress(bytes(3_000_000))
    texts = [chunk(b"zTXt", b"a\0\0" + long), chunk(b"iTXt", b"a\0\1\0\0\0" + long), chunk(b"iCCP", b"a\0\0" + long)]
    texts.append(chunk(b"tEXt", b"a\0" + b"x" * 900_000) * 80)  # more than Pillow keeps in all
    paths = [str(tmp_path / f"{i}.png") for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        Path(path).write_bytes(plain[:33] + text + plain[33:])
    expected = try_decode(tmp_path / "plain.png", RGB)
    for limit in (PngImagePlugin.MAX_TEXT_CHUNK, 1 << 24, 1 << 10):
        monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", limit)
        for n_jobs in (1, 2):
            for found in decode_files(paths, RGB, n_jobs):
                np.testing.assert_array_equal(found, expected)


GIANT = """
import resource, sys
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import try_decode
try_decode(sys.argv[2], DataContract(input_size=(3, 64, 64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = try_decode(sys.argv[1], DataContract(input_size=(3, 64, 64)))
assert not isinstance(found, str), found
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_transparent_giant_takes_little_more_than_its_pixels(tmp_path: Path) -> None:
    """Sixteen million pixels in a file of a few kilobytes."""
    Image.new("RGBA", (4000, 4000), (9, 9, 9, 99)).save(tmp_path / "giant.png", compress_level=1)
    Image.new("RGBA", (8, 8)).save(tmp_path / "small.png")
    start = time.perf_counter()
    command = [sys.executable, "-c", GIANT, str(tmp_path / "giant.png"), str(tmp_path / "small.png")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 200  # MiB; 61 of pixels, as many of their colours
    assert time.perf_counter() - start < 30
