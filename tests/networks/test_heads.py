"""Heads at the linearisation point: against refits, and that no picture meets a head that has seen it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from net_cases import SIZE, Around, Lambda, small_net
from reference import closeness, dense_solve, refit_loo
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.errors import BackboneError, InputError, MissingExtraError
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.networks.heads import (
    cross_fitted_probe,
    pretrained_head,
    probe_head,
    random_head,
    refuse_zero_head,
    stratified_folds,
)


def blobs(n: int = 41, width: int = 6, classes: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Overlapping classes of unequal size."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, classes, (n,), generator=generator).sort().values
    means = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return (means[positions] + torch.randn(n, width, generator=generator, dtype=torch.float64)).to(dtype), positions


def equal(one: nn.Linear, two: nn.Linear) -> bool:
    return torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_random_head_has_the_stated_scale_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    head = random_head(2500, 8, scale=3.0, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert abs(head.weight.std().item() - 3 / 50) < 0.001
    assert not head.bias.any()
    assert not any(p.requires_grad for p in head.parameters())
    assert equal(head, random_head(2500, 8, scale=3.0, seed=5))
    assert not equal(head, random_head(2500, 8, scale=3.0, seed=6))
    for width, outputs, scale in ((0, 2, 1.0), (2, 0, 1.0), (2, 2, 0.0), (2, 2, float("nan"))):
        with pytest.raises(InputError, match="random head"):
            random_head(width, outputs, scale=scale)


@pytest.mark.parametrize("width", [6, 40])  # by sums, and by the kernel
def test_probe_head_is_the_ridge_solution_of_least_refitted_leave_one_out_error(width: int) -> None:
    x, positions = blobs(25, width)
    centred, targets = x - x.mean(0), F.one_hot(positions).double()
    kernel = centred @ centred.T
    projection = torch.eye(25, dtype=torch.float64) - 1 / 25
    unit = float(torch.linalg.eigvalsh(projection @ kernel @ projection)[1:].clamp_min(0).mean())
    dampings = (unit * torch.logspace(-4, 3, 57, dtype=torch.float64)).tolist()
    errors = [float((targets - refit_loo(kernel, targets, damping)).square().sum()) for damping in dampings]
    best = int(np.argmin(errors))
    assert 0 < best < 56
    dual, intercept = dense_solve(kernel, targets, dampings[best])
    assert closeness(probe_head(x, positions)(x).detach(), kernel @ dual + intercept) < 1e-9


@pytest.mark.parametrize("calibrated", [False, True])
def test_cross_fitted_outputs_are_those_of_probes_fitted_to_the_rest(calibrated: bool) -> None:
    x, positions = blobs()
    probe = cross_fitted_probe(x, positions, folds=4, calibrated=calibrated)
    assert probe.fold.unique().tolist() == [0, 1, 2, 3]
    for number, head in enumerate(probe.heads):
        rest = probe.fold != number
        alone = probe_head(x[rest], positions[rest], calibrated=calibrated)
        assert equal(head, alone)
        assert torch.equal(probe.outputs[~rest], alone(x[~rest]))
    assert equal(probe.head, probe_head(x, positions, calibrated=calibrated))
    assert not any(p.requires_grad for head in (probe.head, *probe.heads) for p in head.parameters())
    assert not probe.outputs.requires_grad


def test_a_picture_never_touches_the_head_that_judges_it() -> None:
    """Its label and features may be anything; also the number of folds and the damping do not look at them."""
    x, positions = blobs()
    fold = stratified_folds(positions, 5, seed=1)
    before = cross_fitted_probe(x, positions, folds=fold)
    for i in range(0, len(x), 7):
        other, label = x.clone(), positions.clone()
        other[i], label[i] = 100.0, (label[i] + 1) % 3
        after = cross_fitted_probe(other, label, folds=fold)
        own = int(before.fold[i])
        assert equal(before.heads[own], after.heads[own])
        assert all(not equal(before.heads[k], after.heads[k]) for k in range(5) if k != own)
        others = before.fold == own
        others[i] = False
        assert torch.equal(before.outputs[others], after.outputs[others])
    moved = cross_fitted_probe(x + F.one_hot(torch.tensor(3), len(x)).double()[:, None], positions, seed=1)
    assert torch.equal(before.fold, moved.fold), "folds look at labels only"
    assert equal(before.heads[int(fold[3])], moved.heads[int(fold[3])])


def test_cross_fitted_residuals_are_larger_than_those_of_the_probe_that_saw_them() -> None:
    """What the body would be fitted to: in sample too small, cross-fitted like those of new pictures."""
    x, positions = blobs(400, 60, 3)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    train, new = shuffled[:100], shuffled[100:]
    probe, targets = cross_fitted_probe(x[train], positions[train]), F.one_hot(positions).double()
    seen = (probe.head(x[train]) - targets[train]).square().sum(1).mean()
    held_out = (probe.outputs - targets[train]).square().sum(1).mean()
    fresh = (probe.head(x[new]) - targets[new]).square().sum(1).mean()
    assert seen < 0.7 * fresh
    assert abs(held_out / fresh - 1) < 0.2


def test_folds_are_stratified_balanced_and_fixed_by_the_seed() -> None:
    positions = torch.tensor([0] * 11 + [1] * 2 + [2] * 7 + [3])[torch.randperm(21)]
    fold = stratified_folds(positions, 5, seed=3)
    assert sorted(fold.bincount().tolist()) == [4, 4, 4, 4, 5]
    for label in range(4):
        shares = fold[positions == label].bincount(minlength=5)
        assert shares.max() - shares.min() <= 1
    assert torch.equal(fold, stratified_folds(positions, 5, seed=3))
    assert not torch.equal(fold, stratified_folds(positions, 5, seed=4))
    assert stratified_folds(positions[:3], 5).tolist().count(0) == 1


def test_a_class_of_one_picture_gets_nothing_from_the_head_that_never_met_it() -> None:
    x, positions = blobs(20)
    positions[positions == 2] = 1
    positions[7] = 2
    probe = cross_fitted_probe(x, positions)
    own = probe.heads[int(probe.fold[7])]
    assert probe.outputs.shape == (20, 3)
    assert probe.outputs[7, 2] == 0
    assert not own.weight[2].any()
    assert all(head.weight[2].any() for head in probe.heads if head is not own)


def test_few_pictures_give_few_folds_and_features_keep_their_dtype() -> None:
    x, positions = blobs(3, 2, 1, torch.float32)
    probe = cross_fitted_probe(x, torch.tensor([0, 1, 1]), folds=10)
    assert len(probe.heads) == 3
    assert probe.outputs.dtype == probe.head.weight.dtype == torch.float32
    assert positions.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("n", "folds", "match"),
    [
        (2, 5, "two pictures outside each"),
        (9, 1, "at least 2"),
        (9, True, "at least 2"),
        (9, torch.zeros(9, dtype=torch.long), "two folds at least"),
        (9, torch.zeros(8, dtype=torch.long), "9 whole numbers"),
        (9, torch.zeros(9), "9 whole numbers"),
        (3, torch.tensor([4, 4, 1]), "two pictures outside each"),
    ],
)
def test_folds_that_leave_too_little_are_refused(n: int, folds: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        cross_fitted_probe(torch.arange(n)[:, None].double(), torch.arange(n) % 2, folds=folds)


def test_given_folds_keep_groups_together() -> None:
    x, positions = blobs(20)
    scenes = torch.arange(20) // 4 * 10 + 3
    probe = cross_fitted_probe(x, positions, folds=scenes)
    assert torch.equal(probe.fold, torch.arange(20) // 4)


# The pre-trained head


@pytest.mark.parametrize("features", ["5", lambda module, x: module[:6](x)])
def test_pretrained_head_gives_the_networks_own_scores(features: Any, x: Tensor) -> None:
    backbone = Backbone(small_net(), input_size=SIZE, features=features)
    head = pretrained_head(backbone, [3, 0, 3])
    torch.testing.assert_close(head(backbone.features(x)), backbone.module(x)[:, [3, 0, 3]])
    assert not any(p.requires_grad for p in head.parameters())
    with torch.no_grad():
        head.weight.zero_()
    assert backbone.module.get_parameter("6.weight").any(), "a copy"


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_pretrained_head_of_the_networks_defined_here(name: str) -> None:
    try:
        backbone = load_backbone(name).with_size(64)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    rows = [281, 7, 999]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    head = pretrained_head(backbone, rows)
    torch.testing.assert_close(head(backbone.features(x)), backbone.module(x)[:, rows], atol=1e-4, rtol=1e-4)


def test_pretrained_head_is_told_from_other_layers_of_the_same_width() -> None:
    """An auxiliary classifier, a square layer before the features, no bias, and an output object."""

    class Output:
        def __init__(self, logits: Tensor):
            self.logits = logits

    parts = nn.ModuleDict(
        {"square": nn.Linear(4, 4), "last": nn.Linear(4, 3, bias=False), "auxiliary": nn.Linear(4, 3)}
    ).double()
    net = Around(parts, lambda body, x: Output(body["last"](body["square"](x).tanh())))
    features: Any = lambda module, x: module.body["square"](x).tanh()
    backbone = Backbone(net, features=features)
    x = torch.randn(3, 4, dtype=torch.float64)
    head = pretrained_head(backbone, range(3), x)
    assert torch.equal(head.weight, backbone.module.get_parameter("body.last.weight"))
    assert not head.bias.any()


def test_a_network_without_a_classifier_behind_its_features_is_refused(x: Tensor) -> None:
    own = Backbone(small_net(), input_size=SIZE)
    with pytest.raises(BackboneError, match="no linear layer is that wide"):
        pretrained_head(own, [0])
    scaled = Backbone(nn.Sequential(*small_net(), Lambda(lambda z: 2 * z)), input_size=SIZE, features="5")
    with pytest.raises(BackboneError, match="of 6 none gives"):
        pretrained_head(scaled, [0])
    with pytest.raises(InputError, match="give a few inputs x"):
        pretrained_head(Backbone(nn.Linear(3, 2)), [0])
    backbone = Backbone(small_net(), input_size=SIZE, features="5")
    wrong: Any = (([5], "5 is not one"), ([-1], "-1 is not"), ([], "none is given"), ([0.5], "0.5 is not"))
    for classes, match in wrong:
        with pytest.raises(InputError, match=match):
            pretrained_head(backbone, classes)


def test_a_zero_head_makes_the_bodys_jacobian_zero_and_is_refused() -> None:
    head, body = random_head(5, 2), nn.Linear(3, 5)
    refuse_zero_head(head)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(1.0)
    head(body(torch.randn(4, 3))).square().sum().backward()
    assert body.weight.grad is not None
    assert not body.weight.grad.any()
    with pytest.raises(InputError, match="linear probe for ever"):
        refuse_zero_head(head)
