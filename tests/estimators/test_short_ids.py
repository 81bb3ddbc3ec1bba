"""Ids may be shortened where only one picture is meant, and a class that is not there is taken for a typing error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_cases import BACKBONE, MORE, MORE_Y, X, Y, regressor
from small import FIXED

from tangentune import Pictures, TangentClassifier
from tangentune.errors import InputError
from tangentune.estimators.scores import judge
from tangentune.estimators.user_input import as_classes, find_pictures

NAMES = np.array(["ant", "bee", "cat", "dog"])
IDS = [f"{NAMES[c]}/{i:02d}.png" for i, c in enumerate(Y)]
IDS[4:8] = ["ant/deep/x.y.png", "bee/x.y.png", "cat/same.png", "dog/same.jpg"]


def classifier() -> TangentClassifier:
    return TangentClassifier(BACKBONE, **FIXED).fit(Pictures(torch.from_numpy(X), NAMES[Y], list(IDS)))


@pytest.mark.parametrize("given, meant", [
    ("ant/00.png", 0), ("00.png", 0), ("00", 0), ("ant/00", 0), (Path("ant") / "00", 0), ("deep/x.y", 4),
    ("bee/x.y", 5), ("same.png", 6), ("same.jpg", 7), (9, 9), (np.str_("09"), 9),
], ids=str)  # fmt: skip
def test_whole_parts_of_the_end_are_enough(given: Any, meant: int) -> None:
    assert find_pictures(given, IDS, np.arange(40)) == [[meant]]


@pytest.mark.parametrize("given, words", [
    ("same", ("short for 2 pictures", "cat/same.png", "dog/same.jpg")),
    ("x.y", ("short for 2 pictures", "ant/deep/x.y.png", "bee/x.y.png")),
    ("0", ("does not stand on a picture '0'",)), ("ant", ("does not stand",)), ("ant/", ("does not stand",)),
    ("ant/0", ("does not stand", "ant/0")), ("nt/00.png", ("does not stand", "ant/00.png")), ("", ("does not stand",)),
    ("/00.png", ("does not stand",)), ("png", ("does not stand",)), (True, ("True",)), (None, ("None",)),
    (41, ("a picture 41",)), ("ANT/00.png", ("does not stand", "ant/00.png")),
], ids=str)  # fmt: skip
def test_what_means_several_pictures_or_none_is_refused(given: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        find_pictures([given], IDS, np.arange(40))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_edits_take_short_ids_and_never_another_picture() -> None:
    clf = classifier().forget(["00", "same.png"]).relabel("bee/x.y", "cat")
    assert clf.ids_ == [name for name in IDS if name not in ("ant/00.png", "cat/same.png")]
    assert clf.targets_[clf.ids_.index("bee/x.y.png")] == "cat"
    for again in ("00", "00.png", "ant/00.png", "same.png"):
        with pytest.raises(InputError, match="does not stand"):
            clf.forget(again)
    assert "dog/same.jpg" not in clf.forget("same").ids_  # now it means one


# -- classes that are not there ----------------------------------------------------------------------------------------

TYPOS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "relabel": (
        lambda m: m.relabel("01", "catt"),
        ("bee/01.png is to be 'catt'", "did you mean 'cat'?", "new_class=True"),
    ),
    "relabel several": (lambda m: m.relabel(["01", "02"], ["cat", "Dog"]), ("cat/02.png", "'Dog'", "'dog'")),
    "nothing near": (lambda m: m.relabel("01", "zebra"), ("'zebra'", "the classes are ant, bee, cat, dog")),
    "add": (lambda m: m.add(MORE[:2], ["ant", "bees"]), ("'bees'", "did you mean 'bee'?")),
    "add pictures": (
        lambda m: m.add(Pictures(torch.from_numpy(MORE[:1]), np.array(["aunt"]), ["aunt/1.png"])),
        ("aunt/1.png is to be 'aunt'", "did you mean 'ant'?"),
    ),
}


@pytest.mark.parametrize("case", TYPOS)
def test_an_unknown_class_is_refused(case: str) -> None:
    (call, words), clf = TYPOS[case], classifier()
    before = clf.decision_function(X[:3])
    with pytest.raises(InputError) as caught:
        call(clf)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert clf.edits_ == []
    assert np.array_equal(clf.decision_function(X[:3]), before)


def test_a_new_class_is_made_where_it_is_meant() -> None:
    clf = classifier().relabel(["01", "bee/x.y"], "catt", new_class=True)
    assert clf.classes_.tolist() == ["ant", "bee", "cat", "catt", "dog"]
    clf.add(MORE[:2], ["catt", "elk"], new_class=True).relabel("02", "elk")  # it is there by now
    assert clf.classes_.tolist() == ["ant", "bee", "cat", "catt", "dog", "elk"]
    clf.forget_class("elk")
    with pytest.raises(InputError, match="no such class"):
        clf.relabel("same.png", "elk")


def test_classes_that_are_numbers_and_numbers_that_are_none() -> None:
    clf = TangentClassifier(BACKBONE, **FIXED).fit(X, Y)
    with pytest.raises(InputError, match=r"4 is to be 17, .* the classes are 0, 1, 2, 3\. For a new class, pass"):
        clf.relabel([4], 17)
    clf.relabel([4], np.float64(3)).add(MORE, MORE_Y.astype(float))
    assert clf.classes_.tolist() == [0, 1, 2, 3]
    reg = regressor().relabel([3], [123.0, -4.0])  # any number will do
    assert reg.targets_[3].tolist() == [123.0, -4.0]


# -- names whose accents are put together otherwise, as macOS writes them and nobody types them ------------------------

NFC, NFD = "café", "cafe\u0301"


def twins() -> TangentClassifier:
    names = np.where(NAMES[Y] == "cat", NFD, NAMES[Y])
    ids = [f"{name}/\u0065\u0301{i}.png" for i, name in enumerate(names)]
    return TangentClassifier(BACKBONE, **FIXED).fit(Pictures(torch.from_numpy(X), names, ids))


def test_ids_and_classes_may_be_typed_with_whole_letters() -> None:
    clf, cats = twins(), int((Y == 2).sum())
    first = f"{NFC}/é{int(np.argmax(Y == 2))}.png"
    assert len(clf.forget(first).ids_) == 39
    clf.relabel("é0", NFC)  # of another class
    assert (clf.targets_ == NFD).sum() == cats
    clf.add(Pictures(torch.from_numpy(MORE[:1]), np.array([NFC]), ["new.png"]))
    assert (clf.targets_ == NFD).sum() == cats + 1
    assert clf.classes_.tolist() == sorted(["ant", "bee", NFD, "dog"])
    new = MORE[1:5]
    found = judge(clf, Pictures(torch.from_numpy(new), np.array([NFC] * 4), list("abcd")))
    assert found.scores["accuracy"] == clf.score(new, np.array([NFC] * 4))
    assert clf.forget_class(NFC).classes_.tolist() == ["ant", "bee", "dog"]


def test_classes_that_differ_so_in_the_model_itself_stay_two() -> None:
    labels, classes = np.array([NFC, NFD, "café ", "caf"]), np.array([NFD, NFC, "bee"])
    assert as_classes(labels, classes).tolist() == labels.tolist()
    assert as_classes(labels, classes[:1]).tolist() == [NFD, NFD, "café ", "caf"]
