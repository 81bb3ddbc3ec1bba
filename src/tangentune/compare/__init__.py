"""Methods side by side on the same pictures: accuracy, calibration, time and memory."""

from tangentune.compare.cell import Cell
from tangentune.compare.run import Comparison, compare
from tangentune.compare.summary import Row

__all__ = ["Cell", "Comparison", "Row", "compare"]
