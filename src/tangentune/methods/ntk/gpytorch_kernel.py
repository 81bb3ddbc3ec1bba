"""The tangent kernel for GPyTorch models; needs the extra `gpytorch`."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor

from tangentune.errors import InputError, cannot_import
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.rows import TangentRows
from tangentune.jacobian.survey import Network, survey_rows
from tangentune.kernels.output_gram import MEMORY_BYTES, Outputs, check_outputs, kernel_diagonal, tangent_kernel

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # linear_operator compiles scripts as it is imported
        import gpytorch
except Exception as error:  # absent, or of a build that does not fit
    problem = cannot_import("gpytorch", error, "pip install 'tangentune[gpytorch]'")
    raise problem from error

REMEMBERED = 4  # results kept: train with train, test with train, test with test, and a diagonal


@final
class NTKKernel(gpytorch.kernels.Kernel):
    """`J(x) J(x')^T` of a trained network as a GPyTorch kernel without hyperparameters of its own.

    Put it into a `ScaleKernel` for a prior variance. The network is copied and never trained; there is no gradient in
    the inputs. While hyperparameters are trained the kernel is not calculated again, as it does not depend on them.
    GPyTorch gives way to approximate solvers above 800 rows; `with exact_computations():` keeps it exact.

    Args:
        network: any module from (n, ...) to (n, C), a Backbone, or a Linearization; float64 where noise is small.
        params: which parameters the kernel is of.
        input_shape: shape of one input, where the rows of GPyTorch's (n, d) tensors are flattened pictures.
        outputs: "full": C outputs an input, row i C + c, for `MultitaskMultivariateNormal`; "shared": one, the mean of
            the outputs' kernels. For C = 1 the two agree.
        batch_size: inputs that pass through the network at a time.
        memory_bytes: for rows that are held.

    Raises:
        InputError: outputs is another word.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
        >>> kernel = gpytorch.kernels.ScaleKernel(NTKKernel(net)).double()
        >>> kernel(torch.randn(5, 2).double()).to_dense().shape
        torch.Size([5, 5])
    """

    has_lengthscale = False
    linearization: Linearization

    def __init__(
        self,
        network: Network | Linearization,
        *,
        params: str | Iterable[str] = "all",
        input_shape: tuple[int, ...] | None = None,
        outputs: Outputs = "full",
        batch_size: int = 64,
        memory_bytes: int = MEMORY_BYTES,
        **kernel: Any,
    ):
        super().__init__(**kernel)
        check_outputs(outputs)
        if outputs == "independent":
            raise InputError(
                "outputs='independent' is a model list in GPyTorch; use one NTKKernel an output, or 'full'"
            )
        self.input_shape = input_shape
        self.settings: dict[str, Any] = {"outputs": outputs, "batch_size": batch_size}
        self.memory_bytes = memory_bytes
        given = copy.deepcopy(network) if isinstance(network, Linearization) else Linearization(network, params)
        object.__setattr__(self, "linearization", given)  # nn.Module's own would register its tangent to be trained
        self._rows: TangentRows | None = None
        self._remembered: list[tuple[Tensor, Tensor | None, Tensor]] = []

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network, and so of the kernel."""
        return next(iter(self.linearization.point().values())).dtype

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """C, or 1 where it is shared."""
        return self._surveyed(x1).outputs if self.settings["outputs"] == "full" else 1

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params) -> Tensor:
        """(..., n C, m C), or (..., n C) of the diagonal.

        Raises:
            InputError: a gradient in the inputs is wanted, or the last dimension is to be a batch.
        """
        if last_dim_is_batch or (torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad)):
            raise InputError("NTKKernel has no gradient in its inputs and no last_dim_is_batch; detach the inputs")
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        left = x1.expand(*batch, *x1.shape[-2:]).reshape(-1, *x1.shape[-2:])
        right = x2.expand(*batch, *x2.shape[-2:]).reshape(-1, *x2.shape[-2:])
        found = torch.stack([self._one(a, None if diag else b) for a, b in zip(left, right, strict=True)])
        return found.reshape(*batch, *found.shape[1:])

    def _one(self, x: Tensor, other: Tensor | None) -> Tensor:
        """Kernel of two sets of inputs, or its diagonal for one; recent results are remembered."""
        for known, known_other, value in self._remembered:
            if _same(known, x) and _same(known_other, other):
                return value
        rows = self._surveyed(x)
        if other is None:
            value = kernel_diagonal(rows, self._shaped(x), **self.settings).flatten()
        else:
            second = None if _same(x, other) else self._shaped(other)
            value = tangent_kernel(rows, self._shaped(x), second, memory_bytes=self.memory_bytes, **self.settings)[0]
        entry = (x.detach().clone(), None if other is None else other.detach().clone(), value.to(self.dtype))
        self._remembered = [*self._remembered[1 - REMEMBERED :], entry]
        return entry[2]

    def _surveyed(self, x: Tensor) -> TangentRows:
        if self._rows is None:
            self._rows = survey_rows(self.linearization, self._shaped(x.reshape(-1, x.shape[-1])))
        return self._rows

    def _shaped(self, x: Tensor) -> Tensor:
        x = x.detach()
        return x if self.input_shape is None else x.reshape(len(x), *self.input_shape)

    def _apply(self, fn: Any, recurse: bool = True) -> NTKKernel:
        """Move the network with the model; what is remembered is of the old one."""
        super()._apply(fn, recurse)
        self.linearization._apply(fn)
        self._rows, self._remembered = None, []
        return self


@contextlib.contextmanager
def exact_computations() -> Iterator[None]:
    """Cholesky for everything GPyTorch does, whatever the size: no conjugate gradients, no Lanczos.

    Example:
        >>> with exact_computations():
        ...     gpytorch.settings.fast_computations.solves.off()
        True
    """
    fast = gpytorch.settings.fast_computations(covar_root_decomposition=False, log_prob=False, solves=False)
    with fast, gpytorch.settings.fast_pred_var(False), gpytorch.settings.fast_pred_samples(False):
        yield


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
