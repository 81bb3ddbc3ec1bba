"""What the tangent kernel is compared with: the linear probe and ordinary fine-tuning, made as strong as is usual.

On few pictures a head that starts flat (zero, or the uncalibrated probe) beats a random or a confident one by far
(docs/decisions/0009).
"""

from tangentune.baselines.fine_tuning import FineTuned, fine_tune
from tangentune.baselines.probe import Probe, fit_probe
from tangentune.baselines.rate_sweep import Sweep, Trial, sweep
from tangentune.baselines.schedule import layer_factors, rate_factor
from tangentune.baselines.settings import FineTuneSettings
from tangentune.baselines.training import DivergedError
from tangentune.baselines.validation import Validation
from tangentune.heads import probe_head

__all__ = [
    "DivergedError",
    "FineTuneSettings",
    "FineTuned",
    "Probe",
    "Sweep",
    "Trial",
    "Validation",
    "fine_tune",
    "fit_probe",
    "layer_factors",
    "probe_head",
    "rate_factor",
    "sweep",
]
