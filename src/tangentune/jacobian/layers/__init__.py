"""Per-sample gradient rules, one file per layer family; importing this package registers them all."""

from tangentune.jacobian.layers import conv, linear, norm
from tangentune.jacobian.layers.entry import Entry, Pairs, Rows, add_uses, average_views, join_entries, stack_probes
from tangentune.jacobian.layers.use import RULES, LayoutError, Use

__all__ = ["RULES", "Entry", "LayoutError", "Pairs", "Rows", "Use", "add_uses", "average_views", "join_entries"]
__all__ += ["conv", "linear", "norm", "stack_probes"]
