"""One picture file: every mode and format, orientation, and the size rule."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_cases import SUFFIXES
from PIL import Image

from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import prepare_picture, resize_plan, try_decode

RGB = DataContract(input_size=(3, 8, 8))
GREY = DataContract(input_size=(1, 8, 8))


def decode_file(path: Path, contract: DataContract) -> np.ndarray:
    """Pixels of a file that must be readable."""
    pixels = try_decode(path, contract)
    assert isinstance(pixels, np.ndarray), pixels
    return pixels


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(width: int, height: int) -> Image.Image:
    """A picture with soft and sharp parts, as a photograph has."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [np.sin(x / 97) * 60, np.cos(y / 53) * 60, ((x // 150 + y // 150) % 2) * 80.0]
    return Image.fromarray(np.stack([120 + p for p in planes], axis=2).clip(0, 255).astype(np.uint8))


# ---------------------------------------------------------------- colour


@pytest.mark.parametrize("suffix", [*SUFFIXES, "JPG", "tga", "qoi"])
def test_every_format_gives_its_colours(tmp_path: Path, suffix: str) -> None:
    picture = Image.new("RGB", (8, 8), (200, 40, 90))
    path = tmp_path / f"a.{suffix}"
    if suffix == "qoi":  # written by hand: a header, one pixel, runs of it, the end mark
        body = bytes([0xFE, 200, 40, 90, 0b11000000 | 61, 0b11000000 | 0])
        path.write_bytes(b"qoif" + struct.pack(">IIBB", 8, 8, 3, 0) + body + bytes(7) + b"\x01")
    else:
        options: dict[str, Any] = {"quality": 95} if suffix in ("jpg", "JPG", "webp", "avif") else {}
        picture.save(path, **options)
    pixels = decode_file(path, RGB)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 8, 8)
    tolerance = 4 if suffix in ("jpg", "JPG", "webp", "avif", "jp2") else 0
    np.testing.assert_allclose(pixels[:, 4, 4].astype(int), (200, 40, 90), atol=tolerance)


def test_channels_stay_in_order_and_rows_upright(tmp_path: Path) -> None:
    pixels = noise(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_file(tmp_path / "a.png", RGB), pixels.transpose(2, 0, 1))


def test_grey_is_repeated_and_colour_becomes_luma(tmp_path: Path) -> None:
    grey = noise(8, 8, 1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(decode_file(tmp_path / "grey.png", RGB), np.stack([grey] * 3))
    np.testing.assert_array_equal(decode_file(tmp_path / "grey.png", GREY), grey[None])
    colour = noise(8, 8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode_file(tmp_path / "colour.png", GREY)[0], luma, atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    picture.paste((0, 0, 0, 128), (0, 0, 4, 4))
    picture.convert(mode).save(tmp_path / "a.png")
    pixels = decode_file(tmp_path / "a.png", RGB)
    assert (pixels[:, :, 4:] == 0).all()
    assert (pixels[:, 4:, :4] == 255).all()
    half = pixels[:, :4, :4]
    assert (abs(half.astype(int) - 127) <= 1).all()


def test_transparent_colour_and_palette_entry(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), (10, 20, 30))
    picture.paste((255, 0, 0), (0, 0, 4, 8))
    picture.save(tmp_path / "key.png", transparency=(10, 20, 30))
    assert (decode_file(tmp_path / "key.png", RGB)[:, :, 4:] == 255).all()
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "key.gif", transparency=palette.getpixel((7, 7)))
    pixels = decode_file(tmp_path / "key.gif", RGB)
    assert (pixels[:, :, 4:] == 255).all()
    assert (pixels[0, :, :4] == 255).all()
    assert (pixels[1:, :, :4] == 0).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range(tmp_path: Path, name: str) -> None:
    values = np.array([0, 128, 129, 257, 4095, 32768, 65278, 65535], dtype=np.uint16)
    pixels = np.tile(values, (8, 1))
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode_file(tmp_path / name, GREY)[0], np.tile(expected, (8, 1)))
    np.testing.assert_array_equal(decode_file(tmp_path / name, RGB)[2], np.tile(expected, (8, 1)))


def test_big_endian_sixteen_bit_and_float_tiff(tmp_path: Path) -> None:
    values = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    big = Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes())
    expected = np.rint(values / 257)
    np.testing.assert_array_equal(prepare_picture(big, GREY)[0], expected)
    Image.fromarray((values / 65535).astype(np.float32)).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(decode_file(tmp_path / "f.tif", GREY)[0], expected)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "wide.tif")
    assert "go from 0 to 65520, not 0 to 1; rescale" in str(try_decode(tmp_path / "wide.tif", GREY))
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(tmp_path / "nan.tif")
    assert "from nan" in str(try_decode(tmp_path / "nan.tif", GREY))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path)
    np.testing.assert_allclose(decode_file(path, RGB)[:, 4, 4].astype(int), (255, 0, 0), atol=3)


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV", "RGBX", "RGBa", "La", "PA", "I;16", "I", "F"])
def test_every_pillow_mode_is_taken(mode: str) -> None:
    white = np.full((4, 6), {"I;16": 65535, "I": 65535, "F": 1.0}.get(mode, 255))
    types = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in types:
        picture = Image.fromarray(white.astype(types[mode]))
    elif mode in ("PA", "RGBa", "La"):
        step = {"PA": "P", "RGBa": "RGBA", "La": "LA"}[mode]
        picture = Image.new("RGB", (6, 4), "white").convert(step).convert(mode)
    else:
        picture = Image.new("RGB", (6, 4), "white").convert(mode)
    assert picture.mode == mode
    assert (prepare_picture(picture, RGB) >= 254).all()


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_first_frame_of_many(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert decode_file(tmp_path / name, RGB)[:, 3, 3].tolist() == [255, 0, 0]


# ---------------------------------------------------------------- orientation and size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((12, 8), dtype=np.uint8)
    upright[:6, :4], upright[:6, 4:], upright[6:, :4] = 240, 160, 80
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose}
    undo |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).convert("RGB")
    options: dict[str, Any] = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    stored.save(path, exif=exif, **options)
    pixels = decode_file(path, DataContract(input_size=(1, 12, 8)))[0]
    np.testing.assert_allclose(pixels.astype(int), upright, atol=4)


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    pixels = noise(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffjunk")
    np.testing.assert_array_equal(decode_file(tmp_path / "a.png", RGB), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_squash_is_one_pillow_resize(interpolation: str) -> None:
    picture = Image.fromarray(noise(37, 23))
    contract = DataContract(input_size=(3, 16, 12), interpolation=interpolation)
    expected = picture.resize((12, 16), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(prepare_picture(picture, contract), np.asarray(expected).transpose(2, 0, 1))


def test_crop_resizes_the_shorter_side_and_takes_the_centre() -> None:
    picture = Image.fromarray(noise(400, 300))
    contract = DataContract(input_size=(3, 224, 224), crop=0.875)
    resized = picture.resize((341, 256), Image.Resampling.BICUBIC)  # 400 * 256 / 300 = 341.3
    expected = np.asarray(resized)[16:240, 58:282]
    np.testing.assert_array_equal(prepare_picture(picture, contract), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("width", [1, 7, 300, 5000])
@pytest.mark.parametrize("height", [1, 8, 333])
@pytest.mark.parametrize("crop", [None, 0.5, 0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 40)])
def test_plan_always_covers_the_input(width: int, height: int, crop: float | None, size: tuple[int, ...]) -> None:
    new_w, new_h, left, top = resize_plan(width, height, DataContract(input_size=size, crop=crop))
    assert left >= 0
    assert top >= 0
    assert left + size[2] <= new_w
    assert top + size[1] <= new_h
    if crop is not None and min(width, height) > 100:  # the shape is kept to within a pixel
        assert abs(new_w / width * height - new_h) <= max(1, height / width, width / height)


def test_fraction_that_should_be_whole_is_not_rounded_down() -> None:
    assert 96 / (96 / 118) < 118  # in floating point
    contract = DataContract(input_size=(3, 96, 96), crop=96 / 118)
    assert resize_plan(500, 500, contract)[:2] == (118, 118)


@pytest.mark.parametrize("crop", [None, 0.875])
def test_large_jpeg_by_draft_is_nearly_the_full_decode(tmp_path: Path, crop: float | None) -> None:
    smooth(2400, 1600).save(tmp_path / "big.jpg", quality=90)
    contract = DataContract(input_size=(3, 96, 96), crop=crop)
    drafted = decode_file(tmp_path / "big.jpg", contract)
    with Image.open(tmp_path / "big.jpg") as picture:
        full = prepare_picture(picture, contract)
    difference = abs(drafted.astype(int) - full)
    assert 0 < difference.mean() < 0.25  # not equal, so the draft was used
    assert difference.max() <= 3
