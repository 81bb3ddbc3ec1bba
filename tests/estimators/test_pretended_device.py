"""A whole fit on a device that is not there (`pretended_device`): no mixed devices, and no waiting inside loops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

TESTS = Path(__file__).parent.parent
STEPS = 6  # two batches, and eight


pretended = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch makes no devices"
)
CASES = ["pictures", "evidence", "landmarks"]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    told = subprocess.run(
        [sys.executable, str(TESTS / "pretended_fits.py")],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


@pretended
@pytest.mark.parametrize("case", CASES)
def test_a_model_lives_on_a_device_as_on_the_cpu(found: dict[str, Any], case: str) -> None:
    differences = found["differences"][case]
    assert len(differences) == 21
    assert max(differences.values()) < 1e-11


def more(found: dict[str, Any], work: str, kind: str) -> dict[str, int]:
    """What six more batches add."""
    few, many = (Counter(counts[kind]) for counts in found["passes"][work])
    assert not few - many
    return dict(many - few)


@pretended
@pytest.mark.parametrize("work", ["fit", "predict"])
def test_a_batch_more_is_not_waited_for(found: dict[str, Any], work: str) -> None:
    assert more(found, work, "waits") == {}
    assert more(found, work, "arrivals") == {"pictures/pictures.py": 3 * STEPS}  # pixels, mean and deviation


@pretended
def test_a_step_of_training_waits_for_its_loss_alone(found: dict[str, Any]) -> None:
    assert more(found, "training", "waits") == {"methods/fine_tuning/training.py": STEPS}


@pretended
def test_the_device_refuses_what_cuda_refuses(found: dict[str, Any]) -> None:
    assert found["refused"] == [True] * 5
    assert found["taken"] == [True] * 3


@pretended
def test_a_device_without_bfloat16_is_told_of(found: dict[str, Any]) -> None:
    assert found["autocast"][0].startswith(
        "autocast bfloat16 cannot be used on pretend:0, which has no bfloat16; leave"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_lives_on_a_gpu_as_on_the_cpu() -> None:
    from pretended_fits import lives

    for case, differences in lives("cuda").items():
        assert max(differences.values()) < 1e-6, case
