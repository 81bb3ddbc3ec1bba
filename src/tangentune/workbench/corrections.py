"""What became of a model's labels: each picture with its label at the fit and now, when it was changed, and how.

All of it is read from the model and from the log of its edits, which names pictures by the hashes of their pixels, and
former labels by seals. So a picture that was forgotten has no line, only a number says that there was one; and a former
label can be told as long as the model knows a class of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, final

from tangentune.estimators import audit
from tangentune.estimators.fitted import FittedModel
from tangentune.pictures.label_sets import is_sets, plain_labels
from tangentune.pictures.tables import LABELS, table_text

WORDS = {"relabel": "relabelled", "add": "added", "keep": "kept"}


@final
@dataclass(frozen=True)
class LabelRow:
    """One picture that the model stands on; the fields are the columns of the table."""

    id: str
    original: str | None  # label before the first correction; None where it cannot be told any more
    current: str
    when: str = ""  # of the last edit, in UTC; empty where there was none
    why: str = ""  # edits of this picture, in words

    @property
    def corrected(self) -> bool:
        """Whether the label is another one than at first, as far as can be told."""
        return self.original != self.current


def label_rows(fitted: FittedModel, reasons: Mapping[int, str] | None = None) -> list[LabelRow]:
    """Every picture of a fitted model (`model.fitted_`), in the order of `ids_`; about 1 s/GB of pixels, once.

    `reasons` are words of a person, by the number of the picture; they stand before the edits' own. Pictures that are
    equal in every pixel share the lines of the log: of those the ones count as corrected whose label is another one
    than the edit found.

    Example:
        >>> import numpy as np, torch
        >>> from tangentune import Backbone, TangentClassifier
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
        >>> model = TangentClassifier(Backbone(network)).fit(x, np.where(x[:, 0] > 0, "right", "left"))
        >>> row = label_rows(model.relabel(0, "left").fitted_)[0]
        >>> row.original, row.current, row.why
        ('right', 'left', 'relabelled')
    """
    lines: dict[str, list[tuple[dict[str, Any], str | None]]] = {}
    for line in audit.standing(fitted.edits):
        seals = line.get("former") or [None] * len(line["pictures"])
        for picture, seal in zip(line["pictures"], seals, strict=True):
            lines.setdefault(picture, []).append((line, seal))
    digests, labels = fitted.training.digests, plain_labels(fitted.active.labels)
    names: list[Any] = list({str(one): one for one in labels}.values())
    if not is_sets(fitted.active.labels):
        names = fitted.outcome.classes.tolist() or names
    rows = []
    for i, position in enumerate(fitted.active.positions.tolist()):
        number, picture = int(fitted.training.numbers[position]), digests[position]
        own = [one for one in lines.get(picture, []) if number in one[0].get("numbers", [number])]
        rows.append(_row(fitted.ids[i], labels[i], picture, own, names, (reasons or {}).get(number, "")))
    return rows


def forgotten(fitted: FittedModel) -> set[str]:
    """Hashes of the pictures that the model has forgotten, equal ones that it stands on still left out."""
    gone = {name for line in audit.standing(fitted.edits) if line["edit"] == "forget" for name in line["pictures"]}
    digests = fitted.training.digests
    return gone - {digests[i] for i in fitted.active.positions.tolist()} if gone else gone


def labels_table(rows: list[LabelRow]) -> str:
    """The CSV table, which `fit` reads where its ids are paths; an empty cell is what cannot be told."""
    return table_text(LABELS, (["" if cell is None else cell for cell in astuple(row)] for row in rows))


def _row(
    name: str, label: Any, picture: str, lines: list[tuple[dict[str, Any], str | None]], names: list[Any], said: str
) -> LabelRow:
    """One picture's row, from the lines of the log that name it."""
    edits = [line["edit"] for line, _ in lines]
    if "forget" in edits:  # a copy was, or this one, and came back
        last = len(edits) - 1 - edits[::-1].index("forget")
        lines = lines[last + 1 :] or [one for one in lines if one[0]["edit"] != "forget"]
    kept, own = [one for one in lines if one[0]["edit"] in WORDS], audit.former(picture, label)
    while kept and kept[-1][0]["edit"] == "relabel" and kept[-1][1] == own:  # of a copy, or to the label it had
        kept.pop()
    original = str(label)
    relabels = [seal for line, seal in kept if line["edit"] == "relabel"]
    if relabels:
        known = {audit.former(picture, one): str(one) for one in names}
        original = known.get(relabels[0]) if relabels[0] is not None else None
    words = dict.fromkeys(WORDS[line["edit"]] for line, _ in kept)
    why = "; ".join(filter(None, [said, *words]))
    return LabelRow(name, original, str(label), kept[-1][0]["when"] if kept else "", why)
