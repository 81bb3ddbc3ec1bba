"""Ordinary fine-tuning against hand-written training and scikit-learn; the readers of benchmark data."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import datasets, record
from tangentune.errors import BackboneError, InputError
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune, probe_head, rate_factor
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


def small_backbone(dtype: torch.dtype = torch.float32) -> Backbone:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers).to(dtype), input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def noise_pictures(n: int = 12) -> Pictures:
    pixels = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Pictures(pixels, np.array(["cat", "dog", "eel"])[np.arange(n) % 3], [str(i) for i in range(n)])


def vectors(x: Tensor, labels: np.ndarray) -> Pictures:
    return Pictures(x, labels, [str(i) for i in range(len(x))])


def test_equals_a_hand_written_training_loop() -> None:
    backbone, pictures = small_backbone(torch.float64), noise_pictures()
    settings = FineTuneSettings(learning_rate=1e-2, epochs=4, batch_size=12, warmup=0.25, flip=False, head_start="zero")
    tuned = fine_tune(backbone, pictures, settings)

    net, head = backbone.module.requires_grad_(True), nn.Linear(6, 3, dtype=torch.float64)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    x, y = (pictures.pixels.double() / 255 - 0.5) / 0.25, torch.arange(12) % 3
    optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()])
    losses = []
    for rate in (1e-2, 1e-2, 0.75e-2, 0.25e-2):  # one step of warm-up, then (1 + cos(pi k / 3)) / 2
        optimiser.param_groups[0]["lr"] = rate
        loss = F.cross_entropy(head(net(x)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert tuned.losses == pytest.approx(losses, abs=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(tuned.logits(pictures), head(net(x)), atol=1e-8, rtol=1e-8)
    assert tuned.losses[-1] < tuned.losses[0]


def test_probe_head_is_scikit_learns_ridge_chosen_by_leave_one_out() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)) + 1.0, rng.integers(0, 3, 40)
    x[np.arange(40), y] += 1.5
    plain, sharp = (
        probe_head(torch.from_numpy(x), torch.from_numpy(y), calibrated=calibrated) for calibrated in (False, True)
    )
    centred = x - x.mean(0)
    unit = np.trace(centred @ centred.T) / 39
    peer = RidgeCV(alphas=unit * np.logspace(-4, 3, 57)).fit(x, np.eye(3)[y])
    np.testing.assert_allclose(plain.weight.detach(), np.asarray(peer.coef_), atol=1e-8)
    np.testing.assert_allclose(plain.bias.detach(), np.asarray(peer.intercept_), atol=1e-8)

    scale = sharp.weight / plain.weight
    torch.testing.assert_close(scale, scale[0, 0].expand_as(scale))
    assert F.cross_entropy(sharp(torch.from_numpy(x)), torch.from_numpy(y)) < F.cross_entropy(
        plain(torch.from_numpy(x)), torch.from_numpy(y)
    )


def test_learns_what_no_linear_probe_of_the_frozen_features_can() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(8, 1)
    equal = corners[:, 0] == corners[:, 1]
    pictures = vectors(corners, equal.numpy())
    torch.manual_seed(2)
    backbone = Backbone(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2), nn.Tanh()))
    frozen = probe_head(backbone.features(corners), equal.long())
    assert (frozen(backbone.features(corners)).argmax(1) != equal).any()
    tuned = fine_tune(backbone, pictures, FineTuneSettings(learning_rate=0.05, epochs=60))
    assert (tuned.predict(pictures) == pictures.labels).all()


def test_the_given_backbone_stays_as_it_was_and_every_layer_of_the_copy_moves() -> None:
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    tuned = fine_tune(backbone, noise_pictures(), FineTuneSettings(learning_rate=1e-2, epochs=2))
    for name, value in backbone.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in tuned.backbone.module.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    for part in (backbone.module, tuned.backbone.module):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_statistics_move_in_train_mode_only(mode: str) -> None:
    backbone = small_backbone()
    fields: Any = {"epochs": 1, "batchnorm": mode}
    settings = FineTuneSettings(**fields)
    tuned = fine_tune(backbone, noise_pictures(), settings)
    before, after = (b.module.get_buffer("1.running_mean") for b in (backbone, tuned.backbone))
    assert torch.equal(before, after) == (mode == "eval")


@pytest.mark.parametrize("head_start", ["zero", "probe", "calibrated_probe", "random"])
def test_a_seed_fixes_everything(head_start: str) -> None:
    def logits(seed: int) -> Tensor:
        fields: Any = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-2, "head_start": head_start}
        settings = FineTuneSettings(seed=seed, **fields)
        return fine_tune(small_backbone(), noise_pictures(), settings).logits(noise_pictures())

    assert torch.equal(logits(3), logits(3))
    assert not torch.equal(logits(3), logits(4))


@pytest.mark.parametrize("flip", [False, True])
def test_training_sees_each_picture_once_an_epoch_as_it_is_or_mirrored(flip: bool) -> None:
    seen: list[Tensor] = []

    def features(module: nn.Module, x: Tensor) -> Tensor:
        if module.training:
            seen.append(x.detach().clone())
        return module(x)

    network = small_backbone().module
    backbone = Backbone(network, input_size=(3, 8, 8), features=features)
    pictures = noise_pictures()
    settings = FineTuneSettings(epochs=3, batch_size=5, flip=flip, head_start="zero")
    fine_tune(backbone, pictures, settings)
    assert [len(x) for x in seen] == [4] * 9  # equal batches, no tiny rest
    plain = pictures.pixels / 255
    mirrored_share = 0.0
    for epoch in torch.cat(seen).split(12):
        as_is = (epoch[:, None] - plain[None]).abs().amax((2, 3, 4)) < 1e-6
        mirrored = (epoch[:, None] - plain.flip(-1)[None]).abs().amax((2, 3, 4)) < 1e-6
        assert ((as_is | mirrored).sum(0) == 1).all()
        mirrored_share += mirrored.double().mean().item() * 12 / 3
    assert 0.2 < mirrored_share < 0.8 if flip else mirrored_share == 0


def test_prediction_averages_the_logits_of_both_views() -> None:
    tuned = fine_tune(small_backbone(), noise_pictures(), FineTuneSettings(epochs=1))
    pictures = noise_pictures(5)
    mirrored = Pictures(pictures.pixels.flip(-1), pictures.labels, pictures.ids)
    mean = (tuned.logits(pictures) + tuned.logits(mirrored)) / 2
    torch.testing.assert_close(tuned.logits(pictures, flip=True, batch_size=2), mean)
    assert not torch.allclose(tuned.logits(pictures), mean)
    torch.testing.assert_close(tuned.predict_proba(pictures), tuned.logits(pictures).softmax(1))


def test_rate_rises_to_its_peak_and_falls_to_nearly_zero() -> None:
    cosine = [rate_factor(step, 240, 0.1, "cosine") for step in range(240)]
    assert cosine[:24] == pytest.approx([(k + 1) / 24 for k in range(24)])
    assert cosine[24] == 1.0
    assert all(a > b for a, b in itertools.pairwise(cosine[24:]))
    assert 0 < cosine[-1] < 1e-3
    assert cosine[24 + 108] == pytest.approx(0.5)
    assert {rate_factor(step, 9, 0.0, "constant") for step in range(9)} == {1.0}


OUT_OF_RANGE = {
    "learning_rate": [0.0, math.nan],
    "epochs": [0],
    "batch_size": [0],
    "weight_decay": [-1.0],
    "warmup": [1.0, -0.1],
    "schedule": ["step"],
    "head_start": ["x"],
    "batchnorm": [None],
}


@pytest.mark.parametrize(("name", "value"), [(k, value) for k, values in OUT_OF_RANGE.items() for value in values])
def test_settings_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        FineTuneSettings(**{name: value})


@pytest.mark.parametrize("labels", [None, np.zeros(12), np.array(["cat"] * 12)])
def test_labels_that_name_no_classes_are_refused(labels: np.ndarray | None) -> None:
    pictures = noise_pictures()
    with pytest.raises(InputError, match="fine-tuning needs"):
        fine_tune(small_backbone(), Pictures(pictures.pixels, labels, pictures.ids))


def test_divergence_is_named() -> None:
    with pytest.raises(InputError, match="diverged"):
        fine_tune(small_backbone(), noise_pictures(), FineTuneSettings(learning_rate=1e30, warmup=0))


def test_features_of_another_module_are_refused() -> None:
    other = small_backbone().module
    backbone = Backbone(other, input_size=(3, 8, 8), features=lambda _, x: other(x))
    with pytest.raises(BackboneError, match="module that it is given"):
        fine_tune(backbone, noise_pictures(), FineTuneSettings(epochs=1))


def test_few_shot_is_balanced_distinct_and_fixed_by_its_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    chosen = datasets.few_shot(labels, 7, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [7] * 4
    assert len(set(chosen)) == 28
    assert (chosen == datasets.few_shot(labels, 7, seed=1)).all()
    assert (chosen != datasets.few_shot(labels, 7, seed=2)).any()
    with pytest.raises(ValueError, match="class 0 has"):
        datasets.few_shot(labels, 150, seed=0)


def test_missing_cifar10_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TANGENTUNE_CIFAR10", str(tmp_path))
    with pytest.raises(datasets.DataMissing, match="fetch-cifar10"):
        datasets.cifar10.__wrapped__()


def test_file_data_hold_the_counts_of_their_packages() -> None:
    try:
        train, test, plankton = *map(datasets.traffic_lights, ("train", "test")), datasets.plankton()
    except datasets.DataMissing as missing:
        pytest.skip(str(missing))
    assert np.bincount(train.labels).tolist() == [723, 35, 429]
    assert np.bincount(test.labels).tolist() == [181, 9, 107]
    assert np.bincount(plankton.labels).tolist() == [14, 16, 19, 20, 23, 13]
    assert all(path.parent.name == train.names[k] for path, k in zip(train.paths, train.labels, strict=True))


def test_array_data_are_whole_and_balanced() -> None:
    try:
        data = datasets.fashion_mnist()
    except datasets.DataMissing as missing:
        pytest.skip(str(missing))
    assert data.train.shape == (60_000, 28, 28)
    assert data.test.shape == (10_000, 28, 28)
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    trousers = data.test[data.test_labels == 1].mean(0)  # two legs and a gap, whatever the byte order
    assert trousers[24, 14] < trousers[24, 10]
    assert trousers[24, 14] < trousers[24, 17]


def test_results_are_kept_by_key_and_replaced_not_doubled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    record.append("speed", {"n": 1, "rate": 1e-4}, {"seconds": 2.0})
    record.append("speed", {"n": 2, "rate": 1e-4}, {"seconds": 3.0})
    record.append("speed", {"n": 1, "rate": 1e-4}, {"seconds": 4.0})
    row = record.done("speed", {"rate": 1e-4, "n": 1})
    assert row is not None
    assert row["seconds"] == 4.0
    assert record.done("speed", {"n": 3, "rate": 1e-4}) is None
    assert len(record.load("speed")["rows"]) == 2
    assert record.load("speed")["made_by"]["torch"] == torch.__version__
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["speed.json"]
    with pytest.raises(ValueError, match="JSON"):
        record.append("speed", {"n": 9}, {"seconds": math.nan})
    assert len(record.load("speed")["rows"]) == 2
