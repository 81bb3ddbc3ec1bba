"""Which part of LQF matters? {ReLU, Leaky-ReLU} x {cross-entropy, squared} x {Adam, K-FAC} on few-shot CIFAR-10.

    python -m benchmarks.ablation            # what is missing, then table and figure; about 25 minutes, one thread
    python -m benchmarks.ablation --table    # measure nothing, write the page anew

Dampings and rates are chosen first, by rule, on other training and test pictures (section "choice" of the results).
Every linear problem is also solved exactly (benchmarks.lqf_optimum), so that sub-optimality is known and not guessed.
It may be stopped and started again at any time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import torch

from benchmarks import record
from benchmarks.ablation_page import publish
from benchmarks.cifar_split import SIZE, TEST, begin, cifar_split, scores, study_parser
from benchmarks.lqf_optimum import optimum
from tangentune.errors import InputError
from tangentune.kernels.output_gram import logit_gram
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.labelled import class_positions, network_input
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.methods.lqf.exact import Views
from tangentune.methods.lqf.start import mean_eigenvalue, start
from tangentune.metrics import accuracy
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.networks.healing import heal_batchnorm
from tangentune.networks.leaky import leaky
from tangentune.pictures.load import Pictures

NAME, SHOTS, SLOPE, CHOICE_SEED = "ablation", 10, 0.01, 100
ACTIVATIONS, LOSSES, SOLVERS = ("relu", "leaky"), ("cross_entropy", "squared"), ("adam", "kfac")
BASE = LQFSettings(head="cross_fitted", flip=False, epochs=12, batch_size=32, measure_every=1)
TUNED = FineTuneSettings(learning_rate=1e-4)  # best at 10 pictures a class in docs/results/finetune_accuracy.json
TRIED_DAMPINGS = (0.1, 0.3, 1.0, 3.0)  # beyond, the optimum is little but the probe
TRIED_RATES = {"adam": (1e-4, 3e-4), "kfac": (0.3, 1.0)}


def main() -> None:
    """Measure what is missing, then write table and figure."""
    parser = study_parser(__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page anew")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=SHOTS)
    parser.add_argument("--epochs", type=int, default=BASE.epochs)
    parser.add_argument("--test", type=int, default=TEST, help="test pictures")
    given = parser.parse_args()
    begin(given)
    if not given.table:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
        study = Study(backbone, given.shots, given.epochs, given.test)
        for seed in range(given.seeds):
            study.measure(seed)
    publish(NAME, protocol())


def protocol() -> dict[str, str]:
    """What the page says about how it was measured."""
    return {
        "task": f"CIFAR-10, few_shot(train labels, {SHOTS}, seed), MobileNetV2 at {SIZE} px, all layers move",
        "test": f"first {TEST} of the shuffled (seed 12345) test batch; plain predictions, no mirror images",
        "LQF": f"cross-fitted ridge probe as head, all layers, no flips, {BASE.epochs} epochs, mini-batches of at most "
        f"{BASE.batch_size}, cosine decay after a warm-up of 10 %; K-FAC: SGD with momentum 0.9 on preconditioned "
        "gradients, its rate in units of 1 / the largest curvature of the first mini-batch",
        "leaky": f"slope {SLOPE} in place of ReLU6, BatchNorm statistics healed against the original network on the "
        "labelled pictures themselves: no further picture is used",
        "chosen with ReLU, seed 100": "damping of each loss by the exact optimum's accuracy on 500 held-out pictures "
        f"from 4,000 on, of {TRIED_DAMPINGS} times K's mean eigenvalue; then the rate of each loss and solver by the "
        f"least objective after all epochs, of {TRIED_RATES}; everything tried is in section `choice` of the JSON file",
        "sub-optimality": "(P(u) - P*) / (P(0) - P*), measured over all pictures after every epoch; P* is exact for "
        "both losses: Newton's method in the span of the pictures' gradients, `u = J^T a`",
        "fine-tuning": f"AdamW, rate {TUNED.learning_rate:g}, {TUNED.epochs} epochs, head from zero; flips as named",
        "seconds": "processor time of one thread; LQF's include one exact measurement an epoch",
    }


class Study:
    """One setting of the study; everything it measures goes to the results file."""

    def __init__(self, backbone: Backbone, shots: int, epochs: int, test: int):
        self.backbone, self.shots, self.epochs, self.test = backbone, shots, epochs, test
        self.dampings, self.rates = cache(self._dampings), cache(self._rates)
        self.network = cache(self._network)
        self.pictures = cache(lambda seed: cifar_split(backbone, shots, seed, test))

    def measure(self, seed: int) -> None:
        """Everything of one seed that is missing."""
        for activation in ACTIVATIONS:
            for loss, solver in product(LOSSES, SOLVERS):
                self._lqf(activation, loss, solver, seed)
            self._optima(activation, seed)
        for activation, loss in product(ACTIVATIONS, LOSSES):
            self._fine_tuned(activation, loss, False, seed)
        self._fine_tuned("relu", "cross_entropy", True, seed)

    def _dampings(self) -> dict[str, float]:
        """Of each loss: the best for the exact optimum's accuracy on development pictures; the largest of equals."""
        key = {"what": "damping", "shots": self.shots, "head": BASE.head, "tried": list(TRIED_DAMPINGS)}
        row = record.done(NAME, key, "choice")
        if row is None:
            dampings = dict.fromkeys(LOSSES, TRIED_DAMPINGS)
            row = {"found": solve_both(self.backbone, *self._development(), CHOICE_SEED, dampings)}
            record.append(NAME, key, row, "choice")
        best = {loss: [found for found in row["found"] if found["loss"] == loss] for loss in LOSSES}
        ranked = {loss: max(own, key=lambda f: (f["accuracy"], f["damping"])) for loss, own in best.items()}
        return {loss: found["relative_damping"] for loss, found in ranked.items()}

    def _rates(self) -> dict[tuple[str, str], float]:
        """Of each loss and solver: that of the least objective after all epochs, on development pictures."""
        out = {}
        for loss, solver in product(LOSSES, SOLVERS):
            ends = {}
            for rate in TRIED_RATES[solver]:
                settings = self._settings(loss, solver, rate, CHOICE_SEED)
                key = {"what": "rate", "loss": loss, "solver": solver, "rate": rate, "shots": self.shots}
                key |= {"epochs": self.epochs, "head": BASE.head, "damping": settings.damping}
                row = record.done(NAME, key, "choice")
                if row is None:
                    row = run_lqf(self.backbone, *self._development(), replace(settings, measure_every=0))
                    record.append(NAME, key, row, "choice")
                    print(key, row["accuracy"], row["objectives"], flush=True)
                ends[rate] = row["objectives"][-1] if row["objectives"] else float("inf")
            out[loss, solver] = min(ends, key=lambda rate: ends[rate])
        return out

    def _development(self) -> tuple[Pictures, Pictures]:
        return cifar_split(self.backbone, self.shots, CHOICE_SEED, self.test // 2, start=4000)

    def _settings(self, loss: Any, solver: Any, rate: float, seed: int) -> LQFSettings:
        more = {"damping": self.dampings()[loss], "learning_rate": rate, "epochs": self.epochs, "seed": seed}
        return replace(BASE, loss=loss, solver=solver, **more)

    def _network(self, activation: str, seed: int) -> Backbone:
        """The network as it is, or leaking and healed on the labelled pictures of this seed."""
        if activation == "relu":
            return self.backbone
        changed = leaky(self.backbone, SLOPE).network
        inputs = self.pictures(seed)[0].batches(self.backbone.contract, 50)
        return heal_batchnorm(changed, inputs, reference=self.backbone)

    def _lqf(self, activation: str, loss: str, solver: str, seed: int) -> None:
        key = {"method": "lqf", "activation": activation, "loss": loss, "solver": solver} | self._key(seed)
        if not record.done(NAME, key):
            settings = self._settings(loss, solver, self.rates()[loss, solver], seed)
            values = run_lqf(self.network(activation, seed), *self.pictures(seed), settings)
            record.append(NAME, key, values)
            print(key, {name: values.get(name) for name in ("accuracy", "nll", "cpu_seconds")}, flush=True)

    def _optima(self, activation: str, seed: int) -> None:
        key = {"activation": activation, "seed": seed, "shots": self.shots, "test": self.test}
        if not record.done(NAME, key, "optima"):
            dampings = {loss: (value,) for loss, value in self.dampings().items()}
            found = solve_both(self.network(activation, seed), *self.pictures(seed), seed, dampings)
            record.append(NAME, key, {"found": found}, "optima")
            print(key, found, flush=True)

    def _fine_tuned(self, activation: str, loss: Any, flip: bool, seed: int) -> None:
        key = {"method": "fine-tuning", "activation": activation, "loss": loss, "flip": flip} | self._key(seed)
        if record.done(NAME, key):
            return
        train, test = self.pictures(seed)
        settings = replace(TUNED, loss=loss, flip=flip, seed=seed)
        tuned = fine_tune(self.network(activation, seed), train, settings)
        values = {**scores(tuned, test), "cpu_seconds": round(tuned.cpu_seconds, 2)}
        record.append(NAME, key, values)
        print(key, values, flush=True)

    def _key(self, seed: int) -> dict[str, int]:
        return {"seed": seed, "shots": self.shots, "epochs": self.epochs, "test": self.test}


def run_lqf(backbone: Backbone, train: Pictures, test: Pictures, settings: LQFSettings) -> dict[str, Any]:
    """Train and score; `objectives` holds P after every epoch from 0 on. A diverged run says so."""
    try:
        fitted = fit_lqf(backbone, train, settings)
    except InputError as error:
        return {"diverged": True, "reason": str(error), "accuracy": None, "objectives": []}
    points = fitted.records[0].points
    return {
        **scores(fitted, test),
        "objectives": [point.objective for point in points],
        "certified": fitted.records[0].suboptimality(),
        "damping": fitted.damping,
        "learning_rate": settings.learning_rate,
        "cpu_seconds": round(fitted.cpu_seconds, 2),
    }


def solve_both(
    backbone: Backbone, train: Pictures, test: Pictures, seed: int, dampings: dict[str, tuple[float, ...]]
) -> list[dict[str, Any]]:
    """Exact optima of both losses at some dampings, from one Gram matrix, with their accuracy."""
    assert test.labels is not None
    classes, positions = class_positions(train)
    labels, out = torch.from_numpy(positions), []
    with warm_pages():
        began = start(backbone, train, labels, replace(BASE, seed=seed))
        first = began.objective(train, labels, BASE, 1.0)
        unit, clock = mean_eigenvalue(first, seed)[0], time.process_time()
        kernel = logit_gram(first.lin, Views(first))
        seconds = time.process_time() - clock
        at_start = torch.cat([first.lin.f0(network_input(began.backbone, x)) for x in test.pixels.split(64)])
        probe = accuracy(test.labels, classes[at_start.argmax(1)])
        shared = {"probe_accuracy": probe, "gram_cpu_seconds": round(seconds, 2)}
        for loss, values in dampings.items():
            for damping in values:
                objective = began.objective(train, labels, replace(BASE, loss=loss), damping * unit)
                found = optimum(objective, kernel)
                u = found.tangent(objective)
                with torch.no_grad():
                    inputs = (network_input(began.backbone, pixels) for pixels in test.pixels.split(64))
                    best = torch.cat([objective.lin(x, u).argmax(1) for x in inputs])
                values_of = {"start": found.start, "least": found.least, "bound": found.bound}
                known = {"loss": loss, "relative_damping": damping, "damping": objective.damping}
                out.append({**known, **values_of, "accuracy": accuracy(test.labels, classes[best]), **shared})
    return out


if __name__ == "__main__":
    main()
