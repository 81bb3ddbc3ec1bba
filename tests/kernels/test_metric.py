"""The K-FAC metric against dense Kronecker algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES, Case, Seq, images, seeded, vectors
from reference import closeness, dense_rows, forward
from scipy.linalg import fractional_matrix_power
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.jacobian.kfac_factors import FactorSums
from tangentune.jacobian.layers import Pairs, Rows
from tangentune.jacobian.survey import survey
from tangentune.kernels.batches import portions
from tangentune.kernels.collect import Begun, collect, kronecker_factors
from tangentune.kernels.gram import block_grams, power_grams, whitened
from tangentune.kernels.metric import (
    FACTOR_DAMPING,
    POWERS,
    diagonal_kronecker,
    matrix_kronecker,
    pairs_sample,
    whiten,
    whitening,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_mean(matrix: Tensor, mean: float | None = None) -> Tensor:
    """A factor scaled to mean eigenvalue 1."""
    return matrix / (float(matrix.trace()) / len(matrix) if mean is None else mean)


def power_of(matrix: Tensor, power: float) -> Tensor:
    """Damped matrix power by scipy."""
    damped = (matrix + FACTOR_DAMPING * torch.eye(len(matrix), dtype=torch.float64)).numpy()
    return torch.from_numpy(np.real(fractional_matrix_power(damped, -power)).copy())


def sample(groups: int, outputs: int, inputs: int) -> tuple[FactorSums, list[Tensor], list[Tensor]]:
    """Sums of outer products of 30 positions, and the two factors of each group."""
    a, g = normal(groups, 30, inputs) * 3, normal(groups, 30, outputs, seed=1) * 0.1
    a_sums, g_sums = a.transpose(1, 2) @ a, g.transpose(1, 2) @ g
    return FactorSums(a_sums, g_sums, 30), list(a_sums), list(g_sums)


@pytest.mark.parametrize("power", POWERS)
def test_one_matrix(power: float) -> None:
    sums, (a,), (g,) = sample(1, 4, 6)
    rows = normal(5, 2, 1, 4, 6, seed=3)
    mean_square = 0.037
    metric = whitening(matrix_kronecker(sums, mean_square), power, kept=1)
    got = whiten(Rows(rows), metric).explicit()
    left, right = power_of(unit_mean(g), power), power_of(unit_mean(a), power)
    # Row-major vec: vec(G^-p W A^-p) = (G^-p kron A^-p) vec(W).
    dense = torch.kron(left, right) * mean_square**-power
    assert closeness(got.flatten(2), rows.flatten(2) @ dense.T) < 1e-10


@pytest.mark.parametrize("power", [0.25, 0.5])
def test_the_leading_directions_stay(power: float) -> None:
    """Kept rows are the whole metric rows in the fewest eigenvectors a side that hold the share."""
    sums, (a,), (g,) = sample(1, 7, 9)
    rows = Rows(normal(5, 2, 1, 7, 9, seed=3))
    factors = matrix_kronecker(sums, 0.4)
    whole, few = whitening(factors, power, kept=1), whitening(factors, power, kept=0.7)
    lengths = []
    for factor, full, side in ((g, whole.left[0], few.left[0]), (a, whole.right[0], few.right[0])):
        held = torch.linalg.eigvalsh(full.mT @ unit_mean(factor) @ full).flip(0)  # mean squares of whole metric rows
        own = torch.linalg.eigvalsh(side.mT @ unit_mean(factor) @ side).flip(0)
        count = side.shape[1]
        assert count < len(factor)
        assert closeness(own, held[:count]) < 1e-10
        assert held[: count - 1].sum() < 0.7 * held.sum() <= held[:count].sum()
        lengths.append(count)
    left, right = (torch.linalg.lstsq(full, side).solution for full, side in
                   ((whole.left[0], few.left[0]), (whole.right[0], few.right[0])))  # fmt: skip
    assert closeness(left.mT @ left, torch.eye(lengths[0], dtype=torch.float64)) < 1e-9
    got = whiten(rows, few).explicit()
    assert list(got.shape[3:]) == lengths
    assert closeness(got, left.mT @ whiten(rows, whole).explicit() @ right) < 1e-9


def test_groups_lose_no_direction() -> None:
    metric = whitening(matrix_kronecker(sample(3, 4, 5)[0], 2.5), 0.5)
    assert metric.left.shape == (3, 4, 4)
    assert metric.right.shape == (3, 5, 5)


@pytest.mark.parametrize("power", POWERS)
def test_groups_share_one_scale(power: float) -> None:
    sums, a_groups, g_groups = sample(3, 4, 5)
    rows = normal(6, 2, 3, 4, 5, seed=3)
    got = whiten(Rows(rows), whitening(matrix_kronecker(sums, 2.5), power)).explicit()
    a_mean = float(sum(a.trace() for a in a_groups)) / 15
    g_mean = float(sum(g.trace() for g in g_groups)) / 12
    for group, (a, g) in enumerate(zip(a_groups, g_groups, strict=True)):
        left, right = power_of(unit_mean(g, g_mean), power), power_of(unit_mean(a, a_mean), power)
        assert closeness(got[:, :, group], left @ rows[:, :, group] @ right * 2.5**-power) < 1e-10


@pytest.mark.parametrize("power", POWERS)
def test_vectors_have_a_diagonal_metric(power: float) -> None:
    rows = Rows(normal(20, 2, 7, 1, 1) * torch.arange(1.0, 8.0, dtype=torch.float64)[:, None, None])
    got = whiten(rows, whitening(diagonal_kronecker(rows), power)).explicit()
    squares = rows.values.square().mean((0, 1)).reshape(-1)
    mean = squares.mean()
    # The input factor of a scalar is 1, damped like any other.
    scale = ((squares / mean + FACTOR_DAMPING) * (1 + FACTOR_DAMPING) * mean).pow(-power)
    assert closeness(got, rows.values * scale[:, None, None]) < 1e-12


def test_power_one_half_is_the_damped_inverse_square_root() -> None:
    sums, (a,), (g,) = sample(1, 4, 6)
    metric = whitening(matrix_kronecker(sums, 0.4), 0.5, kept=1)
    m = torch.kron(metric.left[0], metric.right[0])
    damped = [unit_mean(f) + FACTOR_DAMPING * torch.eye(len(f), dtype=torch.float64) for f in (g, a)]
    fisher = 0.4 * torch.kron(*damped)
    assert closeness(m @ fisher @ m, torch.eye(24, dtype=torch.float64)) < 1e-10


def test_two_quarters_make_a_half_and_zero_does_nothing() -> None:
    factors = matrix_kronecker(sample(1, 4, 6)[0], 0.4)
    rows = Rows(normal(5, 1, 1, 4, 6, seed=3))
    quarter = whitening(factors, 0.25, kept=1)
    twice = whiten(whiten(rows, quarter), quarter).explicit()
    assert closeness(twice, whiten(rows, whitening(factors, 0.5, kept=1)).explicit()) < 1e-10
    assert closeness(whiten(rows, whitening(factors, 0.0)).explicit(), rows.values) < 1e-12
    assert whitened(rows, factors, 0.0) is rows


@pytest.mark.parametrize("power", POWERS)
def test_pairs_and_rows_whiten_alike(power: float) -> None:
    pairs = Pairs(normal(5, 3, 6), normal(5, 3, 2, 4, seed=1))
    metric = whitening(matrix_kronecker(sample(1, 4, 6)[0], 0.4), power)
    got = whiten(pairs, metric)
    assert isinstance(got, Pairs)
    assert closeness(got.explicit(), whiten(Rows(pairs.explicit()), metric).explicit()) < 1e-12


def test_pairs_know_their_second_moments() -> None:
    pairs = Pairs(normal(5, 3, 6), normal(5, 3, 2, 4, seed=1))
    got_a, got_g = pairs_sample(pairs).both
    a, g = pairs.a.flatten(0, 1), pairs.g.flatten(0, 2)
    assert closeness(got_a[0], a.T @ a) < 1e-12
    assert closeness(got_g[0], g.T @ g) < 1e-12


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 9])
def test_thinning_meets_every_position(positions: int) -> None:
    # One-hot positions: the factor's diagonal counts how often each was met.
    a = torch.eye(positions, dtype=torch.float64).expand(400, -1, -1).contiguous()
    got = pairs_sample(Pairs(a, normal(400, positions, 1, 2)), limit=200)
    met = got.both[0][0].diagonal()
    assert 60 <= float(met.sum()) <= 400
    assert float(met.min()) > 0.5 * float(met.max())


def collected(case: Case, n: int, probes: Tensor, batch: int = 8):
    network, x = case.network(), case.batch(n)
    names = [name for name, _ in network.named_parameters()]
    tangent = survey(network, forward, names, x[:3])
    rows = collect(tangent, lambda: portions(x.split(batch)), n, probes, mirrored=False)
    return tangent, x, rows


def test_a_set_that_was_begun_comes_to_the_same() -> None:
    """Rows, features and K-FAC sums; what was begun is let go."""
    case = Case("", lambda: Seq(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 60)), images(4, 6, 6))
    probes, places = normal(2, 60, seed=8), torch.tensor([0, 3, 4, 9, 19])
    tangent, x, whole = collected(case, 20, probes, batch=4)
    first = collect(tangent, lambda: portions([x[places]]), 5, probes, mirrored=False)
    begun = Begun(first, places)
    rest = x[begun.others(20)]
    assert len(rest) == 15
    both = collect(tangent, lambda: portions(rest.split(4)), 20, probes, mirrored=False, begun=begun)
    assert not first.entries
    assert closeness(both.phi, whole.phi) < 1e-12
    for name, entry in whole.entries.items():
        assert type(both.entries[name]) is type(entry)
        assert closeness(both.entries[name].explicit(), entry.explicit()) < 1e-12
    assert {name: own.count for name, own in both.factors.items()} == {n: own.count for n, own in whole.factors.items()}
    for name, own in whole.factors.items():
        assert all(closeness(a, b) < 1e-12 for a, b in zip(both.factors[name].both, own.both, strict=True))


@pytest.mark.parametrize("shape", ["rows", "pairs"])
def test_factors_of_a_linear_layer(shape: str) -> None:
    outputs = 40 if shape == "pairs" else 1
    case = Case("", lambda: Seq(nn.Linear(6, outputs)), vectors())
    probes = normal(2, outputs, seed=8)
    _, x, rows = collected(case, 20, probes)
    assert isinstance(rows.entries["0.weight"], Pairs if shape == "pairs" else Rows)
    factors = kronecker_factors(rows)["0.weight"]
    metric = whitening(factors, 0.5, kept=1)
    a, g = x.T @ x, probes.T @ probes  # the cotangent of a last layer is the probe itself
    gradient = torch.einsum("ro,ni->nroi", probes, x)
    mean_square = float(gradient.flatten(1).square().sum(1).mean()) / gradient[0].numel()
    assert closeness(metric.left[0], power_of(unit_mean(g), 0.5) * mean_square**-0.5) < 1e-9
    assert closeness(metric.right[0], power_of(unit_mean(a), 0.5)) < 1e-9


@pytest.mark.parametrize("groups", [1, 2])
def test_factors_of_a_convolution(groups: int) -> None:
    """All 3 x 4 output positions enter, patch by patch."""
    case = Case("", lambda: Seq(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups)), images(4, 6, 7))
    probes = normal(1, 72, seed=8)
    _, x, rows = collected(case, 10, probes)
    assert isinstance(rows.entries["0.weight"], Rows)
    metric = whitening(kronecker_factors(rows)["0.weight"], 0.25, kept=1)
    patches = F.unfold(x, 3, stride=2, padding=1).unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    g = probes[0].reshape(groups, 6 // groups, 12).transpose(1, 2)  # the same for every picture
    a_sums, g_sums = patches.transpose(1, 2) @ patches, g.transpose(1, 2) @ g
    a_mean, g_mean = (float(s.diagonal(dim1=1, dim2=2).mean()) for s in (a_sums, g_sums))
    mean_square = float(rows.entries["0.weight"].explicit().square().mean())
    for group in range(groups):
        right, left = power_of(unit_mean(a_sums[group], a_mean), 0.25), power_of(unit_mean(g_sums[group], g_mean), 0.25)
        assert closeness(metric.right[group], right) < 1e-9
        assert closeness(metric.left[group], left * mean_square**-0.25) < 1e-9


@pytest.mark.parametrize("power", [0.25, 0.5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_network_has_a_metric(case: Case, power: float) -> None:
    """Whitened Grams of every case are those of whitened dense rows: each parameter's metric is one dense matrix."""
    network = case.network()
    width = network(case.batch(2)).shape[1]
    probes = normal(2, width, seed=8)
    _, x, rows = collected(case, 10, probes)
    factors = kronecker_factors(rows)
    assert set(factors) == set(rows.entries)
    truth = dense_rows(network, x, probes)
    for name, entry in rows.entries.items():
        metric = whitening(factors[name], power)
        values = truth[name].reshape(entry.explicit().shape)
        if values.shape[3:] == (1, 1):
            expected = values * (metric.left * metric.right)
        else:
            expected = torch.einsum("gop,nrgoi,giq->nrgpq", metric.left, values, metric.right)
        assert closeness(whiten(entry, metric).explicit(), expected) < 1e-9, name
    grams = block_grams(rows.entries, factors, power)
    total = sum(whiten(entry, whitening(factors[name], power)).explicit().flatten(1).square().sum(1) / 2
                for name, entry in rows.entries.items())  # fmt: skip
    assert isinstance(total, Tensor)
    assert closeness(sum(gram.diagonal() for gram in grams.values()), total) < 1e-9  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_powers_are_compared_in_one_turn(case: Case) -> None:
    """Grams of all powers from rows turned once are those of each power alone; power 0 loses some of its square."""
    width = case.network()(case.batch(2)).shape[1]
    _, _, rows = collected(case, 10, normal(2, width, seed=8))
    factors = kronecker_factors(rows)
    for power, grams in power_grams(rows.entries, factors, POWERS).items():
        for block, alone in block_grams(rows.entries, factors, power).items():
            if power:
                assert closeness(grams[block], alone) < 1e-9, (power, block)
            else:
                assert 0.5 * alone.trace() <= grams[block].trace() <= (1 + 1e-9) * alone.trace(), block


def test_fisher_rows_have_the_same_scale_in_every_layer() -> None:
    """Power 1/2 takes the size of a layer's gradients away: scaling a layer's rows changes nothing."""
    rows = Rows(normal(30, 1, 1, 4, 6))
    a, g = normal(30, 6), normal(30, 4, seed=4)
    sums = FactorSums((a.T @ a)[None], (g.T @ g)[None], 30)

    def fisher(scale: float) -> Tensor:
        scaled = Rows(rows.values * scale)
        mean_square = float(scaled.values.square().mean())
        return whiten(scaled, whitening(matrix_kronecker(sums, mean_square), 0.5)).explicit()

    assert closeness(fisher(1e3), fisher(1.0)) < 1e-10


def test_a_dead_parameter_stays_finite() -> None:
    """All-zero rows (a dead unit, a padding token) meet no division by zero."""
    dead = Rows(torch.zeros(4, 1, 3, 1, 1, dtype=torch.float64))
    assert not whiten(dead, whitening(diagonal_kronecker(dead), 0.5)).explicit().any()
    nothing = FactorSums(torch.zeros(1, 2, 2).double(), torch.zeros(1, 3, 3).double(), 4)
    matrix = Rows(torch.zeros(4, 1, 1, 3, 2, dtype=torch.float64))
    assert not whiten(matrix, whitening(matrix_kronecker(nothing, 0.0), 0.5)).explicit().any()


def test_factors_do_not_depend_on_the_batches() -> None:
    case = Case("", lambda: Seq(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 1)), images())
    width = seeded(case.make())(case.batch(1)).shape[1]
    probes = normal(1, width)
    ones = [kronecker_factors(collected(case, 12, probes, batch)[2]) for batch in (12, 5)]
    for name in ones[0]:
        left, right = (whitening(factors[name], 0.5, kept=1) for factors in ones)
        assert closeness(left.left, right.left) < 1e-8
        assert closeness(left.right, right.right) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0.25, 0.5])
def test_rounding_noise_is_not_blown_up(dtype: torch.dtype, power: float) -> None:
    """A bias before an instance norm has zero gradient; what rounding leaves of it must stay next to nothing."""
    network = seeded(Seq(nn.Conv2d(4, 6, 3), nn.GroupNorm(6, 6), nn.Tanh())).to(dtype)
    x = images()(12, torch.Generator().manual_seed(0)).to(dtype)
    names = [name for name, _ in network.named_parameters()]
    tangent = survey(network, forward, names, x[:3])
    rows = collect(tangent, lambda: portions([x]), 12, normal(1, 120).to(dtype), mirrored=False)
    noise = float(rows.entries["0.bias"].squared_norms().sum())
    factors = kronecker_factors(rows)
    whitened_norms = {name: float(whiten(entry, whitening(factors[name], power)).squared_norms().sum())
                      for name, entry in rows.entries.items()}  # fmt: skip
    assert noise > 0  # else nothing is tested
    assert whitened_norms["0.bias"] < 1e-8 * whitened_norms["0.weight"]
    assert {name for name, own in factors.items() if own.mean_square == 0} == {"0.bias"}
