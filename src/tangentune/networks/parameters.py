"""Which parameters move, and which block of the network each belongs to."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tangentune.errors import InputError
from tangentune.networks.features import Features, Followed, features_at
from tangentune.networks.passes import no_checkpoints

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def block_of(name: str) -> str:
    """Block of a parameter: its name up to the first number ("features.7"), or its first part ("cls_token")."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return parts[0]


def select_parameters(module: nn.Module, subset: str, used: Collection[str] | None = None) -> list[str]:
    """Names of the parameters that move, in network order.

    Words of `subset`: "all"; "none" (head only: a linear probe); "last:K" (the last K blocks that have parameters);
    "norm" (normalisation layers only); "bias"; or a comma-separated list of glob patterns over parameter names, such as
    "features.1?.*,features.9.*". Parameters not `used` by the features (a classifier behind them) are not counted.
    """
    names = [name for name, _ in module.named_parameters() if used is None or name in used]
    if subset == "all":
        return names
    if subset == "none":
        return []
    if not isinstance(subset, str):
        raise InputError(
            f"subset is {subset!r}; give a word such as 'all' or 'last:3', or glob patterns over parameter names"
        )
    if subset == "norm":
        norms = [(prefix, norm) for prefix, norm in module.named_modules() if isinstance(norm, NORMS)]
        chosen = {f"{prefix}.{name}".lstrip(".") for prefix, norm in norms for name, _ in norm.named_parameters()}
        chosen &= set(names)
    elif subset == "bias":
        chosen = {name for name in names if name.rsplit(".", 1)[-1] == "bias"}
    elif match := re.fullmatch(r"last:(\d+)", subset):
        blocks, count = list(group_blocks(names).values()), int(match[1])
        chosen = {name for block in blocks[max(0, len(blocks) - count) :] for name in block}
    else:
        patterns = [p.strip() for p in subset.split(",") if p.strip()]
        chosen = {name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    if not chosen:
        raise InputError(
            f"subset {subset!r} matches none of the network's {len(names)} parameters; use 'all', 'none', 'norm', "
            f"'bias', 'last:K' or glob patterns over names such as {names[0] if names else '(none)'!r}"
        )
    return [name for name in names if name in chosen]


def group_blocks(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameters by block, both in network order."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def used_parameters(
    module: nn.Module, features: Features, x: Tensor, names: Collection[str] | None = None
) -> list[str]:
    """Those of a module's parameters (of some names, or all) that the features of x depend on, in network order.

    Autograd's tape says so: it leads from the features to them. No gradient is calculated. Cost: one forward pass.
    """
    floats = ((name, p) for name, p in module.named_parameters() if p.is_floating_point())
    given = {name: p for name, p in floats if names is None or name in names}
    leaves = {name: p.detach().requires_grad_() for name, p in given.items()}
    with torch.enable_grad(), no_checkpoints(), Followed(given):
        phi = features_at(module, features, leaves, x.clone())  # a first layer may work in place
    reached = _leaves_of(phi)
    return [name for name, leaf in leaves.items() if id(leaf) in reached]


def _leaves_of(value: Tensor) -> set[int]:
    """Identities of the tensors, alive elsewhere, at which the tape of a value begins."""
    found: set[int] = set()
    seen: set[Any] = {None}
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        if type(step).__name__ == "AccumulateGrad":
            found.add(id(step.variable))
        waiting.extend(before for before, _ in step.next_functions)
    return found
