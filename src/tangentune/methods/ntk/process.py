"""A Gaussian process whose kernel is a network's tangent kernel: adapting to a task is conditioning on its data.

After Maddox, Tang, Moreno, Wilson and Damianou (2021), AISTATS, "Fast Adaptation with Linearized Neural Networks".
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, final, overload

import torch
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.survey import Network, survey_rows
from tangentune.memory import parse_bytes
from tangentune.methods.ntk.evidence import Scale, common_scale, kernel_spectrum, maximise_evidence
from tangentune.methods.ntk.function_space import FunctionSpace
from tangentune.methods.ntk.matrix_free import MatrixFree
from tangentune.methods.ntk.parameter_space import ParameterSpace, normal_spectrum, sum_up
from tangentune.methods.ntk.problems import Moments, Prior, Task, Want
from tangentune.methods.ntk.settings import Settings, Space, check_scale

CHUNK = 512  # inputs that are predicted at a time
Posterior = FunctionSpace | ParameterSpace | MatrixFree


@final
@usual_torch
class NTKGaussianProcess:
    """`f ~ GP(mean, v k)`, `k(x, x') = J(x) J(x')^T` at the network's weights, `y = f + N(0, noise)`.

    The weights never move. Equal to Bayesian linear regression on all weights of the linearised network, with prior
    `N(0, v I)` around the trained ones.

    Args:
        network: any module that turns (n, ...) vectors or pictures into (n, C), a Backbone, or a Linearization. Batch
            norm and dropout are in eval mode. Kernel algebra is float64; a float32 network limits the kernel to about
            1e-7 of its largest entry, so use `network.double()` where noise is very small.
        params: which parameters the kernel is of: words of `select_parameters`, or names.
        mean: "network": the network's own outputs, so that without data the prediction is the network; "zero"; or
            "constant": an unknown constant per output, with a flat prior, whose doubt enters the variance.
        outputs: "full": the (n C, n C) kernel, outputs correlated; "independent": C kernels (n, n), the blocks between
            different outputs left out; "shared": one kernel (n, n), the mean of the C diagonal blocks, for all targets,
            whose number is then free unless the mean is the network's. For C = 1 the three agree.
        space: "function": Cholesky of the kernel of all data; "parameter": of the (p, p) precision of the weights;
            "matrix-free": conjugate gradients and a low rank, for large n and p; "auto": "parameter" where it is the
            smaller, else "function" up to 10,000 rows, else "matrix-free". The first two agree to rounding.
        noise: variance of the noise, or "evidence": the one with the highest marginal likelihood of the data fitted.
        prior_variance: v, or "evidence". Maddox et al.: 1.
        rank: Lanczos steps of "matrix-free".
        tolerance: relative residual that conjugate gradients must reach.
        batch_size: inputs that pass through the network at a time.
        memory: for rows that are held, such as "1GiB".

    Raises:
        InputError: a setting is not known.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        >>> x = torch.linspace(-1, 1, 9).double()[:, None]
        >>> gp = NTKGaussianProcess(net, noise=1e-4, prior_variance=1.0).fit(x, x.sin())
        >>> mean, std = gp.predict(torch.tensor([[0.1], [5.0]]), return_std=True)
        >>> abs(float(mean[0]) - 0.0998) < 0.01, bool(std[1] > std[0])
        (True, True)
    """

    def __init__(self, network: Network | Linearization, *, params: str | Iterable[str] = "all", **settings: Any):
        self.settings = Settings(**settings)
        self.network, self.params = network, params
        self._prior: Prior | None = None
        self._posterior: Posterior | None = None

    @property
    def posterior_(self) -> Posterior:
        """The conditioned process."""
        if self._posterior is None:
            raise InputError("no data yet; call fit")
        return self._posterior

    @property
    def noise_(self) -> tuple[float, ...]:
        """Noise variance of each task."""
        return tuple(task.noise for task in self.posterior_.tasks)

    @property
    def prior_variance_(self) -> float:
        """The scale v of the kernel."""
        return self.posterior_.prior_variance

    @property
    def space_(self) -> Space:
        """Where it was solved."""
        return self.posterior_.space

    def fit(self, x: Tensor, y: Tensor) -> NTKGaussianProcess:
        """Condition on (n, ...) inputs and (n, T) or (n,) targets; what was fitted before is forgotten.

        Cost besides the kernel: "function" `(n C)^3 / 3`, nine times that by evidence; "parameter" `n C p^2 + p^3 / 3`.

        Raises:
            InputError: data are not finite, shapes do not fit, or the problem is too large.
        """
        s, prior = self.settings, self._survey(x)
        self._posterior = _condition_on(prior, s, *_check_data(prior, x, y), s.noise, s.prior_variance)
        return self

    def adapt(
        self,
        x: Tensor,
        y: Tensor,
        *,
        keep: bool = False,
        scales: Literal["fit", "inherit", "ratio"] = "fit",
        noise: Scale | None = None,
    ) -> NTKGaussianProcess:
        """A new process for a new task, this one unchanged.

        Args:
            x: inputs of the new task.
            y: its targets.
            keep: False: condition on the new task's data only (Maddox et al.). True: on the old data too, each task
                with a noise of its own; the prior variance stays.
            scales: noise and prior variance. "fit": as the settings say, "evidence" being that of the new data (with
                `keep`: of the new noise given the old data). "inherit": those of this process. "ratio": their ratio is
                this process's, their size fits the new data by evidence: for a few data of another unit.
            noise: of the new task, in place of what `scales` gives.

        Raises:
            InputError: as `fit`; or there is nothing yet to keep or inherit; or `scales` does not go with the rest.
        """
        if scales not in ("fit", "inherit", "ratio") or (scales == "ratio" and (keep or noise is not None)):
            raise InputError(f"scales is {scales!r}; use 'fit', 'inherit', or (without keep and noise) 'ratio'")
        new, prior = copy.copy(self), self._survey(x)
        data = _check_data(prior, x, y)
        if scales == "ratio":
            ratio = self.noise_[-1] / self.prior_variance_
            new._posterior = _condition_on(prior, self.settings, *data, "evidence", "evidence", ratio)
            return new
        own = scales == "fit"
        noise = (self.settings.noise if own else self.noise_[-1]) if noise is None else noise
        check_scale("noise", noise)
        if keep:
            new._posterior = _condition_more(self.posterior_, self.settings, *data, noise)
        else:
            scale = self.settings.prior_variance if own else self.prior_variance_
            new._posterior = _condition_on(prior, self.settings, *data, noise, scale)
        return new

    @overload
    def predict(self, x: Tensor, *, observed: bool = ...) -> Tensor: ...
    @overload
    def predict(
        self, x: Tensor, *, return_std: Literal[True], return_cov: Literal[False] = ..., observed: bool = ...
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def predict(
        self, x: Tensor, *, return_std: Literal[False] = ..., return_cov: Literal[True], observed: bool = ...
    ) -> tuple[Tensor, Tensor]: ...
    def predict(
        self, x: Tensor, *, return_std: bool = False, return_cov: bool = False, observed: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Posterior mean (m, T), and its standard deviation (m, T) or covariance (m T, m T), row i T + c; float64.

        Before `fit` these are the prior's. "matrix-free" gives standard deviations that are never too small.

        Args:
            x: (m, ...) inputs.
            return_std: return the standard deviation too.
            return_cov: return the covariance too.
            observed: of a noisy observation (noise of the last task) instead of f.

        Raises:
            InputError: an input is not finite, both are asked for, or the prior's scale is not known before `fit`.
        """
        if return_std and return_cov:
            raise InputError("ask for return_std or return_cov, not both")
        prior = self._survey(x)
        x = prior.rows.prepare(x)
        targets = prior.rows.outputs if self._posterior is None else self._posterior.tasks[0].residuals.shape[1]
        noise = self.noise_[-1] if observed and self._posterior is not None else 0.0
        if return_cov:
            found = self._moments(x, "covariance")
            assert found.covariance is not None
            covariance = prior.merge_covariance(found.covariance, targets)
            covariance = covariance + noise * torch.eye(len(covariance)).to(covariance)
            return prior.base(x, targets) + prior.merge(found.mean, len(x)), covariance
        means, variances = [], []
        for part in x.split(CHUNK):
            found = self._moments(part, "variance" if return_std else "mean")
            means.append(prior.base(part, targets) + prior.merge(found.mean, len(part)))
            if found.variance is not None:
                variances.append(prior.merge(found.variance[..., None], len(part)).expand(-1, targets))
        return (torch.cat(means), (torch.cat(variances) + noise).sqrt()) if return_std else torch.cat(means)

    def log_marginal_likelihood(self) -> float:
        """Log density of the targets; with mean "constant" of their part without constants (restricted likelihood).

        Raises:
            InputError: nothing is fitted, or the space is "matrix-free".
        """
        found = self.posterior_
        if isinstance(found, MatrixFree):
            raise InputError("space='matrix-free' knows no marginal likelihood; use 'function' or 'parameter'")
        return found.log_likelihood

    def loo(self) -> Tensor:
        """(n, T) prediction of every input by the process without it, exact; noise and prior variance stay.

        Raises:
            InputError: nothing is fitted, or not in function space.
        """
        found = self.posterior_
        if not isinstance(found, FunctionSpace):
            raise InputError("leave-one-out predictions need space='function'")
        return found.prior.base(found.x, found.tasks[0].residuals.shape[1]) + found.loo()

    def _survey(self, x: Tensor) -> Prior:
        """The network looked at, once, with the first inputs it meets."""
        if self._prior is None:
            s, x = self.settings, torch.as_tensor(x)
            rows = survey_rows(self.network, x, self.params)
            self._prior = Prior(rows, s.outputs, s.mean, s.batch_size, parse_bytes(s.memory))
        return self._prior

    def _moments(self, x: Tensor, want: Want) -> Moments:
        if self._posterior is None:
            return _prior_moments(self._survey(x), self.settings.prior_variance, x, want)
        return self._posterior.predict(x, want)


def _check_data(prior: Prior, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Prepared inputs (n, ...) and targets (n, T) less the fixed part of the mean, float64."""
    x = prior.rows.prepare(x)
    y = torch.as_tensor(y).to(x.device, torch.float64)
    y = y[:, None] if y.dim() == 1 else y
    outputs = prior.rows.outputs
    if y.dim() != 2 or len(y) != len(x) or not y.shape[1]:
        raise InputError(f"targets have shape {tuple(y.shape)} for {len(x)} inputs; give (n, targets) or (n,)")
    if y.shape[1] != outputs and (prior.outputs != "shared" or prior.mean == "network"):
        message = f"{y.shape[1]} targets for a network with {outputs} outputs; give one target an output, or use "
        raise InputError(message + "outputs='shared' with mean='constant' or 'zero'")
    if not bool(torch.isfinite(y).all()):
        raise InputError(
            f"target {int((~torch.isfinite(y).all(1)).nonzero()[0])} is NaN or infinite; repair or leave it out"
        )
    return x, y - prior.base(x, y.shape[1])


def _condition_on(
    prior: Prior,
    settings: Settings,
    x: Tensor,
    residuals: Tensor,
    noise: Scale,
    prior_variance: Scale,
    ratio: float | None = None,
) -> Posterior:
    """The posterior of one task, scales found where they are not given; with `ratio`, noise over prior variance is."""
    space = settings.choose_space(prior.size(len(x)), prior.width, noise, prior_variance)
    kernel = prior.kernel(x) if space == "function" else None
    sums = sum_up(prior, x, residuals) if space == "parameter" else None
    if noise == "evidence" or prior_variance == "evidence":
        if kernel is not None:
            spectrum = kernel_spectrum(kernel, prior.basis(len(x), kernel), prior.split(residuals))
        else:
            assert sums is not None  # no evidence without matrices: `choose_space` saw to it
            spectrum = normal_spectrum(sums)
        if ratio is None:
            smallest = 10 * torch.finfo(prior.rows.dtype).eps
            noise, prior_variance = maximise_evidence(spectrum, noise, prior_variance, smallest)
        else:
            prior_variance = common_scale(spectrum, ratio)
            noise = ratio * prior_variance
    tasks, scale = (Task(x, residuals, float(noise)),), float(prior_variance)
    if kernel is not None:
        return FunctionSpace(prior, tasks, scale, kernel)
    if sums is not None:
        return ParameterSpace(prior, tasks, scale, (sums,))
    return MatrixFree(prior, tasks, scale, settings.rank, settings.tolerance)


def _condition_more(posterior: Posterior, settings: Settings, x: Tensor, residuals: Tensor, noise: Scale) -> Posterior:
    """The posterior of the tasks so far and a new one; by evidence, its noise is the likeliest given the old data."""
    prior, count = posterior.prior, posterior.tasks[0].residuals.shape[1]
    if residuals.shape[1] != count:
        raise InputError(f"the new task has {residuals.shape[1]} targets, the kept one {count}; they must agree")
    if noise == "evidence":
        found = posterior.predict(x, "covariance")
        assert found.covariance is not None
        surprise = prior.split(residuals) - found.mean
        spectrum = kernel_spectrum(found.covariance, surprise[:, :, :0], surprise)
        noise, _ = maximise_evidence(spectrum, "evidence", 1.0, 10 * torch.finfo(prior.rows.dtype).eps)
    tasks = (*posterior.tasks, Task(x, residuals, float(noise)))
    if isinstance(posterior, FunctionSpace):
        return FunctionSpace(prior, tasks, posterior.prior_variance)
    if isinstance(posterior, ParameterSpace):
        return ParameterSpace(prior, tasks, posterior.prior_variance, (*posterior.sums, sum_up(prior, x, residuals)))
    return MatrixFree(prior, tasks, posterior.prior_variance, settings.rank, settings.tolerance)


def _prior_moments(prior: Prior, prior_variance: Scale, x: Tensor, want: Want) -> Moments:
    """Moments without data."""
    if prior.mean == "constant" or (prior_variance == "evidence" and want != "mean"):
        raise InputError(
            "before fit there is no constant mean and no prior variance by evidence; call fit, or give a number"
        )
    mean = prior.split(torch.zeros_like(prior.base(x, prior.rows.outputs)))
    if want == "mean":
        return Moments(mean)
    if want == "variance":
        return Moments(mean, variance=float(prior_variance) * prior.diagonal(x))
    return Moments(mean, covariance=float(prior_variance) * prior.kernel(x))
