"""Labels as people have them: one-hot rows, several classes a picture, probabilities, lists of tags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tangentune import Pictures
from tangentune.comparison.measure import class_labels
from tangentune.errors import InputError
from tangentune.methods.fine_tuning.labelled import label_positions
from tangentune.pictures.checks import label_array, numeric_labels, one_class_each
from tangentune.pictures.label_sets import aligned, label_matrix, label_names, label_texts

ONE_HOT = np.eye(3, dtype=int)[np.arange(6) % 3]
SEVERAL = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (ONE_HOT, "one-hot (6 x 3); give the class of each picture, y.argmax(1)"),
        (ONE_HOT.astype(bool), "one-hot"),
        (ONE_HOT.astype(float), "one-hot"),
        (SEVERAL, "mark 2 classes of picture 1 (3 x 3)"),
        (SEVERAL[[0, 2]], "mark 0 classes of picture 1"),
        (np.full((4, 2), 0.5), "probabilities (4 x 2); give the likeliest, y.argmax(1)"),
        (np.arange(6).reshape(3, 2), "2 labels each"),
        (np.array([["a", "b"]] * 4), "2 labels each"),
    ],
)
def test_matrices_of_labels_are_called_what_they_are(labels: np.ndarray, words: str) -> None:
    """Wherever classes are read: it was "class_weight" that was blamed, or a shape."""
    pictures = Pictures(torch.zeros(len(labels), 2), labels, [str(i) for i in range(len(labels))])
    for read in (one_class_each, lambda given: label_positions(given, "a method"), lambda _: class_labels(pictures)):
        with pytest.raises(InputError) as caught:
            read(labels)
        assert words in str(caught.value)
        assert "class_weight" not in str(caught.value)


def test_a_column_of_labels_is_taken() -> None:
    assert one_class_each(np.array([["a"], ["b"]])).tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([[1], [1, 2]], "some are lists"),
        ([["a"], [2, "b"]], "a label of picture 1 is 2"),
        ([[""], ["a", "b"]], "a label of picture 0 is ''"),
        (["a", None], "Label 1 is missing"),
    ],
)
def test_labels_no_array_holds_are_one_sentence(labels: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        label_array(labels)
    assert words in str(caught.value)


def test_text_of_several_numbers_a_picture() -> None:
    found = numeric_labels(np.array([["1", "2.5"], ["3", "4"]]), ["p", "q"])
    assert found.tolist() == [[1.0, 2.5], [3.0, 4.0]]
    with pytest.raises(InputError, match="The label 'x' of q is not a number"):
        numeric_labels(np.array([["1", "2.5"], ["x", "4"]]), ["p", "q"])


@pytest.mark.parametrize("labels", [[["b", "a"], [], ["a"]], [{"a", "b"}, set(), {"a"}], ("ab", "", "a")])
def test_lists_of_names_become_sets(labels: Any) -> None:
    found = label_array([list(names) for names in labels] if isinstance(labels, tuple) else labels)
    assert label_names(found).tolist() == ["a", "b"]
    assert label_matrix(found).tolist() == [[1, 1], [0, 0], [1, 0]]
    assert label_texts(found) == ["a;b", "", "a"]
    assert label_matrix(aligned(found[:1], np.array(["b", "c", "a"]))).tolist() == [[1, 0, 1]]
    with pytest.raises(InputError, match="several labels each"):
        one_class_each(found)


def test_lists_of_one_name_are_a_column_and_numbers_stay_numbers() -> None:
    assert label_array([["a"], ["b"]]).shape == (2, 1)
    assert label_array([[1, 0], [1, 1]]).dtype.names is None


def test_frames_of_marks_keep_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    found = label_array(pandas.DataFrame({"sick": [1, 0], "old": [True, True]}))
    assert label_names(found).tolist() == ["sick", "old"]
    assert numeric_labels(found, ["p", "q"]).tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert label_array(pandas.DataFrame({"a": [1, 0], "b": [0.5, 1]})).dtype.kind == "f"
