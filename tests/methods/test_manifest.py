"""Manifests: the same bytes for the same selection, nothing damaged is read, changed pictures are named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tangentune.errors import InputError, PictureError, StoreError
from tangentune.methods.source_selection.manifest import (
    Manifest,
    check_manifest_path,
    content_digest,
    file_digest,
    load_selected,
    read_manifest,
    write_manifest,
)
from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import Pictures, load_pictures, pictures_digest

CONTRACT = DataContract(input_size=(3, 12, 12))
TARGETS = ["bee", "wasp"]
IDS = ("ant/0.png", "ant/3.png", "fly/1.png")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "source"
    for i, pixels in enumerate(PIXELS):
        folder = root / ("ant" if i < 4 else "fly")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i % 4}.png")
    return root


def manifest(root: Path | None, ids: tuple[str, ...] = IDS, sha256: tuple[str | None, ...] = ()) -> Manifest:
    digests = sha256 or tuple(file_digest(root / name) for name in ids) if root else sha256
    shares = np.array([[0.75, 0.25], [1 / 3, 2 / 3], [1 - 1e-9, 1e-9]])
    return Manifest(
        settings={"method": "uot", "eps": 1.0, "seed": 0},
        backbone={"name": "small", "contract": CONTRACT.to_dict(), "digest": "0" * 64},
        source={"root": None if root is None else str(root), "count": 8},
        target={"root": None, "count": 6, "classes": TARGETS, "digest": None},
        ids=ids,
        sha256=digests,
        classes=("ant", "ant", "fly"),
        scores=np.array([-0.5, -1 / 3, np.pi]),
        weights=np.array([1.5, 0.5, 1.0]),
        targets=("bee", "wasp", "bee"),
        shares=shares,
        class_table=({"class": "ant", "chosen": 2, "of": 4, "mass": 0.7},),
        coverage=({"target": "bee", "pictures": 2, "share": 0.7, "covered": 0.5, "similarity": None},),
        notes=("a note",),
    )


def equal(one: Manifest, other: Manifest) -> None:
    for name in ("settings", "backbone", "source", "target", "ids", "sha256", "classes", "targets"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("scores", "weights", "shares"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert (one.class_table, one.coverage, one.notes) == (other.class_table, other.coverage, other.notes)


def test_what_is_written_is_read_and_bytes_do_not_change(source: Path, tmp_path: Path) -> None:
    made = manifest(source)
    path = write_manifest(tmp_path / "data" / "a.json", made)
    found = read_manifest(path)
    equal(found, made)
    assert np.abs(found.scores - [-0.5, -1 / 3, np.pi]).max() < 5e-9
    assert np.abs(found.scores - [-0.5, -1 / 3, np.pi]).max() > 0  # 9 digits, as stated
    assert found.shares[2].tolist() == [1.0, 0.0]
    again = write_manifest(tmp_path / "data" / "b.json", found)
    assert again.read_bytes() == path.read_bytes()
    assert str(tmp_path) not in path.read_bytes().decode("latin-1")
    moved = Path(shutil.move(tmp_path / "data", tmp_path / "elsewhere"))
    assert read_manifest(moved / path.name).source["root"] == str(moved / "source")
    assert len(load_selected(moved / path.name, CONTRACT, n_jobs=1)) == 3


def test_any_reader_can_read_them(source: Path, tmp_path: Path) -> None:
    document = json.loads(write_manifest(tmp_path / "m.json", manifest(source)).read_text())
    assert document["digest"] == content_digest(document)
    assert [row["id"] for row in document["pictures"]] == list(IDS)
    assert document["pictures"][1]["shares"] == {"bee": 0.333333, "wasp": 0.666667}


def test_root_is_relative_only_where_it_is_near(source: Path, tmp_path: Path) -> None:
    for folder, expected in (
        (source.parent, "source"),
        (source, "."),
        (tmp_path / "data" / "lists", "../source"),
        (tmp_path / "far" / "away", str(source)),
    ):
        path = write_manifest(folder / "m.json", manifest(source))
        assert json.loads(path.read_text())["source"]["root"] == expected
        assert read_manifest(path).source["root"] == str(source)


def test_selected_pictures_are_those_of_the_source(source: Path, tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.json", manifest(source))
    found = load_selected(path, CONTRACT, n_jobs=1)
    assert found.pictures.ids == list(IDS)
    assert found.pictures.labels is not None
    assert found.pictures.labels.tolist() == ["ant", "ant", "fly"]
    assert np.array_equal(found.pictures.pixels.permute(0, 2, 3, 1).numpy(), PIXELS[[0, 3, 5]])
    assert found.weights.tolist() == [1.5, 0.5, 1.0]
    assert np.allclose(found.shares.sum(1), 1, rtol=0, atol=1e-15)
    assert found.targets == ("bee", "wasp")
    assert load_selected(path, CONTRACT.with_size(6), n_jobs=1).pictures.pixels.shape == (3, 3, 6, 6)


def test_source_may_be_elsewhere_or_a_table(source: Path, tmp_path: Path) -> None:
    made = manifest(source)
    other = Path(shutil.move(source, tmp_path / "moved"))
    with pytest.raises(PictureError, match=r"3 of 3 selected .* ant/0.png is missing and 2 more; give source="):
        load_selected(made, CONTRACT, n_jobs=1)
    (other / "list.csv").write_text("path,label\n")
    for place in (other, str(other), other / "list.csv"):
        assert load_selected(made, CONTRACT, source=place, n_jobs=1).pictures.ids == list(IDS)


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_file_names_that_are_no_text_are_found(source: Path) -> None:
    odd = os.fsencode(source / "ant") + b"/caf\xe9.png"
    os.rename(source / "ant" / "0.png", odd)
    ids = ("ant/caf\\xe9.png", *IDS[1:])
    digests = (file_digest(os.fsdecode(odd)), *(file_digest(source / name) for name in IDS[1:]))
    assert load_selected(manifest(source, ids, digests), CONTRACT, n_jobs=1).pictures.ids == list(ids)


def test_changed_and_missing_files_are_named(source: Path) -> None:
    made = manifest(source)
    Image.fromarray(255 - PIXELS[3]).save(source / "ant" / "3.png")
    with pytest.raises(PictureError, match=r"^1 of 3 selected pictures in .*source .*: ant/3.png has changed; give"):
        load_selected(made, CONTRACT, n_jobs=1)
    (source / "fly" / "1.png").unlink()
    with pytest.raises(PictureError, match="^2 of 3 .*: ant/3.png has changed and 1 more;"):
        load_selected(made, CONTRACT, n_jobs=1)


def test_arrays_are_checked_by_their_pixels() -> None:
    loaded = load_pictures(PIXELS, contract=CONTRACT, need_labels=False)
    rows = [4, 0, 6]
    made = manifest(None, ("4", "0", "6"), tuple(pictures_digest(loaded.pixels[rows])))
    found = load_selected(made, CONTRACT, source=PIXELS)
    assert torch.equal(found.pictures.pixels, loaded.pixels[rows])
    small = load_selected(made, CONTRACT.with_size(6), source=PIXELS)
    whole = load_pictures(PIXELS, contract=CONTRACT.with_size(6), need_labels=False)
    assert torch.equal(small.pictures.pixels, whole.pixels[rows])
    named = Pictures(loaded.pixels, None, [f"p{i}" for i in range(8)])
    renamed = replace(made, ids=("p4", "p0", "p6"))
    assert load_selected(renamed, CONTRACT, source=named).pictures.ids == ["p4", "p0", "p6"]
    changed = PIXELS.copy()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(PictureError, match="1 of 3 .*: 0 has changed"):
        load_selected(made, CONTRACT, source=changed)
    with pytest.raises(PictureError, match="1 of 3 .*: 6 is missing"):
        load_selected(made, CONTRACT, source=PIXELS[:6])
    with pytest.raises(InputError, match="give them as source="):
        load_selected(made, CONTRACT)


def forged(path: Path, change: Any, seal: bool) -> Path:
    document = json.loads(path.read_text())
    change(document)
    if seal:
        document["digest"] = content_digest(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "change, seal, words",
    [
        (lambda d: d["pictures"][0].update(weight=9.0), False, "damaged or was edited by hand"),
        (lambda d: d["settings"].update(eps=2), False, "damaged or was edited by hand"),
        (lambda d: d.update(format_version=2), True, "format version 2, but this tangentune reads up to 1; update"),
        (lambda d: d.update(format="other"), True, "is no manifest of tangentune"),
        (lambda d: d["pictures"][1].update(weight=-1.0), True, "no valid manifest: weights must be at least 0"),
        (lambda d: d["pictures"][2].pop("sha256"), True, "no valid manifest: 'sha256' is missing"),
        (lambda d: d.pop("coverage"), True, "no valid manifest: 'coverage' is missing"),
    ],
)
def test_damaged_manifests_are_refused(source: Path, tmp_path: Path, change: Any, seal: bool, words: str) -> None:
    path = write_manifest(tmp_path / "m.json", manifest(source))
    with pytest.raises(StoreError, match=words) as error:
        read_manifest(forged(path, change, seal))
    assert "\n" not in str(error.value)
    assert "m.json" in str(error.value)


def test_cut_files_are_refused(source: Path, tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.json", manifest(source))
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"null", whole[: len(whole) // 2] + b"?" * 40 + whole[-40:]):
        path.write_bytes(part)
        with pytest.raises(StoreError, match=r"m\.\w+ is (damaged or )?no manifest") as error:
            read_manifest(path)
        assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="there is no such file"):
        read_manifest(tmp_path / "other.json")


def test_places_that_cannot_be_written_are_refused_first(source: Path, tmp_path: Path) -> None:
    for place, words in (
        (tmp_path / "m.txt", "a manifest ends in .json, which .*m.txt does not"),
        (tmp_path / "m.parquet", "a manifest ends in .json"),
        (source / "ant" / "0.png" / "m.json", "is no folder"),
    ):
        with pytest.raises(StoreError, match=words):
            check_manifest_path(place)
    (tmp_path / "d.json").mkdir()
    with pytest.raises(StoreError, match="it is a folder"):
        check_manifest_path(tmp_path / "d.json")


def test_a_failed_write_leaves_the_old_manifest(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = manifest(source)
    path = write_manifest(tmp_path / "m.json", made)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="cannot write .*: No space left on device"):
        write_manifest(path, replace(made, settings={"seed": 1}))
    assert path.read_bytes() == before
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"scores": np.array([1.0, np.nan, 0.0])}, "finite"),
        ({"weights": np.array([1.0, -1.0, 0.0])}, "weights must be at least 0"),
        ({"weights": np.zeros(3)}, "not all 0"),
        ({"targets": ("bee", "ant", "bee")}, "among the target's classes"),
        ({"ids": ("a", "a", "b")}, "selected twice"),
        ({"settings": {"x": object()}}, "settings.x is of type object"),
        ({"shares": np.ones((3, 3)) / 3}, "shares of shape"),
    ],
)
def test_impossible_selections_are_refused(source: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(manifest(source), **fields)
