"""Formats that Pillow reads in part: their pixels are right, or the sentence says what they are."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import try_decode

GREY = DataContract(input_size=(1, 8, 8))
RGB = DataContract(input_size=(3, 8, 8))
DEEP = np.array([0, 1000, 2000, 30000, 40000, 50000, 60000, 65535])


def tiff(pixels: np.ndarray, photometric: int = 1, bits: int | None = None) -> bytes:
    """An uncompressed TIFF of (8, 8) or (8, 8, channels) little-endian numbers, or of packed bytes of `bits`."""
    bits = pixels.dtype.itemsize * 8 if bits is None else bits
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data, after = pixels.tobytes(), 8 + 2 + 10 * 12 + 4
    words = [struct.pack(f"<{channels}H", *[value] * channels) for value in (bits, kind)]
    there = [
        word.ljust(4, b"\0") if len(word) <= 4 else struct.pack("<I", after + i * len(word))
        for i, word in enumerate(words)
    ]
    rest = b"".join(word for word in words if len(word) > 4)

    def entry(tag: int, form: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, form, 1, value)

    entries = [
        entry(256, 3, 8),
        entry(257, 3, 8),
        struct.pack("<HHI", 258, 3, channels) + there[0],
        entry(259, 3, 1),
        entry(262, 3, photometric),
        entry(273, 4, after + len(rest)),
        entry(277, 3, channels),
        entry(278, 3, 8),
        entry(279, 4, len(data)),
        struct.pack("<HHI", 339, 3, channels) + there[1],
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + rest + data


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bits: int, colour: int, row: bytes, transparent: bytes = b"") -> bytes:
    """A PNG of eight equal rows of eight pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
    return b"\x89PNG\r\n\x1a\n" + head + key + data + chunk(b"IEND", b"")


def first_row(path: Path, content: bytes, contract: DataContract = GREY) -> list[list[int]]:
    path.write_bytes(content)
    pixels = try_decode(path, contract)
    assert isinstance(pixels, np.ndarray), pixels
    return pixels[:, 0].tolist()


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.zeros((8, 8, 5), "u1"), "of 5 channels of 8-bit numbers"),
        (np.zeros((8, 8), "<f8"), "of 1 channel of 64-bit floating-point numbers"),
        (np.zeros((8, 8), "<f2"), "of 1 channel of 16-bit floating-point numbers"),
        (np.zeros((8, 8, 2), "<u2"), "of 2 channels of 16-bit numbers"),
    ],
)
def test_tiffs_that_cannot_be_read_are_named_for_what_they_are(tmp_path: Path, pixels: np.ndarray, kind: str) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(pixels))
    assert str(try_decode(tmp_path / "a.tif", RGB)).startswith(f"it is a TIFF {kind}, which cannot be read; save it as")


def test_deep_tiffs_that_count_from_white_are_not_inverted(tmp_path: Path) -> None:
    path, deep = tmp_path / "a.tif", np.tile(DEEP, (8, 1))
    black = np.rint(DEEP / 257).astype(int)
    assert first_row(path, tiff(deep.astype("<u2"))) == [black.tolist()]
    assert first_row(path, tiff(deep.astype("<u2"), photometric=0)) == [(255 - black).tolist()]
    assert first_row(path, tiff((deep / 65535).astype("<f4"), photometric=0)) == [(255 - black).tolist()]
    bytes_ = np.tile(np.arange(8, dtype="u1") * 30, (8, 1))
    assert first_row(path, tiff(bytes_, photometric=0)) == [(255 - bytes_[0].astype(int)).tolist()]


def test_twelve_bit_tiff_has_its_full_range(tmp_path: Path) -> None:
    packed = np.tile(np.array([0x00, 0x0F, 0xFF], "u1"), (8, 4))  # 0 and 4095
    assert first_row(tmp_path / "a.tif", tiff(packed, bits=12)) == [[0, 255] * 4]


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (16, DEEP.astype(">u2").tobytes(), 1000, [0, 255, 8, 117, 156, 195, 233, 255]),
        (8, bytes(range(0, 80, 10)), 10, [0, 255, 20, 30, 40, 50, 60, 70]),
        (4, bytes([0x01, 0x23, 0x45, 0x67]), 1, [0, 255, 34, 51, 68, 85, 102, 119]),
        (2, bytes([0b00011011] * 2), 1, [0, 255, 170, 255] * 2),
        (1, bytes([0b01010101]), 0, [255] * 8),
    ],
)
def test_grey_that_stands_for_transparent_is_white_at_every_depth(
    tmp_path: Path, bits: int, row: bytes, key: int, expected: list[int]
) -> None:
    assert first_row(tmp_path / "a.png", png(bits, 0, row, struct.pack(">H", key))) == [expected]


def test_colour_that_stands_for_transparent_is_white_at_sixteen_bits(tmp_path: Path) -> None:
    row = struct.pack(">HHH", 0x1234, 0x5678, 0) * 4 + struct.pack(">HHH", 0xFF00, 0, 0) * 4
    found = first_row(tmp_path / "a.png", png(16, 2, row, struct.pack(">HHH", 0x1234, 0x5678, 0)), RGB)
    assert found == [[255] * 8, [255] * 4 + [0] * 4, [255] * 4 + [0] * 4]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("orientation", [6, 8])
def test_turned_tiffs_that_could_be_mapped_into_memory_are_upright(tmp_path: Path, mode: str, orientation: int) -> None:
    upright = np.repeat(np.array([[240, 160], [80, 0]], np.uint8), 4, axis=0).repeat(4, axis=1)[:, :6]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(np.rot90(upright, 1 if orientation == 6 else -1))
    Image.fromarray(stored).convert(mode).save(tmp_path / "a.tif", exif=exif)
    pixels = try_decode(tmp_path / "a.tif", DataContract(input_size=(1, 8, 6)))
    np.testing.assert_array_equal(pixels, upright[None])
