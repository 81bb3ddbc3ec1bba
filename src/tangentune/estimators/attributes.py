"""What is read of a fitted estimator: attributes that come from its `fitted_`, so that no edit leaves one behind.

The classes describe them.
"""

from __future__ import annotations

from numpy import float64
from numpy.typing import NDArray

from tangentune.estimators.fitted import FittedModel, fitted_attribute, solved
from tangentune.solvers.system import written_out


class FittedAttributes:
    """Attributes of classifiers and regressors alike."""

    fitted_: FittedModel

    backbone_ = fitted_attribute(lambda fitted: fitted.backbone)
    task_vector_ = fitted_attribute(lambda fitted: fitted.task_vector)
    probes_ = fitted_attribute(lambda fitted: fitted.feature_map.probes.cpu().numpy())
    ids_ = fitted_attribute(lambda fitted: fitted.ids)
    pictures_ = fitted_attribute(lambda fitted: fitted.pictures)
    targets_ = fitted_attribute(lambda fitted: fitted.labels)
    edits_ = fitted_attribute(lambda fitted: fitted.edits)
    source_ = fitted_attribute(lambda fitted: fitted.source)
    dual_coef_ = fitted_attribute(lambda fitted: fitted.outcome.dual)
    intercept_ = fitted_attribute(lambda fitted: fitted.outcome.intercept)
    loo_predictions_ = fitted_attribute(lambda fitted: fitted.outcome.loo)
    loo_score_ = fitted_attribute(lambda fitted: fitted.outcome.score)
    likelihood_ = fitted_attribute(lambda fitted: fitted.outcome.parameters)
    damping_ = fitted_attribute(lambda fitted: fitted.facts.damping)
    relative_damping_ = fitted_attribute(lambda fitted: fitted.facts.relative_damping)
    metric_power_ = fitted_attribute(lambda fitted: fitted.facts.metric_power)
    normalize_ = fitted_attribute(lambda fitted: fitted.facts.normalize)
    body_scale_ = fitted_attribute(lambda fitted: fitted.facts.body_scale)
    block_scales_ = fitted_attribute(lambda fitted: fitted.facts.block_scales)
    block_shares_ = fitted_attribute(lambda fitted: fitted.facts.block_shares)
    selection_ = fitted_attribute(lambda fitted: fitted.facts.selection)
    damping_path_ = fitted_attribute(lambda fitted: fitted.facts.damping_path)
    augment_ = fitted_attribute(lambda fitted: "flip" if fitted.feature_map.mirrored else None)
    outer_steps_ = fitted_attribute(lambda fitted: fitted.facts.outer_steps)
    outer_rate_ = fitted_attribute(lambda fitted: fitted.facts.outer_rate)
    outer_selection_ = fitted_attribute(lambda fitted: fitted.facts.outer_selection)
    fit_report_ = fitted_attribute(lambda fitted: fitted.facts.fit_report)
    source_ids_ = fitted_attribute(lambda fitted: fitted.facts.source_ids)
    landmarks_ = fitted_attribute(lambda fitted: fitted.landmark_ids)
    source_effects_ = fitted_attribute(lambda fitted: fitted.facts.source_effects)

    @property
    def kernel_(self) -> NDArray[float64]:
        """(n, n) kernel of the pictures the model stands on; with a source, what is left of it."""
        return written_out(solved(self.fitted_).system).cpu().numpy()
