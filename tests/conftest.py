"""Networks and pictures that several test files share."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import save_models, small
from torch import nn
from usual_signals import usual_signals

from tangentune.estimators import fit as estimators_fit
from tangentune.kernels import reestimate as reestimating
from tangentune.kernels import trial as trials

SIZE = (3, 8, 8)
usual_signals()


def small_net() -> Any:
    """Eight features after module "5", five scores after module "6"; BatchNorm and dropout inside."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.fixture
def x():
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """A network whose forward is an arbitrary function of (body, x)."""

    def __init__(self, body, forward):
        super().__init__()
        self.body, self.rule = body, forward

    def forward(self, x):
        return self.rule(self.body, x)


class Lambda(nn.Module):
    """A layer that is an arbitrary function of x."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture
def own_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory plans count what a fit of the small network holds, not the process: small budgets mean something."""
    fit = estimators_fit
    look: Any = fit.survey_network
    trial: Any = trials.run_trial
    monkeypatch.setattr(fit, "survey_network", lambda *arguments: look(*arguments[:3], 2**60))
    for module in (fit, reestimating):
        monkeypatch.setattr(
            module,
            "run_trial",
            lambda *given, timed=False: replace(trial(*given[:4], 2**60, timed=timed), resident=0, batch_bytes=0),
        )
    monkeypatch.setattr("tangentune.kernels.cost.TILE_BYTES", 0)


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved models of `cli_cases` find their network by its name."""
    monkeypatch.setattr("tangentune.estimators.saving.load_backbone", small)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved models of `cli_cases`."""
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """The classifier among them, to be changed."""
    return Path(shutil.copytree(saved / "classes", tmp_path / "models" / "m"))


@pytest.fixture(scope="module")
def plain() -> Any:
    """A fitted classifier with a source behind it that counts."""
    from sourced_cases import classifier

    found = classifier()
    assert found.source_["strength"] > 0
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first (whole pages and examples run in them), so that no process waits for them at the end."""
    items.sort(key=lambda item: "test_docs" not in item.nodeid and "smallest_budget" not in item.nodeid)
