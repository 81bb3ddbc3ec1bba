"""Linear quadratic fine-tuning (LQF: Achille et al. 2021, CVPR): a network that is linear in its weights, trained."""

from tangentune.methods.lqf.explanations import LogitExplanations
from tangentune.methods.lqf.fit import LQF, explain, fit_lqf
from tangentune.methods.lqf.moving import Move
from tangentune.methods.lqf.progress import Point, Record
from tangentune.methods.lqf.settings import LQFSettings

__all__ = ["LQF", "LQFSettings", "LogitExplanations", "Move", "Point", "Record", "explain", "fit_lqf"]
