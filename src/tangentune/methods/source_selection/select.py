"""One whole selection: which source pictures to learn from beside a target set, with which weights; its manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune._files import user_path
from tangentune._torch import usual_torch
from tangentune.errors import InputError, PictureError
from tangentune.methods.source_selection.extract import holds_features, open_set
from tangentune.methods.source_selection.manifest import Manifest
from tangentune.methods.source_selection.picking import Picked, pick_classes, pick_pictures
from tangentune.methods.source_selection.prototypes import Prototypes, make_prototypes
from tangentune.methods.source_selection.rankings import Ranking, rank
from tangentune.methods.source_selection.settings import SelectionSettings
from tangentune.networks.backbone import AnyBackbone, as_backbone
from tangentune.pictures.files import find_files
from tangentune.pictures.names import readable, some
from tangentune.pictures.ranks import ALONE, Rank, Shared
from tangentune.pictures.tables import Columns

_DIGITS = 9  # of the tables' shares: what follows depends on the machine


@final
@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen, and by which ranking.

    Attributes:
        manifest: what `write_manifest` writes and the fits read; its `notes` belong to the user.
        ranking: of the source classes or clusters, `source_classes`, for the target classes.
        source_classes: names, in the order of the ranking's numbers.
    """

    manifest: Manifest
    ranking: Ranking
    source_classes: tuple[str, ...]


@usual_torch
def select_source(
    target: Any,
    source: Any,
    backbone: AnyBackbone | None = "mobilenet_v2",
    *,
    target_labels: Any = None,
    source_labels: Any = None,
    cache: str | Path | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
    n_jobs: int | None = None,
    verbose: int = 0,
    path_column: str | None = None,
    label_column: str | None = None,
    rank: Rank = ALONE,
    **settings: Any,
) -> Selection:
    """Choose the pictures of a source set that are worth learning from beside a target set.

    Args:
        target: labelled pictures, wherever they are (see `load_pictures`), or features with `target_labels`.
        source: pictures to choose from, likewise; files are never all in memory.
        backbone: whose penultimate features are compared; None where both sides are features already.
        target_labels: one a picture, where the target has none itself.
        source_labels: likewise.
        cache: folder for extracted features, so that a stopped run goes on; the next selection uses them again.
        batch_size: pictures that go through the network at a time.
        on_error: "raise" or "skip", for files that cannot be read.
        n_jobs: processes that decode; the selection does not depend on it.
        verbose: 1 shows progress bars.
        path_column: the column of a table that holds the pictures, where its name does not say so.
        label_column: the column that holds the labels.
        rank: of several processes that make the features in `cache` together; `ShareDone` ends those that do not lead.
        settings: those of `SelectionSettings`; `budget` is needed but for the method "all".

    Returns:
        Selection; the same at every call.

    Raises:
        InputError: one sentence about the first thing that does not fit.
        PictureError: a file or folder cannot be read.

    Cost: each picture through the network once (or never, with features or a filled cache), then two passes over the
    features, and reading the chosen files once more for their sha256.

    Source: Liu et al. 2022, "Improved Fine-tuning by Leveraging Pre-training Data" (NeurIPS), for "uot".

    Example:
        >>> import torch
        >>> target = torch.eye(3)[:2].repeat(2, 1)
        >>> source = torch.tensor([[0.0, 0.2, 1.0], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1]])
        >>> found = select_source(
        ...     target, source, None, target_labels=["a", "b"] * 2, source_labels=["x", "y", "y"], budget=2
        ... )
        >>> found.manifest.ids, found.manifest.targets
        (('2', '1'), ('b', 'a'))
    """
    names = {one.name for one in fields(SelectionSettings)}
    unknown = sorted(set(settings) - names)
    if unknown:
        raise InputError(f"there is no setting {unknown[0]!r} of a selection; there are {', '.join(sorted(names))}")
    known = SelectionSettings(**settings)
    backbone = None if backbone is None else as_backbone(backbone)
    folder = None if cache is None else user_path(cache)
    if known.clusters is None and source_labels is None:
        _refuse_unlabelled(source, Columns(path_column, label_column))
    shared: dict[str, Any] = {"batch_size": batch_size, "on_error": on_error, "n_jobs": n_jobs, "verbose": verbose}
    shared |= {"path_column": path_column, "label_column": label_column, "rank": rank}
    with (
        open_set(target, backbone, target_labels, cache=folder, **shared) as wanted,
        open_set(source, backbone, source_labels, cache=folder, labelled=known.clusters is None, **shared) as offered,
    ):
        Shared(Path(), rank).lead()
        made = make_prototypes(wanted, offered, known, verbose=verbose)
        return select_prototypes(made, known, verbose=verbose)


def select_prototypes(made: Prototypes, settings: SelectionSettings, *, verbose: int = 0) -> Selection:
    """A selection from features that are there already, as `select_source` makes it."""
    settings = settings.for_targets(len(made.targets))
    source_mass = target_mass = None
    if settings.marginals == "counts":
        counts = (sums.counts.double() for sums in (made.source_sums, made.target_sums))
        source_mass, target_mass = (values / values.mean() for values in counts)
    masses = {"source_mass": source_mass, "target_mass": target_mass}
    ranking = rank(settings, made.sources, made.targets, **masses, centre=made.centre)
    if settings.candidates == "classes":
        picked = pick_classes(made, ranking, settings)
    else:
        picked = pick_pictures(made, ranking, settings, verbose=verbose)
    return Selection(_manifest(made, settings, ranking, picked, verbose), ranking, made.source_sums.names)


def _manifest(
    made: Prototypes, settings: SelectionSettings, ranking: Ranking, picked: Picked, verbose: int
) -> Manifest:
    """What a method picked, of which classes and for which; reads the chosen files and the target's to hash them."""
    target, source, rows = made.target, made.source, picked.rows.numpy()
    names, members = made.target_sums.names, made.source_sums.members[rows]
    best, digests, own = picked.shares.argmax(1), source.digests(rows, verbose), target.digests(range(len(target.ids)))
    described = source.backbone or {"name": "features", "contract": None, "digest": None}
    ids, content = [str(source.ids[i]) for i in rows], json.dumps([own, np.asarray(target.labels).tolist()])
    return Manifest(
        settings=settings.recorded(),
        backbone={key: described[key] for key in ("name", "contract", "digest")},
        source={"root": source.root, "count": source.features.count, "classes": len(made.source_sums.names)},
        target={
            "root": target.root,
            "count": target.features.count,
            "classes": list(names),
            "digest": None if None in own else hashlib.sha256(content.encode()).hexdigest(),
        },
        ids=tuple(ids),
        sha256=tuple(digests),
        classes=tuple(made.source_sums.names[i] for i in members),
        scores=picked.scores.numpy(),
        weights=picked.weights.numpy(),
        targets=tuple(names[k] for k in best),
        shares=picked.shares.numpy(),
        class_table=_class_table(made, ranking, members),
        coverage=_coverage(names, picked),
        notes=(*picked.notes, *_copies(dict(zip(own, target.ids, strict=True)), digests, ids)),
    )


def _class_table(made: Prototypes, ranking: Ranking, members: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
    chosen = np.bincount(members, minlength=len(made.sources)).tolist()
    mass = (ranking.scores - ranking.scores.logsumexp(0)).exp().tolist()
    rows = zip(made.source_sums.names, chosen, made.source_sums.counts.tolist(), mass, strict=True)
    return tuple(
        {"class": name, "chosen": taken, "of": of, "mass": round(share, _DIGITS) if ranking.has_mass else None}
        for name, taken, of, share in rows
    )


def _coverage(names: Sequence[str], picked: Picked) -> tuple[dict[str, Any], ...]:
    best, weights = picked.shares.argmax(1).numpy(), picked.weights.numpy()
    share, nearness = weights @ picked.shares.numpy() / weights.sum(), picked.cosines.numpy()[range(len(best)), best]
    each = (best == k for k in range(len(names)))
    rows = zip(names, share.tolist(), picked.coverage.tolist(), each, strict=True)
    return tuple(
        {
            "target": name,
            "pictures": int(for_it.sum()),
            "share": round(weight, _DIGITS),
            "covered": round(min(covered, 1.0), _DIGITS) if np.isfinite(covered) else None,
            "similarity": round(float(nearness[for_it].mean()), _DIGITS) if for_it.any() else None,
        }
        for name, weight, covered, for_it in rows
    )


def _copies(target: dict[str | None, Any], digests: Sequence[str | None], ids: Sequence[str]) -> tuple[str, ...]:
    """A warning where target pictures themselves, by their sha256, were chosen, byte for byte."""
    pairs = zip(ids, digests, strict=True)
    same = [f"{name} = {target[digest]}" for name, digest in pairs if digest is not None and digest in target]
    if not same:
        return ()
    if len(same) == 1:
        return (f"1 chosen picture is a target picture itself: {same[0]}",)
    return (f"{len(same)} chosen pictures are target pictures themselves: {some(same, 3)}",)


def _refuse_unlabelled(source: Any, columns: Columns) -> None:
    """A folder or table that would do if it only had classes."""
    if not isinstance(source, str | os.PathLike) or holds_features(source):
        return
    try:
        find_files(source, True, columns)
    except PictureError as error:
        try:
            find_files(source, False, columns)
        except PictureError:
            raise error from None  # it lacks more than classes
        message = f"the source {readable(source)} has no classes; sort it into class folders, or set clusters to the "
        message += "number of groups to divide it into"
        raise InputError(message) from error
