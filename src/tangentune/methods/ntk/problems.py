"""Pictures and outputs as the rows of one or more independent Gaussian problems, and back.

"full": one problem with a row per input and output; "independent": one problem per output; "shared": one problem
whose targets have a column per output. All tensors are (problems, rows, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from tangentune.jacobian.rows import TangentRows
from tangentune.kernels.output_gram import MEMORY_BYTES, Outputs, kernel_diagonal, tangent_kernel

Mean = Literal["network", "zero", "constant"]


@final
@dataclass(frozen=True, eq=False)
class Prior:
    """What is believed of f before data, but for its scale: mean plus a process with the network's kernel."""

    rows: TangentRows  # the network
    outputs: Outputs = "full"  # how outputs are tied, as `tangent_kernel`
    mean: Mean = "network"  # "network": f0; "zero": 0; "constant": an unknown constant per output, with a flat prior
    batch_size: int = 64  # inputs that pass through the network at a time
    memory_bytes: int = MEMORY_BYTES  # for rows that are held

    @property
    def width(self) -> int:
        """Parameters of one problem."""
        return self.rows.width * (self.rows.outputs if self.outputs == "shared" else 1)

    def size(self, inputs: int) -> int:
        """Rows of one problem."""
        return inputs * (self.rows.outputs if self.outputs == "full" else 1)

    def base(self, x: Tensor, targets: int) -> Tensor:
        """(n, targets) the fixed part of the mean, float64."""
        x = self.rows.prepare(x)
        if self.mean != "network":
            return torch.zeros(len(x), targets, dtype=torch.float64, device=x.device)
        return torch.cat([self.rows.linearization.f0(part).double() for part in x.split(self.batch_size)])

    def split(self, values: Tensor) -> Tensor:
        """(n, T) values of inputs and outputs as (problems, rows, columns)."""
        if self.outputs == "full":
            return values.reshape(1, -1, 1)
        return values.T[..., None] if self.outputs == "independent" else values[None]

    def merge(self, values: Tensor, inputs: int) -> Tensor:
        """The inverse of `split`, for (problems, rows, columns)."""
        if self.outputs == "full":
            return values.reshape(inputs, -1)
        return values[..., 0].T if self.outputs == "independent" else values[0]

    def merge_covariance(self, covariance: Tensor, targets: int) -> Tensor:
        """(problems, M, M) as (m T, m T), row i T + c for input i, output c."""
        if self.outputs == "full":
            return covariance[0]
        eye = torch.eye(targets, dtype=covariance.dtype, device=covariance.device)
        if self.outputs == "shared":
            return torch.kron(covariance[0].contiguous(), eye)
        m = covariance.shape[1]
        return (covariance.permute(1, 2, 0)[:, :, None] * eye).permute(0, 2, 1, 3).reshape(m * targets, m * targets)

    def basis(self, inputs: int, like: Tensor) -> Tensor:
        """(problems, rows, q) regressors of the free constants; q = 0 unless the mean is "constant"."""
        problems = self.rows.outputs if self.outputs == "independent" else 1
        if self.mean != "constant":
            return like.new_zeros(problems, self.size(inputs), 0)
        constants = self.rows.outputs if self.outputs == "full" else 1
        return torch.eye(constants, dtype=like.dtype, device=like.device).repeat(problems, inputs, 1)

    def kernel(self, x: Tensor, other: Tensor | None = None, held: dict | None = None) -> Tensor:
        """`tangent_kernel` with these settings."""
        settings = {"outputs": self.outputs, "batch_size": self.batch_size, "memory_bytes": self.memory_bytes}
        return tangent_kernel(self.rows, x, other, held=held, **settings)

    def diagonal(self, x: Tensor) -> Tensor:
        """(problems, M) variances at scale 1."""
        found = kernel_diagonal(self.rows, x, outputs=self.outputs, batch_size=self.batch_size)
        return self.split(found)[..., 0]


@final
@dataclass(frozen=True, eq=False)
class Task:
    """Data of one task: inputs, targets less the fixed part of the mean (n, T), and the noise's variance."""

    x: Tensor
    residuals: Tensor
    noise: float


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of f at M rows: mean (problems, M, columns), and variance (problems, M) or covariance if asked.

    The columns of a problem share its variance.
    """

    mean: Tensor
    variance: Tensor | None = None
    covariance: Tensor | None = None


Want = Literal["mean", "variance", "covariance"]
