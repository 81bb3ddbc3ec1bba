"""laplace-torch on a fine-tuned network: its approximations, ways to choose the prior, and predictives.

Everything is laplace-torch's own code. Two things are done for it. Last-layer approximations get the features, made
once, as a network of one linear layer (its results are the same, and it need not run the network at each step), with
mirrored pictures averaged, as all methods here have it. Grid searches get the plain log-loss: the default metric of
0.3 (`RunningNLLMetric`) is never reset between grid points, so that each point is judged by all before it as well.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

LINKS = ("probit", "mc", "bridge", "bridge_norm")
SAMPLES = 100
LIBRARIES: list[torch.library.Library] = []  # declared operators last as long as their library object


@final
@dataclass(frozen=True)
class Approximation:
    """One way to approximate the posterior.

    Attributes:
        weights: whose posterior it is: "last_layer", "all" or "subnetwork".
        structure: of the curvature: "full", "kron", "diag", "lowrank", "gp" (function space) or "ella" (Nystroem).
        backend: what calculates the curvature, see `laplace.curvature`; None is the approximation's own.
        freeze_norms: leave the affine parameters of batch norms out, where the backend refuses them.
        sampled: predict by sampled weights ("nn") in place of the linearised network ("glm").
        priors: ways to choose the prior that are tried; see `choose_prior`.
        batch: pictures at a time.
        grid: points of a grid search.
    """

    weights: Literal["last_layer", "all", "subnetwork"]
    structure: str
    backend: str | None = "CurvlinopsGGN"
    freeze_norms: bool = False
    sampled: bool = False
    priors: tuple[str, ...] = ("marglik", "gridsearch")
    batch: int = 50
    grid: int = 21

    @property
    def links(self) -> tuple[str, ...]:
        """Predictives it can be asked for."""
        return ("mc",) if self.sampled else LINKS

    @property
    def pred_type(self) -> str:
        """What laplace-torch calls its way to predict."""
        return "nn" if self.sampled else "gp" if self.structure in ("gp", "ella") else "glm"

    @property
    def whole(self) -> bool:
        """Whether it needs the network and not only the features."""
        return self.weights != "last_layer"

    @property
    def slow(self) -> bool:
        """Whether it takes many minutes."""
        return self.whole or self.structure in ("full", "gp")


_WHOLE: dict[str, Any] = {"batch": 4, "grid": 9}
_LAYERS = ("marglik", "marglik per layer", "gridsearch")
_SAMPLED: dict[str, Any] = {"freeze_norms": True, "sampled": True, "priors": ("marglik",), **_WHOLE}
APPROXIMATIONS = {
    "last-layer kron": Approximation("last_layer", "kron", priors=_LAYERS),
    "last-layer diag": Approximation("last_layer", "diag", priors=(*_LAYERS, "marglik per weight")),
    "last-layer full": Approximation("last_layer", "full", backend="BackPackGGN", grid=9),
    "last-layer gp": Approximation("last_layer", "gp", grid=9),
    "subnetwork full": Approximation("subnetwork", "full", **_WHOLE),
    "all-layer diag": Approximation("all", "diag", backend="AsdlGGN", **_WHOLE),
    "all-layer ELLA": Approximation("all", "ella", priors=("gridsearch",), **_WHOLE),
    "all-layer kron": Approximation("all", "kron", priors=("marglik",), **_WHOLE),
    "all-layer kron, norms frozen": Approximation("all", "kron", freeze_norms=True, **_WHOLE),
    "all-layer kron, norms frozen, sampled": Approximation("all", "kron", **_SAMPLED),
    "all-layer lowrank": Approximation("all", "lowrank", backend=None, priors=("marglik",), **_WHOLE),
    "all-layer gp": Approximation("all", "gp", priors=("marglik",), **_WHOLE),
}
SUBNETWORK, ELLA_PICTURES, ELLA_DIRECTIONS = 1000, 64, 20


@final
@dataclass(frozen=True, eq=False)
class Data:
    """What a network is fitted to and judged by: inputs and class positions."""

    inputs: Tensor
    labels: Tensor

    def loader(self, batch: int) -> DataLoader:
        """In a fixed order."""
        return DataLoader(TensorDataset(self.inputs, self.labels), batch_size=batch)


def fit(name: str, module: nn.Module, data: Data) -> Any:
    """A fitted approximation; the prior is still laplace-torch's default.

    Args:
        name: of `APPROXIMATIONS`.
        module: from inputs to logits, in eval mode.
        data: what it was trained on.
    """
    chosen, library = APPROXIMATIONS[name], import_laplace()
    if chosen.freeze_norms:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.requires_grad_(False)
    options: dict[str, Any] = {}
    if chosen.backend is not None:
        options["backend"] = getattr(library.curvature, chosen.backend)
    structure, loader = chosen.structure, data.loader(chosen.batch)
    if structure == "gp":
        options["n_subset"] = len(data.inputs)  # all pictures
    if structure == "ella":
        pictures = min(ELLA_PICTURES, len(data.inputs))
        options |= {"functional_approximation": "nystrom", "subsample_size": pictures, "n_eigenvalues": ELLA_DIRECTIONS}
        structure = "gp"
    if chosen.weights == "subnetwork":
        options["subnetwork_indices"] = _subnetwork(library, module, loader)
    approximation = library.Laplace(module, "classification", chosen.weights, structure, **options)
    approximation.fit(loader)
    return approximation


def choose_prior(approximation: Any, name: str, prior: str, link: str, validation: Data) -> None:
    """Set the prior precision by the marginal likelihood, or by the log-loss of pictures kept aside."""
    chosen = APPROXIMATIONS[name]
    options: dict[str, Any] = {"pred_type": chosen.pred_type}
    if prior == "gridsearch":
        options |= {"method": "gridsearch", "val_loader": validation.loader(chosen.batch), "grid_size": chosen.grid}
        if chosen.structure != "ella":  # which allows its own loss and link only
            options |= {"loss": _log_loss, "link_approx": link, "n_samples": SAMPLES}
    else:
        structures = {"marglik": "scalar", "marglik per layer": "layerwise", "marglik per weight": "diag"}
        options |= {"method": "marglik", "prior_structure": structures[prior]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="By default `link_approx` is `probit`")
        approximation.optimize_prior_precision(**options)


def predict(approximation: Any, name: str, links: Sequence[str], inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """(m, C) probabilities of each link, and (m,) mean variance of the logits (NaN where weights are sampled).

    The moments of the logits, nearly all of the work, are calculated once for all links.
    """
    chosen = APPROXIMATIONS[name]
    probabilities: dict[str, list[Tensor]] = {link: [] for link in links}
    variances: list[Tensor] = []
    for batch in inputs.split(250 if chosen.sampled else chosen.batch):
        if chosen.sampled:
            answer = approximation(batch, pred_type="nn", link_approx="mc", n_samples=SAMPLES).detach()
            probabilities["mc"].append(answer)
            variances.append(torch.full_like(answer[:, 0], torch.nan))
            continue
        mean, covariance = _moments(approximation, batch)
        variances.append(covariance.diagonal(dim1=1, dim2=2).mean(1))
        for link in links:
            with _known_moments(approximation, mean, covariance):
                answer = approximation(batch, pred_type=chosen.pred_type, link_approx=link, n_samples=SAMPLES)
            probabilities[link].append(answer.detach())
    return {link: torch.cat(rows) for link, rows in probabilities.items()}, torch.cat(variances)


@functools.cache
def import_laplace() -> Any:
    """laplace-torch, also beside a torchvision without compiled operators, which torchmetrics imports."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:  # "operator torchvision::nms does not exist": declare what its import asks for
        _forget_torchvision()
        LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            LIBRARIES[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import laplace
        import laplace.curvature
        import laplace.utils
    return laplace


def _moments(approximation: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (m, C) and covariance (m, C, C) of the logits."""
    if hasattr(approximation, "predictive_moments"):
        mean, covariance = approximation.predictive_moments(batch)
    else:
        mean, covariance = approximation._glm_predictive_distribution(batch)
    return mean.detach(), covariance.detach()


@contextmanager
def _known_moments(approximation: Any, mean: Tensor, covariance: Tensor) -> Iterator[None]:
    """Let a predictive start from these moments; copies, since the bridge changes them in place."""
    approximation._glm_predictive_distribution = lambda *_, **__: (mean.clone(), covariance.clone())
    try:
        yield
    finally:
        del approximation._glm_predictive_distribution


def _subnetwork(library: Any, module: nn.Module, loader: DataLoader) -> Tensor:
    """The weights of largest variance by a diagonal approximation (Daxberger et al. 2021, ICML)."""
    diagonal = library.DiagLaplace(module, "classification", backend=library.curvature.AsdlGGN)
    mask = library.utils.LargestVarianceDiagLaplaceSubnetMask(module, SUBNETWORK, diagonal)
    return mask.select(loader).long()


def _log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(probabilities.clamp_min(torch.finfo(probabilities.dtype).eps).log(), labels)


def _forget_torchvision() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
