"""The tangent kernel inside GPyTorch models: equal to this library's own process, and a well-behaved kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import seeded
from reference import closeness
from test_ntk_kernel import dense, jacobian
from torch import Tensor, nn

from tangentune.errors import InputError, MissingExtraError
from tangentune.methods.ntk import NTKGaussianProcess

try:
    from tangentune.methods.ntk.gpytorch_kernel import NTKKernel, exact_computations, gpytorch
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

NOISE, PRIOR = 0.0625, 1.25  # exact in float32, through which GPyTorch sets them


def network(outputs: int = 1) -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs)))


def data(n: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, x[:, 0].sin() + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)


class Model(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, kernel: Any, mean: Any):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class MultitaskModel(Model):
    def forward(self, x: Tensor) -> Any:
        mean = self.mean_module(x)
        return gpytorch.distributions.MultitaskMultivariateNormal(mean, self.covar_module(x))


def model(net: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> Any:
    likelihood: Any = gpytorch.likelihoods.GaussianLikelihood().to(dtype)
    kernel = gpytorch.kernels.ScaleKernel(NTKKernel(net.to(dtype)))
    made = Model(x.to(dtype), y.to(dtype), likelihood, kernel, gpytorch.means.ZeroMean()).to(dtype)
    likelihood.noise, kernel.outputscale = NOISE, PRIOR
    return made.eval()


def ours(net: nn.Module, **settings: Any) -> NTKGaussianProcess:
    return NTKGaussianProcess(net, mean="zero", noise=NOISE, prior_variance=PRIOR, space="function", **settings)


@pytest.mark.filterwarnings("ignore:The input matches the stored training data")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_exact_gp_predicts_what_ours_does(dtype, error) -> None:
    (x, y), (new, _) = data(), data(7, seed=2)
    theirs, mine = model(network(), x, y, dtype), ours(network()).fit(x, y)
    with torch.no_grad(), exact_computations():
        found = theirs(new.to(dtype))
        joint = mine.predict(new, return_cov=True)[1]
        assert closeness(found.mean.double(), mine.predict(new)[:, 0]) < error
        assert closeness(found.covariance_matrix.double(), joint) < error
        assert closeness(found.variance.double(), joint.diagonal()) < error
        observed = theirs.likelihood(theirs(x.to(dtype)))
        assert (
            closeness(observed.variance.double(), mine.predict(x, return_std=True, observed=True)[1][:, 0] ** 2) < error
        )


def test_default_settings_are_exact_for_small_data() -> None:
    (x, y), (new, _) = data(), data(7, seed=2)
    with torch.no_grad():
        assert closeness(model(network(), x, y)(new).mean, ours(network()).fit(x, y).predict(new)[:, 0]) < 1e-5


def test_marginal_likelihood_and_its_gradient() -> None:
    (x, y), net = data(), network()
    theirs = model(net, x, y).train()
    likelihood: Any = gpytorch.mlls.ExactMarginalLogLikelihood(theirs.likelihood, theirs)
    with exact_computations():
        value = likelihood(theirs(x), y)
        value.backward()
    fitted = ours(net).fit(x, y)
    assert float(value.detach()) * len(x) == pytest.approx(fitted.log_marginal_likelihood(), rel=1e-9)
    raw = theirs.covar_module.raw_outputscale
    step = 1e-6

    def density(scale: float) -> float:
        gp = NTKGaussianProcess(net, mean="zero", noise=NOISE, prior_variance=scale, space="function").fit(x, y)
        return gp.log_marginal_likelihood() / len(x)

    slope = (density(PRIOR + step) - density(PRIOR - step)) / (2 * step)
    assert float(raw.grad) == pytest.approx(slope * float(torch.sigmoid(raw.detach())), rel=1e-4)
    assert [name for name, _ in theirs.named_parameters() if "linear" in name] == []


def test_several_outputs_are_one_multitask_model() -> None:
    (x, _), (new, _), net = data(), data(5, seed=2), network(2)
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos()], 1)
    likelihood: Any = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, has_task_noise=False).double()
    kernel, mean = (
        gpytorch.kernels.ScaleKernel(NTKKernel(net)),
        gpytorch.means.MultitaskMean(gpytorch.means.ZeroMean(), 2),
    )
    theirs: Any = MultitaskModel(x, y, likelihood, kernel, mean).double().eval()
    likelihood.noise, kernel.outputscale = NOISE, PRIOR
    mine = ours(net).fit(x, y)
    with torch.no_grad(), exact_computations():
        found = theirs(new)
        assert closeness(found.mean, mine.predict(new)) < 1e-8
        assert closeness(found.covariance_matrix, mine.predict(new, return_cov=True)[1]) < 1e-8
        assert closeness(found.variance, mine.predict(new, return_std=True)[1].square()) < 1e-8


def test_kernel_protocol() -> None:
    (x, _), (other, _), net = data(6), data(4, seed=2), network(2)
    kernel: Any = NTKKernel(net)
    left, right = jacobian(net, x), jacobian(net, other)
    assert closeness(kernel(x).to_dense(), dense(left, left, "full")[0]) < 1e-12
    assert closeness(kernel(x, other).to_dense(), dense(left, right, "full")[0]) < 1e-12
    assert closeness(kernel(x, diag=True), dense(left, left, "full")[0].diagonal()) < 1e-12
    assert closeness(kernel(x).diagonal(), dense(left, left, "full")[0].diagonal()) < 1e-12
    assert closeness(kernel(x)[2:6, 2:6].to_dense(), dense(left, left, "full")[0][2:6, 2:6]) < 1e-12
    shared: Any = NTKKernel(net, outputs="shared")
    assert closeness(shared(x, other).to_dense(), dense(left, right, "shared")[0]) < 1e-12
    assert closeness(shared(x, diag=True), dense(left, left, "shared")[0].diagonal()) < 1e-12
    batched = torch.stack([x[:4], other])
    assert closeness(kernel(batched, other).to_dense()[0], dense(left[:4], right, "full")[0]) < 1e-12
    assert closeness(kernel(batched, diag=True)[1], dense(right, right, "full")[0].diagonal()) < 1e-12
    chosen: Any = NTKKernel(seeded(nn.Linear(2, 1)), active_dims=(0, 2))
    assert closeness(chosen(x, other).to_dense(), x[:, [0, 2]] @ other[:, [0, 2]].T + 1) < 1e-12
    summed: Any = kernel + kernel
    assert closeness(summed(x).to_dense(), 2 * dense(left, left, "full")[0]) < 1e-12


def test_pictures_come_as_rows_and_the_network_moves_with_the_model() -> None:
    net = seeded(nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1)))
    x = torch.randn(5, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, expected = copy.deepcopy(net.state_dict()), dense(jacobian(net, x), jacobian(net, x), "full")[0]
    kernel = NTKKernel(net, input_shape=(1, 3, 3))
    assert closeness(kernel(x.flatten(1)).to_dense(), expected) < 1e-12
    single = kernel.float()
    assert single(x.flatten(1).float()).to_dense().dtype == torch.float32
    assert closeness(single(x.flatten(1).float()).to_dense().double(), expected) < 1e-5
    assert closeness(copy.deepcopy(kernel).double()(x.flatten(1)).to_dense(), expected) < 1e-5
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_is_remembered_is_not_mistaken_for_changed_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, _), net = data(6), network()
    kernel, calls = NTKKernel(net), []
    original = NTKKernel._shaped
    monkeypatch.setattr(NTKKernel, "_shaped", lambda self, x: calls.append(1) or original(self, x))
    first = kernel(x).to_dense()
    done = len(calls)
    assert torch.equal(kernel(x.clone()).to_dense(), first)
    assert len(calls) == done
    x[0] += 1
    assert closeness(kernel(x).to_dense(), dense(jacobian(net, x), jacobian(net, x), "full")[0]) < 1e-12
    assert len(calls) > done


def test_what_cannot_be_done_is_refused() -> None:
    (x, _), kernel = data(6), NTKKernel(network())
    with pytest.raises(InputError, match="no gradient in its inputs"):
        kernel(x.requires_grad_()).to_dense()
    with pytest.raises(InputError, match="one NTKKernel an output"):
        NTKKernel(network(), outputs="independent")
    with torch.no_grad():
        x[1] = float("nan")
    with pytest.raises(InputError, match="input 1 holds NaN"):
        kernel(x.detach()).to_dense()
