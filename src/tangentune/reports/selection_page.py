"""An HTML page about a selection: for every target class the pictures chosen for it, and what came from where."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune._files import replaced_file
from tangentune.errors import nice_number
from tangentune.methods.source_selection.manifest import Manifest, load_selected
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import find_files
from tangentune.pictures.load import Pictures, load_pictures
from tangentune.pictures.tables import Columns
from tangentune.reports.gallery import Link, links
from tangentune.reports.pages import render, thumbnail

_ROWS = 12  # of a table before "more"
_SIDE = 112  # pixels of a picture on the page
_WANTED, _FOUND = 2, 7  # pictures of a target class, and chosen for it
_TARGETS = 24  # target classes that are shown with pictures
# As a term, and after "chosen by".
_UOT = "unbalanced optimal transport"
_METHODS = {
    "uot": (_UOT, f"{_UOT} between source and target, in the features of {{network}}"),
    "nearest": ("nearest class", "their nearest target class, in the features of {network}"),
    "random": ("random", "chance"),
    "all": ("all", "nothing: all there are were taken"),
}
_UNITS = {"pictures": "pictures", "classes": "classes, whole", "mass": "of the mass"}
_SETTINGS = {
    "granularity": "Chosen as",
    "quota": "At least for each target class",
    "clusters": "Clusters of the source",
    "centre": "Features centred",
    "marginals": "Marginals",
    "cost_scale": "Cost scale",
    "eps": "Weight of the entropy",
    "tau_source": "Penalty of source masses",
    "tau_target": "Penalty of target masses",
    "seed": "Seed",
}


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """The few pictures that the page shows: labelled ones of each target class; chosen ones, ids as in the manifest."""

    target: Pictures
    chosen: Pictures


def load_examples(
    manifest: Manifest, target: Any, *, target_labels: Any = None, source: Any = None, **reading: Any
) -> Examples:
    """The pictures that the page of a selection shows, at its size where they are files; `reading` as for the page."""
    files = DataContract(input_size=(3, _SIDE, _SIDE), crop=1.0)
    known = manifest.backbone["contract"]
    arrays = files if known is None else DataContract.from_dict(known)

    def contract(given: Any) -> DataContract:
        return files if given is None or isinstance(given, str | os.PathLike) else arrays

    rows = sorted({int(row) for found in shown(manifest).values() for row in found})
    part, jobs = _part(manifest, rows), reading.get("n_jobs")
    chosen = load_selected(part, contract(source), source=source, n_jobs=jobs).pictures
    return Examples(_some_of_each(target, target_labels, contract(target), reading), chosen)


def _part(manifest: Manifest, rows: list[int]) -> Manifest:
    """The manifest of some of its pictures."""
    names, arrays = ("ids", "sha256", "classes", "targets"), ("scores", "weights", "shares")
    columns: dict[str, Any] = {name: tuple(getattr(manifest, name)[row] for row in rows) for name in names}
    return replace(manifest, **columns, **{name: getattr(manifest, name)[rows] for name in arrays})


def _some_of_each(target: Any, labels: Any, contract: DataContract, reading: dict[str, Any]) -> Pictures:
    """The first pictures of every class; of files only these are read, unless some may have to be left out."""
    if not isinstance(target, str | os.PathLike) or reading.get("on_error") == "skip":
        loaded = load_pictures(target, labels, contract=contract, **reading)
        return loaded.select(_first([] if loaded.labels is None else loaded.labels.tolist()))
    found = find_files(target, labels is None, Columns(reading.get("path_column"), reading.get("label_column")))
    given = list(found.labels or ()) if labels is None else list(labels)
    rows = _first(given)
    paths, names = [found.pictures[i] for i in rows], [found.ids[i] for i in rows]
    loaded = load_pictures(paths, [given[i] for i in rows], contract=contract, n_jobs=reading.get("n_jobs"))
    return replace(loaded, ids=names)


def _first(labels: Sequence[Any]) -> list[int]:
    """Rows of the first pictures of every class."""
    return np.flatnonzero(_turns(labels) < _WANTED).tolist()


def _turns(labels: Sequence[Any]) -> NDArray[np.int64]:
    """How many with the same label come before each, (n,)."""
    seen: Counter[Any] = Counter()
    turns = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        turns[row] = seen[label]
        seen[label] += 1
    return turns


def shown(manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """For each target class on the page, the rows of the pictures to show, best first."""
    served, names = np.array(manifest.targets), manifest.target["classes"]
    weight = {name: float(manifest.weights[served == name].sum()) for name in names}
    keep = set(sorted(names, key=lambda name: -weight[name])[:_TARGETS])
    order = np.argsort(-manifest.scores, kind="stable")
    if manifest.settings.get("granularity") == "classes":  # their pictures share one score, so the classes take turns
        order = order[np.argsort(_turns([manifest.classes[row] for row in order]), kind="stable")]
    return {name: order[served[order] == name][:_FOUND] for name in names if name in keep}


def write_selection_page(
    path: str | os.PathLike[str],
    manifest: Manifest,
    target: Any,
    *,
    target_labels: Any = None,
    source: Any = None,
    **reading: Any,
) -> Path:
    """Write the page of `render_selection` to a file, whole or not at all; loads only the pictures it shows.

    All arguments are as they were given to the selection; a picture that is missing or has changed is a PictureError.
    """
    examples = load_examples(manifest, target, target_labels=target_labels, source=source, **reading)
    wanted = links(target if isinstance(target, str | os.PathLike) else None, path)
    page = render_selection(manifest, examples, wanted, links(manifest.source["root"] or None, path))
    with replaced_file(path) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def render_selection(
    manifest: Manifest, examples: Examples, target: Link | None = None, source: Link | None = None
) -> str:
    """A selection as one HTML page, a strip of pictures for each target class; the same input gives the same page.

    Addresses of the files come from `target` and `source`, where there are any.
    """
    settings, n = manifest.settings, len(manifest)
    method = settings["method"]  # of an older version perhaps
    by = _METHODS.get(method, (method, f"{method} in the features of {{network}}"))[1]
    by = by.format(network=manifest.backbone["name"])
    mass = any(row["mass"] is not None for row in manifest.class_table)
    context = {
        "heading": f"{n:,} pictures chosen for {len(manifest.target['classes'])} target classes",
        "lead": f"From {manifest.source['count']:,} source pictures, by {by}. A picture of weight 2 counts twice as "
        "much as the average chosen one; the percentage beside it is the part of it that serves the class in question.",
        "tiles": _headline(manifest),
        "targets": _targets(manifest, examples, target, source),
        "hidden": max(0, len(manifest.target["classes"]) - _TARGETS),
        "classes": _first_and_rest(class_rows(manifest)),
        "mass": mass,
        "class_text": "How many pictures of each class were taken, and for which target class most of them."
        + (" Mass: the class's share of what all source classes send to the targets." if mass else ""),
        "coverage": _first_and_rest(coverage_rows(manifest)),
        "setup": _setup(manifest),
        "notes": manifest.notes,
    }
    return render("select.html.j2", context)


def _headline(manifest: Manifest) -> list[dict[str, str]]:
    n, count = len(manifest), manifest.source["count"]
    taken = sum(row["chosen"] > 0 for row in manifest.class_table)
    served = sum(row["pictures"] > 0 for row in manifest.coverage)
    tiles = [
        (f"{nice_number(100 * n / count)} %", "of the source", f"{n:,} of {count:,} pictures"),
        (f"{taken:,}", "source classes", f"of {len(manifest.class_table):,} were taken from"),
        (f"{served:,}", "target classes", f"of {len(manifest.coverage):,} are what some chosen picture serves best"),
        (f"{manifest.effective:,.0f}", "pictures of equal weight", "would say as much as these with their weights"),
    ]
    return [{"value": value, "name": name, "note": note, "term": ""} for value, name, note in tiles]


def _targets(manifest: Manifest, examples: Examples, target: Link | None, source: Link | None) -> list[dict[str, Any]]:
    """The strips: target pictures, then what was chosen for them."""
    column = {name: k for k, name in enumerate(manifest.target["classes"])}
    place = {name: i for i, name in enumerate(examples.chosen.ids)}
    labels = np.array([] if examples.target.labels is None else list(map(str, examples.target.labels.tolist())))
    covered = {row["target"]: row for row in manifest.coverage}

    def wanted(i: int) -> dict[str, Any]:
        name = examples.target.ids[i]
        return {"id": name, "image": thumbnail(examples.target, i), "link": target and target(name)}

    def chosen(row: int, name: str) -> dict[str, Any]:
        known = {"id": manifest.ids[row], "image": thumbnail(examples.chosen, place[manifest.ids[row]])}
        known |= {"label": manifest.classes[row], "weight": float(manifest.weights[row])}
        known["link"] = source and source(manifest.ids[row])
        return known | {"share": float(manifest.shares[row, column[name]])}

    strips = []
    for name, rows in shown(manifest).items():
        strip = {"name": name, "count": covered[name]["pictures"], "share": covered[name]["share"]}
        strip["wanted"] = [wanted(int(i)) for i in np.flatnonzero(labels == name)[:_WANTED]]
        strips.append(strip | {"found": [chosen(int(row), name) for row in rows]})
    return strips


def class_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Source classes, those with most chosen pictures first."""
    weight: dict[str, Counter[str]] = {}
    for label, target, value in zip(manifest.classes, manifest.targets, manifest.weights.tolist(), strict=True):
        weight.setdefault(label, Counter())[target] += value
    rows = [
        {
            "name": row["class"],
            "chosen": row["chosen"],
            "of": row["of"],
            "part": row["chosen"] / max(row["of"], 1),
            "mass": row["mass"],
            "target": weight[row["class"]].most_common(1)[0][0] if row["class"] in weight else None,
        }
        for row in manifest.class_table
    ]
    return sorted(rows, key=lambda row: (-row["chosen"], -(row["mass"] or 0.0)))


def coverage_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Target classes, those with most weight first."""
    largest = max(row["share"] for row in manifest.coverage) or 1.0
    rows = [{**row, "bar": row["share"] / largest} for row in manifest.coverage]
    return sorted(rows, key=lambda row: -row["share"])


def _setup(manifest: Manifest) -> list[tuple[str, str]]:
    """How it was chosen and from what, as (term, description) pairs."""
    settings, method = manifest.settings, manifest.settings["method"]
    known = [(words, settings[key]) for key, words in _SETTINGS.items() if settings.get(key) is not None]
    contract = manifest.backbone["contract"]
    size = contract["input_size"] if contract else None
    budget = "none" if settings["budget"] is None else f"{_shortly(settings['budget'])} {_UNITS[settings['unit']]}"
    return [
        ("Method", _METHODS.get(method, (method,))[0]),
        ("Budget", budget),
        *((words, _shortly(value)) for words, value in known),
        ("Network", manifest.backbone["name"]),
        ("Pictures seen at", " × ".join(map(str, size[1:])) + " pixels" if size else "features, as they came"),
        ("Target", f"{manifest.target['count']:,} pictures in {len(manifest.target['classes'])} classes"),
        ("Source", manifest.source["root"] or "arrays"),
    ]


def _shortly(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return nice_number(value, 6) if isinstance(value, float) else str(value)


def _first_and_rest(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {"first": rows[:_ROWS], "rest": rows[_ROWS:]}
