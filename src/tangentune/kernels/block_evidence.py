"""The scale of every block, learned by maximum likelihood of the second kind from where a search has ended."""

from __future__ import annotations

from dataclasses import replace

import torch

from tangentune.kernels.choice import Problem, Scored, body_lengths, score
from tangentune.kernels.gram import cosine
from tangentune.solvers.evidence import maximise_evidence


def learn_scales(problem: Problem, scored: Scored) -> Scored:
    """A choice whose blocks each have a scale of their own, with the damping, by evidence with gradients.

    A weak prior keeps scales near the start (`maximise_evidence`). Rows keep the lengths that they were given.

    Args:
        problem: block kernels.
        scored: the best of a search by evidence, its body not switched off.

    Returns:
        The new choice; the old one where no block has a say. Cost about 30 evaluations of the evidence with gradient.
    """
    choice, names = scored.choice, list(problem.blocks)
    lengths = body_lengths(problem, choice)
    head = cosine(problem.head.double()) if choice.normalize else problem.head.double()
    profile = {name: scale for name, scale in choice.scales(names).items() if problem.blocks[name].abs().sum() > 0}
    if not profile:
        return scored
    blocks = [lengths[:, None] * problem.blocks[name].double() * lengths for name in profile]
    start = torch.tensor([1.0, *(choice.body_scale * scale for scale in profile.values())], dtype=torch.float64)
    found = maximise_evidence(torch.stack([head, *blocks]), problem.targets, problem.weights, start=start)
    learned = dict(zip(profile, (found.scales[1:] / found.scales[0]).tolist(), strict=True))
    mean = sum(learned.values()) / len(names)
    factors = tuple(learned.get(name, 0.0) / mean / scale for name, scale in choice.scales(names).items())
    best = replace(choice, body_scale=mean, factors=factors)
    return score(problem, best, found.damping / float(found.scales[0]), "evidence")[0]
