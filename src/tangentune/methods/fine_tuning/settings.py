"""Choices of ordinary fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from tangentune.errors import check_counts, check_numbers, check_positive, check_shares, check_words

HeadStart = Literal["zero", "probe", "calibrated_probe", "random"]


@final
@dataclass(frozen=True)
class FineTuneSettings:
    """Choices of ordinary fine-tuning; the defaults were the best of those in docs/results/finetune_accuracy.json.

    Attributes:
        learning_rate: peak rate of the head; that of all layers unless `layer_decay` is below 1.
        epochs: passes over the pictures.
        batch_size: largest batch; an epoch is cut into equal batches, so that none is tiny.
        weight_decay: decoupled for "adamw" (0 is plain Adam); added to the gradient for "sgd".
        warmup: share of all steps in which the rate rises linearly from nearly zero, in [0, 1).
        schedule: what the rate does after the warm-up: "cosine" decay to zero or "constant".
        flip: mirror each picture left-right with probability 1/2 at every step (vectors are left alone).
        head_start: "zero", "random", or, to probe and then fine-tune (Kumar et al. 2022, ICLR, section 3.4), "probe" or
            "calibrated_probe" (see `probe_head`).
        batchnorm: "eval" keeps the pre-trained statistics, "train" uses and updates those of the batches.
        seed: order of the pictures, mirroring, crops, a random head and the validation split.
        crop: smallest share of the area that a random crop, resized to the whole, keeps at every step, in (0, 1].
        loss: "cross_entropy", or "squared": `1/2 ||logits - target_scale one_hot||^2`, averaged over the batch.
        target_scale: length of the one-hot targets of the squared loss.
        label_smoothing: share of the cross-entropy's target that is spread over all classes, in [0, 1).
        optimiser: "adamw", or "sgd" with momentum 0.9.
        layer_decay: in (0, 1], by which rates fall from block to block, the last block's being `layer_decay` and the
            head's 1 (Clark et al. 2020, ICLR, section 3.1).
        frozen: share of the blocks, the first ones, whose weights stay as they are, in [0, 1).
        validation_share: of each class, kept aside to validate after every epoch, in [0, 1); if not 0, one picture at
            least of a class that has two.
        patience: epochs without a better validation result (accuracy, then log-loss) after which training stops; the
            best epoch's weights are kept. 0, or nobody to validate on: all epochs run and the last weights are kept.

    Raises:
        InputError: a number is out of range or a choice is unknown.
    """

    learning_rate: float = 1e-4
    epochs: int = 15
    batch_size: int = 32
    weight_decay: float = 0.0
    warmup: float = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    flip: bool = True
    head_start: HeadStart = "zero"
    batchnorm: Literal["eval", "train"] = "eval"
    seed: int = 0
    crop: float = 1.0
    loss: Literal["cross_entropy", "squared"] = "cross_entropy"
    target_scale: float = 1.0
    label_smoothing: float = 0.0
    optimiser: Literal["adamw", "sgd"] = "adamw"
    layer_decay: float = 1.0
    frozen: float = 0.0
    validation_share: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        check_words(self)
        check_positive(self, "learning_rate", "target_scale")
        check_counts(self, {"epochs": 1, "batch_size": 1, "patience": 0})
        check_numbers(self, ["weight_decay"], lambda value: value >= 0, "a number of at least 0")
        check_shares(self, "warmup", "label_smoothing", "validation_share", "frozen")
        check_numbers(self, ["crop", "layer_decay"], lambda value: 0 < value <= 1, "above 0 and at most 1")
