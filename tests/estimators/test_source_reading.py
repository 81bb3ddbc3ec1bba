"""What can be a source, what cannot, and how its kernels are made."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import rows_of, scores
from numpy.testing import assert_allclose
from PIL import Image
from small import FIXED
from sourced_cases import (
    BACKBONE,
    MORE,
    NAMES,
    NEW,
    NUMBERS,
    X,
    Y,
    classifier,
    equals_joint,
    source,
)
from torch import nn

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.errors import BudgetError, InputError, PictureError
from tangentune.estimators.source import _check_room
from tangentune.estimators.training_set import PictureReader, RowReader, problem, source_kernels, source_pictures
from tangentune.methods.source_selection.manifest import Manifest, file_digest, write_manifest
from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import Pictures

# -- reading a source --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (source(), {"likelihood": "dirichlet"}, "source= needs likelihood='least_squares', not 'dirichlet'"),
        (source(), {"outer_steps": 8}, "source= needs outer_steps=0, not 8"),
        (replace(source(), pixels=source().pixels[:, :, :4, :4]), {}, r"\(3, 4, 4\) uint8, .* \(3, 8, 8\) uint8"),
        (replace(source(), pixels=source().pixels.float()), {}, r"\(3, 8, 8\) float32, .* \(3, 8, 8\) uint8"),
        (replace(source(), labels=None), {}, "source pictures have no labels"),
        (X, {}, "source pictures have no labels"),
        (replace(source(), labels=np.array([["a", "b"]] * 40)), {}, "have 2 labels each"),
        (replace(source(), labels=np.full(40, np.nan)), {}, "label"),
        (source().select(np.zeros(0, int)), {}, "no source picture is left"),
        (Pictures(torch.from_numpy(X), Y, ["s"] * 20), {}, "no source picture is left"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_used_is_refused_first(given: Any, options: dict[str, Any], words: str) -> None:
    model: Any = TangentClassifier(BACKBONE, **(FIXED | options))
    with pytest.raises(InputError, match=words) as caught:
        model.fit(X, Y, source=given)
    assert "\n" not in str(caught.value)
    assert not [name for name in vars(model) if name.endswith("_")]


def test_a_regressor_has_no_classes_for_a_source() -> None:
    with pytest.raises(InputError, match="source= belongs to classifiers") as caught:
        TangentRegressor(BACKBONE, **FIXED).fit(X, NUMBERS.astype(float), source=source())
    assert "\n" not in str(caught.value)


def test_twins_of_target_pictures_are_left_out(plain: Any) -> None:
    given = source()
    assert given.labels is not None
    pixels, labels = torch.cat([torch.from_numpy(X[:2]), given.pixels]), np.append(Y[:2], given.labels)
    both = Pictures(pixels, labels, ["t0", "t1", *given.ids])
    with pytest.warns(
        UserWarning, match="^2 source pictures are target pictures too and left out of the source: t0, t1"
    ):
        model = classifier(both)
    assert model.source_ids_ == given.ids
    assert np.array_equal(scores(model, NEW), scores(plain, NEW))
    with pytest.warns(UserWarning, match="^1 source picture is a target picture too"):
        classifier(both.select(np.arange(1, 42)))


def test_numbers_are_names_whatever_their_type() -> None:
    given = replace(source(), labels=np.arange(40) % 4)
    names = [classifier(given, y=NUMBERS.astype(kind)).source_["classes"] for kind in (int, float)]
    assert [row["stands_for"] for row in names[0]] == [{str(i): 1.0} for i in range(4)]
    assert [list(row["stands_for"].values()) for row in names[1]] == [[1.0]] * 4
    column = classifier(replace(given, labels=given.labels[:, None] if given.labels is not None else None), y=NUMBERS)
    assert column.source_["classes"] == names[0]


def test_folders_tables_and_manifests_are_sources(plain: Any, tmp_path: Path) -> None:
    given, root = source(), tmp_path / "data"
    assert given.labels is not None
    for i, (picture, label) in enumerate(zip(given.pixels.numpy(), given.labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(root / label / f"{i:02}.png")
    ids = [f"{label}/{i:02}.png" for i, label in enumerate(given.labels)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *(f"data/{name},{name[:3]}" for name in ids)]))
    shares, contract = np.ones((40, 2)) / 2, DataContract(input_size=(3, 8, 8))
    made = Manifest(
        settings={"method": "uot"}, backbone={"name": "small", "digest": "0" * 64, "contract": contract.to_dict()},
        source={"root": str(root), "count": 40},
        target={"root": None, "count": 20, "classes": ["x", "y"], "digest": None},
        ids=tuple(ids), sha256=tuple(file_digest(root / name) for name in ids), classes=tuple(given.labels.tolist()),
        scores=np.zeros(40), weights=np.ones(40), targets=("x",) * 40, shares=shares,
    )  # fmt: skip
    path = write_manifest(tmp_path / "m.json", made)
    for place in (root, str(root), tmp_path / "table.csv", path, str(path)):
        model = classifier(place)
        assert_allclose(scores(model, NEW), scores(plain, NEW), rtol=0, atol=1e-9)
        assert len(model.source_ids_) == 40
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / ids[4])
    fresh: Any = TangentClassifier(BACKBONE, **FIXED)
    with pytest.raises(PictureError, match=f"1 of 40 selected pictures.*{ids[4]} has changed") as caught:
        fresh.fit(X, Y, source=path)
    assert "\n" not in str(caught.value)
    assert not [name for name in vars(fresh) if name.endswith("_")]


def test_vectors_have_sources_too() -> None:
    torch.manual_seed(0)
    net = Backbone(nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 6)).double())
    rng = np.random.default_rng(2)
    x, more = rng.normal(size=(20, 5)), rng.normal(size=(60, 5))
    given = Pictures(torch.from_numpy(more), (more[:, 0] > 0).astype(int), [str(i) for i in range(60)])
    options: dict[str, Any] = FIXED | {"damping": "loo"}
    model: Any = TangentClassifier(net, **options).fit(x, (x[:, 0] > 0).astype(int), source=given)
    assert model.source_["strength"] > 0
    gone = copy.deepcopy(model).forget([3])
    assert_allclose(scores(gone, x[3:4])[0], model.loo_predictions_[3], rtol=0, atol=1e-8)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_portions_give_the_same_kernels(plain: Any) -> None:
    """Rows of source pictures that do not fit are taken again, portion by portion."""
    training, opened = plain.fitted_.training, PictureReader(BACKBONE, 32, flip=False, verbose=0).open
    behind = source_pictures(source(n=12), np.ones(12), training.kernel.device)
    bare = replace(training, rows=None)
    with torch.no_grad():
        whole, own, crossed = source_kernels(bare, RowReader(plain.model_.map, opened, 2**30), behind)
        assert whole.rows is not None
        for share in (0, 5.5 / 12, 11 / 12):
            reader = RowReader(plain.model_.map, opened, int(share * whole.rows.nbytes))
            found = source_kernels(bare, reader, behind)
            assert found[0].rows is None
            assert_allclose(found[1], own, rtol=0, atol=1e-10)
            assert_allclose(found[2], crossed, rtol=0, atol=1e-10)
        rows = rows_of(plain, behind.pictures.pixels.numpy())
        assert_allclose(own, rows @ rows.T, rtol=0, atol=1e-9)
        assert_allclose(crossed, rows_of(plain, X) @ rows.T, rtol=0, atol=1e-9)


def test_a_source_too_large_for_memory_is_refused() -> None:
    _check_room(4000, 2**28)
    with pytest.raises(BudgetError, match="5000 source pictures need 1335 MiB .* budget of 1024 MiB; choose fewer"):
        _check_room(5000, 2**28)


def test_rows_need_not_be_kept(plain: Any) -> None:
    """As a loaded model has it: rows of both kinds of pictures are taken when they are needed."""
    model = copy.deepcopy(plain)
    training = model.fitted_.training
    bare = replace(training.source, pictures=replace(training.source.pictures, rows=None))
    model.fitted_ = replace(model.fitted_, training=replace(training, rows=None, source=bare), room=0)
    model.forget([2]).add(MORE[:1], ["cat"])
    equals_joint(model, np.concatenate([np.delete(X, 2, 0), MORE[:1]]), np.append(np.delete(Y, 2), "cat"))
    assert model.fitted_.training.rows is None


def test_the_problem_is_made_of_positions() -> None:
    """Names of source and target classes are compared as text."""
    behind = source_pictures(source(), np.ones(40), torch.device("cpu"))
    assert behind.classes == ("ant", "elk", "fly", "gnu")
    blank = torch.zeros(2, 40, dtype=torch.float64)
    asked = problem(behind, blank[:, :2], blank, blank.T @ blank, blank[:, :2], blank[:, 0], NAMES)
    assert asked.named.nonzero().tolist() == [[0, 0]]
    assert behind.positions[:4].tolist() == [0, 2, 3, 1]
