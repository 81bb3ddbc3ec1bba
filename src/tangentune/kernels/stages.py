"""What the stages of a fit share: settings, pictures, probes, memory plan, progress."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry
from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.kernels.batches import Batches, PictureBatches, Portion
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.collect import Begun, RowSet, collect, plan_passes, restrict
from tangentune.kernels.gram import block_grams, power_grams
from tangentune.kernels.metric import KroneckerFactors
from tangentune.kernels.row_shards import RowShards
from tangentune.kernels.trial import Trial
from tangentune.memory import Meter, progress
from tangentune.networks.parameters import group_blocks
from tangentune.solvers.factorisation import svd

PCA_PICTURES = 128
PCA_COMPONENTS = 50


@dataclass(frozen=True)
class FitSettings:
    """Everything the user may fix; None leaves a choice to `criterion` ("loo" or "evidence")."""

    probes: int
    probe_space: str
    power: float | None
    fixed: FixedChoices
    criterion: str
    mirrored: bool
    seed: int
    memory_budget: int
    verbose: int
    may_unmirror: bool = False  # mirroring was chosen by a probe, and moved networks may overrule it
    landmarks: int = 0  # pictures that span the kernel of a fit to very many; 0: all of them do


@dataclass(frozen=True)
class FitJob:
    """What the stages share."""

    tangent: RowPlan
    pictures: PictureBatches
    targets: Tensor  # (n, C)
    weights: Tensor  # (n,)
    settings: FitSettings
    meter: Meter
    probes: Tensor  # (R, d)
    trial: Trial  # how many bytes the rows of each parameter take
    room: int  # bytes that rows may take
    shards: RowShards | None = None  # where rows of very many pictures are kept while the fit goes on

    def part(self, index: list[int]) -> FitJob:
        """The job of some of its pictures."""
        chosen = torch.tensor(index)
        pictures, targets, weights = self.pictures.part(index), self.targets[chosen], self.weights[chosen]
        return replace(self, pictures=pictures, targets=targets, weights=weights)

    def batches(self, label: str, index: list[int] | None = None) -> Batches:
        """Network inputs with a progress bar."""
        total = self.pictures.count if index is None else len(index)

        def run() -> Iterator[Portion]:
            with progress(label=label, total=total, unit="picture", verbose=self.settings.verbose) as bar:
                for portion in self.pictures.portions(index):
                    yield portion
                    bar.update(len(portion.x))

        return run

    def collect(
        self,
        tangent: RowPlan,
        label: str,
        index: list[int] | None = None,
        mirrored: bool | None = None,
        begun: Begun | None = None,
    ) -> RowSet:
        """Rows of all or some pictures, mirrored as set unless told otherwise; or of all, some of them `begun`."""
        count = self.pictures.count if index is None else len(index)
        mirrored = self.settings.mirrored if mirrored is None else mirrored
        batches = self.batches(label, index if begun is None else begun.others(count).tolist())
        return collect(tangent, batches, count, self.probes, mirrored, begun=begun)

    def grams(self, entries: dict[str, Entry], factors: dict[str, KroneckerFactors], power: float) -> dict[str, Tensor]:
        """Block kernels, in network order, with a progress bar."""
        with progress(label="kernels", total=len(entries), unit="layer", verbose=self.settings.verbose) as bar:
            grams = block_grams(entries, factors, power, tick=bar.update)
        return self._in_order(grams)

    def power_grams(
        self, entries: dict[str, Entry], factors: dict[str, KroneckerFactors], powers: tuple[float, ...]
    ) -> dict[float, dict[str, Tensor]]:
        """Block kernels at several powers, to choose among them, in network order, with a progress bar."""
        with progress(label="metric powers", total=len(entries), unit="layer", verbose=self.settings.verbose) as bar:
            grams = power_grams(entries, factors, powers, tick=bar.update)
        return {power: self._in_order(own) for power, own in grams.items()}

    def _in_order(self, grams: dict[str, Tensor]) -> dict[str, Tensor]:
        return {block: grams[block] for block in group_blocks(self.tangent.names) if block in grams}

    def passes(self, tangent: RowPlan, count: int | None = None) -> list[list[str]]:
        """Groups of parameters, one pass over the pictures (or `count` of them) each, that keep the memory budget."""
        sizes = {name: layer.size for name, layer in self.trial.layers.items() if name in set(tangent.names)}
        return plan_passes(sizes, self.pictures.count if count is None else count, self.room) or [[]]


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long().unique().tolist()


def draw_probes(tangent: RowPlan, pictures: PictureBatches, settings: FitSettings) -> Tensor:
    """(R, d) random directions: anywhere, or in the span of the pictures' top principal components."""
    generator, still = torch.Generator().manual_seed(settings.seed), restrict(tangent, ())
    if settings.probe_space == "isotropic" or not tangent.names:
        x = next(iter(pictures.batches([0])))
        width = batch_rows(still, [x], torch.empty(0)).phi.shape[1]
        return torch.randn(settings.probes, width, generator=generator, dtype=torch.float64).to(x)
    x = pictures.batches(spread(pictures.count, PCA_PICTURES))
    phi = torch.cat([batch_rows(still, [part], torch.empty(0)).phi for part in x])
    centred = phi.double() - phi.double().mean(0)
    components = svd(centred, "the features")[2][: min(PCA_COMPONENTS, max(1, len(phi) - 1))]
    # Fix the signs: the factorisation leaves them to chance.
    signs = torch.sign(components.gather(1, components.abs().argmax(1, keepdim=True)))
    draws = torch.randn(settings.probes, len(components), generator=generator, dtype=torch.float64)
    return (draws.to(components) @ (components * signs)).to(phi)
