"""`Pictures`: batches, selection, thumbnails, large sets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_cases import class_folder, colours

from tangentune.errors import BudgetError, InputError
from tangentune.pictures.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from tangentune.pictures.load import Pictures, load_pictures, normalise, pictures_digest
from tangentune.pictures.pictures import allocate

CONTRACT = DataContract(input_size=(3, 8, 8), mean=IMAGENET_MEAN, std=IMAGENET_STD)
VECTORS = DataContract(input_size=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folder(tmp_path / "set")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_are_normalised_in_order(dtype: torch.dtype) -> None:
    pictures = load_pictures(colours(7), list(range(7)), contract=CONTRACT)
    before = pictures.pixels.clone()
    batches = list(pictures.batches(CONTRACT, 3, dtype, "cpu"))
    assert [len(b) for b in batches] == [3, 3, 1]
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = torch.from_numpy((before.numpy().astype(np.float64) / 255 - mean) / std)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
    result = torch.cat(batches)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    assert torch.equal(pictures.pixels, before)
    floats = load_pictures(colours(7) / 255, list(range(7)), contract=CONTRACT)
    torch.testing.assert_close(
        torch.cat(list(floats.batches(CONTRACT, 2, torch.float64))), expected, rtol=0, atol=1e-14
    )


def test_normalise_leaves_its_input_and_checks_channels() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    before = pixels.clone()
    for contract in (CONTRACT, VECTORS):
        normalise(pixels, contract).zero_()
        assert torch.equal(pixels, before)
    grey = DataContract(input_size=(3, 8, 8), mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(normalise(pixels, grey), (pixels - 0.5) / 0.25)
    with pytest.raises(InputError, match="std has 2 numbers for 3 channels"):
        normalise(pixels, DataContract(input_size=(3, 8, 8), std=(1.0, 2.0)))


def test_batches_refuse_other_sizes() -> None:
    pictures = load_pictures(colours(2), [0, 1], contract=CONTRACT)
    with pytest.raises(InputError, match=r"are \(3, 8, 8\), but the backbone takes \(3, 9, 9\)"):
        list(pictures.batches(CONTRACT.with_size(9), 2))
    with pytest.raises(InputError, match="batch_size is 0"):
        list(pictures.batches(CONTRACT, 0))


def test_select_copies() -> None:
    pictures = load_pictures(colours(5), list("abcde"), contract=CONTRACT)
    for indices, ids in (
        ([3, 0, 3], ["3", "0", "3"]),
        (np.array([True, False, False, False, True]), ["0", "4"]),
        (torch.tensor([4, 1]), ["4", "1"]),
        (slice(1, 3), ["1", "2"]),
        ([-1], ["4"]),
        (2, ["2"]),
        ([], []),
    ):
        part = pictures.select(indices)
        rows = [int(i) for i in ids]
        assert part.ids == ids
        assert torch.equal(part.pixels, pictures.pixels[rows])
        assert part.labels is not None
        assert part.labels.tolist() == ["abcde"[i] for i in rows]
    part.pixels.fill_(0)
    pictures.select([0]).pixels.fill_(0)
    assert pictures.pixels[0].max() > 0
    with pytest.raises(IndexError):
        pictures.select([5])


def test_thumbnails() -> None:
    pixels = colours(2)
    for source in (pixels, pixels / 255, pixels.astype(np.float32) / 255):
        thumbnail = load_pictures(source, [0, 1], contract=CONTRACT).thumbnail(1)
        assert thumbnail is not None
        np.testing.assert_array_equal(np.asarray(thumbnail), pixels[1])
    grey = load_pictures(pixels[:, :, :, 0], [0, 1], contract=DataContract(input_size=(1, 8, 8))).thumbnail(0)
    assert grey is not None
    np.testing.assert_array_equal(np.asarray(grey), pixels[0, :, :, 0])


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError, match="same length"):
        Pictures(torch.zeros(2, 3, 8, 8), None, ["a"])


def in_a_file(pixels: torch.Tensor) -> bool:
    address = pixels.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return line.split()[4] != "0"  # the inode of what is mapped here
    return False


def held(pixels: torch.Tensor) -> int:
    """Bytes of memory that the file of some pixels takes in this process."""
    found = re.search(rf"^{pixels.data_ptr():x}-.*?^Rss: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.M | re.S)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux to see what memory is")
def test_a_large_set_takes_no_memory_when_it_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tangentune.pictures.pictures.RAM_LIMIT", 500)
    pixels = allocate((600, 3, 64, 64), torch.uint8)
    pixels.random_(generator=torch.Generator().manual_seed(0))
    assert held(pixels) >= pixels.nbytes
    expected, rows = pixels[::7].clone(), torch.arange(0, 600, 7)
    pictures = Pictures(pixels, None, [str(i) for i in range(600)])
    assert held(pixels) == 0
    contract = DataContract(input_size=(3, 64, 64))
    readers = (
        lambda: sum(len(x) for x in pictures.batches(contract, 16)),
        lambda: pictures.digests,
        lambda: pictures.pixels_at(rows),
        lambda: pictures.select(rows.tolist()),
    )
    for read in readers:
        read()
        assert held(pixels) == 0
    assert torch.equal(pictures.pixels_at(rows), expected)  # nothing that was written is lost


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux to see what memory is")
def test_large_sets_lie_in_an_unnamed_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normal = load_pictures(folder, contract=CONTRACT)
    assert not in_a_file(normal.pixels)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("tangentune.pictures.pictures.RAM_LIMIT", 500)
    monkeypatch.setattr("tangentune.pictures.pictures._STEP_BYTES", 2 * normal.pixels[0].nbytes)
    for source, labels in (
        (folder, None),
        (colours(6), list(range(6))),
        (list(colours(6)), list(range(6))),
    ):
        large = load_pictures(source, labels, contract=CONTRACT)
        assert in_a_file(large.pixels)
        assert torch.equal(large.pixels, normal.pixels)
        part = large.select([5, 0, 3])
        assert in_a_file(part.pixels)
        assert torch.equal(part.pixels, normal.pixels[[5, 0, 3]])
        assert pictures_digest(large.pixels) == pictures_digest(normal.pixels)
    assert list(scratch.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(BudgetError, match="No room for 0.0 GiB .*No space left on device.*TMPDIR"):
        load_pictures(folder, contract=CONTRACT)
