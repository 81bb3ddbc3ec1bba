"""The manifest of a selection: what was picked, from which classes, for which targets, and what to beware of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.methods.source_selection.manifest import Manifest
from tangentune.methods.source_selection.picking import Picked
from tangentune.methods.source_selection.prototypes import Prototypes
from tangentune.methods.source_selection.rankings import Ranking
from tangentune.methods.source_selection.settings import SelectionSettings
from tangentune.pictures.names import some

_DIGITS = 9  # of the tables' shares: what follows depends on the machine


def selection_manifest(
    made: Prototypes,
    settings: SelectionSettings,
    ranking: Ranking,
    picked: Picked,
    *,
    verbose: int = 0,
) -> Manifest:
    """The manifest of what a method picked.

    Args:
        made: both sides.
        settings: as used.
        ranking: of the source classes.
        picked: the pictures.
        verbose: 1 shows a progress bar while files are hashed.

    Cost: reads the chosen files and those of the target once, for their sha256.
    """
    target, source = made.target, made.source
    names, labels = made.target_sums.names, made.source_sums.names
    digests = source.digests(picked.rows, verbose)
    own = target.digests(np.arange(target.features.count))
    described = source.backbone or {"name": "features", "contract": None, "digest": None}
    return Manifest(
        settings=settings.recorded(),
        backbone={key: described[key] for key in ("name", "contract", "digest")},
        source={"root": source.root, "count": source.features.count, "classes": len(labels)},
        target={
            "root": target.root,
            "count": target.features.count,
            "classes": list(names),
            "digest": None if None in own else content_digest_of([own, np.asarray(target.labels).tolist()]),
        },
        ids=tuple(str(source.ids[i]) for i in picked.rows),
        sha256=tuple(digests),
        classes=tuple(labels[i] for i in made.source_sums.members[picked.rows]),
        scores=picked.scores,
        weights=picked.weights,
        targets=tuple(names[k] for k in picked.targets),
        shares=picked.shares,
        class_table=_class_table(made, ranking, picked),
        coverage=_coverage(names, picked),
        notes=(*picked.notes, *_copies(own, digests, target.ids, source.ids, picked.rows)),
    )


def _class_table(made: Prototypes, ranking: Ranking, picked: Picked) -> tuple[dict[str, Any], ...]:
    sums = made.source_sums
    chosen = np.bincount(made.source_sums.members[picked.rows], minlength=len(sums.names))
    mass = (ranking.scores - ranking.scores.logsumexp(0)).exp().tolist()
    return tuple(
        {
            "class": name,
            "chosen": int(chosen[i]),
            "of": int(sums.counts[i]),
            "mass": round(mass[i], _DIGITS) if ranking.has_mass else None,
        }
        for i, name in enumerate(sums.names)
    )


def _coverage(names: Sequence[str], picked: Picked) -> tuple[dict[str, Any], ...]:
    share = picked.weights @ picked.shares / picked.weights.sum()
    rows = []
    for k, name in enumerate(names):
        for_it, covered = picked.targets == k, float(picked.coverage[k])
        rows.append(
            {
                "target": name,
                "pictures": int(for_it.sum()),
                "share": round(float(share[k]), _DIGITS),
                "covered": round(min(covered, 1.0), _DIGITS) if np.isfinite(covered) else None,
                "similarity": round(float(picked.nearness[for_it].mean()), _DIGITS) if for_it.any() else None,
            }
        )
    return tuple(rows)


def _copies(
    own: Sequence[str | None],
    digests: Sequence[str | None],
    target_ids: Sequence[str],
    source_ids: Sequence[str],
    rows: NDArray[np.int64],
) -> tuple[str, ...]:
    """A warning where target pictures themselves were chosen, byte for byte."""
    known = dict(zip(own, target_ids, strict=True))
    same = [f"{source_ids[i]} = {known[d]}" for i, d in zip(rows, digests, strict=True) if d is not None and d in known]
    if not same:
        return ()
    many = (
        "1 chosen picture is a target picture" if len(same) == 1 else f"{len(same)} chosen pictures are target pictures"
    )
    return (f"{many} itself: {some(same, 3)}" if len(same) == 1 else f"{many} themselves: {some(same, 3)}",)


def content_digest_of(value: Any) -> str:
    """The sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
