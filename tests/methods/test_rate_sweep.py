"""The sweep over rates: what it picks, what it says, and how it copes with few pictures and bad rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small
import torch

from tangentune.errors import InputError
from tangentune.methods.fine_tuning import DivergedError, FineTuneSettings, fine_tune, rate_sweep, sweep
from tangentune.pictures.pictures import Pictures

QUICK = FineTuneSettings(epochs=6, batch_size=16)


def pictures(labels: Any) -> Pictures:
    x, _ = small.pictures(len(labels), 4)
    return Pictures(torch.from_numpy(x), np.asarray(labels), [str(i) for i in range(len(labels))])


BALANCED = pictures(np.arange(48) % 4)


def test_picks_the_rate_that_learns_and_refits_on_everything() -> None:
    data = pictures(np.arange(96) % 4)
    fields: Any = {"epochs": 10, "batch_size": 16}
    given = FineTuneSettings(**fields)
    found = sweep(small.backbone(), data, given, rates=(1e-9, 5e-2, 1e-8), validation_share=0.25, seed=5)
    assert [trial.settings.learning_rate for trial in found.trials] == [1e-9, 5e-2, 1e-8]
    accuracies = [trial.validation.accuracy for trial in found.trials if trial.validation is not None]
    assert accuracies[1] > max(accuracies[0], accuracies[2]) + 0.1
    assert all(
        trial.settings.seed == 5 and trial.validation and trial.validation.pictures == 24 for trial in found.trials
    )
    assert found.problem == ""
    assert found.seconds > found.tuned.seconds + sum(trial.seconds for trial in found.trials)

    alone = fine_tune(small.backbone(), data, FineTuneSettings(5e-2, seed=5, **fields))
    assert found.tuned.settings == alone.settings
    assert torch.equal(found.tuned.logits(data), alone.logits(data))
    assert found.tuned.validation == found.trials[1].validation
    assert found.tuned.validation is not None
    assert found.tuned.temperature == found.tuned.validation.temperature
    assert (found.predict(data) == alone.predict(data)).all()
    torch.testing.assert_close(found.predict_proba(data), found.tuned.predict_proba(data))
    assert found.classes.tolist() == [0, 1, 2, 3]


def test_without_a_refit_the_best_trial_itself_predicts() -> None:
    found = sweep(small.backbone(), BALANCED, QUICK, rates=(2e-2, 1e-9), refit=False)
    alone = fine_tune(small.backbone(), BALANCED, found.trials[0].settings)
    assert found.tuned.settings == found.trials[0].settings
    assert found.tuned.settings.validation_share == 0.2
    assert torch.equal(found.tuned.logits(BALANCED), alone.logits(BALANCED))


def test_variants_are_tried_on_top_of_the_best_so_far() -> None:
    variants = ({"head_start": "probe"}, {"layer_decay": 0.5})
    found = sweep(small.backbone(), BALANCED, QUICK, rates=(1e-9, 2e-2), variants=variants)
    tried = [(trial.settings.learning_rate, trial.settings.head_start) for trial in found.trials]
    assert tried[:3] == [(1e-9, "zero"), (2e-2, "zero"), (2e-2, "probe")]
    assert [trial.settings.layer_decay for trial in found.trials] == [1.0, 1.0, 1.0, 0.5]
    third, fourth = found.trials[2:]
    alone = fine_tune(small.backbone(), BALANCED, third.settings)
    assert third.validation == alone.validation
    best = max(found.trials[:3], key=lambda trial: (trial.validation.accuracy, -trial.validation.nll))  # type: ignore[union-attr]
    assert fourth.settings.head_start == best.settings.head_start


def test_refit_takes_the_epochs_that_early_stopping_found() -> None:
    fields: Any = {"epochs": 30, "batch_size": 8, "patience": 2, "schedule": "constant"}
    found = sweep(small.backbone(), BALANCED, FineTuneSettings(**fields), rates=(2e-2,))
    seen = found.trials[0].validation
    assert seen is not None
    assert seen.kept < 30
    assert found.tuned.settings.epochs == len(found.tuned.losses) == seen.kept


def test_ties_go_to_the_lower_log_loss() -> None:
    rates = (1e-9, 1e-2, 1.1e-2, 1.2e-2)
    found = sweep(small.backbone(), BALANCED, QUICK, rates=rates, seed=5)
    order = [(-v.accuracy, v.nll) for v in (trial.validation for trial in found.trials) if v is not None]
    assert sum(a == min(order)[0] for a, _ in order) >= 2, "a tie is what this test is about"
    assert found.tuned.settings.learning_rate == rates[order.index(min(order))]


def test_a_rate_that_diverges_is_noted_and_passed_over() -> None:
    found = sweep(small.backbone(), BALANCED, QUICK, rates=(1e305, 1e-2))
    assert found.trials[0].validation is None
    assert "diverged" in found.trials[0].problem
    assert found.tuned.settings.learning_rate == 1e-2
    with pytest.raises(DivergedError, match="every rate"):
        sweep(small.backbone(), BALANCED, QUICK, rates=(1e305,))


def test_a_refit_that_diverges_gives_way_to_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def brittle(backbone: Any, data: Pictures, settings: FineTuneSettings, *, verbose: int) -> Any:
        if settings.validation_share == 0 and settings.learning_rate > 1e-2:
            raise DivergedError("all pictures were too many")
        return fine_tune(backbone, data, settings, verbose=verbose)

    monkeypatch.setattr(rate_sweep, "fine_tune", brittle)
    found = sweep(small.backbone(), BALANCED, QUICK, rates=(1e-9, 2e-2))
    assert found.tuned.settings.learning_rate == 1e-9
    assert "0.02 on all pictures: all pictures were too many" in found.problem
    with pytest.raises(DivergedError, match="too many"):
        sweep(small.backbone(), BALANCED, QUICK, rates=(2e-2,))


def test_one_picture_a_class_falls_back_to_the_given_rate_and_says_so() -> None:
    data = pictures(["a", "b", "c", "d"])
    found = sweep(small.backbone(), data, QUICK, rates=(1e-2, 2e-2))
    assert found.trials == ()
    assert "no class has two pictures" in found.problem
    alone = fine_tune(small.backbone(), data, QUICK)
    assert found.tuned.settings == QUICK
    assert torch.equal(found.tuned.logits(data), alone.logits(data))


@pytest.mark.parametrize(("shots", "kept"), [([2, 2, 2], 3), ([1, 2, 1], 1), ([5, 5, 4], 3), ([4, 1, 3], 2)])
def test_few_pictures_a_class_still_give_a_choice(shots: list[int], kept: int) -> None:
    found = sweep(small.backbone(), pictures(np.repeat(["a", "b", "c"], shots)), QUICK, rates=(1e-3, 1e-2))
    assert [trial.validation and trial.validation.pictures for trial in found.trials] == [kept, kept]
    assert found.classes.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("fields", [{"rates": ()}, {"validation_share": 0.0}, {"rates": (-1.0,)}])
def test_a_sweep_over_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="sweep|learning_rate"):
        sweep(small.backbone(), BALANCED, QUICK, **fields)


def test_labels_are_needed() -> None:
    with pytest.raises(InputError, match="class label"):
        sweep(small.backbone(), Pictures(BALANCED.pixels, None, BALANCED.ids), QUICK)
