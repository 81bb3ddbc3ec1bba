"""Which unlabelled pictures to label next: kernels against dense rows, portions, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import N, X, Y, answer, digest, folder_of, refused
from frozen import rows_of, scores
from numpy.testing import assert_allclose
from small import FIXED, backbone, pictures
from sourced_cases import NEW as OTHERS

from tangentune import Pictures, TangentClassifier, TangentRegressor
from tangentune.cli.app import main
from tangentune.errors import InputError
from tangentune.estimators.training_set import PictureReader
from tangentune.pictures.ranks import Rank, Shared
from tangentune.solvers.acquisition import next_pictures
from tangentune.workbench import suggest as room
from tangentune.workbench.suggest import candidates, suggest_from, suggest_next

BACKBONE = backbone()
TRAIN, LABELS = pictures(24)
POOL, _ = pictures(30, seed=7)


def reader(model: Any) -> PictureReader:
    return PictureReader(model.fitted_.backbone, 7, model.fitted_.feature_map.mirrored, 0)


@pytest.fixture(scope="module")
def model() -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | {"metric_power": 0.25, "normalize": True})).fit(TRAIN, LABELS)


def loaded(x: Any) -> Pictures:
    return Pictures(torch.from_numpy(x), None, [f"{i}.png" for i in range(len(x))])


@pytest.mark.parametrize("rows", [5, 10**6])  # that fit into memory at once
def test_kernels_are_those_of_the_rows(model: TangentClassifier, rows: int) -> None:
    one = rows_of(model, POOL[:1]).nbytes
    fitted = replace(model.fitted_, room=int(rows * one * 1.5))
    found, dense = candidates(fitted, reader(model), loaded(POOL[:12])), rows_of(model, POOL[:12])
    assert_allclose(found.kernel, dense @ dense.T, rtol=0, atol=1e-10)
    assert_allclose(found.cross, dense @ rows_of(model, TRAIN).T, rtol=0, atol=1e-10)
    assert_allclose(found.scores, scores(model, POOL[:12]), rtol=0, atol=1e-9)


def test_a_source_is_taken_off(plain: TangentClassifier) -> None:
    (whole,) = plain.kernel_to_training(OTHERS, whole=True)
    fresh = Pictures(torch.as_tensor(OTHERS), None, [str(i) for i in range(len(OTHERS))])
    found = candidates(plain.fitted_, reader(plain), fresh)
    assert_allclose(found.cross, whole.kernel, rtol=0, atol=1e-9)
    assert_allclose(found.kernel.diagonal(), whole.own, rtol=0, atol=1e-9)
    assert_allclose(found.scores, plain.decision_function(OTHERS), rtol=0, atol=1e-8)


def test_the_best_are_those_of_the_solver(model: TangentClassifier) -> None:
    edited = TangentClassifier(BACKBONE, **FIXED).fit(TRAIN, LABELS).forget([3, 8]).relabel(5, 0)
    for one in (model, edited):
        found, every = suggest_next(one, POOL, 6), candidates(one.fitted_, reader(one), loaded(POOL))
        proba = one.predict_proba(POOL)
        top = np.sort(proba, 1)
        margins = torch.from_numpy(top[:, -1] - top[:, -2])
        wanted = next_pictures(one.solution_.system, every.cross, every.kernel, 6, found.stage, margins)
        assert [row.position for row in found.pictures] == wanted
        assert [row.guess for row in found.pictures] == one.predict(POOL[wanted]).tolist()
        assert_allclose([row.probability or 0 for row in found.pictures], proba[wanted].max(1), atol=1e-8)
        assert all(0 <= row.unseen <= 1 for row in found.pictures)
        assert (found.unlabelled, found.portions) == (30, 1)


def test_pictures_that_are_labelled_or_equal_are_left_out(model: TangentClassifier) -> None:
    found = suggest_next(model, np.concatenate([TRAIN[:4], POOL[:5], POOL[:2]]), 5)
    assert (found.unlabelled, found.known, found.copies) == (5, 4, 2)
    assert sorted(row.position for row in found.pictures) == [4, 5, 6, 7, 8]
    with pytest.warns(UserWarning, match="5 different unlabelled pictures, fewer than the 9"):
        assert len(suggest_next(model, POOL[:5], 9).pictures) == 5
    with pytest.raises(InputError, match="budget is 1001; ask for 1 to 1,000"):
        suggest_next(model, "nowhere", 1001)
    with pytest.raises(InputError, match="stands on all 4"):
        suggest_next(model, TRAIN[:4], 1)


def test_more_pictures_go_in_portions(model: TangentClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PORTION", 8)
    told: list[str] = []
    fitted = replace(model.fitted_, room=int(2.5 * rows_of(model, POOL[:1]).nbytes))
    found = suggest_from(fitted, reader(model), loaded(POOL), 3, told.append)
    assert len({row.position for row in found.pictures}) == 3
    assert found.portions == 4 + 2 + 1  # 30 pictures, then 12, then 6
    assert "in portions of at most 8" in told[0]
    first = [candidates(fitted, reader(model), loaded(POOL).select(np.arange(k, 30, 4))) for k in range(4)]
    assert {len(part.kernel) for part in first} == {8, 7}
    assert len(set(suggest_next(model, POOL, 4).pictures)) == 4


def test_one_process_compares_what_is_one_portion(model: TangentClassifier, tmp_path: Path) -> None:
    told: list[str] = []
    found = suggest_next(model, POOL, 2, told.append, Shared(tmp_path, Rank(0, 2)))
    assert told == ["up to 2,000 unlabelled pictures are held against one another by one process alone"]
    assert found == suggest_next(model, POOL, 2, told.append, Shared(tmp_path))
    assert len(told) == 1


def test_numbers_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = TangentRegressor(BACKBONE, **FIXED).fit(TRAIN, TRAIN[:, 0].mean((1, 2)) / 50)
    found = suggest_next(numbers, POOL, 3)
    assert (found.pictures[0].probability, found.pictures[0].margin) == (None, None)
    assert found.stage == ("variance" if numbers.loo_score_ > 0.3 else "typical")
    assert_allclose([row.guess for row in found.pictures], numbers.predict(POOL)[[r.position for r in found.pictures]])
    moved: dict[str, Any] = FIXED | {"outer_steps": 1}
    steps = TangentClassifier(BACKBONE, **moved).fit(TRAIN, LABELS)
    every = candidates(steps.fitted_, reader(steps), loaded(POOL))
    assert_allclose(every.scores, steps.decision_function(POOL), rtol=0, atol=1e-8)
    with pytest.raises(InputError, match="not fitted yet"):
        suggest_next(TangentClassifier(BACKBONE), POOL, 1)


@pytest.mark.usefixtures("loadable")
def test_the_command(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "new", list(range(N - 2, 30)), ["", "deep"] * 6)
    before = digest(tmp_path)
    facts = answer(capsys, "suggest", saved / "classes", folder, "--budget", "4")
    fitted = TangentClassifier.from_pretrained(saved / "classes")
    found = suggest_next(fitted, folder, 4)
    assert [row["id"] for row in facts["suggestions"]] == [row.id for row in found.pictures]
    assert (facts["unlabelled"], facts["known"], facts["stage"]) == (10, 2, found.stage)
    assert main(["suggest", str(saved / "classes"), str(folder), "--budget", "4"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["Unseen", "Guess", "Probability", "Picture"]
    assert "left out as equal to labelled ones: 2" in out
    assert "tangentune add" in out
    assert main(["suggest", str(saved / "numbers"), str(folder), "--budget", "2", "-q"]) == 0
    refused(capsys, "suggest", saved / "classes", folder, "--budget", "1001", words=("1001", "1000"))
    refused(capsys, "suggest", saved / "classes", folder, "--budget", "0", words=("--budget",))
    refused(capsys, "suggest", saved / "classes", folder, words=("--budget",))
    assert digest(tmp_path) == before
    assert Y[0] == 0
    assert len(X) == 30
