"""Source pictures without labels: the network's own opinion, strong views, and a threshold that none reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small
import torch
from joint_cases import Watched, base, joint, one_step, places, source, target
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.methods.fine_tuning import fine_tune
from tangentune.methods.fine_tuning.augment import cut_out, jittered, strong_views
from tangentune.methods.joint import PseudoLabels, joint_fine_tune
from tangentune.pictures.pictures import Pictures

WHOLE: dict[str, Any] = {"crop": 1.0, "jitter": 0.0, "cutout": 0.0}


def unlabelled(n: int = 20) -> Pictures:
    return Pictures(source(n).pixels, None, source(n).ids)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("threshold", [0.0, 0.75])
def test_the_step_learns_the_opinion_of_the_weak_view_from_the_strong_one(threshold: float) -> None:
    task = PseudoLabels(temperature=0.5, threshold=threshold)
    settings = joint(one_step(), source_weight=0.7, source_task=task, weighting="loss")
    weights = np.random.default_rng(0).uniform(0.5, 2, 20)
    watched = Watched()
    tuned = joint_fine_tune(watched.backbone(), target(), unlabelled(), settings, source_weights=weights)
    assert tuned.source_head is None
    assert tuned.source_classes is None

    weak, mixture = [x for _, x in watched.batches[-2:]]
    order = places(weak, unlabelled())
    net = small.network().requires_grad_(True)
    head = nn.Linear(6, 3, dtype=torch.float64)
    plain = fine_tune(small.backbone(), target(), one_step(learning_rate=1e-300))
    head.load_state_dict(plain.head.state_dict())
    with torch.no_grad():
        opinion = (head(net(weak)) / 0.5).softmax(1)
    factors = torch.from_numpy(weights / weights.mean())[order] * (opinion.amax(1) >= threshold)
    logits = head(net(mixture))
    each = -(opinion * logits[12:].log_softmax(1)).sum(1)
    of_source = (factors * each).sum() / 12
    loss = F.cross_entropy(logits[:12], torch.tensor(places(mixture[:12], target())) % 3) + 0.7 * of_source
    loss.backward()
    before = dict(small.network().named_parameters())
    for (name, p), after in zip(net.named_parameters(), tuned.backbone.module.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(before[name].detach() - after, p.grad, atol=1e-10, rtol=0)
    assert tuned.losses[0] == pytest.approx(float(loss.detach()), abs=1e-10)
    assert tuned.source_losses[0] == pytest.approx(float(of_source.detach()), abs=1e-10)
    share = float((opinion.amax(1) >= threshold).double().mean())
    assert tuned.source_shares == (share,)
    assert share == 1 if threshold == 0 else 0 < share < 1


@pytest.mark.parametrize("batchnorm", ["frozen", "target"])
def test_when_no_picture_is_sure_enough_only_the_target_is_learnt(batchnorm: str) -> None:
    fields: Any = {"epochs": 3, "batch_size": 5, "learning_rate": 1e-2}
    settings = joint(base(**fields), source_weight=5.0, batchnorm=batchnorm, source_task=PseudoLabels(threshold=0.999))
    tuned = joint_fine_tune(small.backbone(), target(), unlabelled(), settings)
    norm: Any = "eval" if batchnorm == "frozen" else "train"
    plain = fine_tune(small.backbone(), target(), base(**fields, batchnorm=norm))
    assert tuned.source_losses == tuned.source_shares == (0.0, 0.0, 0.0)
    torch.testing.assert_close(tuned.logits(source()), plain.logits(source()), atol=1e-8, rtol=0)


def test_the_opinion_is_that_of_the_network_as_it_predicts_and_moves_no_statistics() -> None:
    settings = base(epochs=1, batch_size=64, flip=False)
    task = PseudoLabels(**WHOLE)
    one = joint_fine_tune(
        small.backbone(), target(), unlabelled(), joint(settings, batchnorm="target", source_task=task)
    )
    plain = fine_tune(small.backbone(), target(), base(epochs=1, batch_size=64, flip=False, batchnorm="train"))
    means = [model.backbone.module.get_buffer("1.running_mean") for model in (one, plain)]
    assert torch.equal(*means)


def test_a_seed_fixes_everything_and_weightless_pictures_do_not_matter() -> None:
    def tuned(pictures: Pictures, weights: np.ndarray, seed: int = 0) -> Tensor:
        settings = joint(base(epochs=2, batch_size=5, seed=seed), source_task=PseudoLabels())
        model = joint_fine_tune(small.backbone(), target(), pictures, settings, source_weights=weights)
        return model.logits(source())

    weights = np.arange(20)
    first = tuned(unlabelled(), weights)
    assert torch.equal(first, tuned(unlabelled(), weights))
    assert torch.equal(first, tuned(unlabelled().select(np.arange(1, 20)), weights[1:]))
    assert not torch.equal(first, tuned(unlabelled(), weights, seed=1))


def test_float_pictures_are_judged_and_changed_alike() -> None:
    def floats(pictures: Pictures) -> Pictures:
        return Pictures(pictures.pixels.double() / 255, pictures.labels, pictures.ids)

    settings = joint(base(epochs=1, batch_size=5), source_task=PseudoLabels())
    bytes_, values = (
        joint_fine_tune(small.backbone(), f(target()), f(unlabelled()), settings) for f in (lambda p: p, floats)
    )
    torch.testing.assert_close(bytes_.logits(source()), values.logits(source()), atol=1e-9, rtol=0)


def test_light_and_colour_change_by_their_factors() -> None:
    x = 0.3 + 0.2 * torch.rand(4, 3, 5, 6, dtype=torch.float64, generator=generator())  # nothing is clamped
    factors = torch.ones(3, 4, dtype=torch.float64)
    factors[0, 0], factors[1, 1], factors[2, 2] = 1.2, 0.5, 0.0
    out = jittered(x, factors)
    grey = torch.einsum("nchw,c->nhw", x, torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))
    torch.testing.assert_close(out[0], 1.2 * x[0])
    torch.testing.assert_close(out[1], (x[1] + grey[1].mean()) / 2)
    torch.testing.assert_close(out[2], grey[2].expand(3, 5, 6))
    torch.testing.assert_close(out[3], x[3])
    far = jittered(torch.rand(64, 3, 5, 6, generator=generator()), torch.full((3, 64), 1.9))
    assert (far.min(), far.max()) == (0, 1)
    two = torch.rand(2, 2, 4, 4, generator=generator())
    torch.testing.assert_close(jittered(two, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])), two)


def test_a_square_is_cut_out_around_its_centre() -> None:
    x = torch.zeros(3, 3, 8, 10)
    out = cut_out(x, torch.tensor([[0.5, 0.0, 0.999], [0.5, 0.0, 0.999]], dtype=torch.float64), 0.5)
    hit = out[:, 0] == 0.5
    assert torch.equal(out, hit[:, None].expand_as(out) * 0.5)
    assert hit.sum((1, 2)).tolist() == [16, 4, 9]
    assert hit[0, 2:6, 3:7].all()
    assert hit[1, :2, :2].all()
    assert hit[2, 5:, 7:].all()


def test_strong_views_are_drawn_for_each_picture_and_fixed_by_the_seed() -> None:
    x = torch.rand(1, 3, 16, 16, generator=generator(5)).expand(6, 3, 16, 16)
    choices: Any = {"flip": True, "crop": 0.5, "jitter": 0.4, "cutout": 0.5}
    views = strong_views(x, generator(1), **choices)
    assert torch.equal(views, strong_views(x, generator(1), **choices))
    assert not torch.equal(views, strong_views(x, generator(2), **choices))
    assert len({view.sum().item() for view in views}) == 6
    assert 0 <= float(views.min()) <= float(views.max()) <= 1
    assert torch.equal(strong_views(x, generator(1), flip=False, **WHOLE), x)
    mirrored = strong_views(x, generator(1), flip=True, **WHOLE)
    assert all(torch.equal(view, x[0]) or torch.equal(view, x[0].flip(-1)) for view in mirrored)
