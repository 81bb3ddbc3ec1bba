"""Losses, optimisers, rates by layer, crops and early stopping of ordinary fine-tuning, against references."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.errors import InputError
from tangentune.methods.fine_tuning import (
    DivergedError,
    FineTuneSettings,
    fine_tune,
    fit_probe,
    layer_factors,
    probe_head,
)
from tangentune.methods.fine_tuning.augment import crop_boxes, cut, random_views
from tangentune.methods.fine_tuning.training import Training, loss_of
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.methods.gradient_features import fit_gradient_features
from tangentune.methods.lqf import fit_lqf
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


def pictures(n: int = 24, classes: int = 3) -> Pictures:
    x, labels = small.pictures(n, classes)
    return Pictures(torch.from_numpy(x), labels, [str(i) for i in range(n)])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**fields: Any) -> FineTuneSettings:
    return FineTuneSettings(**fields)


def backbone_with_classifier() -> Backbone:
    """Features before the last layer, which gets no gradient."""
    net = nn.Sequential(*small.network().children(), nn.Linear(6, 10, dtype=torch.float64))
    return Backbone(net, input_size=(3, 8, 8), mean=small.MEAN, std=small.STD, features="10")


def test_squared_loss_on_a_linear_network_ends_at_least_squares() -> None:
    x = torch.randn(24, 3, dtype=torch.float64, generator=generator())
    labels = np.arange(24) % 3
    torch.manual_seed(0)
    backbone = Backbone(nn.Linear(3, 4, dtype=torch.float64))
    fields: Any = {"loss": "squared", "target_scale": 3.0, "optimiser": "sgd", "schedule": "constant"}
    tuned = fine_tune(
        backbone, Pictures(x, labels, list(map(str, range(24)))), settings(learning_rate=0.1, epochs=900, **fields)
    )
    targets = 3.0 * torch.eye(3, dtype=torch.float64)[torch.from_numpy(labels)]
    bordered = torch.cat([x, torch.ones(24, 1, dtype=torch.float64)], 1)
    best = bordered @ torch.linalg.lstsq(bordered, targets).solution
    torch.testing.assert_close(tuned.head(tuned.backbone.features(x)), best, atol=1e-8, rtol=0)
    assert tuned.losses[-1] == pytest.approx(float((best - targets).square().sum()) / 48, abs=1e-10)


def test_smoothed_cross_entropy_spreads_its_share_over_all_classes() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=generator())
    positions = torch.tensor([0, 1, 2, 3, 0])
    target = 0.8 * torch.eye(4, dtype=torch.float64)[positions] + 0.2 / 4
    by_hand = -(target * logits.log_softmax(1)).sum() / 5
    assert float(loss_of(logits, positions, settings(label_smoothing=0.2))) == pytest.approx(float(by_hand))


def test_momentum_and_rates_by_layer_are_those_of_a_hand_written_loop() -> None:
    backbone, data = backbone_with_classifier(), pictures()
    fields: Any = {"optimiser": "sgd", "head_start": "probe", "schedule": "constant", "warmup": 0.0, "flip": False}
    tuned = fine_tune(backbone, data, settings(learning_rate=0.02, epochs=4, layer_decay=0.5, **fields))

    net, x = small.network().requires_grad_(True), small.normalised(data.pixels.numpy())
    y = torch.from_numpy(np.asarray(data.labels))
    head = probe_head(net(x).detach(), y)
    rates = {"10": 0.01, "6": 0.005, "5": 0.0025, "3": 0.00125, "1": 0.000625, "0": 0.0003125}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in net.named_parameters() if name.split(".")[0] == block], "lr": rate}
        for block, rate in rates.items()
    ]
    optimiser = torch.optim.SGD([*groups, {"params": list(head.parameters()), "lr": 0.02}], momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(head(net(x)), y).backward()
        optimiser.step()
    with torch.no_grad():
        torch.testing.assert_close(tuned.logits(data), head(net(x)), atol=1e-10, rtol=0)


def test_first_adam_step_is_the_rate_of_each_layer() -> None:
    backbone = small.backbone()
    fields: Any = {"head_start": "random", "warmup": 0.0, "epochs": 1, "layer_decay": 0.5, "weight_decay": 0.0}
    tuned = fine_tune(backbone, pictures(), settings(learning_rate=1e-3, **fields))
    before = dict(backbone.module.named_parameters())
    factors = layer_factors(before, 0.5)
    assert sorted(set(factors.values()), reverse=True) == [0.5**k for k in range(1, 7)]
    for name, after in tuned.backbone.module.named_parameters():
        if name == "5.bias":  # GroupNorm takes it out again
            continue
        # Adam's first step is the rate times a sign.
        step = (after - before[name]).abs().max()
        assert float(step) == pytest.approx(1e-3 * factors[name], rel=1e-3), name


def test_frozen_blocks_stay_and_the_others_move() -> None:
    backbone = small.backbone()
    tuned = fine_tune(backbone, pictures(), settings(learning_rate=1e-3, epochs=2, frozen=0.5))
    after = dict(tuned.backbone.module.named_parameters())
    still = {name.split(".")[0] for name, before in backbone.module.named_parameters() if before.equal(after[name])}
    assert still == {"0", "1", "3"}


@pytest.mark.parametrize("smallest", [0.1, 0.5, 0.95])
def test_boxes_stay_inside_and_have_the_area_and_shape_asked(smallest: float) -> None:
    left, top, width, height = crop_boxes(20_000, smallest, generator()).unbind(1)
    assert min(float(left.min()), float(top.min())) >= 0
    assert max(float((left + width).max()), float((top + height).max())) <= 1 + 1e-12
    area, ratio = width * height, width / height
    assert smallest - 1e-12 <= float(area.min())
    assert float(area.min()) < smallest + 0.01
    assert float(area.mean()) == pytest.approx((1 + smallest) / 2, abs=0.01)
    assert float(ratio.min()) >= 0.75 - 1e-12
    assert float(ratio.max()) <= 4 / 3 + 1e-12
    assert float(ratio.log().mean()) == pytest.approx(0.0, abs=0.01)


def test_a_cut_shows_the_place_of_its_box() -> None:
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (6, 9))
    place = torch.stack([(columns / 9).expand(6, 9), (rows / 6)[:, None].expand(6, 9)])
    boxes = crop_boxes(8, 0.3, generator())
    views = cut(place.expand(8, 2, 6, 9), boxes)
    for view, (left, top, width, height) in zip(views, boxes.tolist(), strict=True):
        across = (left + width * columns / 9).clamp(0.5 / 9, 1 - 0.5 / 9)  # beyond the outer centres: their value
        down = (top + height * rows / 6).clamp(0.5 / 6, 1 - 0.5 / 6)
        torch.testing.assert_close(view, torch.stack([across.expand(6, 9), down[:, None].expand(6, 9)]))


def test_views_are_drawn_for_each_picture_and_fixed_by_the_seed() -> None:
    x = torch.rand(1, 3, 8, 8, generator=generator(5)).expand(6, 3, 8, 8)
    views = random_views(x, generator(1), flip=True, crop=0.5)
    assert torch.equal(views, random_views(x, generator(1), flip=True, crop=0.5))
    assert not torch.equal(views, random_views(x, generator(2), flip=True, crop=0.5))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(views, 2))
    assert views.is_contiguous(memory_format=torch.channels_last)
    vectors = torch.rand(4, 8)
    assert random_views(vectors, generator(), flip=True, crop=0.5) is vectors
    untouched = generator()
    assert random_views(x, untouched, flip=False, crop=1.0) is x
    assert torch.equal(untouched.get_state(), generator().get_state())


def test_crops_reach_training_and_stay_fixed_by_the_seed() -> None:
    def logits(**fields: Any) -> Tensor:
        return fine_tune(small.backbone(), pictures(), settings(epochs=2, **fields)).logits(pictures())

    assert torch.equal(logits(crop=0.5, seed=1), logits(crop=0.5, seed=1))
    assert not torch.equal(logits(crop=0.5), logits())


def test_early_stopping_brings_the_best_epoch_back() -> None:
    backbone, data = small.backbone(), pictures(48)
    fields: Any = {"learning_rate": 0.02, "schedule": "constant", "warmup": 0.0, "batch_size": 8, "seed": 3}
    tuned = fine_tune(backbone, data, settings(epochs=40, validation_share=0.25, patience=4, **fields))
    seen = tuned.validation
    assert seen is not None
    assert len(seen.accuracies) == len(seen.nlls) == len(tuned.losses) == seen.kept + 4 < 40
    order = [(-a, b) for a, b in zip(seen.accuracies, seen.nlls, strict=True)]
    assert order.index(min(order)) == seen.kept - 1
    assert (seen.accuracy, seen.nll) == (seen.accuracies[seen.kept - 1], seen.nlls[seen.kept - 1])

    stopped = fine_tune(backbone, data, settings(epochs=seen.kept, validation_share=0.25, **fields))
    assert torch.equal(tuned.logits(data), stopped.logits(data))
    training, others = (data.select(rows) for rows in split_rows(np.asarray(data.labels), 0.25, seed=3))
    assert seen.pictures == len(others) == 12
    right = tuned.predict(others) == others.labels
    assert right.mean() == seen.accuracy
    assert (tuned.predict_proba(others).argmax(1).numpy() == others.labels).mean() == seen.accuracy

    alone = fine_tune(backbone, training, settings(epochs=seen.kept, **fields))
    assert alone.validation is None
    assert torch.equal(alone.logits(data), tuned.logits(data)), "looking at the pictures kept aside changes nothing"
    torch.testing.assert_close(tuned.predict_proba(data), (tuned.logits(data) / seen.temperature).softmax(1))


def test_temperature_makes_the_pictures_kept_aside_most_likely() -> None:
    data = pictures(48)
    fields: Any = {"loss": "squared", "epochs": 12, "learning_rate": 1e-2, "validation_share": 0.5}
    tuned = fine_tune(small.backbone(), data, settings(**fields))
    _, rows = split_rows(np.asarray(data.labels), 0.5, seed=0)
    others = data.select(rows)
    logits, y = tuned.logits(others), torch.from_numpy(np.asarray(others.labels))
    smoothing = 1 / (len(rows) + 1)  # one imaginary mistake
    losses = [
        float(F.cross_entropy(logits / (tuned.temperature * factor), y, label_smoothing=smoothing))
        for factor in (0.9, 1.0, 1.1)
    ]
    assert losses[1] == min(losses)
    assert tuned.temperature < 0.7


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_split_keeps_and_trains_on_every_class_with_two(share: float) -> None:
    positions: NDArray[np.int64] = np.repeat(np.arange(6), [1, 2, 3, 4, 10, 50])
    train, held = split_rows(positions, share, seed=0)
    assert sorted([*train, *held]) == list(range(70))
    trained, kept = (np.bincount(positions[rows], minlength=6).tolist() for rows in (train, held))
    assert kept[0] == 0
    assert min(trained) >= 1
    assert min(kept[1:]) >= 1
    assert kept[4:] == {0.01: [1, 1], 0.2: [2, 10], 0.5: [5, 25], 0.99: [9, 49]}[share]
    assert (split_rows(positions, share, seed=1)[1] != held).any()


def test_nothing_to_keep_aside_is_refused() -> None:
    with pytest.raises(InputError, match="two pictures at least"):
        fine_tune(small.backbone(), pictures(3), settings(validation_share=0.2))


def test_divergence_in_the_last_step_is_found() -> None:
    fields: Any = {"epochs": 1, "warmup": 0.0, "head_start": "random", "learning_rate": 1e305, "optimiser": "sgd"}
    with pytest.raises(DivergedError, match="epoch 1"):
        fine_tune(small.backbone(), pictures(), settings(weight_decay=1e300, **fields))
    with pytest.raises(DivergedError, match="epoch 1"):
        fine_tune(small.backbone(), pictures(), settings(validation_share=0.2, weight_decay=1e300, **fields))


OUT_OF_RANGE = {
    "crop": [0.0, 1.5],
    "loss": ["mse"],
    "target_scale": [0.0, math.inf],
    "label_smoothing": [1.0],
    "optimiser": ["adam"],
    "layer_decay": [0.0, 1.1, math.nan],
    "validation_share": [1.0, -0.1],
    "patience": [-1],
    "frozen": [1.0, -0.1],
}


@pytest.mark.parametrize(("name", "value"), [(k, value) for k, values in OUT_OF_RANGE.items() for value in values])
def test_settings_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        settings(**{name: value})


@pytest.mark.parametrize("flip", [False, True])
def test_probe_is_the_calibrated_ridge_of_the_frozen_features(flip: bool) -> None:
    backbone, data = small.backbone(), pictures()
    probe = fit_probe(backbone, data, flip=flip)
    views = [backbone.features(small.normalised(x.numpy())) for x in (data.pixels, data.pixels.flip(-1))]
    features = (views[0] + views[1]) / 2 if flip else views[0]
    head = probe_head(features, torch.from_numpy(np.asarray(data.labels)), calibrated=True)
    others = pictures(30)
    expected = head(backbone.features(small.normalised(others.pixels.numpy()))).softmax(1)
    torch.testing.assert_close(probe.predict_proba(others), expected)
    assert (probe.predict(others) == probe.classes[expected.argmax(1).numpy()]).all()
    assert probe.seconds > 0


def test_the_loop_cuts_equal_batches_and_gives_every_group_its_share_of_the_rate() -> None:
    fast, slow = (torch.zeros(1, requires_grad=True) for _ in range(2))
    batches: list[Tensor] = []

    def learn(rows: Tensor, _generator: torch.Generator) -> float:
        batches.append(rows)
        fast.grad, slow.grad = torch.ones(1), torch.ones(1)
        return float(len(rows))

    def optimiser() -> torch.optim.Optimizer:
        assert len(batches) == 1, "made after the first gradient"
        return torch.optim.SGD([{"params": [fast], "factor": 1.0}, {"params": [slow], "factor": 0.25}])

    settings = FineTuneSettings(epochs=3, batch_size=4, warmup=0.0, schedule="constant")
    generator = torch.Generator().manual_seed(0)
    sums = Training(10, learn, optimiser, 0.5, "counting").epochs(settings, itertools.repeat(generator))
    assert [next(sums), next(sums)] == [10.0, 10.0]
    assert (fast.item(), slow.item()) == (-0.5 * 6, -0.125 * 6)
    assert [len(rows) for rows in batches] == [4, 3, 3] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))


@pytest.mark.parametrize("fit", [fine_tune, fit_probe, fit_lqf, fit_gradient_features])
def test_a_network_is_wrapped_and_bytes_want_a_preparation(fit: Any) -> None:
    vectors, labels = torch.arange(12.0).view(6, 2), np.arange(6) % 2
    found = fit(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), Pictures(vectors, labels, list("abcdef")))
    assert found.predict(Pictures(vectors, None, list("abcdef"))).shape == (6,)
    bytes_ = Pictures(torch.arange(6 * 75).view(6, 3, 5, 5).to(torch.uint8), labels, list("abcdef"))
    with pytest.raises(InputError, match=r"does not state how pictures are prepared.*input_size=\(3, 5, 5\), mean="):
        fit(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), bytes_)


def test_settings_take_numbers_of_numpy() -> None:
    plain = FineTuneSettings(learning_rate=0.5, epochs=3, warmup=0.25)
    numpy: dict[str, Any] = {"learning_rate": np.float32(0.5), "epochs": np.int64(3), "warmup": np.float16(0.25)}
    assert FineTuneSettings(**numpy) == plain
    for wrong in (True, np.bool_(True), "0.5", None, torch.tensor(0.5)):
        with pytest.raises(InputError, match="learning_rate is"):
            FineTuneSettings(learning_rate=wrong)  # type: ignore[arg-type]
