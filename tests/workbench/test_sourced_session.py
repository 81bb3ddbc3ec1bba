"""A session over models whose edits take more than one inverse: a source, balanced classes, weight 0, likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from small import FIXED
from sourced_cases import BACKBONE, MORE, WEIGHTS, X, Y, classifier, equals_joint

from tangentune import TangentClassifier
from tangentune.reports.explanation import explain
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session

LIKELY: dict[str, Any] = FIXED | {"likelihood": "dirichlet"}
KINDS: dict[str, Any] = {
    "source": lambda: classifier(),
    "balanced source": lambda: classifier(class_weight="balanced", augment="flip"),
    "weights": lambda: TangentClassifier(BACKBONE, **FIXED).fit(X, Y, WEIGHTS),
    "dirichlet": lambda: TangentClassifier(BACKBONE, **LIKELY).fit(X, Y),
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_reports(kind: str) -> None:
    """From the kernel alone; the reports take the picture out of the problem, and its rows from the network."""
    session = Session(KINDS[kind]())
    for number in (5, 6):  # the first has weight 0 where there are weights
        answer = session.answer(number, top=20)
        (expected,) = explain(session.estimator, session.estimator.pictures_.select([number]), 20)
        (lead,) = expected.attributions
        assert answer.label == expected.given
        assert [name for name, _ in answer.without_label] == [one.label for one in expected.answers]
        assert_allclose(
            [p for _, p in answer.without_label], [one.confidence or 0.0 for one in expected.answers], atol=1e-9
        )
        for mine, theirs in ((answer.supports, lead.raised), (answer.opposes, lead.lowered)):
            assert_allclose(
                sorted((one.number, one.influence, one.contribution) for one in mine if abs(one.influence) > 1e-9),
                sorted((o.position, o.influence, o.contribution) for o in theirs if abs(o.influence) > 1e-9),
                rtol=0,
                atol=1e-8,
            )
        assert answer.distance == pytest.approx(
            expected.distance, abs=1.5 / 19
        )  # itself is among the reports' pictures
        assert (answer.with_label is None) == (kind == "dirichlet")


@pytest.mark.parametrize("kind", ["source", "balanced source"])
def test_edits_of_a_sourced_model_are_joint_fits(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    model.save_pretrained(tmp_path / "m")
    with Session.open(tmp_path / "m", backbone=BACKBONE) as session:
        session.take(Edit("forget", (3, 7)))
        session.add(MORE[:2], "bee")
        session.take(Edit("relabel", (4,), "dog"))
        y = np.r_[np.delete(Y, (3, 7)), ["bee", "bee"]]
        y[3] = "dog"
        x = np.concatenate([np.delete(X, (3, 7), 0), MORE[:2]])
        equals_joint(session.estimator, x, y)
        session.undo()
        session.redo()
        session.save()
        equals_joint(session.estimator, x, y)
        session.take(Edit("forget", (0,)))
        equals_joint(session.estimator, x[1:], y[1:])
        session.discard()


def test_other_likelihoods_follow_edits() -> None:
    session = Session(KINDS["dirichlet"]())
    session.take(Edit("relabel", (3,), "ant"))
    model = KINDS["dirichlet"]().relabel([3], "ant")
    assert [row.id for row in session.suspects(20)] == [one.id for one in model.suspects()]
    session.take(Edit("forget", (8,)))
    model.forget([8])
    assert_allclose(session.estimator.loo_proba_, model.loo_proba_, rtol=0, atol=1e-9)
    assert session.figures().accuracy == pytest.approx(model.loo_score_)
