"""Pictures given as arrays: layouts, types, sizes, and values that cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tangentune.errors import InputError
from tangentune.pictures.arrays import load_array
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import prepare_picture

RGB = DataContract(input_size=(3, 8, 8))
GREY = DataContract(input_size=(1, 8, 8))
VECTORS = DataContract(input_size=None)


def uint8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("size", [8, 13])
@pytest.mark.parametrize("make", [uint8, floats])
def test_both_layouts_give_the_same(wrap: Any, size: int, make: Any) -> None:
    first = make(5, 3, size, size)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    one, two = load_array(wrap(first), RGB), load_array(wrap(last), RGB)
    assert one.shape == (5, 3, 8, 8)
    assert one.dtype == (torch.uint8 if make is uint8 else torch.float64)
    assert torch.equal(one, two)


@pytest.mark.parametrize("contract", [RGB, GREY, DataContract((3, 8, 8), crop=0.8, interpolation="lanczos")])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_uint8_is_treated_like_a_picture_file(contract: DataContract, channels: int) -> None:
    pictures = uint8(4, 12, 15, channels)
    images = [Image.fromarray(p[:, :, 0] if channels == 1 else p) for p in pictures]
    expected = np.stack([prepare_picture(image, contract) for image in images])
    np.testing.assert_array_equal(load_array(pictures, contract).numpy(), expected)


def test_grey_stack_and_channel_axis_agree() -> None:
    grey = uint8(4, 8, 8)
    pixels = load_array(grey, RGB)
    assert torch.equal(pixels, torch.from_numpy(np.repeat(grey[:, None], 3, axis=1)))
    assert torch.equal(pixels, load_array(grey[..., None], RGB))
    assert torch.equal(load_array(grey, GREY), torch.from_numpy(grey[:, None]))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(3, 20, 31), (3, 5, 6)])
def test_float_resize_is_the_file_resize_without_rounding(interpolation: str, shape: tuple[int, ...]) -> None:
    contract = DataContract(input_size=(3, 8, 8), interpolation=interpolation)
    soft = uint8(3, *shape) // 3 + 80  # Pillow cuts overshoot after each axis, torch once: keep clear of it
    whole, exact = load_array(soft, contract), load_array(soft / 255, contract)
    assert exact.dtype == torch.float64
    assert (whole - exact * 255).abs().max() < 1.2
    harsh = load_array(uint8(3, *shape) / 255, contract)
    assert harsh.min() >= 0
    assert harsh.max() <= 1


def test_float_resize_against_torch_and_crop() -> None:
    pictures = torch.rand(2, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    squashed = F.interpolate(pictures, size=(8, 8), mode="bilinear", antialias=True)
    contract = DataContract(input_size=(3, 8, 8), interpolation="bilinear")
    torch.testing.assert_close(load_array(pictures, contract), squashed, rtol=0, atol=1e-6)
    resized = F.interpolate(pictures, size=(10, 13), mode="bilinear", antialias=True)  # 40 * 10 / 30 = 13.3
    cropped = load_array(pictures, DataContract((3, 8, 8), interpolation="bilinear", crop=0.8))
    torch.testing.assert_close(cropped, resized[:, :, 1:9, 2:10], rtol=0, atol=1e-6)


def test_pictures_of_the_right_size_are_not_cropped() -> None:
    pictures = uint8(3, 3, 8, 8)
    contract = DataContract(input_size=(3, 8, 8), crop=0.5)
    assert torch.equal(load_array(pictures, contract), torch.from_numpy(pictures))
    assert torch.equal(load_array(pictures / 255, contract), torch.from_numpy(pictures / 255))
    grey = load_array(pictures[:, :1], contract)
    assert torch.equal(grey, torch.from_numpy(pictures[:, :1]).expand(-1, 3, -1, -1))
    luma = load_array(pictures, DataContract(input_size=(1, 8, 8), crop=0.5))
    assert torch.equal(luma, load_array(pictures, GREY))


def test_float_channels() -> None:
    colour = floats(2, 3, 8, 8)
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    np.testing.assert_allclose(load_array(colour, GREY)[:, 0], luma, rtol=0, atol=1e-15)
    clear = np.concatenate([colour, np.zeros((2, 1, 8, 8))], axis=1)
    assert (load_array(clear, RGB) == 1).all()
    clear[:, 3] = 1
    np.testing.assert_array_equal(load_array(clear, RGB), colour)


def test_result_of_a_row_does_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.from_numpy(floats(9, 3, 21, 17)).float()
    together = load_array(pictures, RGB)
    assert torch.equal(together, torch.cat([load_array(p[None], RGB) for p in pictures]))
    monkeypatch.setattr("tangentune.pictures.arrays._CHUNK_BYTES", 2 * pictures[:1].nbytes)
    assert torch.equal(together, load_array(pictures, RGB))


def test_result_shares_no_memory_and_takes_any_array() -> None:
    pictures = uint8(3, 3, 8, 8)
    pixels = load_array(pictures, RGB)
    pictures[:] = 0
    assert pixels.max() > 0
    frozen = uint8(3, 3, 8, 8)
    frozen.flags.writeable = False
    assert torch.equal(load_array(frozen[::-1, :, ::-1], RGB), torch.from_numpy(frozen[::-1, :, ::-1].copy()))
    big_endian = floats(2, 3, 8, 8).astype(">f8")
    np.testing.assert_array_equal(load_array(big_endian, RGB), big_endian.astype("<f8"))
    leaf = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not load_array(leaf, RGB).requires_grad


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("float16", torch.float32),
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("longdouble", torch.float64),
    ],
)
def test_float_precision_is_kept(dtype: str, kept: torch.dtype) -> None:
    assert load_array(floats(2, 3, 8, 8).astype(dtype), RGB).dtype == kept
    assert load_array(floats(2, 4).astype(dtype), VECTORS).dtype == kept
    if dtype == "float16":
        assert load_array(torch.rand(2, 3, 8, 8).bfloat16(), RGB).dtype == kept


def test_integer_types_scale_by_type_never_by_value() -> None:
    small = uint8(2, 3, 8, 8)
    wide = small.astype(np.uint16) * 257
    assert torch.equal(load_array(wide, RGB), torch.from_numpy(small))
    assert torch.equal(load_array(torch.from_numpy(wide), RGB), torch.from_numpy(small))
    assert load_array(small.astype(np.uint16), RGB).max() == 1  # dark 16-bit pictures stay dark
    assert torch.equal(load_array(small.astype(np.int64), RGB), torch.from_numpy(small))
    assert load_array(small > 100, RGB).unique().tolist() == [0, 255]
    far = small.astype(np.int32)
    far[1, 0, 0, 0] = 256
    with pytest.raises(InputError, match=r"Row 1 of the int32 array has pixels outside 0\.\.255"):
        load_array(far, RGB)


def test_other_channel_counts_pass_when_the_network_wants_them() -> None:
    contract = DataContract(input_size=(5, 8, 8), crop=0.8)
    bands = uint8(2, 5, 20, 20)
    pixels = load_array(bands, contract)
    alone = load_array(bands[:, 2:3], DataContract(input_size=(1, 8, 8), crop=0.8))
    assert torch.equal(pixels[:, 2:3], alone)
    assert torch.equal(load_array(np.moveaxis(bands, 1, 3), contract), pixels)
    with pytest.raises(InputError, match="have 3 channels, but the backbone takes 5"):
        load_array(uint8(2, 3, 8, 8), contract)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(7, 3, 8, 8), (7, 9, 9), (7, 4)])
def test_first_bad_row_is_named(bad: float, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tangentune.pictures.arrays._CHUNK_BYTES", 1)  # one row at a time
    array = floats(*shape)
    array[(5,) + (0,) * (len(shape) - 1)] = bad
    array[(6,) + (1,) * (len(shape) - 1)] = bad
    with pytest.raises(InputError, match="Row 5 of the array holds NaN or inf"):
        load_array(array, RGB if len(shape) > 2 else VECTORS)
    monkeypatch.undo()
    with pytest.raises(InputError, match="Row 5 of the array holds NaN or inf"):
        load_array(torch.from_numpy(array), RGB if len(shape) > 2 else VECTORS)


@pytest.mark.parametrize(
    ("array", "contract", "sentence"),
    [
        (uint8(5, 3, 8, 3), RGB, "may have its channels second or last"),
        (uint8(5, 7, 8, 9), RGB, r"\(5, 7, 8, 9\) has no axis of 3 channels"),
        (uint8(48, 64, 3), RGB, r"\(48, 64, 3\) looks like one colour picture; give picture\[None\]"),
        (uint8(5, 12), RGB, r"takes pictures of \(3, 8, 8\)"),
        (uint8(5, 3, 8, 8, 8), RGB, "holds no pictures"),
        (uint8(0, 3, 8, 8), RGB, "holds no pictures"),
        (uint8(5, 3, 0, 8), RGB, "pictures without pixels"),
        (uint8(5), RGB, "holds no pictures"),
        (np.array(3.0), RGB, "holds no pictures"),
        (floats(5, 3, 8, 8) * 1j, RGB, "complex128 holds no pixels"),
        (np.array([["a", "b"]]), VECTORS, "holds no pixels"),
        ([[1.0, 2.0], [3.0]], VECTORS, "all rows must have the same length"),
        (np.array([[1.0, "x"]], dtype=object), VECTORS, "objects that are not numbers"),
        (floats(5, 7), DataContract(input_size=(8,)), r"shape \(7,\); the backbone takes \(8,\)"),
    ],
)
def test_arrays_that_cannot_be_used(array: Any, contract: DataContract, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_array(array, contract)


def test_three_planes_without_labels_may_be_one_picture() -> None:
    planes = uint8(3, 20, 20)
    with pytest.raises(InputError, match="looks like one colour picture"):
        load_array(planes, RGB, alone=True)
    assert load_array(planes, RGB, alone=False).shape == (3, 3, 8, 8)
    assert load_array(planes, GREY, alone=True).shape == (3, 1, 8, 8)


def test_unusual_layouts_are_told_apart() -> None:
    assert load_array(uint8(5, 3, 8, 4), RGB).shape == (5, 3, 8, 8)  # 3 is what the network wants
    assert load_array(uint8(5, 4, 4), DataContract(input_size=(1, 4, 4))).shape == (5, 1, 4, 4)


def test_vectors_pass_as_they_come() -> None:
    rows = floats(6, 4) * 1e6 - 3
    assert torch.equal(load_array(rows, VECTORS), torch.from_numpy(rows))
    assert torch.equal(load_array(rows.tolist(), VECTORS), torch.from_numpy(rows))
    assert load_array(np.arange(6).reshape(3, 2), VECTORS).dtype == torch.int64
    assert torch.equal(load_array(rows.astype(object), VECTORS), torch.from_numpy(rows))
    signals = floats(6, 2, 30)
    assert torch.equal(load_array(signals, DataContract(input_size=(2, 30))), torch.from_numpy(signals))
    assert torch.equal(load_array(signals, VECTORS), torch.from_numpy(signals))
