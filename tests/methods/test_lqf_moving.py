"""LQF posed where some steps of fine-tuning end: by hand, and what chooses the rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lqf_dense import C, noise_pictures, relative, small_backbone
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import InputError
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.methods.lqf import LQF, LQFSettings, explain, fit_lqf
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.calibration import fit_temperature

RATE = 1e-2


def telling_pictures(n: int = 30) -> Pictures:
    """Noise with a class's own brightness in one corner, which the small network has to find."""
    made = noise_pictures(n)
    pixels = made.pixels // 2
    for i in range(n):
        pixels[i, i % C, :4, :4] += 90
    return Pictures(pixels, made.labels, made.ids)


def fit(**fields: Any) -> LQF:
    chosen: dict[str, Any] = {
        "solver": "dual",
        "moves": 3,
        "move_rates": (RATE,),
        "batch_size": 8,
        "flip": False,
        "seed": 2,
    }
    return fit_lqf(small_backbone(), telling_pictures(), LQFSettings(**(chosen | fields)))


def by_hand(pictures: Pictures) -> Backbone:
    settings = FineTuneSettings(learning_rate=RATE, epochs=3, batch_size=8, head_start="probe", flip=False, seed=2)
    return fine_tune(small_backbone(), pictures, settings).backbone


def positions() -> Tensor:
    return torch.arange(30) % C


def test_the_problem_is_posed_at_the_network_that_was_moved_on_all_pictures() -> None:
    model, pictures = fit(), telling_pictures()
    assert model.move is not None
    assert model.move.rate == RATE
    there = by_hand(pictures)
    direct = fit_lqf(there, pictures, LQFSettings(solver="dual", flip=False, seed=2))
    assert relative(model.logits(pictures), direct.logits(pictures)) < 1e-8
    assert model.loo is not None
    assert direct.loo is not None
    assert relative(model.loo, direct.loo) < 1e-8
    assert relative(explain(model, small_backbone(), pictures).loo(), direct.loo) < 1e-8


def test_the_rate_is_judged_on_pictures_that_neither_network_nor_probe_has_seen() -> None:
    model, pictures = fit(), telling_pictures()
    kept, aside = split_rows(positions().numpy(), 0.2, 2)
    assert len(aside) == 6
    for rate, there in ((0.0, small_backbone()), (RATE, by_hand(pictures.select(kept)))):
        x = (pictures.pixels.double() / 255 - 0.5) / 0.25
        features = there.features(x).detach()
        head = probe_head(features[kept], positions()[kept]).requires_grad_(False)
        outputs = head(features[aside])
        errors = (outputs - F.one_hot(positions()[aside], C)).square().sum(1)
        assert model.move is not None
        assert model.move.errors[rate] == pytest.approx(float(errors.mean()), rel=1e-8)
    assert model.move.errors[RATE] < model.move.errors[0.0]
    assert model.temperature == pytest.approx(fit_temperature(outputs.double(), positions()[aside]), rel=1e-6)


def test_a_network_whose_moving_diverges_stays() -> None:
    model = fit(move_rates=(1e308,))
    plain = fit(moves=0)
    assert model.move is not None
    assert model.move.rate == 0
    assert torch.equal(model.logits(telling_pictures()), plain.logits(telling_pictures()))
    assert model.temperature == plain.temperature


def test_where_the_last_training_goes_wrong_the_network_of_the_trial_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, kept = telling_pictures(), split_rows(positions().numpy(), 0.2, 2)[0]

    def spoilt(backbone: Backbone, given: Pictures, settings: FineTuneSettings) -> Any:
        found = fine_tune(backbone, given, settings)
        if len(given) == len(pictures):
            next(found.backbone.module.parameters()).data.mul_(0)
        return found

    monkeypatch.setattr("tangentune.methods.lqf.moving.fine_tune", spoilt)
    model, there = fit(), by_hand(pictures.select(kept))
    monkeypatch.undo()
    assert model.move is not None
    assert model.move.rate == RATE
    direct = fit_lqf(there, pictures, LQFSettings(solver="dual", flip=False, seed=2))
    assert relative(model.logits(pictures), direct.logits(pictures)) < 1e-8


def test_nobody_to_keep_aside_and_vectors_stay() -> None:
    alone = telling_pictures().select(np.arange(3))
    assert fit_lqf(small_backbone(), alone, LQFSettings(epochs=1, moves=4)).move is None
    dots = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    vectors = Pictures(dots, np.repeat(["a", "b"], 6), [str(i) for i in range(12)])
    assert fit_lqf(Backbone(torch.nn.Linear(4, 3)), vectors).move is None


def test_told_nothing_lqf_moves() -> None:
    assert LQFSettings.moved(seed=4).moves > 0
    pictures = telling_pictures()
    assert fit_lqf(small_backbone(), pictures).settings == LQFSettings.moved()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"move_rates": ()}, "move_rates is"),
        ({"move_rates": (1e-3, 0.0)}, "one number above 0 or several"),
        ({"moves": -1}, "moves is -1"),
        ({"moves": 3, "params": "norm"}, "moves are of all layers"),
    ],
)
def test_choices_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LQFSettings(**fields)
