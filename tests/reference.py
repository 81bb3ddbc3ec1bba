"""Slow dense float64 references: rows by `vmap(grad)`, explicit features, bordered systems solved outright."""

from __future__ import annotations

import torch
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tangentune.estimators.training_set import TrainingSet
from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.solvers.system import System


def forward(module: nn.Module, x: Tensor) -> Tensor:
    """Feature function of a module that returns its features."""
    return module(x)


def explicit_rows(plan: RowPlan, x: Tensor, probes: Tensor) -> dict[str, Tensor]:
    """The library's rows written out in the parameters' own shapes: name -> (n, R, *shape)."""
    shapes = {name: p.shape for name, p in plan.parameters().items()}
    entries = batch_rows(plan, [x], probes).entries
    return {name: e.explicit().reshape(len(x), len(probes), *shapes[name]) for name, e in entries.items()}


def dense_rows(module: nn.Module, x: Tensor, probes: Tensor) -> dict[str, Tensor]:
    """Gradients of `<probe, features(x_i)>`: name -> (n, R, *shape)."""
    params = {name: p.detach() for name, p in module.named_parameters()}

    def output(params: dict[str, Tensor], one: Tensor, probe: Tensor) -> Tensor:
        return functional_call(module, params, (one[None],))[0] @ probe

    with sdpa_kernel(SDPBackend.MATH):
        per_probe = [vmap(grad(output), in_dims=(None, 0, None))(params, x, probe) for probe in probes]
    return {name: torch.stack([rows[name] for rows in per_probe], 1) for name in params}


def looped_rows(module: nn.Module, x: Tensor, probes: Tensor) -> dict[str, Tensor]:
    """The same by one plain backward pass a picture and probe; an unused parameter gets zeros."""
    params = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    out: dict[str, list[Tensor]] = {name: [] for name in params}
    for one in x:
        for probe in probes:
            value = functional_call(module, params, (one[None],))[0] @ probe
            grads = torch.autograd.grad(value, list(params.values()), materialize_grads=True)
            for name, g in zip(params, grads, strict=True):
                out[name].append(g)
    return {name: torch.stack(rows).unflatten(0, (len(x), len(probes))) for name, rows in out.items()}


def flat_rows(rows: dict[str, Tensor]) -> Tensor:
    """All parameters' rows side by side, probes averaged in the inner product: (n, P)."""
    return torch.cat([r.flatten(1) / r.shape[1] ** 0.5 for r in rows.values()], 1)


def rebalanced(weights: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    """Balanced weights (n,) of one-hot targets, as they are when only some pictures (a mask) are there; others stay."""
    out, labels, there = weights.clone(), targets.argmax(1).numpy(), (weights > 0).numpy()
    out[there] /= torch.from_numpy(compute_sample_weight("balanced", labels[there]))
    there &= kept.numpy()
    out[there] *= torch.from_numpy(compute_sample_weight("balanced", labels[there]))
    return out


def unit(rows: Tensor) -> Tensor:
    """Rows of length one."""
    return rows / rows.norm(dim=1, keepdim=True)


def explicit_features(
    module: nn.Module, views: list[Tensor], probes: Tensor, body_scale: float, normalize: bool
) -> Tensor:
    """The (n, d + P) feature vectors whose inner products are the kernel at metric power 0, flat block scales."""
    phi = torch.stack([module(x) for x in views]).mean(0)
    body = torch.stack([flat_rows(dense_rows(module, x, probes)) for x in views]).mean(0)
    head, body = (unit(phi), unit(body)) if normalize else (phi, body)
    return torch.cat([head, body_scale**0.5 * body], 1)


def bordered(kernel: Tensor, damping: float, weights: Tensor | None = None) -> Tensor:
    """`[[K + lambda diag(1/a), 1], [1^T, 0]]`."""
    n = len(kernel)
    out = torch.ones(n + 1, n + 1, dtype=kernel.dtype)
    a = torch.ones(n, dtype=kernel.dtype) if weights is None else weights
    out[:n, :n] = kernel + damping * torch.diag(1 / a)
    out[n, n] = 0
    return out


def dense_solve(
    kernel: Tensor, targets: Tensor, damping: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(dual (n, C), intercept (C,)) from the bordered system."""
    padded = torch.cat([targets, torch.zeros_like(targets[:1])])
    solution = torch.linalg.solve(bordered(kernel, damping, weights), padded)
    return solution[:-1], solution[-1]


def refit_loo(kernel: Tensor, targets: Tensor, damping: float, weights: Tensor | None = None) -> Tensor:
    """(n, C) predictions of each sample by a fit without it, fitted n times."""
    out = torch.empty_like(targets)
    for i in range(len(kernel)):
        rest = torch.arange(len(kernel)) != i
        dual, intercept = dense_solve(
            kernel[rest][:, rest], targets[rest], damping, None if weights is None else weights[rest]
        )
        out[i] = intercept + kernel[i, rest] @ dual
    return out


def closeness(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def explicit_jacobian(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The whole Jacobian of a module's output, one backward pass an entry: name -> (*output shape, *shape)."""
    params = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        output = functional_call(module, params, (x,))
    rows: dict[str, list[Tensor]] = {name: [] for name in params}
    flat = output.flatten()
    for i in range(len(flat)):  # iterating would unbind, and every backward pass stack zeros for all other entries
        grads = torch.autograd.grad(flat[i], list(params.values()), retain_graph=True, materialize_grads=True)
        for name, g in zip(params, grads, strict=True):
            rows[name].append(g)
    return {name: torch.stack(r).reshape(*output.shape, *params[name].shape) for name, r in rows.items()}


def kernel_of(holder: System | TrainingSet) -> Tensor:
    """The kernel of what holds it as a matrix."""
    assert isinstance(holder.kernel, Tensor)
    return holder.kernel


def inverse_of(system: System) -> Tensor:
    """The inverse of such a problem."""
    assert isinstance(system.inverse, Tensor)
    return system.inverse
