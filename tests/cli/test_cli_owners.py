"""`tangentune map`, `sums`, `merge` and `fit --map` on small folders: one network from owners who show no picture."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_cases import X, Y, answer, digest, folder_of, refused, small

from tangentune import TangentClassifier, TangentFeatures, TangentRegressor, TangentSums
from tangentune.cli.app import main

PUBLIC, TESTS = list(range(8)), list(range(24, 30))
SITES = {"north": list(range(8, 16)), "south": list(range(16, 24))}
FEW = ("--minimum", 2, "--n-jobs", 1)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of small pictures; the south has no c1 but a class of its own; and the small network under any name."""
    for module in ("networks.backbone", "estimators.saving"):
        monkeypatch.setattr(f"tangentune.{module}.load_backbone", small)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    folder_of(tmp_path / "public", PUBLIC, [f"c{Y[i]}" for i in PUBLIC])
    folder_of(tmp_path / "north", SITES["north"], [f"c{Y[i]}" for i in SITES["north"]])
    folder_of(tmp_path / "south", SITES["south"], [f"c{Y[i]}" if Y[i] != 1 else "own" for i in SITES["south"]])
    for site in SITES:
        shutil.copytree(tmp_path / site, tmp_path / "pooled", dirs_exist_ok=True)
    folder_of(tmp_path / "test", TESTS, [f"c{Y[i]}" for i in TESTS])
    monkeypatch.chdir(tmp_path)
    assert main(["map", "--data-independent", "--out", "map", "--width", "60", "-q", "--batch-size", "5"]) == 0
    return tmp_path


def add_up(*sites: str) -> None:
    for site in sites:
        assert main(["sums", site, "--map", "map", "--out", f"{site}.sums", "-q", *map(str, FEW)]) == 0


def test_owners_in_one_round_are_the_pooled_fit(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_up("north", "south")
    merged = answer(capsys, "merge", "south.sums", "north.sums", "--map", "map", "--out", "model", "--minimum", 2)
    pooled = answer(capsys, "fit", "pooled", "--map", "map", "--out", "whole", "--n-jobs", 1)
    assert merged["classes"] == pooled["classes"] == {"c0": 4, "c1": 2, "c2": 4, "c3": 4, "own": 2}
    assert merged["sites"]["south.sums"] == {"c0": 2, "c2": 2, "c3": 2, "own": 2}
    assert merged["damping"] == pytest.approx(pooled["damping"], rel=1e-12)
    one, other = (TangentClassifier.from_pretrained(place) for place in ("model", "whole"))
    np.testing.assert_allclose(one.decision_function(X), other.decision_function(X), rtol=0, atol=1e-8)
    found = answer(capsys, "predict", "model", "test")
    assert [row["label"] for row in found["predictions"]] == one.predict(sorted((sets / "test").glob("*/*"))).tolist()
    assert answer(capsys, "evaluate", "model", "test")["n"] == len(TESTS)
    assert not list(sets.glob(".*"))  # no shard is left


def test_an_owner_withdraws(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_up("north", "south")
    few = ("--map", "map", "--minimum", 2)
    answer(capsys, "merge", "south.sums", "north.sums", *few, "--out", "all", "--total", "total.sums")
    answer(capsys, "merge", "total.sums", "--without", "south.sums", *few, "--out", "left")
    answer(capsys, "merge", "north.sums", *few, "--out", "north-only")
    one, other = (TangentClassifier.from_pretrained(place) for place in ("left", "north-only"))
    np.testing.assert_allclose(one.decision_function(X), other.decision_function(X), rtol=0, atol=1e-8)
    assert one.classes_.tolist() == ["c0", "c1", "c2", "c3"]
    assert TangentSums.load("total.sums").pictures == 16


def test_a_second_round_leaves_pictures_out_at_home(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_up("north", "south")
    few = ("--map", "map", "--minimum", 2)
    answer(capsys, "merge", "south.sums", "north.sums", *few, "--out", "model", "--total", "total.sums")
    for site in SITES:
        common = ("--map", "map", "--total", "total.sums", "--out", f"{site}.scores", "--n-jobs", 1)
        assert answer(capsys, "score", site, *common)["pictures"] == 8
    scores = ("--scores", "north.scores", "--scores", "south.scores")
    found = answer(capsys, "merge", "total.sums", *few, *scores, "--out", "model")
    assert found["left_out"]["pictures"] == 16
    assert TangentClassifier.from_pretrained("model").damping_ == found["damping"]
    assert main(["merge", "total.sums", *map(str, few), *scores, "--out", "model"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["merge", "total.sums", *map(str, few), *scores[:2], "--out", "model"]) == 0
    assert "note: scores of 8 of 16 pictures; give those of every owner" in capsys.readouterr().err
    refused(capsys, "merge", "north.sums", *few, *scores, "--out", "m", words=("made with other sums",))
    assert not list(sets.glob(".*"))


def test_people_see_who_brought_what(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_up("south")
    capsys.readouterr()
    assert main(["sums", "north", "--map", "map", "--out", "north.sums", *map(str, FEW)]) == 0
    out, err = capsys.readouterr()
    assert "classes   c0 2, c1 2, c2 2, c3 2" in out
    assert "Sums written to north.sums" in out
    assert "note: north: classes of very few pictures, whose sums tell much of each: c0 (2), c1 (2)" in err
    assert main(["merge", "north.sums", "south.sums", "--map", "map", "--out", "model", "--minimum", "2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["Class", "north.sums", "south.sums", "All"]
    assert ["c1", "2", "0", "2"] in rows
    assert ["own", "0", "2", "2"] in rows
    assert ["pictures", "16"] in rows


def test_a_map_of_landmarks(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "map", "public", "--out", "m", "--landmarks", 6, "--body-scale", 0.5, "--n-jobs", 1)
    features = TangentFeatures.load("m")
    assert (found["landmarks"], found["fingerprint"]) == (6, features.fingerprint_)
    assert found["width"] == features.transform(X).shape[1]
    answer(capsys, "fit", "north", "--map", "m", "--out", "model", "--n-jobs", 1, "--damping", 0.5)
    assert TangentClassifier.from_pretrained("model").damping_ == 0.5


def test_numbers(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{path},{i / 7}\n" for i, path in enumerate(sorted(sets.glob("pooled/*/*")))]
    (sets / "numbers.csv").write_text("path,label\n" + "".join(rows))
    answer(capsys, "sums", "numbers.csv", "--map", "map", "--out", "n.sums", "--regression", *FEW)
    found = answer(capsys, "merge", "n.sums", "--map", "map", "--out", "model", "--minimum", 2)
    assert (found["n"], found["classes"]) == (16, {})
    assert TangentRegressor.from_pretrained("model").predict(X).shape == (30,)
    assert "r2" in answer(capsys, "evaluate", "model", "numbers.csv")


def test_unreadable_pictures_are_counted(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sets / "north" / "c0" / "broken.png").write_bytes(b"nothing")
    refused(capsys, "sums", "north", "--map", "map", "--out", "n.sums", *FEW, words=("broken.png", "--on-error skip"))
    found = answer(capsys, "sums", "north", "--map", "map", "--out", "n.sums", *FEW, "--on-error", "skip")
    assert (found["n"], found["skipped"]) == (8, 1)


def test_one_rank_of_several_writes(
    sets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank finds what the first has done, says nothing, and leaves no shard behind it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["sums", "north", "--map", "map", "--out", "north.sums", "--shard", "3", *map(str, FEW)]
    monkeypatch.setenv("RANK", "1")
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    assert not (sets / "north.sums").exists()
    assert len(list(sets.glob(".north.sums.*.parts/00000?"))) == 3
    monkeypatch.setenv("RANK", "0")
    assert main(arguments) == 0
    assert "Sums written" in capsys.readouterr().out
    assert not list(sets.glob(".*"))


REFUSED = {  # command: what its sentence says
    "merge a.sums --map other --out m --minimum 2": "another feature map",
    "merge a.sums b.sums --map map --out m --minimum 2": "different feature maps",
    "merge a.sums --map map --out m": "a.sums has 8 pictures, and --minimum 20 asks for more",
    "sums north --map map --out x.sums": "north has 8 pictures, and --minimum 20",
    "merge a.sums a.sums --map map --out m": "a.sums is given twice",
    "merge a.sums copy.sums --map map --out m": "copy.sums and a.sums are the same",
    "merge a.sums --without c.sums --map map --out m --minimum 2": "more is taken away",
    "merge notes.txt --map map --out m": "no sums of feature rows can be read",
    "sums north --map model --out x.sums": "holds a TangentClassifier, no feature map; `tangentune map` makes one",
    "predict map north": "holds a feature map, which",
    "fit north --map map --out m --metric-power 0.5": "--metric-power belongs to a fit of its own",
    "fit north --map map --out m --source south": "--source belongs to a fit of its own",
    "fit north --map map --out m --damping evidence": "--damping loo or a number",
    "map --out m": "give PICTURES with landmarks",
    "map public --data-independent --out m": "not both",
    "explain model north": "sums of pictures that it does not have",
    "forget model 1": "sums of pictures that it does not have",
    "report model": "sums of pictures that it does not have",
}


@pytest.fixture
def all_there(sets: Path) -> Path:
    add_up("north", "south")
    assert main(["sums", "pooled", "--map", "map", "--out", "c.sums", "-q", *map(str, FEW)]) == 0
    assert main(["map", "--data-independent", "--out", "other", "--width", "70", "-q"]) == 0
    assert main(["sums", "south", "--map", "other", "--out", "b.sums", "-q", *map(str, FEW)]) == 0
    assert main(["merge", "north.sums", "--map", "map", "--out", "model", "--minimum", "2", "-q"]) == 0
    os.replace("north.sums", "a.sums")
    shutil.copy("a.sums", "copy.sums")
    (sets / "notes.txt").write_text("none")
    return sets


def test_mistakes_are_one_sentence_and_change_nothing(
    all_there: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(all_there)
    for command, words in REFUSED.items():
        refused(capsys, *command.split(), words=(words,), quiet=command != "report model")
    monkeypatch.setenv("RANK", "5")
    refused(capsys, *["sums", "north", "--map", "map", "--out", "x.sums"], words=("RANK=5", "no rank of several"))
    assert {name for name in digest(all_there) if ".parts" not in name} == set(before)
