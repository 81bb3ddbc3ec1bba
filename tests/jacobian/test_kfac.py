"""K-FAC and EKFAC against explicit Jacobians, explicit second moments, and curvlinops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases import CASES, GENERIC, Attention, Case, Narrow, Tied, TimeMajor, Twice, images, seeded, sequences, vectors
from reference import closeness, explicit_jacobian
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tangentune.errors import InputError, StoreError
from tangentune.jacobian.kfac import KroneckerCurvature, kfac, merge
from tangentune.jacobian.linearization import Linearization

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
DOUBLE = torch.float64


def jacobians(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Name -> (n C, size)."""
    count = network(x).numel()
    return {name: rows.reshape(count, -1) for name, rows in explicit_jacobian(network, x).items()}


def dense(curvature: KroneckerCurvature, name: str) -> Tensor:
    """One parameter's block written out."""
    block = curvature.blocks[name]
    size = torch.Size(block.layout).numel()
    return torch.stack([block.apply(e, lambda v, values: v * values) for e in torch.eye(size, dtype=DOUBLE)], 1)


def tangent(lin: Linearization, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=DOUBLE) for name, p in lin.point().items()}


def convolutional() -> nn.Sequential:
    """A stem, a depthwise and a grouped convolution, norms, and positions that share a linear layer."""
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1, groups=4)
    rest = nn.GELU(), nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), nn.Tanh(), nn.Flatten(2), nn.Linear(9, 5)
    network = nn.Sequential(*layers, *rest, nn.Tanh(), nn.Flatten(), nn.Linear(30, 3))
    seeded(network)
    return network


X = images(3, 8, 8)


def test_a_linear_network_has_an_exact_block() -> None:
    network, x = seeded(nn.Linear(6, 4)), vectors()(5, torch.Generator().manual_seed(0))
    curvature, rows = kfac(Linearization(network), [x[:2], x[2:]]), jacobians(network, x)
    for name in ("weight", "bias"):
        assert closeness(dense(curvature, name), rows[name].T @ rows[name]) < 1e-12


def test_a_deep_linear_network_has_exact_blocks() -> None:
    # Cotangents then depend on the output only, not on the sample: A and S are independent, the K-FAC assumption.
    network = seeded(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)))
    x = vectors()(7, torch.Generator().manual_seed(0))
    curvature, rows = kfac(Linearization(network), [x]), jacobians(network, x)
    for name, jacobian in rows.items():
        assert closeness(dense(curvature, name), jacobian.T @ jacobian) < 1e-12


def test_one_sample_at_one_position_is_exact() -> None:
    network = seeded(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    x = vectors()(1, torch.Generator().manual_seed(0))
    curvature, rows = kfac(Linearization(network), [x]), jacobians(network, x)
    for name, jacobian in rows.items():
        assert closeness(dense(curvature, name), jacobian.T @ jacobian) < 1e-12


def test_vectors_and_depthwise_filters_are_exact_blocks() -> None:
    network, x = convolutional(), X(5, torch.Generator().manual_seed(0))
    lin, rows = Linearization(network), jacobians(network, x)
    curvature = kfac(lin, [x[:2], x[2:]])
    diagonal = kfac(lin, [x], kind="block_diagonal")
    for name in ("0.bias", "1.weight", "1.bias", "3.bias", "5.bias", "8.bias", "11.bias"):
        assert closeness(dense(curvature, name), rows[name].T @ rows[name]) < 1e-12
        assert closeness(dense(diagonal, name), (rows[name].T @ rows[name]).diagonal().diag()) < 1e-12
    filters = rows["3.weight"].reshape(-1, 4, 9)
    exact = torch.block_diag(*(filters[:, k].T @ filters[:, k] for k in range(4)))
    assert closeness(dense(curvature, "3.weight"), exact) < 1e-12
    assert closeness(dense(diagonal, "3.weight"), exact) < 1e-12


def test_factors_of_a_grouped_convolution_by_hand() -> None:
    # Patches and cotangents cut out by unfold and by a gradient in the layer's output.
    network, x = convolutional(), X(4, torch.Generator().manual_seed(0))
    curvature = kfac(Linearization(network), [x[:3], x[3:]])
    inner = network[:5](x).detach()
    middle = network[5](inner).detach().requires_grad_()
    outputs = network[6:](middle)
    g = torch.stack([torch.autograd.grad(outputs[:, c].sum(), middle, retain_graph=True)[0] for c in range(3)])
    patches = nn.functional.unfold(inner, 3, dilation=2, padding=2)
    count = patches.shape[0] * patches.shape[2]
    blocks = []
    for group in range(2):
        a = patches[:, 18 * group : 18 * (group + 1)].transpose(1, 2).flatten(0, 1)
        s = g[:, :, 3 * group : 3 * (group + 1)].flatten(3).transpose(2, 3).reshape(-1, 3)
        blocks.append(torch.kron(s.T @ s, a.T @ a) / count)
    assert closeness(dense(curvature, "5.weight"), torch.block_diag(*blocks)) < 1e-12


def test_block_diagonal_keeps_the_diagonal_of_s() -> None:
    network, x = convolutional(), X(4, torch.Generator().manual_seed(0))
    lin = Linearization(network)
    whole, units = kfac(lin, [x]), kfac(lin, [x], kind="block_diagonal")
    for name in ("0.weight", "8.weight", "11.weight"):
        _, outputs, inputs = whole.blocks[name].layout
        mask = torch.block_diag(*[torch.ones(inputs, inputs, dtype=DOUBLE)] * outputs)
        assert closeness(dense(units, name), dense(whole, name) * mask) < 1e-12


@pytest.mark.parametrize("case", [case for case in CASES if not case.generic], ids=lambda case: case.name)
def test_ekfac_eigenvalues_are_explicit_second_moments(case: Case) -> None:
    # Tied weights and modules used twice included; a hook that only reads sample 0 would fail.
    x = case.batch(4)
    network = Narrow(case.network(), x)
    curvature, rows = kfac(Linearization(network), [x[:3], x[3:]], kind="ekfac"), jacobians(network, x)
    for name, block in curvature.blocks.items():
        values = block.values.expand(block.layout)
        moments = block.rotate(rows[name].reshape(-1, *block.layout)).square().sum(0)
        assert (values - moments).abs().max() < 1e-10 * moments.max().clamp_min(1e-9), name
    trace = sum(float(jacobian.square().sum()) for jacobian in rows.values())
    assert curvature.trace() == pytest.approx(trace, rel=1e-10)


@pytest.mark.parametrize("make, inputs", [(Tied, vectors()), (Twice, images())], ids=["tied", "twice"])
def test_two_uses_of_one_parameter_are_further_positions(make: type[nn.Module], inputs) -> None:
    network, x = seeded(make()), inputs(5, torch.Generator().manual_seed(0))
    curvature, rows = kfac(Linearization(network), [x]), jacobians(network, x)
    name = "first.weight" if make is Tied else "conv.weight"
    positions = 5 * (2 if make is Tied else 7 * 6 + 3 * 3)
    assert curvature.sums[name].count == positions
    exact = "first.bias" if make is Tied else "norm.weight"
    assert closeness(dense(curvature, exact), rows[exact].T @ rows[exact]) < 1e-12


@pytest.mark.parametrize("case", GENERIC, ids=lambda case: case.name)
def test_parameters_without_a_rule_get_their_trace(case: Case) -> None:
    x = case.batch(4)
    network = Narrow(case.network(), x)
    curvature, rows = kfac(Linearization(network), [x], draws=200), jacobians(network, x)
    for name in (f"body.{name}" for name in case.generic):
        block = curvature.blocks[name]
        assert block.values.shape == (1, 1, 1), name
        truth = float(rows[name].square().sum())
        assert float(block.values) * rows[name].shape[1] == pytest.approx(truth, rel=0.35), name


def test_samples_on_the_second_axis_are_noticed() -> None:
    # Three time steps, three samples: shapes alone cannot tell.
    network, x = seeded(TimeMajor()), sequences(3)(3, torch.Generator().manual_seed(0))
    curvature = kfac(Linearization(network), [x])
    assert {name for name, b in curvature.blocks.items() if b.layout[:2] == (1, 1)} == {"inner.weight", "inner.bias"}


def test_inputs_may_be_named_and_attention_has_a_fallback() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.last = Attention(), nn.Linear(6, 3)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.last(self.attention(pixels))

    network, x = seeded(Named()), sequences()(4, torch.Generator().manual_seed(0))
    curvature = kfac(Linearization(network), [{"pixels": x}], kind="ekfac")
    assert curvature.blocks["last.weight"].layout == (1, 3, 6)
    assert curvature.blocks["attention.attention.in_proj_weight"].layout == (1, 1, 108)


def test_random_signs_are_right_on_average() -> None:
    network, x = convolutional(), X(6, torch.Generator().manual_seed(0))
    lin = Linearization(network)
    for kind in ("kfac", "ekfac"):
        exact = kfac(lin, [x], kind=kind)
        errors = []
        for draws in (4, 256):
            signs = kfac(lin, [x], kind=kind, cotangents="signs", draws=draws)
            errors.append(max(closeness(dense(signs, n), dense(exact, n)) for n in ("0.weight", "1.bias", "3.weight")))
        assert errors[1] < 0.2
        assert errors[1] < errors[0] / 3  # 1 / sqrt(draws) would be a factor of 8


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "block_diagonal"])
def test_solve_inverts_matvec_plus_damping(kind: str) -> None:
    network, x = convolutional(), X(5, torch.Generator().manual_seed(0))
    lin = Linearization(network)
    curvature, v = kfac(lin, [x], kind=kind), tangent(lin)
    product = curvature.matvec(v)
    for damping in (1e-3, 10.0):
        solved = curvature.solve({name: product[name] + damping * v[name] for name in v}, damping)
        assert max(closeness(solved[name], v[name]) for name in v) < 1e-8
    assert curvature.quad(v) == pytest.approx(sum(float((v[name] * product[name]).sum()) for name in v), rel=1e-12)
    trace = sum(float(dense(curvature, name).diagonal().sum()) for name in v)
    assert curvature.trace() == pytest.approx(trace, rel=1e-12)


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "block_diagonal"])
def test_merged_shards_are_all_data(kind: str) -> None:
    network, x = convolutional(), X(6, torch.Generator().manual_seed(0))
    lin = Linearization(network)
    whole, merged = kfac(lin, [x], kind=kind), merge([kfac(lin, [part], kind=kind) for part in x.split([1, 3, 2])])
    for name, sums in whole.sums.items():
        for factor in ("a", "s"):
            both = getattr(merged.sums[name], factor), getattr(sums, factor)
            assert (both[0] is None) == (both[1] is None)
            assert both[0] is None or closeness(*both) < 1e-13
        assert merged.sums[name].count == sums.count
    v = tangent(lin)
    assert merged.quad(v) == pytest.approx(whole.quad(v), rel=0.3 if kind == "ekfac" else 1e-10)
    assert kind != "kfac" or merged.trace() == pytest.approx(whole.trace(), rel=1e-10)
    if kind == "ekfac":  # in any basis the trace stays, and shards that share a basis merge exactly
        assert merged.trace() == pytest.approx(whole.trace(), rel=1e-10)
        assert merge([whole, whole]).quad(v) == pytest.approx(2 * whole.quad(v), rel=1e-8)


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "block_diagonal"])
def test_saved_and_loaded_is_equal_bit_by_bit(kind: str, tmp_path: Path) -> None:
    lin = Linearization(convolutional())
    curvature, v = kfac(lin, [X(3, torch.Generator().manual_seed(0))], kind=kind), tangent(lin)
    curvature.save(tmp_path / "curvature.safetensors")
    again = KroneckerCurvature.load(tmp_path / "curvature.safetensors")
    assert again.kind == kind
    for name in v:
        for before, after in ((curvature.sums[name], again.sums[name]), (curvature.blocks[name], again.blocks[name])):
            assert vars(before).keys() == vars(after).keys()
            for part, value in vars(before).items():
                loaded = getattr(after, part)
                assert torch.equal(value, loaded) if isinstance(value, Tensor) else value == loaded, (name, part)
    before, after = curvature.solve(v, 0.1), again.solve(v, 0.1)
    assert all(closeness(before[name], after[name]) < 1e-13 for name in v)
    merged = merge([curvature, again])
    assert merged.trace() == pytest.approx(2 * curvature.trace(), rel=1e-9)


def test_a_file_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    """Header and names as they have been from the first version on, written here by hand."""
    factor, eigen, values = torch.eye(2, dtype=DOUBLE)[None], torch.eye(2)[None], torch.tensor([[[1.0], [2.0]]])
    facts = {"bias": {"count": 3, "layout": [1, 2, 1]}}
    words = {"format": "pt", "kind": "tangentune curvature", "curvature": "kfac", "blocks": json.dumps(facts)}
    save_file({"s:bias": factor, "left:bias": eigen, "values:bias": values}, tmp_path / "old", metadata=words)
    curvature = KroneckerCurvature.load(tmp_path / "old")
    assert (curvature.kind, curvature.sums["bias"].count, curvature.sums["bias"].a) == ("kfac", 3, None)
    assert curvature.matvec({"bias": torch.ones(2)})["bias"].tolist() == [1.0, 2.0]
    curvature.save(tmp_path / "new")
    with safe_open(tmp_path / "new", framework="pt") as file:
        assert file.metadata() == words


def test_what_is_no_curvature_is_not_loaded(tmp_path: Path) -> None:
    lin = Linearization(convolutional())
    lin.task_vector().save(tmp_path / "vector.safetensors")
    for name, words in (("vector", "holds no curvature"), ("missing", "no curvature can be read")):
        with pytest.raises(StoreError, match=words):
            KroneckerCurvature.load(tmp_path / f"{name}.safetensors")


def test_float32_is_close_and_labels_never_enter() -> None:
    network, x = convolutional(), X(5, torch.Generator().manual_seed(0))
    exact, v = kfac(Linearization(network), [x]), tangent(Linearization(network))
    single = kfac(Linearization(network.float()), [x.float()])
    assert {block.values.dtype for block in single.blocks.values()} == {torch.float32}
    assert {sums.s.dtype for sums in single.sums.values() if sums.s is not None} == {DOUBLE}
    assert single.quad(v) == pytest.approx(exact.quad(v), rel=1e-4)


def test_wrong_calls_are_refused() -> None:
    lin = Linearization(convolutional())
    x = X(3, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="kfac takes kind"):
        kfac(lin, [x], kind="shampoo")
    with pytest.raises(InputError, match="reads the batches twice"):
        kfac(lin, iter([x]), kind="ekfac")
    with pytest.raises(InputError, match="no batches"):
        kfac(lin, [])
    curvature = kfac(lin, iter([x]))
    with pytest.raises(InputError, match="must be positive"):
        curvature.solve(tangent(lin), 0.0)
    with pytest.raises(InputError, match=r"different parameters: look at '0.weight'"):
        curvature.quad({name: t for name, t in tangent(lin).items() if name != "0.weight"})
    with pytest.raises(InputError, match="at least one"):
        merge([])
    with pytest.raises(InputError, match="of one kind"):
        merge([curvature, kfac(lin, [x], kind="ekfac")])


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_equal_to_curvlinops(kind: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten()
    network = seeded(nn.Sequential(*layers, nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 3)))
    x = X(5, torch.Generator().manual_seed(0))
    curvature = kfac(Linearization(network), [x[:2], x[2:]], kind=kind)
    params = {name: p.requires_grad_() for name, p in network.named_parameters()}
    operator = {"kfac": curvlinops.KFACLinearOperator, "ekfac": curvlinops.EKFACLinearOperator}[kind]
    theirs = operator(
        network, nn.MSELoss(reduction="sum"), list(params.values()), [(x, torch.zeros(5, 3, dtype=DOUBLE))],
        fisher_type=curvlinops.FisherType.TYPE2, kfac_approx=curvlinops.KFACType.EXPAND,
        separate_weight_and_bias=True, check_deterministic=False,
    )  # fmt: skip
    matrix = theirs @ torch.eye(theirs.shape[1], dtype=DOUBLE) / 2  # their loss has no factor 1/2
    low = 0
    for name, p in params.items():
        own = matrix[low : low + p.numel(), low : low + p.numel()]
        low += p.numel()
        if name.endswith("weight"):  # biases of convolutions are exact here, approximate there
            assert closeness(dense(curvature, name), own.detach()) < 1e-9, name
