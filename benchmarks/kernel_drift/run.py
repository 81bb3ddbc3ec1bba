"""How far does the tangent kernel move while a network is fine-tuned, and what does the move bring?

    python -m benchmarks.kernel_drift.run    # what is missing, then page and plot; about 7 minutes, one thread

A linear model cannot follow a kernel that moves: if the kernel turns towards the labels and accuracy rises with it,
that part of fine-tuning is out of LQF's reach at one linearisation point. Every number of epochs is a run of its own
with its own schedule. It may be stopped and started again at any time.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.datasets import cifar10, cifar_split, few_shot, held_out
from benchmarks.kernel_drift.page import NAME, TEST, publish
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, mean_features, network_inputs, numbers, study_parser
from tangentune import Backbone, Linearization, Pictures, baselines, heads, load_backbone, load_pictures
from tangentune.kernels.output_gram import logit_gram
from tangentune.memory import warm_pages

SIZE, SHOTS, EPOCHS = 96, (10, 50), (0, 1, 2, 3, 5, 8, 15)
RATE, ALIGNED = 1e-4, 10  # pictures a class in every Gram matrix


def main() -> None:
    """Measure what is missing, then write page and plot."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=numbers(int), default=SHOTS, help="pictures a class, comma-separated")
    parser.add_argument("--epochs", type=numbers(int), default=EPOCHS, help="comma-separated; 0 is the start")
    given = begin(parser)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    backbone.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    path = cache(lambda shots, seed: Path(backbone, shots, seed))
    for shots in given.shots:
        for seed in range(given.seeds):
            keys = [{"shots": shots, "seed": seed, "epochs": k, "test": TEST} for k in given.epochs]
            record.fill(NAME, keys, lambda key: path(key["shots"], key["seed"]).measure(key["epochs"]))
    publish()


class Path:
    """One split: its start, and what is compared with it."""

    def __init__(self, backbone: Backbone, shots: int, seed: int):
        self.backbone, self.seed = backbone, seed
        self.train, self.test = cifar_split(backbone, shots, seed, TEST)
        own = few_shot(labels_of(self.train), min(ALIGNED, shots), 0)
        self.aligned = {"": pictures_apart(backbone), "_train": self.train.select(own)}
        self.labels = torch.from_numpy(labels_of(self.train))
        features = mean_features(backbone, self.train, flip=True)
        self.head = heads.probe_head(features, self.labels).requires_grad_(False)
        self.start = {name: kernels(backbone, pictures) for name, pictures in self.aligned.items()}

    def measure(self, epochs: int) -> Row:
        """Kernels and accuracies after fine-tuning for so many epochs."""
        backbone, head = self.backbone, self.head
        if epochs:
            more = {"epochs": epochs, "head_start": "probe", "seed": self.seed}
            settings = baselines.FineTuneSettings(learning_rate=RATE, **more)
            tuned = baselines.fine_tune(backbone, self.train, settings)
            backbone, head = tuned.backbone, tuned.head
        out: Row = {}
        for name, pictures in self.aligned.items():
            labels = torch.from_numpy(labels_of(pictures))
            wanted = (labels[:, None] == labels).double()
            for part, now in kernels(backbone, pictures).items():
                out[f"{part}_to_start{name}"] = cka(now, self.start[name][part])
                out[f"{part}_to_labels{name}"] = cka(now, wanted)
        seen, features = (mean_features(backbone, part, flip=False) for part in (self.train, self.test))
        with torch.no_grad(), warm_pages():
            out["tuned"] = self.accuracy(head(features))
            out["probe"] = self.accuracy(heads.probe_head(seen, self.labels)(features))
            # the linear model around the start, moved as the network was
            lin = Linearization(self.backbone, "all", self.head)
            state = backbone.module.state_dict() | {f"head.{name}": p for name, p in head.named_parameters()}
            moved = lin.from_finetuned(state)
            out["linear"] = self.accuracy(torch.cat([lin(x, moved) for x in network_inputs(backbone, self.test)]))
        return out

    def accuracy(self, outputs: Tensor) -> float:
        """On the test pictures."""
        return float((outputs.argmax(1).numpy() == self.test.labels).mean())


def kernels(backbone: Backbone, pictures: Pictures) -> dict[str, Tensor]:
    """Gram matrices (n, n) of "head" and "body" at some pictures; one forward and one backward pass."""
    phi = mean_features(backbone, pictures, flip=False).double()
    probe = heads.random_head(phi.shape[1], 1, seed=0)
    body = [name for name in Linearization(backbone, "all", probe).names if not name.startswith("head.")]
    batches = list(network_inputs(backbone, pictures, 25))
    return {"head": phi @ phi.T, "body": logit_gram(Linearization(backbone, body, probe), batches)}


def cka(one: Tensor, two: Tensor) -> float:
    """Cosine of two Gram matrices after centring.

    Example:
        >>> cka(torch.eye(3), torch.eye(3))
        1.0
    """
    first, second = (k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for k in (one.double(), two.double()))
    return round(float((first * second).sum() / (first.norm() * second.norm())), 12)


def pictures_apart(backbone: Backbone) -> Pictures:
    """Ten pictures a class that are in no training and no test set."""
    data = cifar10()
    others = held_out(len(data.test), 400, start=6000)
    chosen = others[few_shot(data.test_labels[others], ALIGNED, 0)]
    return load_pictures(data.test[chosen], data.test_labels[chosen], contract=backbone.contract)


if __name__ == "__main__":
    main()
