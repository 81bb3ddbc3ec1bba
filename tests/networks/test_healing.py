"""Feature drift, BatchNorm statistics that follow a change, and distillation back to the original features."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import seeded
from conftest import SIZE, small_net
from small import backbone as small_backbone
from small import pictures as small_pictures
from torch import nn

from tangentune.errors import InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.features import own_output
from tangentune.networks.healing import compare_features, distill, feature_drift, heal_batchnorm
from tangentune.networks.leaky import leaky
from tangentune.pictures.load import Pictures, load_pictures


def pictures(n: int = 40, labelled: bool = False) -> Pictures:
    x, labels = small_pictures(n)
    return load_pictures(x, labels if labelled else None, contract=small_backbone().contract, need_labels=labelled)


def test_batchnorm_statistics_are_those_of_the_inputs_each_picture_counted_once() -> None:
    network: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5)).double().eval()
    x = torch.randn(12, 2, dtype=torch.float64)
    batches = [x[:5], x[5:10], x[10:]]
    healed: Any = heal_batchnorm(network, iter(batches))
    z = network[0](x).detach()
    variance = sum(len(b) * network[0](b).detach().var(0) for b in batches) / 12
    torch.testing.assert_close(healed.get_buffer("1.running_mean"), z.mean(0))
    torch.testing.assert_close(healed.get_buffer("1.running_var"), variance)
    assert not any(part.training for part in healed.modules())
    assert healed[1].momentum == 0.3
    assert not network[1].running_mean.any(), "the given network stays"


def test_statistics_of_a_backbone_are_healed_through_its_features() -> None:
    backbone = Backbone(small_net().double(), input_size=SIZE, features="5")
    inputs = 3 + torch.randn(16, *SIZE, dtype=torch.float64)
    healed = heal_batchnorm(backbone, [inputs])
    conv: Any = backbone.module.get_submodule("0")
    torch.testing.assert_close(healed.module.get_buffer("1.running_mean"), conv(inputs).mean((0, 2, 3)))
    assert torch.equal(heal_batchnorm(backbone, [inputs]).features(inputs), healed.features(inputs))
    assert not any(p.requires_grad for p in healed.module.parameters())
    assert healed.contract.sha256 != backbone.contract.sha256
    assert healed.contract.source == "unknown; batch statistics re-estimated"


def test_with_a_reference_statistics_move_by_what_the_change_does_and_no_further() -> None:
    """A shift is undone exactly, whatever the pictures; a scale in the variance, and no change is no change."""
    original: Any = seeded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-300), nn.Linear(4, 2)))
    changed = copy.deepcopy(original)
    changed[0].weight.mul_(3.0)
    changed[0].bias.add_(5.0)
    strange, x = 7 + 2 * torch.randn(50, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    healed = heal_batchnorm(changed, [strange[:30], strange[30:]], reference=original)
    assert not torch.allclose(changed(x), original(x))
    shift = 5.0 - 2 * original[0].bias  # of the means beyond their scaling, which a difference does not know
    expected = original[1].running_mean + (2 * original[0](strange) + shift).mean(0)
    torch.testing.assert_close(healed.get_buffer("1.running_mean"), expected)
    torch.testing.assert_close(healed.get_buffer("1.running_var"), 9 * original[1].running_var)
    same = heal_batchnorm(original, [strange], reference=original)
    torch.testing.assert_close(same(x), original(x))
    only_bias = copy.deepcopy(original)
    only_bias[0].bias.add_(5.0)
    torch.testing.assert_close(heal_batchnorm(only_bias, [strange], reference=original)(x), original(x))


def test_what_cannot_be_healed_is_refused() -> None:
    with pytest.raises(InputError, match="there are 0"):
        heal_batchnorm(nn.Linear(2, 2), [torch.ones(2, 2)])
    with pytest.raises(InputError, match="there are 1 and 2"):
        heal_batchnorm(nn.BatchNorm1d(2), [], reference=nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))
    with pytest.raises(InputError, match="batch of one"):
        heal_batchnorm(nn.BatchNorm1d(2), [torch.randn(3, 2), torch.ones(1, 2)])
    with pytest.raises(InputError, match="no batch was given"):
        heal_batchnorm(nn.BatchNorm1d(2), [])


def test_drift_sees_shifts_and_scales_but_cka_does_not() -> None:
    phi = torch.randn(30, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    same = compare_features(phi, phi)
    assert (same.relative_square, same.cosine, same.cka) == pytest.approx((0, 1, 1))
    doubled = compare_features(phi, 2 * phi)
    assert doubled.relative_square == pytest.approx(float(phi.square().sum() / (phi - phi.mean(0)).square().sum()))
    assert (doubled.cosine, doubled.cka) == pytest.approx((1, 1))
    turned = compare_features(phi, 3 * phi @ turn + 5)
    assert turned.cka == pytest.approx(1)
    assert turned.relative_square > 1
    assert turned.cosine < 0.9
    other = torch.randn(30, 4, dtype=torch.float64)
    assert compare_features(phi, other).cka < 0.5
    x, y = (values - values.mean(0) for values in (phi, other))
    formula = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert compare_features(phi, other).cka == pytest.approx(float(formula))
    for bad in (phi[:2], phi[:1].expand(5, 4)):
        with pytest.raises(InputError, match="three pictures or more"):
            compare_features(bad, bad)


def test_distillation_brings_the_features_back_without_labels() -> None:
    original, source = small_backbone(), pictures(60)
    changed = leaky(original, 0.5).network
    result = distill(changed, original, source, epochs=15, learning_rate=1e-2, batch_size=20)
    before, after = (feature_drift(original, b, source) for b in (changed, result.backbone))
    assert len(result.losses) == 15
    assert after.relative_square < 0.3 * before.relative_square
    assert after.cka > before.cka
    assert not any(p.requires_grad for p in result.backbone.module.parameters())
    assert not result.backbone.module.training
    norm = "1.running_mean"
    assert torch.equal(result.backbone.module.get_buffer(norm), changed.module.get_buffer(norm))
    again = distill(changed, original, source, epochs=15, learning_rate=1e-2, batch_size=20)
    assert again.losses == result.losses
    other = distill(changed, original, source, epochs=1, batch_size=20, seed=1)
    assert other.losses != distill(changed, original, source, epochs=1, batch_size=20).losses
    assert result.backbone.feature_function == changed.feature_function, "it still leaks"
    assert changed.feature_function.extract != own_output


def test_distillation_of_what_does_not_fit_is_refused() -> None:
    original, source = small_backbone(), pictures(4)
    wide = Backbone(seeded(nn.Sequential(nn.Flatten(), nn.Linear(192, 7))), input_size=SIZE)
    with pytest.raises(InputError, match="7 wide, the teacher's 6"):
        distill(wide, original, source)
    with pytest.raises(InputError, match="6 and 7 wide"):
        feature_drift(original, wide, source)
    with pytest.raises(InputError, match="must be positive"):
        distill(original, original, source, epochs=0)
    with pytest.raises(InputError, match="diverged"):
        distill(leaky(original, 0.5).network, original, source, epochs=3, learning_rate=1e300)
