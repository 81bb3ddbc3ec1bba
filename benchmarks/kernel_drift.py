"""How far does the tangent kernel move while a network is fine-tuned, and what does the move bring?

    python -m benchmarks.kernel_drift            # what is missing, then page and plot; about 7 minutes, one thread
    python -m benchmarks.kernel_drift --table    # measure nothing, write the page anew

A linear model cannot follow a kernel that moves: if the kernel turns towards the labels and accuracy rises with it,
that part of fine-tuning is out of LQF's reach at one linearisation point. Every number of epochs is a run of its own
with its own schedule. It may be stopped and started again at any time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import record
from benchmarks.cifar_split import DATA, SIZE, TEST, begin, cifar_split, mean_spread, study_parser
from benchmarks.datasets import cifar10, few_shot, held_out
from benchmarks.plots import COLOURS, MUTED, STYLE
from tangentune.jacobian.linearization import Linearization
from tangentune.kernels.output_gram import logit_gram
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.labelled import class_positions, mean_features, network_input
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.networks.heads import probe_head, random_head
from tangentune.pictures.load import Pictures, load_pictures

NAME, SHOTS, EPOCHS = "kernel_drift", (10, 50), (0, 1, 2, 3, 5, 8, 15)
RATE, ALIGNED = 1e-4, 10  # pictures a class in every Gram matrix
PROTOCOL = {
    "data": DATA,
    "fine-tuning": f"AdamW, cross-entropy, rate {RATE:g}, flips, from an uncalibrated ridge probe as head (from a zero "
    "head the linear model would have no body); the schedule ends at the number of epochs named",
    "head kernel": "inner products of features",
    "body kernel": "inner products of the gradients of one fixed random direction of the features in all body weights",
    "alignment": "centred kernel alignment (Cortes et al. 2012, JMLR, definition 4) on 100 pictures, 10 a class: kept "
    "out of training and test, or of the training pictures",
    "labels": "the kernel y y^T of one-hot labels",
    "linear model": "f0 + J (w - w0) at the start's J with the fine-tuned weights w: the same path without the drift",
}
COLUMNS = {
    "head_to_start": "head kernel to start", "body_to_start": "body kernel to start",
    "head_to_labels": "head to labels",
    "body_to_labels": "body to labels", "body_to_labels_train": "body to labels, training pictures",
    "tuned": "accuracy: fine-tuned", "probe": "ridge probe on its features", "linear": "linear model, same path",
}  # fmt: skip


def main() -> None:
    """Measure what is missing, then write page and plot."""
    parser = study_parser(__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page anew")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=_whole, default=SHOTS, help="pictures a class, comma-separated")
    parser.add_argument("--epochs", type=_whole, default=EPOCHS, help="comma-separated; 0 is the start")
    parser.add_argument("--test", type=int, default=TEST, help="test pictures")
    given = parser.parse_args()
    begin(given)
    if not given.table:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
        backbone.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for shots in given.shots:
            for seed in range(given.seeds):
                keys = [{"shots": shots, "seed": seed, "epochs": k, "test": given.test} for k in given.epochs]
                missing = [key for key in keys if not record.done(NAME, key)]
                path = Path(backbone, shots, seed, given.test) if missing else None
                for key in missing:
                    assert path is not None
                    values = path.measure(key["epochs"])
                    record.append(NAME, key, values)
                    print(key, {name: round(value, 4) for name, value in values.items()}, flush=True)
    publish(given.test)


@dataclass(frozen=True, eq=False)
class Kernels:
    """Gram matrices (n, n) of some pictures at one network."""

    head: Tensor
    body: Tensor


class Path:
    """One split: its start, and what is compared with it."""

    def __init__(self, backbone: Backbone, shots: int, seed: int, test: int):
        self.backbone, self.seed = backbone, seed
        self.train, self.test = cifar_split(backbone, shots, seed, test)
        assert self.train.labels is not None
        self.aligned = {
            "": _pictures_apart(backbone),
            "_train": self.train.select(few_shot(self.train.labels, min(ALIGNED, shots), 0)),
        }
        self.labels = torch.from_numpy(class_positions(self.train)[1])
        self.head = probe_head(mean_features(backbone, self.train, 64, True), self.labels).requires_grad_(False)
        self.start = {name: kernels(backbone, pictures) for name, pictures in self.aligned.items()}

    def measure(self, epochs: int) -> dict[str, float]:
        """Kernels and accuracies after fine-tuning for so many epochs."""
        assert self.test.labels is not None
        backbone, head = self.backbone, self.head
        if epochs:
            settings = FineTuneSettings(learning_rate=RATE, epochs=epochs, head_start="probe", seed=self.seed)
            tuned = fine_tune(backbone, self.train, settings)
            backbone, head = tuned.backbone, tuned.head
        out: dict[str, float] = {}
        for name, pictures in self.aligned.items():
            now, then = kernels(backbone, pictures), self.start[name]
            wanted = label_kernel(pictures)
            out |= {f"head_to_start{name}": cka(now.head, then.head), f"head_to_labels{name}": cka(now.head, wanted)}
            out |= {f"body_to_start{name}": cka(now.body, then.body), f"body_to_labels{name}": cka(now.body, wanted)}
        seen, features = (mean_features(backbone, part, 64, False) for part in (self.train, self.test))
        with torch.no_grad():
            out["tuned"] = self._accuracy(head(features))
            out["probe"] = self._accuracy(probe_head(seen, self.labels)(features))
        out["linear"] = self._accuracy(self._linear(backbone, head))
        return out

    @torch.no_grad()
    def _linear(self, backbone: Backbone, head: nn.Linear) -> Tensor:
        """Outputs on the test pictures of the linear model around the start, moved as the network was."""
        lin = Linearization(self.backbone, "all", self.head)
        state = backbone.module.state_dict() | {f"head.{name}": p for name, p in head.named_parameters()}
        moved = lin.from_finetuned(state)
        with warm_pages():
            return torch.cat([lin(network_input(backbone, x), moved) for x in self.test.pixels.split(64)])

    def _accuracy(self, outputs: Tensor) -> float:
        return float((outputs.argmax(1).numpy() == self.test.labels).mean())


def kernels(backbone: Backbone, pictures: Pictures) -> Kernels:
    """Head and body kernel of some pictures; one forward and one backward pass."""
    phi = mean_features(backbone, pictures, 64, False).double()
    probe = random_head(phi.shape[1], 1, seed=0)
    body = [name for name in Linearization(backbone, "all", probe).names if not name.startswith("head.")]
    batches = [network_input(backbone, pixels) for pixels in pictures.pixels.split(25)]
    return Kernels(phi @ phi.T, logit_gram(Linearization(backbone, body, probe), batches))


def label_kernel(pictures: Pictures) -> Tensor:
    """`y y^T` of one-hot labels."""
    assert pictures.labels is not None
    labels = torch.from_numpy(pictures.labels)
    return (labels[:, None] == labels).double()


def cka(one: Tensor, two: Tensor) -> float:
    """Cosine of two Gram matrices after centring.

    Example:
        >>> cka(torch.eye(3), torch.eye(3))
        1.0
    """
    first, second = (k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for k in (one.double(), two.double()))
    return round(float((first * second).sum() / (first.norm() * second.norm())), 12)


def _pictures_apart(backbone: Backbone) -> Pictures:
    """Ten pictures a class that are in no training and no test set."""
    data = cifar10()
    others = held_out(len(data.test), 400, start=6000)
    chosen = others[few_shot(data.test_labels[others], ALIGNED, 0)]
    return load_pictures(data.test[chosen], data.test_labels[chosen], contract=backbone.contract)


def publish(test: int) -> None:
    """Write page and figure; print the page."""
    payload = record.load(NAME)
    rows = [row for row in payload.get("rows", []) if row["key"]["test"] == test]
    record.record(NAME, {**payload, "protocol": PROTOCOL})
    lines = ["# How far does the tangent kernel move while a network is fine-tuned?", ""]
    table = []
    for shots in sorted({row["key"]["shots"] for row in rows}):
        epochs = sorted({row["key"]["epochs"] for row in rows if row["key"]["shots"] == shots})
        first, last = (_of(rows, shots, k) for k in (epochs[0], epochs[-1]))
        lines.append(f"- {shots} pictures a class, {epochs[-1]} epochs: {_finding(first, last)}.")
        for k in epochs:
            group = _of(rows, shots, k)
            cells = {title: mean_spread([row[name] for row in group]) for name, title in COLUMNS.items()}
            table.append({"shots": shots, "epochs": k, "seeds": len(group), **cells})
    lines += ["", record.markdown_table(table, dict.fromkeys(table[0], "")) if table else "", ""]
    lines += [f"- {name}: {text}." for name, text in PROTOCOL.items()]
    lines.append(f"- test: first {test} of the shuffled (seed 12345) test batch, plain predictions.")
    text = "\n".join([*lines, "", f"![Drift of the tangent kernel]({NAME}.png)", ""])
    figure(rows).savefig(record.RESULTS / f"{NAME}.png", dpi=160)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    print(text)


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Alignments above, accuracies below, against epochs; a column for each number of pictures a class."""
    every = sorted({row["key"]["shots"] for row in rows}) or [0]
    styles = {"head_to_start": (0, "--"), "body_to_start": (0, "-")}
    styles |= {"head_to_labels": (1, "--"), "body_to_labels": (1, "-")}
    accuracies = {"tuned": COLOURS[1], "probe": MUTED, "linear": COLOURS[0]}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(every), 5.4), layout="constrained")
        panels = figure.subplots(2, len(every), squeeze=False, sharex=True, sharey="row")
        for column, shots in enumerate(every):
            above, below = panels[:, column]
            epochs = sorted({row["key"]["epochs"] for row in rows if row["key"]["shots"] == shots})
            place = np.sqrt(epochs)  # the start is where most happens
            for name, (colour, style) in styles.items():
                above.plot(place, _means(rows, shots, epochs, name), style, color=COLOURS[colour], label=COLUMNS[name])
            for name, colour in accuracies.items():
                label = COLUMNS[name].removeprefix("accuracy: ")
                below.plot(place, _means(rows, shots, epochs, name), "o-", markersize=3, color=colour, label=label)
            below.set_xticks(place, [str(k) for k in epochs])
            below.set_xlabel("epochs (square-root scale)")
            above.set_title(f"{shots} pictures a class", loc="left")
        panels[0, 0].set_ylabel("centred alignment, held-out pictures")
        panels[1, 0].set_ylabel("test accuracy")
        panels[0, -1].legend(fontsize=7)
        panels[1, -1].legend(fontsize=7)
        return figure


def _of(rows: Sequence[Mapping[str, Any]], shots: int, epochs: int) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["key"]["shots"], row["key"]["epochs"]) == (shots, epochs)]


def _mean(group: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in group)


def _means(rows: Sequence[Mapping[str, Any]], shots: int, epochs: Sequence[int], name: str) -> list[float]:
    return [_mean(_of(rows, shots, k), name) for k in epochs]


def _finding(first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]) -> str:
    """The ends of the path in words."""
    turned = f"the body kernel keeps an alignment of {_mean(last, 'body_to_start'):.2f} with its start"
    labels = f"its alignment with labels goes from {_mean(first, 'body_to_labels'):.2f} to"
    labels += f" {_mean(last, 'body_to_labels'):.2f} on pictures kept out"
    scores = [f"{100 * _mean(last, name):.1f} %" for name in ("tuned", "probe", "linear")]
    return (
        f"{turned}, {labels}; accuracy: fine-tuned {scores[0]}, a probe on its features {scores[1]}, the linear model "
        f"along the same path {scores[2]} (start: {100 * _mean(first, 'tuned'):.1f} %)"
    )


def _whole(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
