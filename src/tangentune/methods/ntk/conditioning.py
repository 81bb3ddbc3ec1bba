"""From data and settings to a posterior: which space, which scales, and what a further task adds."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.ntk.evidence import Scale, common_scale, kernel_spectrum, maximise_evidence
from tangentune.methods.ntk.function_space import FunctionSpace
from tangentune.methods.ntk.matrix_free import MatrixFree
from tangentune.methods.ntk.parameter_space import ParameterSpace, normal_spectrum, sum_up
from tangentune.methods.ntk.problems import Moments, Prior, Task, Want
from tangentune.methods.ntk.settings import Settings

Posterior = FunctionSpace | ParameterSpace | MatrixFree


def check_data(prior: Prior, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Prepared inputs (n, ...) and targets (n, T) less the fixed part of the mean, float64.

    Raises:
        InputError: data are not finite, or shapes do not fit.
    """
    x = prior.rows.prepare(x)
    y = torch.as_tensor(y).to(x.device, torch.float64)
    y = y[:, None] if y.dim() == 1 else y
    outputs = prior.rows.outputs
    if y.dim() != 2 or len(y) != len(x) or not y.shape[1]:
        message = f"targets have shape {tuple(y.shape)} for {len(x)} inputs; give (n, targets) or (n,)"
        raise InputError(message)
    if y.shape[1] != outputs and (prior.outputs != "shared" or prior.mean == "network"):
        message = (
            f"{y.shape[1]} targets for a network with {outputs} outputs; give one target an output, or use "
            "outputs='shared' with mean='constant' or 'zero'"
        )
        raise InputError(message)
    if not bool(torch.isfinite(y).all()):
        message = f"target {int((~torch.isfinite(y).all(1)).nonzero()[0])} is NaN or infinite; repair or leave it out"
        raise InputError(message)
    return x, y - prior.base(x, y.shape[1])


def condition_on(
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
    smallest = 10 * torch.finfo(prior.rows.dtype).eps
    kernel = sums = None
    if space == "function":
        kernel = prior.kernel(x)
    elif space == "parameter":
        sums = sum_up(prior, x, residuals)
    if noise == "evidence" or prior_variance == "evidence":
        if kernel is not None:
            spectrum = kernel_spectrum(kernel, prior.basis(len(x), kernel), prior.split(residuals))
        else:
            assert sums is not None  # no evidence without matrices: `choose_space` saw to it
            spectrum = normal_spectrum(sums)
        if ratio is None:
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


def condition_more(posterior: Posterior, settings: Settings, x: Tensor, residuals: Tensor, noise: Scale) -> Posterior:
    """The posterior of the tasks so far and a new one; by evidence, its noise is the likeliest given the old data.

    Raises:
        InputError: the tasks have different numbers of targets.
    """
    prior, count = posterior.prior, posterior.tasks[0].residuals.shape[1]
    if residuals.shape[1] != count:
        message = f"the new task has {residuals.shape[1]} targets, the kept one {count}; they must agree"
        raise InputError(message)
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


def prior_moments(prior: Prior, prior_variance: Scale, x: Tensor, want: Want) -> Moments:
    """Moments without data.

    Raises:
        InputError: the prior is improper, or its scale is to be found from data.
    """
    if prior.mean == "constant" or (prior_variance == "evidence" and want != "mean"):
        message = "before fit there is no constant mean and no prior variance by evidence; call fit, or give a number"
        raise InputError(message)
    mean = prior.split(torch.zeros_like(prior.base(x, prior.rows.outputs)))
    if want == "mean":
        return Moments(mean)
    if want == "variance":
        return Moments(mean, variance=float(prior_variance) * prior.diagonal(x))
    return Moments(mean, covariance=float(prior_variance) * prior.kernel(x))
