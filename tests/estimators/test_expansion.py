"""Weights moved before the linearisation: cross-fitted, honest, chosen by leave-one-out, saved with the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import network
from torch import nn

from tangentune import Backbone, Pictures, TangentClassifier, TangentRegressor
from tangentune.errors import InputError
from tangentune.estimators import fit, outer_steps
from tangentune.estimators.first_look import probe_errors
from tangentune.estimators.outer_steps import FOLDS, Rung, choose_steps, cross_fitted_expansion, moved
from tangentune.jacobian.task_vector import TaskVector
from tangentune.methods.fine_tuning import fine_tune
from tangentune.methods.fine_tuning.labelled import some_of_each


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(network(), input_size=(3, 8, 8))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Stripes across and along, 20 of each, in noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    stripes = np.tile(np.arange(8) % 2, (8, 1)).astype(float)
    base = np.where(labels[:, None, None] == 1, stripes, stripes.T)
    pixels = 0.3 * base[:, None] + 0.5 * rng.random((40, 3, 8, 8))
    return Pictures(torch.from_numpy(pixels), labels, [str(i) for i in range(40)])


def weights_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in module.parameters()])


def test_each_point_has_not_seen_its_fold(backbone: Backbone, pictures: Pictures) -> None:
    made = cross_fitted_expansion(backbone, pictures, 3, flip=False)
    assert pictures.labels is not None
    assert len(made.points) == FOLDS
    assert sorted(set(made.fold.tolist())) == list(range(FOLDS))
    changed = pictures.pixels.clone()
    position = int(np.flatnonzero(made.fold == 1)[0])
    changed[position] = 0.0
    again = cross_fitted_expansion(backbone, Pictures(changed, pictures.labels, pictures.ids), 3, flip=False)
    same = [weights_of(a).equal(weights_of(b)) for a, b in zip(made.points, again.points, strict=True)]
    assert same == [fold == 1 for fold in range(FOLDS)]


def test_mean_is_the_mean_of_the_points(backbone: Backbone, pictures: Pictures) -> None:
    made = cross_fitted_expansion(backbone, pictures, 3, flip=True)
    mean = torch.stack([weights_of(point) for point in made.points]).mean(0)
    assert torch.allclose(weights_of(made.mean), mean, atol=1e-14)
    assert torch.allclose(weights_of(moved(backbone.module, made.task)), weights_of(made.mean), atol=0)
    assert not any(p.requires_grad for p in made.mean.parameters())
    assert float((weights_of(made.mean) - weights_of(backbone.module)).norm()) == pytest.approx(made.task.norm())


def test_rows_come_from_each_pictures_own_point(backbone: Backbone, pictures: Pictures) -> None:
    """The kernel is that of features stacked from the fold's own networks; predictions are at the mean."""
    fixed: dict[str, Any] = {"metric_power": 0, "body_scale": 0.0, "normalize": False, "damping": 0.05}
    model = TangentClassifier(backbone, outer_steps=3, augment=None, **fixed).fit(pictures)
    made = cross_fitted_expansion(backbone, pictures, 3, flip=False, seed=0)
    x = torch.cat(list(pictures.batches(backbone.contract, 40, backbone.dtype)))
    phi = torch.stack([made.points[fold](one[None])[0] for fold, one in zip(made.fold, x, strict=True)])
    assert np.allclose(model.kernel_, (phi @ phi.T).numpy(), atol=1e-10)
    at_mean = made.mean(x) @ phi.T @ torch.from_numpy(model.dual_coef_) + torch.from_numpy(model.intercept_)
    assert np.allclose(model.decision_function(pictures), (at_mean[:, 1] - at_mean[:, 0]).numpy(), atol=1e-9)


@pytest.mark.usefixtures("own_memory_only")
@pytest.mark.parametrize("budget", [None, "700MiB"])
def test_leave_one_out_is_exact_for_the_frozen_map(backbone: Backbone, pictures: Pictures, budget: str | None) -> None:
    fixed = {"metric_power": 0.25, "body_scale": 0.5, "normalize": True, "damping": 0.02}
    model = TangentClassifier(backbone, outer_steps=2, memory_budget=budget, **fixed).fit(pictures)
    kernel = torch.from_numpy(model.kernel_)
    n = len(kernel)
    targets = torch.nn.functional.one_hot(torch.from_numpy(model.targets_.astype(np.int64))).double()
    for i in (0, 7, 39):
        rest = [j for j in range(n) if j != i]
        system = torch.zeros(n, n, dtype=torch.float64)
        system[: n - 1, : n - 1] = kernel[rest][:, rest] + 0.02 * torch.eye(n - 1)
        system[n - 1, : n - 1] = system[: n - 1, n - 1] = 1
        solved = torch.linalg.solve(system, torch.cat([targets[rest], torch.zeros(1, 2)]))
        truth = kernel[i, rest] @ solved[:-1] + solved[-1]
        assert np.allclose(model.loo_predictions_[i], truth.numpy(), atol=1e-9)


def test_loo_chooses_and_records(backbone: Backbone, pictures: Pictures) -> None:
    made, tried = choose_steps(backbone, pictures, flip=False)
    rungs = [(row["outer_steps"], row["rate"]) for row in tried]
    assert rungs == [(0, 0.0), (32, 1e-4), (64, 2e-4)]
    still, *errors = (row["loo_error"] for row in tried)
    assert still is not None
    assert made is not None or all(error is None or still < error for error in errors)
    model = TangentClassifier(backbone, augment=None).fit(pictures)  # loo is the default
    assert model.outer_selection_ == tried
    assert model.outer_steps_ == (0 if made is None else made.steps)


def test_the_ladder_is_climbed_while_it_gets_better(
    backbone: Backbone, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs = (Rung(8, 1e-3, 8), Rung(16, 3e-3, 8), Rung(16, 1e-2, 41))
    monkeypatch.setattr(outer_steps, "RUNGS", rungs)
    made, tried = choose_steps(backbone, pictures, flip=False)
    assert made is not None
    taken = next(row for row in tried if (row["outer_steps"], row["rate"]) == (made.steps, made.rate))
    finished = [row for row in tried[1:] if row["loo_error"] is not None]
    assert finished == [taken]  # the other folds' networks are made for one rung alone
    assert taken["first_error"] == min(row["first_error"] for row in tried[1:] if row["first_error"] is not None)
    assert all(row["rate"] != 1e-2 for row in tried)  # for more pictures
    model = TangentClassifier(backbone, augment=None, damping=0.1, metric_power=0, normalize=True, body_scale=0.5)
    model.fit(pictures)
    assert (model.outer_steps_, model.outer_rate_) == (made.steps, made.rate)
    model.forget(["3", "17"], strict=True)  # moves them anew, as far and as fast
    again = cross_fitted_expansion(
        backbone, pictures.select(np.delete(np.arange(40), [3, 17])), made.steps, rate=made.rate, flip=False
    )
    assert model.task_vector_ is not None
    assert (model.task_vector_ - again.task).norm() == 0


def test_networks_that_drift_apart_are_refused(
    backbone: Backbone, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cross_fitted_expansion(backbone, pictures, 3, flip=False)
    start, mean = weights_of(backbone.module), weights_of(made.mean)
    apart = torch.stack([(weights_of(point) - mean).norm() for point in made.points]).square().mean().sqrt()
    assert made.spread == pytest.approx(float(apart / (mean - start).norm()))
    monkeypatch.setattr(outer_steps, "RUNGS", (Rung(8, 1e-3, 8),))
    assert choose_steps(backbone, pictures, flip=False)[0] is not None
    monkeypatch.setattr(outer_steps, "FAR", 0.0)
    refused, tried = choose_steps(backbone, pictures, flip=False)
    assert refused is None
    assert tried[1]["loo_error"] is not None


def test_nothing_is_spent_where_moving_does_not_pay(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright and dark pictures, which need no moving: a rate that ruins the network is given up after one of four."""
    labels = np.arange(40) % 2
    pixels = 0.7 * labels[:, None, None, None] + 0.2 * np.random.default_rng(0).random((40, 3, 8, 8))
    easy = Pictures(torch.from_numpy(pixels), labels, [str(i) for i in range(40)])
    monkeypatch.setattr(outer_steps, "RUNGS", (Rung(8, 3.0, 8),))
    networks = []
    monkeypatch.setattr(outer_steps, "fine_tune", lambda *given: networks.append(fine_tune(*given)) or networks[-1])
    made, tried = choose_steps(backbone, easy, flip=False)
    assert (made, len(networks)) == (None, 1)
    error = tried[1].pop("first_error")
    assert tried[1] == {"outer_steps": 8, "rate": 3.0, "loo_error": None, "spread": None}
    assert error is not None
    assert tried[0]["loo_error"] is not None
    assert error > tried[0]["loo_error"]


def test_moved_networks_overrule_a_probe_that_is_for_mirroring(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that are bright on the left or on the right: mirrored, nothing tells them apart."""
    labels, rng = np.arange(40) % 2, np.random.default_rng(0)
    pixels = 0.3 * rng.random((40, 3, 8, 8))
    for i, label in enumerate(labels):
        pixels[i, :, :, 4 * label : 4 * label + 4] += 0.6
    sided = Pictures(torch.from_numpy(pixels), labels, [str(i) for i in range(40)])
    monkeypatch.setattr(outer_steps, "RUNGS", (Rung(8, 1e-3, 8),))
    few = choose_steps(backbone, sided, flip=True, may_unmirror=True)[0]
    monkeypatch.setattr(outer_steps, "MIRRORS", 8)
    asked = choose_steps(backbone, sided, flip=True)[0]
    assert all(one is None or one.flip for one in (few, asked))  # too few to overrule, or told to mirror
    made = choose_steps(backbone, sided, flip=True, may_unmirror=True)[0]
    assert made is not None
    assert not made.flip
    monkeypatch.setattr(fit, "mirroring_helps", lambda *_: True)
    model, plain = (TangentClassifier(backbone, augment=word).fit(sided) for word in ("loo", None))
    assert (model.augment_, model.outer_steps_) == (None, 8)
    assert (model.predict_proba(sided) == plain.predict_proba(sided)).all()


def test_of_many_pictures_two_networks_learn_and_some_judge(
    backbone: Backbone, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_steps, "MANY", 39)
    monkeypatch.setattr(outer_steps, "LOOKED_AT", 10)
    monkeypatch.setattr(outer_steps, "PASSES", 13)
    monkeypatch.setattr(outer_steps, "RATE_OF_MANY", 1e-3)
    made, tried = choose_steps(backbone, pictures, flip=False)
    assert made is not None
    assert pictures.labels is not None
    assert [row["outer_steps"] for row in tried] == [0, 2, 8]  # 13 passes over 20 pictures, and a quarter
    assert (made.steps, len(made.points), sorted(set(made.fold.tolist()))) == (8, 2, [0, 1])
    assert made.fold.shape == (40,)
    judges = some_of_each(pictures.labels, 10)
    features = torch.cat([backbone.features(pictures.pixels[i][None]) for i in judges])
    still = probe_errors(features, torch.eye(2, dtype=torch.float64)[pictures.labels[judges]])
    assert tried[0]["loo_error"] == pytest.approx(float(still.mean()))
    model = TangentClassifier(backbone, augment=None, solver="landmarks", landmarks=20).fit(pictures)
    assert model.outer_steps_ == 8
    assert model.score(pictures) > 0.8
    model.forget(["3", "17"], strict=True)
    rest = pictures.select(np.delete(np.arange(40), [3, 17]))
    again = cross_fitted_expansion(backbone, rest, 8, rate=1e-3, flip=False)
    assert len(again.points) == 4  # 38 pictures are not many
    assert model.task_vector_ is not None
    assert (model.task_vector_ - again.task).norm() == 0


def test_a_refused_rung_falls_back_to_the_one_below(
    backbone: Backbone, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of networks moved far is not to be trusted, that of the others is; no network is made twice."""
    rungs = (Rung(4, 1e-3, 8), Rung(16, 3e-3, 8))
    monkeypatch.setattr(outer_steps, "RUNGS", rungs)
    spreads = [cross_fitted_expansion(backbone, pictures, own.steps, rate=own.rate, flip=False).spread for own in rungs]
    assert choose_steps(backbone, pictures, flip=False)[0].steps == 16  # type: ignore[union-attr]
    real = outer_steps._Mover.expansion
    monkeypatch.setattr(
        outer_steps._Mover,
        "expansion",
        lambda self, rung, nets: dataclasses.replace(real(self, rung, nets), spread=2.0 if rung.steps == 16 else 0.5),
    )
    networks = []
    monkeypatch.setattr(outer_steps, "fine_tune", lambda *given: networks.append(fine_tune(*given)) or networks[-1])
    made, tried = choose_steps(backbone, pictures, flip=False)
    assert made is not None
    assert (made.steps, len(networks)) == (4, 2 * FOLDS)
    assert [row["spread"] for row in tried] == [0.0, 0.5, 2.0]
    assert min(spreads) > 0


@pytest.mark.parametrize("options", [{"subset": "none"}, {"subset": "last:1"}, {"body_scale": 0.0}], ids=str)
def test_what_is_to_stay_does_not_move(backbone: Backbone, pictures: Pictures, options: dict[str, Any]) -> None:
    model = TangentClassifier(backbone, damping=0.1, **options).fit(pictures)
    assert (model.outer_steps_, model.outer_selection_, model.task_vector_) == (0, [], None)


def test_saved_with_the_model_and_bit_equal(backbone: Backbone, pictures: Pictures, tmp_path: Path) -> None:
    model = TangentClassifier(backbone, outer_steps=2, augment="flip").fit(pictures)
    model.save_pretrained(tmp_path / "model")
    loaded = TangentClassifier.from_pretrained(tmp_path / "model", backbone=backbone)
    assert (loaded.predict_proba(pictures) == model.predict_proba(pictures)).all()
    assert loaded.outer_steps_ == 2
    assert isinstance(loaded.task_vector_, TaskVector)
    assert model.task_vector_ is not None
    assert (loaded.task_vector_ - model.task_vector_).norm() == 0 < model.task_vector_.norm()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()


def test_backbone_stays_as_it_was(backbone: Backbone, pictures: Pictures) -> None:
    before = weights_of(backbone.module).clone()
    TangentClassifier(backbone, outer_steps=2).fit(pictures)
    assert weights_of(backbone.module).equal(before)


def test_a_class_of_one_picture_and_few_pictures(backbone: Backbone, pictures: Pictures) -> None:
    assert pictures.labels is not None
    labels = pictures.labels.copy()
    labels[5] = 2
    with pytest.warns(UserWarning, match="one"):
        model = TangentClassifier(backbone, outer_steps=2).fit(pictures.pixels, labels)
    assert np.isfinite(model.loo_predictions_).all()
    few = TangentClassifier(backbone, outer_steps="loo").fit(pictures.select(slice(0, 6)))
    assert few.outer_steps_ == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, "much", True])
def test_wrong_steps_are_refused(backbone: Backbone, pictures: Pictures, wrong: object) -> None:
    with pytest.raises(InputError, match="outer_steps"):
        TangentClassifier(backbone, outer_steps=wrong).fit(pictures)  # pyright: ignore[reportArgumentType]


def test_regressor_has_none(backbone: Backbone, pictures: Pictures) -> None:
    numbers = pictures.pixels.mean((1, 2, 3)).numpy()
    with pytest.raises(InputError, match="class labels"):
        TangentRegressor(backbone, outer_steps=3).fit(pictures.pixels, numbers)
    assert TangentRegressor(backbone, outer_steps="loo").fit(pictures.pixels, numbers).outer_steps_ == 0


def test_card_and_plan_know_of_the_steps(backbone: Backbone, pictures: Pictures, tmp_path: Path) -> None:
    still, moving = (TangentClassifier(backbone, outer_steps=steps) for steps in (0, 50))
    assert moving.plan(pictures)["seconds"] > still.plan(pictures)["seconds"]
    for model, said in ((still, False), (moving.set_params(outer_steps=2), True)):
        model.fit(pictures).save_pretrained(tmp_path / "model")
        assert ("towards the labels" in (tmp_path / "model" / "README.md").read_text()) == said


def test_classes_as_numbers_in_a_column(backbone: Backbone, pictures: Pictures) -> None:
    assert pictures.labels is not None
    expected = TangentClassifier(backbone, outer_steps=2).fit(pictures)
    model = TangentClassifier(backbone, outer_steps=2).fit(pictures.pixels, pictures.labels.astype(float))
    assert (model.loo_predictions_ == expected.loo_predictions_).all()
    with pytest.warns(UserWarning, match="column-vector"):
        model.fit(pictures.pixels, pictures.labels[:, None])
    assert (model.loo_predictions_ == expected.loo_predictions_).all()
