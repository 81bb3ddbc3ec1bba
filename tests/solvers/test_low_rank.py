"""Problems on feature rows answer as the same problem with its kernel written out, in everything, to 1e-8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from reference import closeness
from torch import Tensor

from tangentune.errors import InputError, SingularError
from tangentune.solvers import balancing, leave_out, likelihoods, posterior, reweighting
from tangentune.solvers.edits import remove, retarget, reweight
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel
from tangentune.solvers.row_edits import edited
from tangentune.solvers.shared_matrix import SharedMatrix
from tangentune.solvers.system import System, build, design, fitted, refresh, residual, spot_check

N, D, C, DAMPING = 60, 9, 3, 0.3


def append_rows(system: System, kernel: FeatureKernel, targets: Tensor, weights: Tensor) -> System:
    """The problem with more pictures at the end of its kernel."""
    targets, weights = torch.cat([system.targets, targets]), torch.cat([system.weights, weights])
    return edited([system], kernel, torch.arange(len(system.weights)), targets, weights)[0]


def rows(count: int = N, seed: int = 0) -> Tensor:
    """Rows that are not centred, as features are not."""
    return 0.4 + torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count: int = N) -> Tensor:
    return torch.eye(C, dtype=torch.float64)[torch.randint(C, (count,), generator=torch.Generator().manual_seed(1))]


def some_weights(count: int = N) -> Tensor:
    """Uneven; two pictures do not count."""
    found = 0.2 + 3 * torch.rand(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found[[4, 17]] = 0.0
    return found


def on_features(parts: int = 1) -> System:
    return build(FeatureKernel.of(*rows().chunk(parts)), labels(), DAMPING, some_weights())


def written_out() -> System:
    return build(rows() @ rows().T, labels(), DAMPING, some_weights())


def same(ours: System, dense: System, tolerance: float = 1e-9) -> None:
    everything = torch.arange(len(ours.kernel))
    assert closeness(ours.dual, dense.dual) < tolerance
    assert closeness(ours.bias, dense.bias) < tolerance
    assert isinstance(dense.inverse, Tensor)
    assert closeness(ours.inverse[everything], dense.inverse[:-1]) < tolerance
    assert closeness(ours.inverse.diagonal(), dense.inverse.diagonal()) < tolerance
    assert closeness(leave_out.loo(ours), leave_out.loo(dense)) < tolerance
    assert residual(ours)[0] < 1e-12
    assert spot_check(ours) < 1e-12


@pytest.mark.parametrize("parts", [1, 3])
def test_the_solution_is_that_of_the_kernel(parts: int) -> None:
    same(on_features(parts), written_out())


def test_kernel_and_inverse_are_indexed_and_multiplied_as_matrices() -> None:
    ours, dense = on_features(2), written_out()
    right = torch.randn(N + 1, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert isinstance(dense.inverse, Tensor)
    assert closeness(ours.inverse @ right, dense.inverse @ right) < 1e-9
    assert closeness(right.T @ ours.inverse, right.T @ dense.inverse) < 1e-9
    assert closeness(ours.inverse[7], dense.inverse[7]) < 1e-9
    assert closeness(ours.inverse[some_weights() == 0], dense.inverse[:-1][some_weights() == 0]) < 1e-9
    assert closeness(ours.kernel @ right[:-1], dense.kernel @ right[:-1]) < 1e-12
    assert closeness(ours.kernel[torch.tensor([3, 50, 3])], dense.kernel[torch.tensor([3, 50, 3])]) < 1e-12
    assert closeness(ours.kernel[3], dense.kernel[3]) < 1e-12
    assert closeness(ours.kernel.diagonal(), dense.kernel.diagonal()) < 1e-12


QUESTIONS: dict[str, Callable[[System], Tensor]] = {
    "fitted": fitted,
    "by groups": lambda s: leave_out.leave_out(s, torch.arange(N) % 7),
    "influence": lambda s: leave_out.influence(s, rows(5, 9) @ rows().T),
    "contributions": lambda s: leave_out.contributions(s, rows(5, 9) @ rows().T),
    "pair influence": lambda s: torch.cat(leave_out.pair_influence(s, 8)),
    "unique information": leave_out.unique_information,
    "unique information on pictures": lambda s: leave_out.unique_information(s, rows(5, 9) @ rows().T),
    "distrusting": lambda s: leave_out.loo(leave_out.distrusting(s)),
    "mean eigenvalue": lambda s: torch.tensor([leave_out.mean_eigenvalue(s)]),
    "variance": lambda s: posterior.variance(s, rows(5, 9) @ rows().T, rows(5, 9).square().sum(1)),
    "covariance": lambda s: posterior.covariance(s, rows(5, 9) @ rows().T, rows(5, 9) @ rows(5, 9).T),
    "noise": posterior.noise_variance,
    "variance left out": posterior.loo_variance,
    "weight gradient": reweighting.weight_gradient,
    "weight gradient of some": lambda s: reweighting.weight_gradient(s, evaluate=torch.arange(N) % 2),
    "balanced, left out": lambda s: torch.stack(
        [leave_out.loo(v)[m].sum() for m, v in balancing.views(s, _classes(s))]
    ),
    "balanced influence": lambda s: balancing.influence(s, _classes(s), rows(5, 9) @ rows().T),
    "balanced information": lambda s: balancing.unique_information(s, _classes(s)),
    "dirichlet": lambda s: likelihoods.loo_likelihood(likelihoods.fit_likelihood("dirichlet", s), s),
}


def _classes(system: System) -> Tensor:
    return system.targets.argmax(1)


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_the_same_answer(question: str) -> None:
    assert closeness(QUESTIONS[question](on_features()), QUESTIONS[question](written_out())) < 1e-8


@pytest.mark.parametrize("gone", [[3], [0, 4, 17, 59], list(range(40))])
def test_removing_is_fitting_the_rest(gone: list[int]) -> None:
    same(remove(on_features(), torch.tensor(gone)), remove(written_out(), torch.tensor(gone)))


@pytest.mark.parametrize("count", [1, 5])
def test_appending_is_fitting_all(count: int) -> None:
    new, weights = rows(count, 5), torch.linspace(0.5, 2, count, dtype=torch.float64)
    targets, before = labels(count), on_features()
    assert isinstance(before.kernel, FeatureKernel)
    ours = append_rows(before, before.kernel.joined(new), targets, weights)
    whole = torch.cat([rows(), new])
    dense = build(whole @ whole.T, torch.cat([labels(), targets]), DAMPING, torch.cat([some_weights(), weights]))
    same(ours, dense)
    assert closeness(design(ours, new @ whole.T) @ ours.unknowns, design(dense, new @ whole.T) @ dense.unknowns) < 1e-9


@pytest.mark.parametrize("changed", [[5], [4, 17], list(range(30))])
def test_reweighting_is_fitting_with_other_weights(changed: list[int]) -> None:
    weights = some_weights()
    weights[changed] = torch.linspace(0, 2, len(changed), dtype=torch.float64)
    same(reweight(on_features(), weights), reweight(written_out(), weights))


@pytest.mark.parametrize("columns", [C, C + 2])
def test_new_targets_are_a_new_fit(columns: int) -> None:
    targets = torch.eye(columns, dtype=torch.float64)[labels().argmax(1).flip(0)]
    same(retarget(on_features(), targets), retarget(written_out(), targets))


def test_another_damping_is_another_fit() -> None:
    same(refresh(on_features(), damping=2.0), refresh(written_out(), damping=2.0))


def test_a_long_sequence_of_edits_stays_exact() -> None:
    system, generator = on_features(), torch.Generator().manual_seed(6)
    for step in range(60):
        assert isinstance(system.kernel, FeatureKernel)
        n = len(system.kernel)
        places = torch.randperm(n, generator=generator)[:2]
        if step % 3 == 0:
            system = remove(system, places)
        elif step % 3 == 1:
            new = rows(2, 100 + step)
            system = append_rows(system, system.kernel.joined(new), labels(2), torch.ones(2, dtype=torch.float64))
        else:
            weights = system.weights.clone()
            weights[places] = torch.rand(2, generator=generator, dtype=torch.float64)
            system = reweight(retarget(system, system.targets.roll(1, 1)), weights)
    assert isinstance(system.kernel, FeatureKernel)
    own = system.kernel.rows(slice(None))
    same(system, build(own @ own.T, system.targets, system.damping, system.weights))
    alone = system.kernel.compacted()
    same(replace(system, kernel=alone), build(own @ own.T, system.targets, system.damping, system.weights))


def test_rows_in_single_precision_are_taken_as_they_are() -> None:
    single = rows().float()
    dense = build(single.double() @ single.double().T, labels(), DAMPING, some_weights())
    same(build(FeatureKernel.of(single), labels(), DAMPING, some_weights()), dense)


def test_a_damping_too_small_is_one_sentence() -> None:
    twice = torch.cat([rows(), rows()], 1)
    with pytest.raises(SingularError, match="use a larger damping"):
        build(FeatureKernel.of(twice), labels(), 1e-300, some_weights())
    with pytest.raises(InputError, match="must be positive"):
        build(FeatureKernel.of(rows()), labels(), 0.0)


def test_the_solution_is_known_by_its_normal_equations() -> None:
    system = on_features()
    assert isinstance(system.inverse, FeatureInverse)
    spoilt = replace(system.inverse, core=SharedMatrix(system.inverse.core.whole() * (1 + 1e-6)))
    assert spoilt.error()[0] > 1e-7
    assert residual(replace(system, inverse=spoilt))[0] > 1e-7
