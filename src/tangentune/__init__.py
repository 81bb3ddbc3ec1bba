"""Fine-tune a whole pre-trained network by solving one least-squares problem."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangentune.backbone import Backbone, load_backbone
    from tangentune.contract import DataContract
    from tangentune.data import Pictures, load_pictures
    from tangentune.errors import TangentuneError
    from tangentune.estimator import TangentClassifier
    from tangentune.linearization import Linearization
    from tangentune.regressor import TangentRegressor
    from tangentune.report import write_report
    from tangentune.task_vector import TaskVector

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "DataContract",
    "Linearization",
    "Pictures",
    "TangentClassifier",
    "TangentRegressor",
    "TangentuneError",
    "TaskVector",
    "load_backbone",
    "load_pictures",
    "write_report",
]

_HOMES = {
    "Backbone": "backbone",
    "DataContract": "contract",
    "Linearization": "linearization",
    "Pictures": "data",
    "TangentClassifier": "estimator",
    "TangentRegressor": "regressor",
    "TangentuneError": "errors",
    "TaskVector": "task_vector",
    "load_backbone": "backbone",
    "load_pictures": "data",
    "write_report": "report",
}
_PACKAGES = ("baselines", "compare", "gradient_features", "joint", "lqf", "ntk", "transport")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `tangentune --help` need not wait for torch."""
    if name in _PACKAGES:
        return import_module(f"tangentune.{name}")
    if name not in _HOMES:
        message = f"module 'tangentune' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"tangentune.{_HOMES[name]}"), name)
