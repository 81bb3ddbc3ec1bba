"""Estimators with a source behind them: every figure is that of the joint problem, solved outright."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import frozen, rows_of, scores
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from small import FIXED, backbone, pictures
from source_cases import Joint
from torch import nn

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.accounts import explain
from tangentune.contract import DataContract
from tangentune.data import Pictures
from tangentune.edits import solved
from tangentune.errors import BudgetError, InputError, PictureError
from tangentune.solvers.source_choice import choose_source, source_effects
from tangentune.solvers.suspicion import distrusting
from tangentune.source_fit import _check_room
from tangentune.source_set import problem, source_kernels, source_pictures
from tangentune.transport.manifest import Manifest, SelectedPictures, file_digest, write_manifest

BACKBONE = backbone()
NAMES = np.array(["ant", "bee", "cat", "dog"])
X, NUMBERS = pictures(20, seed=1)
Y = NAMES[NUMBERS]
NEW, _ = pictures(7, seed=5)
MORE, _ = pictures(6, seed=8)
WEIGHTS = np.where(np.arange(20) == 5, 0.0, 0.5 + np.arange(20) % 3)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"metric_power": 0.25, "normalize": True, "probe_space": "pca", "probes": 2},
    {"class_weight": "balanced", "augment": "flip"},
]


def source(names: str = "ant fly gnu elk", n: int = 40, seed: int = 3) -> Pictures:
    """Pictures of the same four kinds; one has its name in common with the target."""
    x, y = pictures(n, seed=seed)
    return Pictures(torch.from_numpy(x), np.array(names.split())[y], [f"s{i}" for i in range(n)])


def classifier(given: Any = None, weights: Any = None, x: NDArray = X, y: NDArray = Y, **options: Any) -> Any:
    given = source() if given is None else given
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(x, y, weights, source=given)


@pytest.fixture(scope="module")
def plain() -> Any:
    found = classifier()
    assert found.source_["strength"] > 0
    return found


def joint(model: Any, x: NDArray, y: NDArray, weights: NDArray | None = None) -> Joint:
    """The problem of a fitted model's map and setting with these target pictures, from explicit features."""
    refit, behind = frozen(model, x, y, weights), model._training.source
    classes = np.array(behind.pictures.classes)
    named = torch.from_numpy(classes[:, None] == np.unique(y))
    rows = rows_of(model, behind.pictures.pictures.pixels.numpy())
    where, given = behind.pictures.positions, behind.pictures.given
    return Joint(refit.rows, refit.targets, refit.weights, rows, where, given, named, behind.setting)


def equals_joint(model: Any, x: NDArray, y: NDArray, weights: NDArray | None = None) -> Joint:
    """Scores, leave-one-out, leave-group-out: n + 1 joint fits and more; the inverse, if edited, solved anew."""
    asked = joint(model, x, y, weights)
    new = rows_of(model, NEW)
    assert_allclose(scores(model, NEW), asked.predict(new), rtol=0, atol=1e-8)
    assert_allclose(model.loo_predictions_, asked.loo(), rtol=0, atol=1e-8)
    groups = np.arange(len(y)) // 3
    assert_allclose(model.leave_out(groups), asked.leave_out(groups), rtol=0, atol=1e-8)
    assert_allclose(model.leave_out(np.arange(len(y))), model.loo_predictions_, rtol=0, atol=1e-9)
    state = model._solved()
    fresh = solved(state.training, state.choice, model._encode, model.damping_)
    assert_allclose(state.system.dual, fresh.system.dual, rtol=0, atol=1e-8)
    assert_allclose(state.loo, fresh.loo, rtol=0, atol=1e-8)
    assert_allclose(model.kernel_, fresh.system.kernel, rtol=0, atol=1e-12)
    assert np.array_equal(model.targets_, y)
    assert np.array_equal(model.pictures_.pixels.numpy(), x)
    for facts, labels in zip(model.source_["classes"], asked.coupling().tolist(), strict=True):
        told = [facts["stands_for"].get(str(name), 0.0) for name in model.classes_]
        assert_allclose(told, labels, rtol=0, atol=0.006)
    return asked


# -- the fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_fit_with_a_source_is_the_joint_problem(options: dict[str, Any], weights: Any) -> None:
    model = classifier(weights=weights, **options)
    assert model.source_["strength"] > 0
    asked = equals_joint(model, X, Y, weights)
    errors = (asked.weights @ asked.errors() / asked.weights.sum()).item()
    assert model.source_["loo_error"] == pytest.approx(errors, rel=1e-8)
    assert model.source_["loo_error"] < model.source_["loo_error_without"]
    slopes = source_effects(asked.problem(), asked.setting)
    assert_allclose(model.source_effects_, asked.weights @ slopes / asked.weights.sum(), rtol=1e-6, atol=1e-10)
    assert model.source_ids_ == source().ids
    assert len(model.source_effects_) == 40
    assert model.source_["classes"][0]["stands_for"] == {"ant": 1.0}
    assert sum(row["weight"] for row in model.source_["classes"]) == pytest.approx(1)


def test_the_choice_is_that_of_explicit_kernels(plain: Any) -> None:
    asked = joint(plain, X, Y)
    choice = choose_source(asked.problem(), FIXED["damping"], fixed=True)
    assert choice.setting.strength == plain.source_["strength"]
    assert choice.setting.deviation == plain.source_["deviation"]
    assert plain.damping_ == choice.setting.damping == FIXED["damping"]
    assert_allclose(choice.setting.class_weights, asked.setting.class_weights, rtol=1e-8, atol=1e-12)
    assert [row["loo_error"] for row in choice.tried] == pytest.approx(
        [row["loo_error"] for row in plain.source_["tried"]], rel=1e-7
    )


def test_the_damping_is_chosen_with_the_source() -> None:
    options: dict[str, Any] = FIXED | {"damping": "loo"}
    model, alone = classifier(**options), TangentClassifier(BACKBONE, **options).fit(X, Y)
    ratio = model.damping_ / alone.damping_
    assert ratio in (1.0, 10.0, 100.0, 1000.0)
    assert model.relative_damping_ == pytest.approx(ratio * alone.relative_damping_)
    equals_joint(model, X, Y)


def test_weights_of_the_source_count(plain: Any) -> None:
    given = np.r_[np.zeros(3), np.tile([0.5, 2.0, 1.5], 12), 1.0]
    selected = SelectedPictures(source(), given, np.ones((40, 1)), ("x",))
    model = classifier(selected)
    assert model.source_ids_ == source().ids[3:]
    assert_allclose(model._training.source.pictures.given, given[3:] / given[3:].mean())
    equals_joint(model, X, Y)
    assert np.abs(scores(model, NEW) - scores(plain, NEW)).max() > 1e-4


def test_a_harmful_source_changes_nothing() -> None:
    """Every class of the source has the name of another one of the target's."""
    model, alone = classifier(source("bee cat dog ant")), TangentClassifier(BACKBONE, **FIXED).fit(X, Y)
    assert model.source_["strength"] == 0
    assert model.source_["loo_error"] == model.source_["loo_error_without"]
    assert model.source_["classes"] == []
    for name in ("loo_predictions_", "dual_coef_", "intercept_", "kernel_", "damping_", "temperature_"):
        assert np.array_equal(getattr(model, name), getattr(alone, name)), name
    assert np.array_equal(scores(model, NEW), scores(alone, NEW))
    assert model.source_effects_.shape == (40,)
    assert np.isfinite(model.source_effects_).all()
    assert_allclose(scores(model.forget([4]), X[4:5])[0], alone.loo_predictions_[4], rtol=0, atol=1e-9)


def test_a_fit_without_source_says_so(plain: Any) -> None:
    again = copy.deepcopy(plain).fit(X, Y)
    assert again.source_ is None
    assert again.source_ids_ == []
    assert again.source_effects_.shape == (0,)
    blank: Any = clone(plain)
    assert not hasattr(blank, "source_")
    assert blank.get_params() == plain.get_params()
    assert "source" not in plain.get_params()


def test_one_source_picture_says_nothing() -> None:
    assert classifier(source().select([0])).source_["strength"] == 0


# -- edits -------------------------------------------------------------------------------------------------------------


def test_leaving_out_is_forgetting(plain: Any) -> None:
    """The prediction at a picture once it is forgotten is its leave-one-out prediction."""
    for i in (0, 6, 13, 19):
        gone = copy.deepcopy(plain).forget([i])
        assert_allclose(scores(gone, X[i : i + 1])[0], plain.loo_predictions_[i], rtol=0, atol=1e-8)


def test_leaving_out_the_only_picture_of_a_class() -> None:
    """Without it its class is known by name alone, if the source has that name."""
    kept, weights = (Y != "ant") | (np.arange(20) == 0), np.r_[0, np.ones(15)]
    for names in ("ant fly gnu elk", "fox fly gnu elk"):
        with pytest.warns(UserWarning, match="Class 'ant' has only one picture"):
            model = classifier(source(names), x=X[kept], y=Y[kept])
        assert model.source_["strength"] > 0
        equals_joint(model, X[kept], Y[kept])
        gone = copy.deepcopy(model).reweight(weights)
        assert_allclose(scores(gone, X[:1])[0], model.loo_predictions_[0], rtol=0, atol=1e-8)
        lost = scores(copy.deepcopy(model).forget([0]), X[:1])[0]  # its column goes with it
        assert np.allclose(lost, model.loo_predictions_[0, 1:], rtol=0, atol=1e-8) == (names[:3] == "fox")
        assert (model.loo_predictions_[0, 0] > 0.1) == (names[:3] == "ant")


Edited = tuple[NDArray, NDArray, NDArray]

EDITS: dict[str, tuple[Callable[[Any], Any], Callable[[NDArray, NDArray], Edited]]] = {
    "forget": (
        lambda m: m.forget([5, 6, 11]),
        lambda x, y: (np.delete(x, [5, 6, 11], 0), np.delete(y, [5, 6, 11]), np.ones(17)),
    ),
    "forget most": (
        lambda m: m.forget(range(6, 20)), lambda x, y: (x[:6], y[:6], np.ones(6)),
    ),
    "forget_class": (
        lambda m: m.forget_class("ant"), lambda x, y: (x[y != "ant"], y[y != "ant"], np.ones(15)),
    ),
    "add": (
        lambda m: m.add(MORE[:2], ["fly", "dog"], sample_weight=[2.0, 1.0]),
        lambda x, y: (np.concatenate([x, MORE[:2]]), np.append(y, ["fly", "dog"]), np.r_[np.ones(20), 2, 1]),
    ),
    "add many": (
        lambda m: m.add(np.concatenate([MORE, X + 1]), np.append(NAMES[[0, 1, 2, 3, 0, 1]], Y)),
        lambda x, y: (
            np.concatenate([x, MORE, X + 1]), np.concatenate([y, NAMES[[0, 1, 2, 3, 0, 1]], Y]), np.ones(46),
        ),
    ),
    "relabel": (
        lambda m: m.relabel([4, 7], ["elk", "ant"]),
        lambda x, y: (x, np.where(np.arange(20) == 4, "elk", np.where(np.arange(20) == 7, "ant", y)), np.ones(20)),
    ),
    "reweight": (
        lambda m: m.reweight(np.r_[np.ones(17), 0, 2, 0.5]), lambda x, y: (x, y, np.r_[np.ones(17), 0, 2, 0.5]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_joint_fits(plain: Any, edit: str) -> None:
    model = copy.deepcopy(plain)
    change, expected = EDITS[edit]
    change(model)
    equals_joint(model, *expected(X, Y))
    model.undo()
    equals_joint(model, X, Y)
    for name in ("dual_coef_", "intercept_", "loo_predictions_", "kernel_"):
        assert_allclose(getattr(model, name), getattr(plain, name), rtol=0, atol=1e-9, err_msg=name)
    assert model.source_ == plain.source_


def test_edits_follow_one_another() -> None:
    model = classifier(weights=WEIGHTS, class_weight="balanced")
    model.forget([2]).add(MORE[:3], ["bee", "ant", "fly"]).relabel([20], "cat").forget([21, 0])
    y = np.append(np.delete(Y, [0, 2]), ["cat", "fly"])
    x = np.concatenate([np.delete(X, [0, 2], 0), MORE[[0, 2]]])
    weights = np.r_[np.delete(WEIGHTS, [0, 2]), 1, 1]
    equals_joint(model, x, y, weights)
    assert all(entry["residual_after"] < 1e-10 for entry in model.edits_)


def test_strictly_forgotten_pictures_leave_the_map_as_well() -> None:
    options = {"metric_power": 0.25, "probe_space": "pca", "normalize": True}
    model = classifier(weights=WEIGHTS, **options)
    before, setting = scores(model, NEW), model._training.source.setting
    model.forget([3, 4], strict=True)
    rest = np.delete(np.arange(20), [3, 4])
    assert model._training.source.setting is setting
    equals_joint(model, X[rest], Y[rest], WEIGHTS[rest])
    own = model._training.source.own
    rows = rows_of(model, source().pixels.numpy())
    assert_allclose(own, rows @ rows.T, rtol=0, atol=1e-8)
    model.undo()
    assert_allclose(scores(model, NEW), before, rtol=0, atol=1e-9)
    equals_joint(model, X, Y, WEIGHTS)


# -- explanations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_explanations_are_joint_fits_with_the_coupling_held(weights: Any) -> None:
    model = classifier(weights=weights, metric_power=0.25)
    asked, new = joint(model, X, Y, weights), rows_of(model, NEW)
    labels, whole = asked.coupling(), asked.predict(new)
    influence = torch.stack([whole - asked.without(i).predict(new, labels) for i in range(20)], 1)
    assert_allclose(model.influence(NEW), influence, rtol=0, atol=1e-8)
    (seen,) = model._crossed(NEW)
    assert_allclose(model.contributions(NEW).sum(1) + model.intercept_ + seen.said.numpy(), whole, rtol=0, atol=1e-8)
    assert seen.said.abs().max() > 1e-3
    gradient = model.weight_gradient()
    shares = torch.ones(20, dtype=torch.float64) / 20
    for i in np.flatnonzero(np.ones(20) if weights is None else weights)[:4]:
        step = torch.zeros(20, dtype=torch.float64)
        step[i] = 1e-5
        errors = [replace(asked, weights=asked.weights + sign * step).errors(labels) for sign in (1, -1)]
        assert gradient[i] == pytest.approx(float(shares @ (errors[0] - errors[1])) / 2e-5, rel=1e-4, abs=1e-7)
    assert model.ood_score(NEW).shape == (7,)


def test_accounts_add_up_and_leave_a_training_picture_out(plain: Any) -> None:
    """Of a training picture what is told is its leave-one-out score, its label gone from the coupling too."""
    shown = Pictures(torch.from_numpy(np.concatenate([X[:4], NEW[:2]])), None, [str(i) for i in range(6)])
    names = plain.classes_.tolist()
    expected = np.concatenate([plain.loo_predictions_[:4], scores(plain, NEW[:2])])
    for one, row in zip(explain(plain, shown, 50), expected, strict=True):
        (account,) = one.accounts
        best, second = (names.index(answer.label) for answer in one.answers[:2])
        assert account.total == pytest.approx(row[best] - row[second], abs=1e-8)
        parts = sum(pull.contribution for pull in account.largest)
        assert account.intercept + parts == pytest.approx(account.total, abs=1e-9)


def test_suspects_are_judged_without_their_label(plain: Any) -> None:
    state = plain._solved()
    strict = replace(state, system=distrusting(state.system))
    assert strict.system.damping > state.system.damping
    expected = (state.encoded.targets - strict.loo).square().sum(1)
    found = plain.suspects()
    assert_allclose([s.score for s in found], expected[[s.position for s in found]], rtol=1e-12)
    assert found[0].score == pytest.approx(float(expected.max()))


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_a_saved_model_goes_on(plain: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(plain).forget([7])
    model.save_pretrained(tmp_path / "m")
    loaded: Any = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    assert np.array_equal(scores(loaded, NEW), scores(model, NEW))
    assert loaded.source_ == model.source_
    assert loaded.source_ids_ == model.source_ids_
    for name in ("source_effects_", "loo_predictions_", "kernel_"):
        assert_allclose(getattr(loaded, name), getattr(model, name), rtol=0, atol=1e-12, err_msg=name)
    assert_allclose(loaded.influence(NEW), model.influence(NEW), rtol=0, atol=1e-9)
    assert_allclose(loaded.leave_out(3), model.leave_out(3), rtol=0, atol=1e-9)
    loaded.forget([3]).add(MORE[:1], ["fly"]).relabel([5], "ant")
    rest = np.delete(np.arange(20), [3, 7])
    y = np.append(np.where(rest == 5, "ant", Y[rest]), "fly")
    equals_joint(loaded, np.concatenate([X[rest], MORE[:1]]), y)
    loaded.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    assert np.array_equal(scores(again, NEW), scores(loaded, NEW))
    again.forget(["20"], strict=True)
    equals_joint(again, X[rest], y[:-1])


def test_saved_without_pictures_it_predicts(plain: Any, tmp_path: Path) -> None:
    plain.save_pretrained(tmp_path / "m", pictures=False)
    bare: Any = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    assert np.array_equal(scores(bare, NEW), scores(plain, NEW))
    assert_allclose(bare.leave_out(4), plain.leave_out(4), rtol=0, atol=1e-9)
    assert bare.source_ == plain.source_
    for ask in (lambda: bare.forget([1]), lambda: bare.influence(NEW)):
        with pytest.raises(InputError, match="saved without its pictures"):
            ask()
    bare.save_pretrained(tmp_path / "m")
    assert np.array_equal(
        scores(TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE), NEW), scores(plain, NEW)
    )


def test_nothing_remains_of_a_forgotten_picture(plain: Any, tmp_path: Path) -> None:
    """Neither its kernel with the source pictures nor anything before the source took its part."""
    from safetensors.torch import load_file

    behind = plain._training.source
    values = torch.cat([behind.cross[7], behind.plain[7]]).numpy()
    for model, expected in ((plain, True), (copy.deepcopy(plain).forget([7]), False)):
        model.save_pretrained(tmp_path / "m")
        held = np.concatenate(
            [t.double().numpy().ravel() for t in load_file(tmp_path / "m/model.safetensors").values()]
        )
        assert np.isin(values, held).all() == expected
        assert np.isin(values, held).any() == expected


# -- reading a source --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (source(), {"likelihood": "dirichlet"}, "source= needs likelihood='least_squares', not 'dirichlet'"),
        (source(), {"outer_steps": 8}, "source= needs outer_steps=0, not 8"),
        (source(), {"outer_steps": "loo"}, "source= needs outer_steps=0, not 'loo'"),
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
    feature_map, training = plain.model_.map, plain._training
    behind = source_pictures(source(n=12), np.ones(12), training.kernel.device)
    bare = replace(training, rows=None)
    with torch.no_grad():
        whole, own, crossed = source_kernels(bare, feature_map, plain._opened, behind, 2**30)
        assert whole.rows is not None
        for share in (0, 5.5 / 12, 11 / 12):
            found = source_kernels(bare, feature_map, plain._opened, behind, int(share * whole.rows.nbytes))
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
    behind = model._training.source
    bare = replace(behind, pictures=replace(behind.pictures, rows=None))
    model._training, model._room = replace(model._training, rows=None, source=bare), 0
    model.forget([2]).add(MORE[:1], ["cat"])
    equals_joint(model, np.concatenate([np.delete(X, 2, 0), MORE[:1]]), np.append(np.delete(Y, 2), "cat"))
    assert model._training.rows is None


def test_the_problem_is_made_of_positions() -> None:
    """Names of source and target classes are compared as text."""
    behind = source_pictures(source(), np.ones(40), torch.device("cpu"))
    assert behind.classes == ("ant", "elk", "fly", "gnu")
    blank = torch.zeros(2, 40, dtype=torch.float64)
    asked = problem(behind, blank[:, :2], blank, blank.T @ blank, blank[:, :2], blank[:, 0], NAMES)
    assert asked.named.nonzero().tolist() == [[0, 0]]
    assert behind.positions[:4].tolist() == [0, 2, 3, 1]
