"""Several tasks, and scales found by evidence: by definition, and against the densities next to the optimum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import closeness
from test_ntk_process import NOISE, PRIOR, data, network, slow

from tangentune.errors import InputError
from tangentune.methods.ntk import NTKGaussianProcess


@pytest.mark.parametrize("space", ["function", "parameter"])
def test_two_tasks_with_noises_of_their_own(space) -> None:
    net, (x, y), (x2, y2), (new, _) = network(), data(), data(5, seed=7), data(4, seed=2)
    for mode, mean in (("full", "network"), ("independent", "constant"), ("shared", "zero")):
        first = NTKGaussianProcess(net, outputs=mode, mean=mean, space=space, noise=NOISE, prior_variance=PRIOR).fit(
            x, y
        )
        both = first.adapt(x2, y2, keep=True, noise=0.4)
        noises = torch.tensor([NOISE] * 9 + [0.4] * 5)
        expected, covariance, density = slow(net, torch.cat([x, x2]), torch.cat([y, y2]), new, mode, mean, noises)
        found, std = both.predict(new, return_std=True)
        assert closeness(found, expected) < 1e-7
        variance = covariance.diagonal(dim1=1, dim2=2)
        assert closeness(std.square(), variance.reshape(4, 2) if mode == "full" else variance.T.expand(-1, 2)) < 1e-7
        assert both.log_marginal_likelihood() == pytest.approx(density, rel=1e-7)
        assert both.noise_ == (NOISE, 0.4)
        alone = first.adapt(x2, y2)
        assert closeness(alone.predict(new), slow(net, x2, y2, new, mode, mean)[0]) < 1e-8
        assert first.noise_ == (NOISE,)
        assert closeness(first.predict(new), slow(net, x, y, new, mode, mean)[0]) < 1e-8


@pytest.mark.parametrize("space", ["function", "parameter"])
@pytest.mark.parametrize("n", [6, 40])
def test_evidence_finds_the_highest_density(space, n) -> None:
    net, (x, y) = network(), data(n)
    cases: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("full", "network", {}),
        ("full", "constant", {"noise": 0.2}),
        ("independent", "constant", {"prior_variance": 0.5}),
        ("shared", "zero", {}),
    )
    for mode, mean, fixed in cases:
        gp = NTKGaussianProcess(net, outputs=mode, mean=mean, space=space, **fixed).fit(x, y)
        noise, prior = gp.noise_[0], gp.prior_variance_
        assert noise == fixed.get("noise", noise)
        assert prior == fixed.get("prior_variance", prior)
        density = slow(net, x, y, x[:1], mode, mean, noise, prior)[2]
        assert gp.log_marginal_likelihood() == pytest.approx(density, rel=1e-7)
        steps = [(1.1 if "noise" not in fixed else 1, 1), (1, 1.1 if "prior_variance" not in fixed else 1)]
        for up, across in [step for step in steps if step != (1, 1)]:
            for sign in (1, -1):
                other = slow(net, x, y, x[:1], mode, mean, noise * up**sign, prior * across**sign)[2]
                assert other < density + 1e-9


def test_noise_of_a_further_task_is_the_likeliest_given_the_first() -> None:
    net, (x, y), (x2, y2) = network(), data(), data(12, seed=7)
    first = NTKGaussianProcess(net, prior_variance=PRIOR).fit(x, y)
    both = first.adapt(x2, y2, keep=True)
    best = both.log_marginal_likelihood()
    for factor in (0.9, 1.1):
        assert first.adapt(x2, y2, keep=True, noise=factor * both.noise_[1]).log_marginal_likelihood() < best
    assert first.adapt(x2, y2, scales="inherit").noise_ == first.noise_
    assert first.adapt(x2, y2, keep=True, scales="inherit").noise_ == 2 * first.noise_


@pytest.mark.parametrize("space", ["function", "parameter"])
def test_inherited_ratio_finds_the_likeliest_size(space) -> None:
    net, (x, y), (x2, y2) = network(), data(), data(5, seed=7)
    first = NTKGaussianProcess(net, mean="constant", space=space, noise=NOISE, prior_variance=PRIOR).fit(x, y)
    found = first.adapt(x2, 30 * y2, scales="ratio")
    assert found.noise_[0] / found.prior_variance_ == pytest.approx(NOISE / PRIOR, rel=1e-12)
    best = slow(net, x2, 30 * y2, x, "full", "constant", found.noise_[0], found.prior_variance_)[2]
    assert found.log_marginal_likelihood() == pytest.approx(best, rel=1e-8)
    for factor in (0.9, 1.1):
        scaled = [factor * found.noise_[0], factor * found.prior_variance_]
        assert slow(net, x2, 30 * y2, x, "full", "constant", *scaled)[2] < best
    with pytest.raises(InputError, match="scales is 'ratio'; use"):
        first.adapt(x2, y2, scales="ratio", keep=True)
