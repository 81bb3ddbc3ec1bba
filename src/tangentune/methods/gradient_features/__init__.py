"""Gradient features (Mu, Liang, Li 2020, ICLR): last layers to first order beside the linear probe."""

from tangentune.methods.gradient_features.fit import GradientFeatures, fit_gradient_features
from tangentune.methods.gradient_features.settings import GradientFeatureSettings
from tangentune.methods.gradient_features.training import make_optimiser, ntk_scale

__all__ = ["GradientFeatureSettings", "GradientFeatures", "fit_gradient_features", "make_optimiser", "ntk_scale"]
