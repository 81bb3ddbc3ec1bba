"""How edits take what users name: pictures by number or path, labels of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_cases import (
    BACKBONE,
    MORE,
    MORE_Y,
    NEW,
    X,
    Y,
    classifier,
    equals_refit,
)
from small import FIXED

from tangentune import Pictures, TangentClassifier


def test_positions_at_the_fit_and_names_stay(tmp_path: Path) -> None:
    named = Pictures(torch.from_numpy(X), Y, [f"{'abcd'[c]}/{i:02d}.png" for i, c in enumerate(Y)])
    clf = TangentClassifier(BACKBONE, **FIXED).fit(named)
    clf.forget("a/00.png").forget([1]).forget(Path("c/02.png")).forget({np.int64(3), "a/04.png"}).forget(
        np.array([5, 6])
    )
    clf.forget(torch.tensor([7])).forget(str(one) for one in ["a/08.png"]).forget(np.array(["b/09.png"]))
    assert clf.ids_ == named.ids[10:]
    clf.add(MORE, MORE_Y)
    assert clf.ids_[-12:] == [str(i) for i in range(40, 52)]
    clf.forget([51, "50"]).undo().undo()  # what was undone keeps its numbers
    clf.add(MORE[:1], [0])
    assert clf.ids_[-1] == "52"
    clf.forget("52")
    clf.save_pretrained(tmp_path / "m")
    loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE).add(MORE[:2], [0, 1])
    assert loaded.ids_[-2:] == ["53", "54"]
    loaded.forget([53, "c/10.png", 11])
    assert loaded.ids_ == [*named.ids[12:], "54"]
    loaded.add(Pictures(torch.from_numpy(MORE[:1]), MORE_Y[:1], ["a/00.png"]))  # a file may come back
    assert loaded.ids_[-1] == "a/00.png"
    loaded.forget(55)
    assert loaded.ids_ == [*named.ids[12:], "54"]


def test_a_shared_name_means_all_its_pictures() -> None:
    named = Pictures(torch.from_numpy(X), Y, ["twice.png", "twice.png", *map(str, range(2, 40))])
    clf = TangentClassifier(BACKBONE, **FIXED).fit(named)
    clf.relabel(["7", "twice.png"], [0, 2])
    y = Y.copy()
    y[[7, 0, 1]] = 0, 2, 2
    equals_refit(clf, X, y)
    equals_refit(clf.forget(["twice.png", 0, 0, "0"] if "0" in clf.ids_ else ["twice.png", 0]), X[2:], y[2:])
    other = TangentClassifier(BACKBONE, **FIXED).fit(named).forget_class(0)
    assert "twice.png" in other.ids_  # the one of class 1
    equals_refit(other, X[Y != 0], Y[Y != 0])


def test_slices_of_an_array_get_new_numbers() -> None:
    whole = Pictures(torch.from_numpy(MORE), MORE_Y, [str(i) for i in range(12)])
    clf = classifier().forget([5]).add(whole.select([5, 6]))
    assert clf.ids_[-2:] == ["40", "41"]


@pytest.mark.parametrize(("y", "new", "classes"), [
    (Y.astype(np.uint8), [3, 300], [0, 1, 2, 3, 300]), (Y.astype(np.int32), np.array([1.0, 2.0]), [0, 1, 2, 3]),
    (Y.astype(float), [1, 5], [0.0, 1.0, 2.0, 3.0, 5.0]), (Y > 1, [True, False], [False, True]),
    (np.array(["a", "b", "c", "d"])[Y], np.array(["a", "élan vital"], object), ["a", "b", "c", "d", "élan vital"]),
    (np.array(["a", "b", "c", "d"], object)[Y], ("b", "zz"), ["a", "b", "c", "d", "zz"]),
    (Y, torch.tensor([7, 0]), [0, 1, 2, 3, 7]),
], ids=str)  # fmt: skip
def test_labels_keep_their_kind(y: Any, new: Any, classes: list[Any]) -> None:
    plain = y.astype(str) if y.dtype == object else y
    clf = classifier(y)
    for change in ("relabel", "add"):
        clf.relabel([3, 1], new, new_class=True) if change == "relabel" else clf.add(MORE[:2], new, new_class=True)
        assert clf.classes_.tolist() == classes
        assert clf.classes_.dtype.kind.replace("u", "i") == plain.dtype.kind.replace("u", "i")
        expected = np.array(new.tolist() if hasattr(new, "tolist") else new)
        assert (
            clf.targets_[[3, 1] if change == "relabel" else [-2, -1]].tolist()
            == expected.astype(clf.targets_.dtype).tolist()
        )
        assert set(clf.predict(NEW).tolist()) <= set(classes)
        clf.undo()
        assert clf.classes_.dtype == plain.dtype
