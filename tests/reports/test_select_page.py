"""The page of a selection shows the manifest's facts and the right pictures, and stands alone."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import X, Y, folder_of, small
from PIL import Image
from test_report import Page, only_our_script

from tangentune.errors import PictureError, StoreError
from tangentune.methods.source_selection.select import Selection, select_source
from tangentune.pictures.load import load_pictures
from tangentune.reports.selection_page import class_rows, load_examples, render_selection, shown, write_selection_page

TARGET, SOURCE = list(range(10)), list(range(10, 30))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    folder_of(tmp_path / "target", TARGET, [f"t{Y[i]}" for i in TARGET])
    folder_of(tmp_path / "source", SOURCE, [f"s{Y[i]}" for i in SOURCE])
    return tmp_path


def chosen(root: Path, **settings: Any) -> Selection:
    return select_source(root / "target", root / "source", small(), n_jobs=1, **{"budget": 9, **settings})


def test_every_target_class_has_its_pictures(sets: Path) -> None:
    manifest = chosen(sets).manifest
    examples = load_examples(manifest, sets / "target", n_jobs=1)
    page = render_selection(manifest, examples)
    assert page == render_selection(manifest, examples)
    seen = Page(page)
    expected = []
    for name in manifest.target["classes"]:
        own = sorted((sets / "target" / name).iterdir())[:2]
        expected += [f"{name}/{file.name}, a target picture of {name}" for file in own]
        served = [i for i in range(9) if manifest.targets[i] == name][:7]
        expected += [f"{manifest.ids[i]}, source class {manifest.classes[i]}, chosen for {name}" for i in served]
    assert seen.alts == expected
    for row in manifest.coverage:
        if row["pictures"]:
            many = "picture" if row["pictures"] == 1 else "pictures"
            assert f"{row['pictures']} {many} chosen for it, {100 * row['share']:.1f} % of all weight" in seen.text
        else:
            assert "no chosen picture serves this class best" in seen.text
    for weight in manifest.weights:
        assert f"× {weight:.2f}" in seen.text
    assert only_our_script(page)
    assert re.findall(r"""(?:src|href)=["'](?!data:|#word-)""", page) == []


def test_the_pictures_are_the_right_ones(sets: Path) -> None:
    manifest = chosen(sets).manifest
    examples = load_examples(manifest, sets / "target", n_jobs=1)
    page = render_selection(manifest, examples)
    sources = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"[^>]*alt="([^",]+), source class', page)
    assert len(sources) == sum(len(rows) for rows in shown(manifest).values())
    for code, name in sources:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).resize((8, 8), Image.Resampling.BOX), float)
        errors = {
            other: np.abs(image - np.asarray(Image.open(sets / "source" / other), float)).mean()
            for other in manifest.ids
        }
        assert min(errors, key=errors.__getitem__) == name


def test_arrays_show_their_pixels() -> None:
    backbone = small()
    target = load_pictures(X[TARGET], [f"t{Y[i]}" for i in TARGET], contract=backbone.contract)
    source = load_pictures(X[SOURCE], [f"s{Y[i]}" for i in SOURCE], contract=backbone.contract)
    manifest = select_source(target, source, backbone, budget=5).manifest
    examples = load_examples(manifest, target, source=source)
    assert examples.chosen.pixels.shape[1:] == (3, 8, 8)
    assert render_selection(manifest, examples).count("<img ") == 5 + 2 * 4


def test_classes_take_turns_where_whole_ones_are_chosen(sets: Path) -> None:
    manifest = chosen(sets, budget=4, unit="classes").manifest
    for rows in shown(manifest).values():
        labels = [manifest.classes[i] for i in rows]
        assert len(set(labels[: len(set(labels))])) == len(set(labels))


def test_the_best_come_first_however_the_manifest_is_ordered(sets: Path) -> None:
    manifest = chosen(sets).manifest
    turned = {
        name: getattr(manifest, name)[::-1] for name in ("ids", "sha256", "classes", "scores", "weights", "targets")
    }
    other = replace(manifest, shares=manifest.shares[::-1], **turned)
    for one, two in zip(shown(manifest).values(), shown(other).values(), strict=True):
        assert [manifest.ids[i] for i in one] == [other.ids[i] for i in two]


def test_many_classes_are_cut_and_counted(sets: Path) -> None:
    manifest = chosen(sets).manifest
    names = [f"class {i}" for i in range(30)]
    shares = np.zeros((9, 30))
    shares[:, :9] = np.eye(9)
    wide = replace(
        manifest,
        target={**manifest.target, "classes": names},
        targets=tuple(names[:9]),
        shares=shares,
        coverage=tuple(
            {"target": name, "pictures": int(i < 9), "share": int(i < 9) / 9, "covered": None, "similarity": None}
            for i, name in enumerate(names)
        ),
    )
    page = Page(render_selection(wide, load_examples(wide, sets / "target", n_jobs=1)))
    assert "6 more target classes are in the table below." in page.text
    assert "18 more" in page.text
    assert len([row for row in class_rows(wide) if row["target"]]) == len(set(manifest.classes))


def test_text_of_users_is_escaped_and_pages_are_written_whole(sets: Path) -> None:
    manifest = replace(chosen(sets).manifest, notes=("<b>careful</b>",))
    path = write_selection_page(sets / "p.html", manifest, sets / "target", n_jobs=1)
    assert "&lt;b&gt;careful&lt;/b&gt;" in path.read_text()
    with pytest.raises(StoreError, match="cannot write"):
        write_selection_page(sets / "p.html" / "q.html", manifest, sets / "target", n_jobs=1)
    (sets / "source" / manifest.ids[0]).unlink()
    with pytest.raises(PictureError, match=f"{manifest.ids[0]} is missing"):
        write_selection_page(sets / "p.html", manifest, sets / "target", n_jobs=1)
    assert "careful" in path.read_text()
