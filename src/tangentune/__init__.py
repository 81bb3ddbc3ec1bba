"""Fine-tune a whole pre-trained network by solving one least-squares problem."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tangentune._version import __version__ as __version__

if TYPE_CHECKING:
    from tangentune import comparison as compare
    from tangentune.errors import TangentuneError
    from tangentune.estimators.classifier import TangentClassifier
    from tangentune.estimators.features import TangentFeatures
    from tangentune.estimators.regressor import TangentRegressor
    from tangentune.jacobian import kfac
    from tangentune.jacobian.linearization import Linearization
    from tangentune.jacobian.task_vector import TaskVector
    from tangentune.methods import fine_tuning as baselines
    from tangentune.methods import gradient_features, joint, lqf, ntk
    from tangentune.methods import source_selection as transport
    from tangentune.networks import heads, leaky
    from tangentune.networks.backbone import Backbone, load_backbone
    from tangentune.pictures.contract import DataContract
    from tangentune.pictures.load import load_pictures
    from tangentune.pictures.pictures import Pictures
    from tangentune.reports.model_page import write_report
    from tangentune.solvers.sums import TangentSums

__all__ = [
    "Backbone",
    "DataContract",
    "Linearization",
    "Pictures",
    "TangentClassifier",
    "TangentFeatures",
    "TangentRegressor",
    "TangentSums",
    "TangentuneError",
    "TaskVector",
    "baselines",
    "compare",
    "gradient_features",
    "heads",
    "joint",
    "kfac",
    "leaky",
    "load_backbone",
    "load_pictures",
    "lqf",
    "ntk",
    "transport",
    "write_report",
]

# Where each public name lives. This is the whole public surface: what is not here may move without notice.
_HOMES = {
    "Backbone": "networks.backbone",
    "DataContract": "pictures.contract",
    "Linearization": "jacobian.linearization",
    "Pictures": "pictures.pictures",
    "TangentClassifier": "estimators.classifier",
    "TangentFeatures": "estimators.features",
    "TangentRegressor": "estimators.regressor",
    "TangentSums": "solvers.sums",
    "TangentuneError": "errors",
    "TaskVector": "jacobian.task_vector",
    "load_backbone": "networks.backbone",
    "load_pictures": "pictures.load",
    "write_report": "reports.model_page",
}
_MODULES = {
    "baselines": "methods.fine_tuning",
    "compare": "comparison",
    "gradient_features": "methods.gradient_features",
    "heads": "networks.heads",
    "joint": "methods.joint",
    "kfac": "jacobian.kfac",
    "leaky": "networks.leaky",
    "lqf": "methods.lqf",
    "ntk": "methods.ntk",
    "transport": "methods.source_selection",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `tangentune --help` need not wait for torch."""
    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names and nothing else, for tab completion."""
    return list(__all__)


class _PublicModules(MetaPathFinder, Loader):
    """`import tangentune.lqf` finds the module that the table names: one module under two names, never a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for a public module, or for what lies inside one; None leaves the name to the usual finders."""
        package, _, rest = fullname.partition(".")
        public, _, inner = rest.partition(".")
        if package != __name__ or public not in _MODULES:
            return None
        home = ".".join([package, _MODULES[public], *filter(None, [inner])])
        return ModuleSpec(fullname, self, origin=home)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself; a name that is not there is reported as the user wrote it."""
        assert spec.origin is not None
        try:
            module = import_module(spec.origin)
        except ModuleNotFoundError as error:
            if error.name != spec.origin:
                raise
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name) from None
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run; the module keeps the spec it was imported with."""
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state


sys.meta_path.insert(0, _PublicModules())
