"""Labels, classes, duplicates and digests."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from tangentune.errors import InputError
from tangentune.pictures.checks import label_array
from tangentune.pictures.copies import duplicate_sentences, find_duplicates
from tangentune.pictures.load import (
    Pictures,
    check_classes,
    numeric_labels,
    pictures_digest,
)


@pytest.mark.parametrize(
    ("labels", "kind", "values"),
    [
        (["b", "a"], "U", ["b", "a"]),
        (np.array(["b", "a"], dtype=object), "U", ["b", "a"]),
        ((1, 0), "i", [1, 0]),
        ([torch.tensor(1), torch.tensor(0)], "i", [1, 0]),
        (torch.tensor([0.5, 2.0]), "f", [0.5, 2.0]),
        ([1, 0.5], "f", [1.0, 0.5]),
        (np.array([True, False]), "b", [True, False]),
        (np.array([1, 2], dtype=object), "i", [1, 2]),
        ([[1.0, 2.0], [3.0, 4.0]], "f", [[1.0, 2.0], [3.0, 4.0]]),
    ],
)
def test_labels_of_every_kind(labels: Any, kind: str, values: list[Any]) -> None:
    array = label_array(labels)
    assert array.dtype.kind == kind
    assert array.tolist() == values


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["a", ""], "Label 1 is ''"),
        (["a", None], "Label 1 is missing"),
        ([1.0, float("nan")], "Label 1 is nan"),
        (np.array(["a", np.nan], dtype=object), "Label 1 is missing"),
        ([[1.0, 2.0], [np.inf, 0.0]], r"Label 1 is \[inf, 0.0\]"),
        (["a", "b", 3], "mix text and numbers"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.array([1j, 2]), "type complex128"),
        (np.array([{}, {}], dtype=object), "Label 0 is of type dict"),
        (5, r"shape \(\)"),
        (["a", "a\0"], r"Label 1 is 'a\\x00'; a label cannot hold the character NUL"),
        (("a\0b", "a"), "Label 0 is .* NUL"),
        (np.array(["a", "a\0"], dtype=object), "Label 1 is .* NUL"),
    ],
)
def test_labels_with_gaps_or_of_no_use(labels: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        label_array(labels)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("cat", "cat ", "'cat' = 'cat '"),
        ("black cat", "black  cat", "'black cat' = 'black  cat'"),
        ("caf\u00e9", "cafe\u0301", r"'caf\xe9' = 'cafe\u0301'"),
        ("cat", "cat\u200b", r"'cat' = 'cat\u200b'"),
    ],
)
def test_classes_that_look_alike_are_told(one: str, other: str, told: str) -> None:
    labels = np.array([one, "dog", other] * 2)
    (sentence,) = check_classes(labels, list("abcdef"))
    assert sentence == f"Classes have names that look alike: {told}; if they are one class, give it one name."
    assert check_classes(np.array(["cat", "Cat", "m2", "m²"] * 2), list("abcdefgh")) == []


def test_labels_for_regression() -> None:
    values = numeric_labels(np.array([" 1.5", "-2e3"]), ["a", "b"])
    assert values.dtype == np.float64
    assert values.tolist() == [1.5, -2000.0]
    assert numeric_labels(np.array([1, 2]), ["a", "b"]).tolist() == [1.0, 2.0]
    for text in ("cat", "nan", "inf"):
        with pytest.raises(InputError, match=f"label '{text}' of b.jpg is not a number"):
            numeric_labels(np.array(["1", text]), ["a.jpg", "b.jpg"])


def test_classes() -> None:
    ids = [f"{i}.jpg" for i in range(6)]
    assert check_classes(np.array([0, 0, 1, 1]), ids[:4]) == []
    with pytest.raises(InputError, match="All 3 pictures have the label 'cat'; a classifier needs"):
        check_classes(np.array(["cat"] * 3), ids[:3])
    with pytest.raises(InputError, match="no pictures"):
        check_classes(np.array([]), [])
    (sentence,) = check_classes(np.array(["a", "a", "b", "c", "c", "d"]), ids)
    assert sentence.startswith("2 classes have only one picture each ('b': 2.jpg, 'd': 5.jpg), so")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])
def test_duplicates_are_groups_in_order(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows = torch.randint(0, 255, (6, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[4] = rows[1]
    rows[5] = rows[1]
    rows[3] = rows[0]

    def found(rows: torch.Tensor) -> list[list[int]]:
        return find_duplicates(Pictures(rows, None, list("abcdef")))

    assert found(rows) == [[0, 3], [1, 4, 5]]
    rows.view(6, -1)[3, -1] += 1
    assert found(rows) == [[1, 4, 5]]
    assert found(rows.transpose(1, -1)) == [[1, 4, 5]]  # also when not contiguous


def test_duplicate_sentences_name_files_and_conflicts() -> None:
    pixels = torch.tensor([[1], [2], [1], [2], [3]], dtype=torch.uint8)
    ids = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    labels = np.array(["cat", "dog", "cow", "dog", "cat"])
    pictures = Pictures(pixels, labels, ids)
    optimistic, conflict = duplicate_sentences(pictures)
    assert optimistic == (
        "2 pictures appear more than once, so the leave-one-out error of their copies is optimistic: "
        "a.jpg = c.jpg, b.jpg = d.jpg."
    )
    assert conflict == ("1 picture appears with different labels; correct or remove: a.jpg ('cat') = c.jpg ('cow').")
    assert len(duplicate_sentences(pictures.relabelled(None))) == 1
    assert duplicate_sentences(pictures.select([0, 1])) == []


def test_digest_is_sha256_of_type_shape_and_bytes() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    first = hashlib.sha256(b"torch.uint8 (3, 2, 2) " + bytes(range(12))).hexdigest()
    assert pictures_digest(pixels)[0] == first
    assert pictures_digest(pixels.transpose(2, 3).contiguous().transpose(2, 3)) == pictures_digest(pixels)
    assert not set(pictures_digest(pixels.reshape(2, 12))) & set(pictures_digest(pixels))
