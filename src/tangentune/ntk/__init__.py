"""Finite tangent-kernel Gaussian processes of trained networks, and products with their Fisher matrix."""

from tangentune.ntk.fisher import fisher_vector_product
from tangentune.ntk.kernel import kernel_diagonal, tangent_kernel
from tangentune.ntk.process import NTKGaussianProcess
from tangentune.ntk.rows import TangentRows, survey_rows

__all__ = [
    "NTKGaussianProcess",
    "TangentRows",
    "fisher_vector_product",
    "kernel_diagonal",
    "survey_rows",
    "tangent_kernel",
]
