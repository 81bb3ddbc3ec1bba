"""Finite tangent-kernel Gaussian processes of trained networks."""

from tangentune.jacobian.rows import TangentRows
from tangentune.jacobian.survey import survey_rows
from tangentune.kernels.output_gram import kernel_diagonal, tangent_kernel
from tangentune.methods.ntk.process import NTKGaussianProcess

__all__ = ["NTKGaussianProcess", "TangentRows", "kernel_diagonal", "survey_rows", "tangent_kernel"]
