"""Joint fine-tuning: the gradient is the sum of its parts, order and counts, statistics, weights, stopping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small
import torch
from joint_cases import Watched, base, joint, one_step, places, same, source, state, target
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.methods.fine_tuning import DivergedError, fine_tune
from tangentune.methods.joint import JointTuned, SourceLabels, joint_fine_tune
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures


@pytest.mark.parametrize("batchnorm", ["frozen", "target"])
@pytest.mark.parametrize(
    "fields",
    [
        {"crop": 0.5, "batch_size": 5, "head_start": "random", "layer_decay": 0.7, "frozen": 0.4},
        {"validation_share": 0.3, "patience": 2, "loss": "squared", "optimiser": "sgd", "seed": 4},
    ],
)
def test_without_source_weight_it_is_ordinary_fine_tuning_bit_for_bit(batchnorm: Any, fields: dict[str, Any]) -> None:
    settings = base(epochs=4, learning_rate=1e-2, **fields)
    plain = fine_tune(
        small.backbone(),
        target(),
        base(epochs=4, learning_rate=1e-2, batchnorm="eval" if batchnorm == "frozen" else "train", **fields),
    )
    tuned = joint_fine_tune(small.backbone(), target(), source(), joint(settings, source_weight=0, batchnorm=batchnorm))
    assert same(tuned.backbone.module, plain.backbone.module)
    assert same(tuned.head, plain.head)
    assert (tuned.losses, tuned.validation, tuned.temperature) == (plain.losses, plain.validation, plain.temperature)
    assert torch.equal(tuned.predict_proba(source()), plain.predict_proba(source()))
    assert tuned.source_losses == ()


@pytest.mark.parametrize("batchnorm", ["frozen", "mixed", "target"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_step_is_the_sum_of_both_gradients(batchnorm: str, weighted: bool) -> None:
    weights = np.random.default_rng(0).uniform(0.5, 2, 24) if weighted else None
    settings = joint(
        one_step(flip=False),
        source_weight=0.7,
        batch_ratio=2,  # 24 of 24 source pictures: each once
        weighting="loss",
        batchnorm=batchnorm,
        source_task=SourceLabels("random"),
    )
    tuned = joint_fine_tune(small.backbone(), target(), source(24), settings, source_weights=weights)
    assert tuned.source_head is not None

    still = joint(one_step(flip=False, learning_rate=1e-300), source_task=SourceLabels("random"))
    start = joint_fine_tune(small.backbone(), target(), source(24), still)
    assert start.source_head is not None
    net = small.network().requires_grad_(True).train()
    bns = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in bns:
        part.train(batchnorm != "frozen")
    xt, xs = (small.normalised(pictures.pixels.numpy()) for pictures in (target(), source(24)))
    yt, ys = torch.arange(12) % 3, torch.arange(24) % 4
    factors = torch.ones(24, dtype=torch.float64) if weights is None else torch.from_numpy(weights / weights.mean())
    heads = [start.head.requires_grad_(True), start.source_head.requires_grad_(True)]

    def source_loss(features: Tensor) -> Tensor:
        return (factors * F.cross_entropy(heads[1](features), ys, reduction="none")).mean()

    parts = [*net.parameters(), *heads[0].parameters(), *heads[1].parameters()]

    def gradients(loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, parts, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parts, found, strict=True)]

    if batchnorm == "mixed":  # two passes over the mixture: one gradient each
        of_target = gradients(F.cross_entropy(heads[0](net(torch.cat([xt, xs]))[:12]), yt))
        of_source = gradients(source_loss(net(torch.cat([xt, xs]))[12:]))
    else:
        of_target = gradients(F.cross_entropy(heads[0](net(xt)), yt))
        for part in bns:
            part.eval()
        of_source = gradients(source_loss(net(xs)))
    after = [*tuned.backbone.module.parameters(), *tuned.head.parameters(), *tuned.source_head.parameters()]
    for p, moved, a, b in zip(parts, after, of_target, of_source, strict=True):
        torch.testing.assert_close(p.detach() - moved, a + 0.7 * b, atol=1e-10, rtol=0)
    assert max(float(b.abs().max()) for b in of_source) > 1e-3


def test_target_pictures_come_as_in_ordinary_fine_tuning_and_each_source_picture_once_a_pass() -> None:
    settings = base(epochs=3, batch_size=5)
    alone, together = Watched(), Watched()
    fine_tune(alone.backbone(), target(), settings)
    joint_fine_tune(together.backbone(), target(), source(), joint(settings, batch_ratio=1.5))
    plain = [x for x in alone.learnt() if len(x) == 4]
    mixed = [x for x in together.learnt() if len(x) == 10]
    assert len(plain) == len(mixed) == 9  # three epochs of 12 in batches of 4, with 6 of the source
    assert all(torch.equal(a, b[:4]) for a, b in zip(plain, mixed, strict=True))
    order = places(torch.cat([x[4:] for x in mixed]), source())
    assert sorted(order[:20]) == sorted(order[20:40]) == list(range(20))
    assert order[:20] != order[20:40]


def test_a_seed_fixes_everything_and_the_global_generator_nothing() -> None:
    def tuned(seed: int) -> JointTuned:
        settings = joint(base(epochs=2, batch_size=5, seed=seed, crop=0.6), source_task=SourceLabels("random"))
        return joint_fine_tune(small.backbone(), target(), source(), settings, source_weights=np.arange(20))

    torch.manual_seed(1)
    first = tuned(3)
    torch.manual_seed(2)
    second, other = tuned(3), tuned(4)
    for part in ("head", "source_head"):
        assert same(getattr(first, part), getattr(second, part))
        assert not same(getattr(first, part), getattr(other, part))
    assert first.source_losses == second.source_losses


@pytest.mark.parametrize("batchnorm", ["frozen", "mixed", "target"])
def test_whose_statistics_are_kept(batchnorm: str) -> None:
    settings = joint(base(epochs=1, batch_size=64, flip=False), batchnorm=batchnorm)
    bright = Pictures(source().pixels // 2 + 128, source().labels, source().ids)
    one, other = (joint_fine_tune(small.backbone(), target(), pictures, settings) for pictures in (source(), bright))
    fine = fine_tune(small.backbone(), target(), base(epochs=1, batch_size=64, flip=False, batchnorm="train"))
    start, *means = (
        backbone.module.get_buffer("1.running_mean")
        for backbone in (small.backbone(), one.backbone, other.backbone, fine.backbone)
    )
    if batchnorm == "frozen":
        assert torch.equal(means[0], start)
        assert torch.equal(means[1], start)
    elif batchnorm == "target":
        assert torch.equal(means[0], means[2])
        assert torch.equal(means[1], means[2])
    else:
        assert not torch.allclose(means[0], means[1])
        x = torch.cat([small.normalised(p.pixels.numpy()) for p in (target(), source())])
        drawn = small.network().get_submodule("0")(x[:12]).mean((0, 2, 3))
        assert not torch.allclose(means[0], 0.9 * start + 0.1 * drawn.detach())


@pytest.mark.parametrize("weighting", ["sampling", "loss"])
def test_only_ratios_of_weights_count(weighting: str) -> None:
    weights = np.random.default_rng(0).uniform(0.1, 2, 20)
    settings = joint(base(epochs=2, batch_size=5), weighting=weighting)
    plain, scaled, other = (
        joint_fine_tune(small.backbone(), target(), source(), settings, source_weights=w)
        for w in (weights, 1e300 * weights, weights**3)
    )
    torch.testing.assert_close(plain.logits(source()), scaled.logits(source()), atol=1e-10, rtol=0)
    assert not torch.allclose(plain.logits(source()), other.logits(source()))
    ones, none = (
        joint_fine_tune(small.backbone(), target(), source(), settings, source_weights=w)
        for w in (np.full(20, 3), None)
    )
    assert torch.equal(ones.logits(source()), none.logits(source()))


@pytest.mark.parametrize("weighting", ["sampling", "loss"])
@pytest.mark.parametrize("start", ["zero", "probe"])
def test_a_picture_without_weight_is_as_good_as_absent(weighting: str, start: Any) -> None:
    settings = joint(base(epochs=2, batch_size=5), weighting=weighting, source_task=SourceLabels(start))
    weights = np.random.default_rng(0).uniform(0.1, 2, 20)
    weights[[3, 8]] = 0
    kept = np.flatnonzero(weights)
    strange = source()
    labels = np.asarray(strange.labels).copy()
    labels[3] = 99  # a class of its own
    pixels = strange.pixels.clone()
    pixels[[3, 8]] = 255
    with_them = joint_fine_tune(
        small.backbone(), target(), Pictures(pixels, labels, strange.ids), settings, source_weights=weights
    )
    without = joint_fine_tune(small.backbone(), target(), source().select(kept), settings, source_weights=weights[kept])
    assert with_them.source_classes is not None
    assert with_them.source_classes.tolist() == [7, 8, 9, 10]
    assert torch.equal(with_them.logits(source()), without.logits(source()))
    assert with_them.source_losses == without.source_losses


def test_source_heads_start_where_they_are_told() -> None:
    def head_of(start: Any, given: nn.Linear | None = None) -> nn.Linear:
        settings = joint(base(epochs=1, learning_rate=1e-200), source_task=SourceLabels(start))
        tuned = joint_fine_tune(small.backbone(), target(), source(), settings, source_head=given)
        assert tuned.source_head is not None
        assert not any(p.requires_grad for p in tuned.source_head.parameters())
        return tuned.source_head

    assert head_of("zero").weight.abs().max() < 1e-100
    assert 0.1 < head_of("random").weight.abs().max() < 6**-0.5
    backbone = small.backbone()
    views = [backbone.features(small.normalised(x.numpy())) for x in (source().pixels, source().pixels.flip(-1))]
    expected = probe_head(torch.stack(views).mean(0), torch.arange(20) % 4)
    torch.testing.assert_close(head_of("probe").weight, expected.weight, atol=1e-10, rtol=0)
    given = nn.Linear(6, 4)  # float32: brought to the network's type
    before = state(given)
    torch.testing.assert_close(head_of("zero", given).weight, given.weight.double(), atol=1e-10, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_stopping_brings_all_of_the_best_epoch_back_and_looks_at_target_pictures_only() -> None:
    fields: Any = {"learning_rate": 0.02, "schedule": "constant", "warmup": 0.0, "batch_size": 8, "seed": 3}
    fields |= {"validation_share": 0.25}
    data = target(48)
    settings = joint(base(epochs=30, patience=3, **fields), source_weight=1.0)
    watched = Watched()
    tuned = joint_fine_tune(watched.backbone(), data, source(), settings)
    seen = tuned.validation
    assert seen is not None
    assert seen.pictures == 12
    assert len(seen.accuracies) == len(tuned.losses) == len(tuned.source_losses) == seen.kept + 3 < 30
    judged = [x for learning, x in watched.batches if not learning and len(x) == 12]
    assert len(judged) == len(tuned.losses)
    kept_aside = set(places(judged[0], data))
    learnt = [x for x in watched.learnt() if len(x) >= 12]
    assert not kept_aside & set(places(torch.cat([x[: len(x) // 2] for x in learnt]), data))

    stopped = joint_fine_tune(
        small.backbone(), data, source(), joint(base(epochs=seen.kept, **fields), source_weight=1.0)
    )
    assert tuned.source_head is not None
    assert stopped.source_head is not None
    for one, other in ((tuned.head, stopped.head), (tuned.source_head, stopped.source_head)):
        assert same(one, other)
    assert same(tuned.backbone.module, stopped.backbone.module)
    torch.testing.assert_close(tuned.predict_proba(data), (tuned.logits(data) / seen.temperature).softmax(1))


def test_source_pictures_teach_what_few_target_pictures_cannot() -> None:
    def pictures(n: int, seed: int) -> Pictures:
        x, labels = small.pictures(n, 4, seed)
        return Pictures(torch.from_numpy(x), labels, list(map(str, range(n))))

    few, many, test = pictures(4, 0), pictures(120, 1), pictures(200, 2)
    fields: Any = {"learning_rate": 0.01, "epochs": 60, "batch_size": 4}
    plain = fine_tune(small.backbone(), few, base(**fields))
    tuned = joint_fine_tune(small.backbone(), few, many, joint(base(**fields), source_weight=1.0, batch_ratio=6))
    right, right_joint = ((model.predict(test) == test.labels).mean() for model in (plain, tuned))
    assert right_joint > right + 0.1


def test_the_given_backbone_stays_as_it_was_and_all_layers_move() -> None:
    backbone = small.backbone()
    before = state(backbone.module)
    tuned = joint_fine_tune(backbone, target(), source(), joint(base(epochs=1, head_start="random")))
    assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())
    assert all(not torch.equal(p, before[name]) for name, p in tuned.backbone.module.named_parameters())
    assert not tuned.backbone.module.training
    assert not any(p.requires_grad for p in tuned.backbone.module.parameters())
    assert tuned.seconds > 0
    assert tuned.cpu_seconds > 0
    assert tuned.predict(target()).tolist() == tuned.classes[tuned.logits(target()).argmax(1).numpy()].tolist()


def test_divergence_is_named() -> None:
    settings = joint(base(learning_rate=1e300, warmup=0.0, head_start="random"), source_weight=1.0)
    with pytest.raises(DivergedError, match="diverged in epoch"):
        joint_fine_tune(small.backbone(), target(), source(), settings)
