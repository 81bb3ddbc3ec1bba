"""Pictures that a model was fitted on are known by their pixels, and answered by the model fitted without them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_cases import BACKBONE, NEW, NUMBERS, classifier, regressor, vectors
from numpy.testing import assert_allclose
from small import FIXED, pictures
from torch import nn

from tangentune import Backbone, Pictures, TangentClassifier, TangentRegressor
from tangentune.estimators.scores import honest_answers, judge
from tangentune.pictures.load import load_pictures, pictures_digest
from tangentune.reports.explanation import explain

X, Y = pictures(40)


def loaded(x: Any, y: Any = None) -> Pictures:
    return load_pictures(x, y, contract=BACKBONE.contract, need_labels=y is not None)


def mixed() -> Pictures:
    """Three of the fit, out of order, among new ones."""
    return loaded(np.concatenate([NEW[:2], X[[7, 3]], NEW[2:4], X[[39]]]))


def test_answers_to_pictures_of_the_fit_are_leave_one_out() -> None:
    clf = classifier()
    with pytest.warns(UserWarning, match=r"3 of 7 pictures are ones that the model was fitted on.*leave-one-out"):
        found = honest_answers(clf, mixed())
    assert found.fitted_on == [None, None, "7", "3", None, None, "39"]
    assert_allclose(found.values[[2, 3, 6]], clf.loo_proba_[[7, 3, 39]], rtol=0, atol=1e-12)
    assert_allclose(found.values[[0, 1, 4, 5]], clf.predict_proba(NEW[:4]), rtol=0, atol=1e-12)


def test_the_score_of_the_pictures_of_the_fit_is_the_leave_one_out_score() -> None:
    clf, reg = classifier(), regressor()
    with pytest.warns(UserWarning, match="fitted on"):
        found = judge(clf, loaded(X, Y))
    assert found.answers.known == 40
    assert found.scores["accuracy"] == clf.loo_score_
    with pytest.warns(UserWarning, match="fitted on"):
        found = judge(reg, loaded(X, NUMBERS))
    assert found.scores["r2"] == pytest.approx(reg.loo_score_, abs=1e-12)


def test_equal_pictures_of_the_fit_are_left_out_together() -> None:
    x, y = np.concatenate([X, X[[5]]]), np.append(Y, Y[5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reg = TangentRegressor(BACKBONE, **FIXED).fit(x, np.append(NUMBERS[:, 0], NUMBERS[5, 0]))
        found = honest_answers(reg, loaded(X[[5, 6]]))
        clf = classifier(y=Y)
        clf.add(X[[5]], y[[5]])
        proba = honest_answers(clf, loaded(X[[5]])).values
    groups = np.append(np.arange(40), 5)
    assert_allclose(found.values, reg.leave_out(groups)[[5, 6], 0], rtol=0, atol=1e-12)
    assert abs(found.values[0] - reg.loo_predictions_[5, 0]) > 1e-6
    assert abs(proba - clf.loo_proba_[[5]]).max() > 1e-6


@pytest.mark.parametrize("ask", ["predict", "predict_proba", "decision_function"])
def test_python_warns_and_still_gives_the_fitted_function(ask: str) -> None:
    clf = classifier()
    with pytest.warns(UserWarning, match=r"5 of 5 pictures are ones .*loo_predictions_") as caught:
        known = getattr(clf, ask)(X[:5])
    assert Path(caught[0].filename) == Path(__file__)
    both = getattr(clf, ask)(np.concatenate([NEW[:1], NEW[1:3]]))  # new ones: no warning
    assert len(known) == 5
    assert len(both) == 3
    with pytest.warns(UserWarning, match="fitted on"):
        clf.score(X, Y)


@pytest.mark.parametrize("options", [{"likelihood": "dirichlet"}, {"likelihood": "laplace"}])
def test_probabilities_of_a_likelihood_are_left_out_too(options: dict[str, Any]) -> None:
    clf = classifier(**options)
    with pytest.warns(UserWarning, match="fitted on"):
        assert_allclose(honest_answers(clf, loaded(X[:4])).values, clf.loo_proba_[:4], rtol=0, atol=1e-12)


def test_error_bars_of_pictures_of_the_fit_warn() -> None:
    with pytest.warns(UserWarning, match="fitted on"):
        regressor().predict(X[:2], return_std=True)


def test_vectors_may_be_equal_by_chance() -> None:
    x, y = vectors(30, 0)
    clf = TangentClassifier(Backbone(nn.Linear(5, 4).double()), **FIXED).fit(x, y)
    clf.predict(x)  # a warning would be an error
    (found,) = explain(clf, load_pictures(x[:1], contract=clf.backbone_.contract, need_labels=False))
    assert found.given == str(y[0])  # an explanation still leaves it out


def test_a_picture_of_weight_zero_is_a_new_one() -> None:
    clf = classifier(weights=np.arange(40.0))
    clf.predict(X[:1])
    with pytest.warns(UserWarning, match="1 of 2"):
        clf.predict(X[:2])


def test_pixels_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the fit by the fit, whatever edits come after it; new ones by the first question."""
    hashed, new = [], mixed()

    def counted(pixels: Any) -> list[str]:
        hashed.append(len(pixels))
        return pictures_digest(pixels)

    monkeypatch.setattr("tangentune.pictures.pictures.pictures_digest", counted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = classifier().forget([3, 5])
        clf.relabel([8], [Y[9]]).reweight(np.arange(1.0, 39)).predict(NEW[:1])
        assert hashed == [40, 1]
        clf.add(NEW[:3], Y[:3]).forget([40]).undo()
        assert hashed == [40, 1, 3]
        honest_answers(clf, new)
        explain(clf, new)
    assert hashed == [40, 1, 3, 7]


def test_an_explanation_knows_the_pictures_of_weight_zero_as_well() -> None:
    assert explain(classifier(weights=np.arange(40.0)), loaded(X[:1]))[0].given == str(Y[0])


@pytest.mark.parametrize("kept", [True, False])
def test_known_pictures_survive_saving_and_forgotten_ones_do_not(tmp_path: Path, kept: bool) -> None:
    clf = classifier().forget([3, 5])
    clf.save_pretrained(tmp_path / "model", pictures=kept)
    again = TangentClassifier.from_pretrained(tmp_path / "model", backbone=BACKBONE)
    for model in (clf, again):
        known = [bool(same) for same in model.fitted_.copies_of(loaded(X[:7]))]
        assert known == [True, True, True, False, True, False, True]
        with pytest.warns(UserWarning, match="5 of 7"):
            values = honest_answers(model, loaded(X[:7])).values
        assert_allclose(values[[0, 4]], clf.loo_proba_[[0, 3]], rtol=0, atol=1e-12)
    gone = pictures_digest(loaded(X[[3, 5]]).pixels)
    files = [path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name != "audit.jsonl"]
    assert not any(bytes.fromhex(name) in data or name.encode() in data for name in gone for data in files)
    again.save_pretrained(tmp_path / "copy", pictures=kept)  # and so from copy to copy
    copy = TangentClassifier.from_pretrained(tmp_path / "copy", backbone=BACKBONE)
    assert copy.fitted_.copies_of(loaded(X[:1])) == [[0]]
