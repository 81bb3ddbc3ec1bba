"""The log of edits: a chain that shows every change, and that only grows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier
from tangentune.errors import StoreError
from tangentune.estimators import audit
from tangentune.estimators.model_directory import read_model

BACKBONE = backbone()
X, Y = pictures(24)


def chain(length: int = 5) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for i in range(length):
        lines.append(
            audit.entry(lines, ("forget", "add")[i % 2], [f"{i:064x}"], n=24 - i, residual_after=1e-13 / 3 * i)
        )
    return lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was changed three times."""
    folder = tmp_path_factory.mktemp("edited") / "m"
    clf = TangentClassifier(BACKBONE, **FIXED).fit(X, Y).forget([3]).relabel([5], 0).forget([7, 8])
    clf.save_pretrained(folder)
    return folder


def test_a_log_comes_back_word_for_word() -> None:
    lines = chain()
    assert audit.parse(audit.dump(lines), "here") == lines
    assert audit.dump(audit.parse(audit.dump(lines), "here")) == audit.dump(lines)
    assert audit.parse("", "here") == []
    assert lines[0]["previous"] == audit.FIRST
    assert [line["previous"] for line in lines[1:]] == [line["seal"] for line in lines[:-1]]
    assert len({line["seal"] for line in lines}) == 5


def test_unusual_text_stays_on_its_line() -> None:
    lines = [audit.entry([], "forget", ["ab"], note="a\u2028b\x85c\x0cd\ne")]
    assert audit.parse(audit.dump(lines), "here") == lines


def resealed(line: dict[str, Any]) -> dict[str, Any]:
    return line | {"seal": audit.seal(line)}


TAMPERED: dict[str, tuple[Callable[[list[Any]], list[Any]], int]] = {
    "a figure": (lambda lines: [*lines[:2], lines[2] | {"n": 99}, *lines[3:]], 3),
    "a picture": (lambda lines: [lines[0] | {"pictures": []}, *lines[1:]], 1),
    "a new entry": (lambda lines: [*lines[:1], lines[1] | {"note": "x"}, *lines[2:]], 2),
    "a line taken out": (lambda lines: [*lines[:2], *lines[3:]], 3),
    "the first taken out": (lambda lines: lines[1:], 1),
    "two lines swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
    "a line twice": (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
    "a line sealed anew": (lambda lines: [*lines[:2], resealed(lines[2] | {"n": 99}), *lines[3:]], 4),
    "a line put in": (lambda lines: [*lines[:2], audit.entry(lines[:2], "add", []), *lines[2:]], 4),
    "no seal": (lambda lines: [{k: v for k, v in lines[0].items() if k != "seal"}, *lines[1:]], 1),
    "no object": (lambda lines: [*lines[:4], ["forget"]], 5),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_seen(case: str) -> None:
    change, place = TAMPERED[case]
    with pytest.raises(StoreError) as caught:
        audit.parse(audit.dump(change(chain())), "audit.jsonl")
    assert str(caught.value).startswith(f"line {place} of audit.jsonl was changed or damaged")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["{", "not json\n", '{"seal": 1}\n', "\n", "[]\n", "null\n"])
def test_text_that_is_no_line_is_seen(ending: str) -> None:
    with pytest.raises(StoreError, match="line 6 of here"):
        audit.parse(audit.dump(chain()) + ending, "here")


def test_what_was_taken_back_does_not_stand() -> None:
    lines: list[dict[str, Any]] = []
    for what in ("relabel", "forget", "undo", "undo", "redo", "add", "redo", "undo", "undo", "undo", "undo", "keep"):
        lines.append(audit.entry(lines, what, [f"{len(lines)}"]))
    at = [[line["pictures"][0] for line in audit.standing(lines[:k])] for k in range(len(lines) + 1)]
    assert at == [[], ["0"], ["0", "1"], ["0"], [], ["0"], ["0", "5"], ["0", "5"], ["0"], [], [], [], ["11"]]


# -- in a model directory ----------------------------------------------------------------------------------------------


def copy_of(model: Path, target: Path) -> Path:
    target.mkdir()
    for part in model.iterdir():
        (target / part.name).write_bytes(part.read_bytes())
    return target


def test_a_saved_log_is_whole(model: Path) -> None:
    edits = read_model(model).edits
    assert [line["edit"] for line in edits] == ["forget", "relabel", "forget"]
    assert [json.loads(row) for row in (model / "audit.jsonl").read_text(encoding="utf-8").splitlines()] == edits
    assert TangentClassifier.from_pretrained(model, backbone=BACKBONE).edits_ == edits


@pytest.mark.parametrize(
    "damage", ["changed", "cut", "last line gone", "all gone", "no file", "more", "swapped", "bytes"]
)
def test_a_damaged_log_stops_the_model(model: Path, tmp_path: Path, damage: str) -> None:
    folder = copy_of(model, tmp_path / "m")
    file = folder / "audit.jsonl"
    data = file.read_bytes()
    rows = data.splitlines(keepends=True)
    more = audit.dump([audit.entry(read_model(model).edits, "forget", [])]).encode()
    damaged = {
        "changed": data.replace(b'"relabel"', b'"forget_"'), "cut": data[:-20], "last line gone": b"".join(rows[:-1]),
        "all gone": b"", "more": data + more, "swapped": rows[1] + rows[0] + rows[2],
        "bytes": data[:9] + b"\xff" + data[9:],
    }  # fmt: skip
    file.unlink() if damage == "no file" else file.write_bytes(damaged[damage])
    with pytest.raises(StoreError) as caught:
        TangentClassifier.from_pretrained(folder, backbone=BACKBONE)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_log_put_beside_an_unchanged_model_is_seen(tmp_path: Path, model: Path) -> None:
    TangentClassifier(BACKBONE, **FIXED).fit(X, Y).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m" / "audit.jsonl").exists()
    assert read_model(tmp_path / "m").edits == []
    (tmp_path / "m" / "audit.jsonl").write_bytes((model / "audit.jsonl").read_bytes())
    with pytest.raises(StoreError, match="audit"):
        read_model(tmp_path / "m")


def test_the_log_only_grows(model: Path, tmp_path: Path) -> None:
    """Load, change and save in place, again and again: what was written stays, byte by byte."""
    folder = copy_of(model, tmp_path / "m")
    before, clf = (folder / "audit.jsonl").read_bytes(), TangentClassifier(BACKBONE)
    for i in range(4):
        clf = TangentClassifier.from_pretrained(folder, backbone=BACKBONE)
        clf.forget([10 + i]) if i % 2 else clf.reweight(np.linspace(0.5, 1.7, len(clf.ids_)) ** (i + 1))
        if i == 3:
            clf.undo()
        clf.save_pretrained(folder)
        after = (folder / "audit.jsonl").read_bytes()
        assert after.startswith(before)
        assert after.count(b"\n") == before.count(b"\n") + (2 if i == 3 else 1)
        before = after
    clf.save_pretrained(folder)
    assert (folder / "audit.jsonl").read_bytes() == before
    clf.fit(X, Y).save_pretrained(folder)  # another model has no history
    assert not (folder / "audit.jsonl").exists()
