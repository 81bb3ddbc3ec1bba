"""Fitted models with a source behind them explain themselves, are saved and read, and forget."""

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
from sourced_cases import (
    BACKBONE,
    MORE,
    NEW,
    WEIGHTS,
    X,
    Y,
    classifier,
    equals_joint,
    joint,
)

from tangentune import TangentClassifier
from tangentune.errors import InputError
from tangentune.pictures.load import Pictures
from tangentune.reports.explanation import explain
from tangentune.solvers.leave_out import distrusting

# -- explanations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_explanations_are_joint_fits_with_the_coupling_held(weights: Any) -> None:
    model = classifier(weights=weights, metric_power=0.25, normalize=True)
    asked, new = joint(model, X, Y, weights), rows_of(model, NEW)
    labels, whole = asked.coupling(), asked.predict(new)
    influence = torch.stack([whole - asked.without(i).predict(new, labels) for i in range(20)], 1)
    assert_allclose(model.influence(NEW), influence, rtol=0, atol=1e-8)
    (seen,) = model.kernel_to_training(NEW)
    assert_allclose(model.contributions(NEW).sum(1) + model.intercept_ + seen.source.numpy(), whole, rtol=0, atol=1e-8)
    assert seen.source.abs().max() > 1e-3
    gradient = model.weight_gradient()
    shares = torch.ones(20, dtype=torch.float64) / 20
    for i in np.flatnonzero(np.ones(20) if weights is None else weights)[:4]:
        step = torch.zeros(20, dtype=torch.float64)
        step[i] = 1e-5
        errors = [replace(asked, weights=asked.weights + sign * step).errors(labels) for sign in (1, -1)]
        assert gradient[i] == pytest.approx(float(shares @ (errors[0] - errors[1])) / 2e-5, rel=1e-4, abs=1e-7)
    assert model.ood_score(NEW).shape == (7,)


def test_attributions_add_up_and_leave_a_training_picture_out(plain: Any) -> None:
    """Of a training picture what is told is its leave-one-out score, its label gone from the coupling too."""
    shown = Pictures(torch.from_numpy(np.concatenate([X[:4], NEW[:2]])), None, [str(i) for i in range(6)])
    names = plain.classes_.tolist()
    expected = np.concatenate([plain.loo_predictions_[:4], scores(plain, NEW[:2])])
    for one, row in zip(explain(plain, shown, 50), expected, strict=True):
        (attribution,) = one.attributions
        best, second = (names.index(answer.label) for answer in one.answers[:2])
        assert attribution.total == pytest.approx(row[best] - row[second], abs=1e-8)
        parts = sum(pull.contribution for pull in attribution.largest)
        assert attribution.intercept + parts == pytest.approx(attribution.total, abs=1e-9)


def test_suspects_are_judged_without_their_label(plain: Any) -> None:
    state = plain.solution_
    strict = replace(state, system=distrusting(state.system))
    assert strict.system.damping > state.system.damping
    expected = (state.targets.targets - strict.loo).square().sum(1)
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
    loaded.forget([3]).add(MORE[:1], ["fly"], new_class=True).relabel([5], "ant")
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

    behind = plain.fitted_.training.source
    values = torch.cat([behind.cross[7], behind.plain[7]]).numpy()
    for model, expected in ((plain, True), (copy.deepcopy(plain).forget([7]), False)):
        model.save_pretrained(tmp_path / "m")
        held = np.concatenate(
            [t.double().numpy().ravel() for t in load_file(tmp_path / "m/model.safetensors").values()]
        )
        assert np.isin(values, held).all() == expected
        assert np.isin(values, held).any() == expected
