"""BatchNorm statistics that follow a change of the network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import seeded
from net_cases import SIZE, small_net
from torch import nn

from tangentune.errors import InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.healing import heal_batchnorm


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
