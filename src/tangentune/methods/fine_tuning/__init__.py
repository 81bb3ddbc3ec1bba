"""What the tangent kernel is compared with: the linear probe and ordinary fine-tuning, made as strong as is usual.

On few pictures a head that starts flat (zero, or the uncalibrated probe) beats a random or a confident one by far
(docs/decisions/0009).
"""

from tangentune.errors import DivergedError
from tangentune.methods.fine_tuning.classifier import Probe, fit_probe
from tangentune.methods.fine_tuning.fit import FineTuned, fine_tune
from tangentune.methods.fine_tuning.rate_sweep import Sweep, Trial, sweep
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.methods.fine_tuning.training import layer_factors, rate_factor
from tangentune.methods.fine_tuning.validation import Validation
from tangentune.networks.heads import probe_head

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
