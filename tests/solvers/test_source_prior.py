"""Source rows eliminated: what is left, solved alone, is the joint problem solved outright."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from source_cases import F64, new_rows, random_joint

from tangentune.solvers.source.prior import prior, spectrum

SETTINGS = [
    (strength, deviation, damping)
    for strength, deviation in ((1e-3, 0.0), (0.4, 0.5), (1.0, 1.0), (30.0, 0.0), (5.0, 20.0))
    for damping in (0.05, 2.0)
]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("strength", "deviation", "damping"), SETTINGS)
def test_what_is_left_solves_the_joint_problem(strength: float, deviation: float, damping: float, zeros: bool) -> None:
    joint = random_joint(strength=strength, deviation=deviation, damping=damping, zeros=zeros)
    system, said, gain = joint.reduced()
    new = new_rows()
    crossed = new @ joint.source.T
    kernel = new @ joint.rows.T - crossed @ gain @ (joint.rows @ joint.source.T).T
    basis = spectrum(joint.source @ joint.source.T, joint.source_weights / strength, joint.positions, 4)
    response = prior(basis, damping / strength, deviation).response
    found = kernel @ system.dual + system.bias + crossed @ response @ said.labels
    assert_allclose(found, joint.predict(new), rtol=0, atol=1e-8)
    # The source pictures' own coefficients, as a fitted model sums them into its weights.
    dual = response @ said.labels - gain @ ((joint.rows @ joint.source.T).T @ system.dual)
    assert_allclose(new @ joint.rows.T @ system.dual + crossed @ dual + system.bias, found, rtol=0, atol=1e-8)
    assert_allclose(dual.sum(0), torch.zeros(3), atol=1e-9)
    if zeros:
        assert not dual[joint.positions == 1].any()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("strength", "deviation", "damping"), SETTINGS)
def test_the_joint_problem_is_a_ridge_of_shared_and_own_features(
    strength: float, deviation: float, damping: float, zeros: bool
) -> None:
    """The deviation is a second function of the source alone, its penalty damping / deviation."""
    joint = random_joint(strength=strength, deviation=deviation, damping=damping, zeros=zeros)
    assert_allclose(joint.primal(new_rows()), joint.predict(new_rows()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("weights", [torch.ones(17), torch.arange(17.0) % 3], ids=["even", "zeros"])
def test_the_prior_in_the_basis_is_that_of_all_pictures(weights: torch.Tensor) -> None:
    """What others meet of the prior, the prior itself, and the gain by a bordered inverse."""
    joint, ridge, deviation = random_joint(), 0.3, 0.7
    own, cross = joint.source @ joint.source.T, joint.rows @ joint.source.T
    basis = spectrum(own, weights, joint.positions, 4)
    found = prior(basis, ridge, deviation)
    met = prior(basis, ridge, deviation, cross @ basis.through)
    assert_allclose(met.gain, cross @ found.gain @ cross.T, rtol=0, atol=1e-11)
    assert_allclose(met.response, cross @ found.response, rtol=0, atol=1e-11)
    kept = weights > 0
    size = int(kept.sum())
    bordered = torch.ones(size + 1, size + 1, dtype=F64)
    bordered[:size, :size] = (1 + deviation) * own[kept][:, kept] + torch.diag(ridge / weights[kept].to(F64))
    bordered[size, size] = 0
    gain = torch.zeros_like(own)
    gain[kept.nonzero(), kept.nonzero().T] = torch.linalg.inv(bordered)[:size, :size]
    assert_allclose(found.gain, gain, rtol=0, atol=1e-11)
    classes = torch.nn.functional.one_hot(joint.positions).to(F64)
    assert_allclose(found.response, gain @ classes, rtol=0, atol=1e-11)


def test_endless_deviation_cuts_the_tasks_apart_and_a_single_picture_says_nothing() -> None:
    alone = random_joint(strength=1e-12, damping=0.7).predict(new_rows())
    apart = random_joint(strength=1.0, deviation=1e7, damping=0.7)
    assert_allclose(apart.primal(new_rows()), alone, rtol=0, atol=1e-6)
    system, said, gain = apart.reduced()
    assert_allclose(apart.source.T @ gain @ apart.source, torch.zeros(6, 6), atol=1e-6)
    assert_allclose(new_rows() @ apart.rows.T @ system.dual + system.bias, alone, rtol=0, atol=1e-5)
    assert_allclose(said.offset, torch.zeros(14, 3), atol=1e-5)
    lone = prior(spectrum(torch.eye(1, dtype=F64), torch.ones(1), torch.zeros(1, dtype=torch.int64), 1), 0.1, 0.0)
    assert_allclose(lone.gain, torch.zeros(1, 1), atol=1e-15)  # its intercept explains it
