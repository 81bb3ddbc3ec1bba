"""Fixtures that several test files share.

What they need is imported inside: the process that hands out the tests to others loads this file too, and no more.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from usual_signals import usual_signals

usual_signals()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of small files, 3 to 8 ms each: what a killed process has written is there without it.

    Only a power cut tells the difference, which no test can try. Commands in processes of their own do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)  # still an error for what is no open file
        yield


@pytest.fixture
def x() -> Any:
    """Four inputs of the networks of `net_cases`."""
    import torch
    from net_cases import SIZE

    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def short_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MobileNetV2 of five blocks."""
    from net_cases import shorten

    shorten(monkeypatch)


@pytest.fixture
def own_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory plans count what a fit of the small network holds, not the process: small budgets mean something."""
    from tangentune.estimators import fit
    from tangentune.kernels import reestimate
    from tangentune.kernels import trial as trials

    look: Any = fit.survey_network
    trial: Any = trials.run_trial
    monkeypatch.setattr(fit, "survey_network", lambda *arguments: look(*arguments[:3], 2**60))
    for module in (fit, reestimate):
        monkeypatch.setattr(
            module,
            "run_trial",
            lambda *given, timed=False: replace(trial(*given[:4], 2**60, timed=timed), resident=0, batch_bytes=0),
        )
    monkeypatch.setattr("tangentune.kernels.cost.TILE_BYTES", 0)


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved models of `cli_cases` find their network by its name."""
    from cli_cases import small

    monkeypatch.setattr("tangentune.estimators.saving.load_backbone", small)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved models of `cli_cases`."""
    from cli_cases import save_models

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


EARLY = (
    ("test_torture", "test_one_writer"),  # copy the process, which is smallest at the start
    # the longest: no process waits for them at the end
    ("test_docs", "smallest_budget", "test_site", "test_owners_page", "test_exported", "in_browser", "test_browser"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Some tests before the others."""
    items.sort(key=lambda item: [not any(name in item.nodeid for name in names) for names in EARLY])


gc.disable()  # while tests are imported and listed, everything stays


def pytest_collection_finish() -> None:
    """Two million objects are there to stay: looking through them again takes a second, and copies them in a fork.

    What tests import later stays too, so that everything is looked through a tenth as often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)
    gc.enable()
