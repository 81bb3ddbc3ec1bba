"""Tangents of shards added and averaged, against the exact answer: `python -m benchmarks.lqf_conditions.compose`.

One linearisation of MobileNetV2 at 48 px, its head fitted to pictures of no shard. Four shards of CIFAR-10, each solved
exactly by itself: dealt out evenly, or each with classes of its own. The exact answer is what the sums of all shards
give, one least-squares problem; without a shard likewise. A few minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks import datasets
from benchmarks.record import markdown_table, record
from benchmarks.study import begin, mean_features, network_inputs, quietly, study_parser
from tangentune import Pictures, load_backbone
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import TaskVector
from tangentune.methods.lqf import LogitExplanations
from tangentune.networks.heads import probe_head
from tangentune.solvers.targets import one_hot_targets

NAME, SIZE, SHOTS, SHARDS, CLASSES, DAMPING, TEST = "lqf_compose", 48, 20, 4, 10, 0.1, 600
OWN = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])  # the shard of a class, where each has classes of its own


def main() -> None:
    """Measure, print, write docs/results/lqf_compose.json."""
    begin(study_parser(__doc__))
    with quietly():
        found = measure()
    print(markdown_table(found))
    record(NAME, {"pictures": SHOTS * CLASSES, "shards": SHARDS, "rows": found})


def measure() -> list[dict[str, str | float]]:
    """Accuracy of every way to combine, for both ways of dealing the pictures out."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    public, _ = datasets.cifar_split(backbone, 2, 50, test=10)
    train, test = datasets.cifar_split(backbone, SHOTS, 0, test=TEST)
    head = probe_head(mean_features(backbone, public, False), positions(public)).requires_grad_(False)
    lin, rows = Linearization(backbone, "all", head), np.arange(len(train))
    solved = LogitExplanations.of(
        lin, list(network_inputs(backbone, train)), one_hot_targets(positions(train), CLASSES), 1.0
    )
    kernel, residuals = solved.system.kernel, solved.system.targets.reshape(len(train), CLASSES)
    assert isinstance(kernel, Tensor)
    kernel = kernel.view(len(train), CLASSES, len(train), CLASSES)
    unit = float(torch.einsum("icic->", kernel)) / residuals.numel()

    def tangent(of: np.ndarray, damping: float = DAMPING) -> TaskVector:
        """The least-squares solution on some pictures: a block of the Gram matrix of all."""
        part = kernel[of][:, :, of].reshape(len(of) * CLASSES, -1)
        damped = part + damping * unit * torch.eye(len(part), dtype=part.dtype)
        dual = torch.linalg.solve(damped, residuals[of].reshape(-1)).view(-1, CLASSES)
        few = network_inputs(backbone, train.select(of))
        parts = [lin.vjp(x, own.to(x)) for x, own in zip(few, dual.split(64), strict=True)]
        return added([TaskVector(part) for part in parts])

    def right(moved: TaskVector) -> float:
        hits = [lin(x, moved).argmax(1) for x in network_inputs(backbone, test)]
        return float((torch.cat(hits) == positions(test)).double().mean())

    exact, out = tangent(rows), []
    firmer = right(tangent(rows, 10 * DAMPING))
    for title, shard in (("evenly", rows % SHARDS), ("by class", OWN[positions(train).numpy()])):
        alone = [tangent(np.flatnonzero(shard == one)) for one in range(SHARDS)]
        total = added(alone)
        ways = {
            "one shard alone": right(alone[0]),
            "tangents averaged": right(total / SHARDS),
            "tangents added": right(total),
            "exact: sums merged": right(exact),
            "exact, damped ten times as much": firmer,
            "one shard subtracted": right(exact - alone[0]),
            "exact: fitted without it": right(tangent(np.flatnonzero(shard != 0))),
            "nothing learnt": right(exact * 0.0),
        }
        out.append({"shards": title} | ways)
        print(out[-1], flush=True)
    return out


def added(tangents: Sequence[TaskVector]) -> TaskVector:
    """Their sum."""
    return sum(tangents[1:], tangents[0])


def positions(pictures: Pictures) -> Tensor:
    """(n,) labels, 0 to 9."""
    return torch.as_tensor(pictures.labels)


if __name__ == "__main__":
    main()
