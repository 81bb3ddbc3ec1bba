"""Gradient features (Mu, Liang, Li 2020, ICLR): last layers to first order beside the linear probe."""

from tangentune.gradient_features.fitting import GradientFeatures, fit_gradient_features
from tangentune.gradient_features.groups import make_optimiser, ntk_scale
from tangentune.gradient_features.settings import GradientFeatureSettings

__all__ = [
    "GradientFeatureSettings",
    "GradientFeatures",
    "fit_gradient_features",
    "make_optimiser",
    "ntk_scale",
]
