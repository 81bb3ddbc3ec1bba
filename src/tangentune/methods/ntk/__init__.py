"""Finite tangent-kernel Gaussian processes of trained networks, and products with their Fisher matrix."""

from tangentune.jacobian.rows import TangentRows
from tangentune.jacobian.survey import survey_rows
from tangentune.kernels.output_gram import kernel_diagonal, tangent_kernel
from tangentune.methods.ntk.fisher import fisher_vector_product
from tangentune.methods.ntk.process import NTKGaussianProcess

__all__ = [
    "NTKGaussianProcess",
    "TangentRows",
    "fisher_vector_product",
    "kernel_diagonal",
    "survey_rows",
    "tangent_kernel",
]
