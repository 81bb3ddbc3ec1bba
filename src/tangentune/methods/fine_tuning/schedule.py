"""How fast each layer learns at each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tangentune.networks.parameters import group_blocks


def rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """What the peak learning rate is multiplied by at `step` of `steps` (0-based).

    Example:
        >>> [round(rate_factor(s, 6, 1 / 3, "cosine"), 3) for s in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (steps - rising)))


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """What the rate of each parameter is multiplied by: `decay` in the last block, `decay ** 2` in the one before.

    Args:
        names: parameters in network order, the head (factor 1) not among them.
        decay: in (0, 1].

    Example:
        >>> layer_factors(["layers.0.weight", "layers.1.weight", "layers.1.bias"], 0.5)
        {'layers.0.weight': 0.25, 'layers.1.weight': 0.5, 'layers.1.bias': 0.5}
    """
    blocks = group_blocks(names).values()
    return {name: decay ** (len(blocks) - k) for k, members in enumerate(blocks) for name in members}
