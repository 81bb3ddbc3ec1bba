"""Copies among pictures: exact and near ones are told, another label first, and different pictures are left alone."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tangentune.pictures.copies import copy_sentences, find_copies
from tangentune.pictures.pictures import Pictures


def scenes(n: int, seed: int = 0, side: int = 64) -> NDArray[np.uint8]:
    """Smooth pictures, none like another: random colours on a 5 x 5 grid, enlarged."""
    rng = np.random.default_rng(seed)
    grids = rng.integers(0, 256, (n, 5, 5, 3)).astype(np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)) for grid in grids]
    )


def as_jpeg(picture: NDArray[np.uint8], quality: int = 50) -> NDArray[np.uint8]:
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def pixels(*pictures: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


def pictures(*every: NDArray[np.uint8]) -> Pictures:
    return Pictures(pixels(*every), None, [str(i) for i in range(len(every))])


def test_exact_and_near_copies_are_found_and_others_are_not() -> None:
    known, others = scenes(30), scenes(5, seed=1)
    darker = (known[8] * 0.8).astype(np.uint8)
    new = [others[0], known[4], as_jpeg(known[2]), others[1], darker, others[0]]
    found = find_copies(pictures(*known, *new), 30)
    assert [(copy.new - 30, copy.old, copy.exact) for copy in found] == [
        (1, 4, True), (2, 2, False), (4, 8, False), (5, 30, True),
    ]  # fmt: skip


def test_even_pictures_are_copies_only_when_equal() -> None:
    grey = [np.full((16, 16, 3), value, np.uint8) for value in (10, 10, 200)]
    assert [(copy.new, copy.old, copy.exact) for copy in find_copies(pictures(*grey), 1)] == [(1, 0, True)]


def test_portions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    known = scenes(12)
    every = pictures(*known, known[3], as_jpeg(known[5]), known[7])
    whole = find_copies(every, 12)
    monkeypatch.setattr("tangentune.pictures.copies.PORTION", 1)
    assert find_copies(every, 12) == whole
    assert len(whole) == 3


def test_another_label_is_told_first() -> None:
    known = scenes(4)
    ids = ["a", "b", "c", "d", "new1", "new2"]
    labels = np.array(["x", "y", "x", "y", "y", "x"])
    every = Pictures(pixels(*known, known[0], as_jpeg(known[2])), labels, ids)
    first, second = copy_sentences(every, 4)
    assert first == (
        "1 new picture looks the same as one with another label; correct one of the two: new1 ('y') = a ('x')."
    )
    assert "new2 ≈ c" in second
    assert copy_sentences(every, 6) == []
