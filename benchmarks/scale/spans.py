"""What of the exact kernel's gain over the probe a half and a quarter as many directions keep, however they are chosen.

    python -m benchmarks.scale.spans          # about ten minutes, one thread

The rows of a map whose landmarks are all 2,000 pictures hold the whole kernel; from it every choice is simulated, the
damping being in each case the one that suits the held-out pictures best.
"""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets import few_shot, held_out
from benchmarks.record import Row, fill
from benchmarks.scale.run import SETS
from benchmarks.study import begin, study_parser
from tangentune import TangentFeatures, load_backbone
from tangentune.kernels.landmark_fit import AMONG
from tangentune.solvers.landmarks import choose_landmarks, inverse_root
from tangentune.solvers.ridge import factor_ridge, solve

NAME, SIZE, A_CLASS, TESTS = "scale_spans", 96, 200, 1000
KEYS: list[Row] = [{"set": name, "pictures": 10 * A_CLASS, "seed": 100} for name in SETS]
DAMPINGS = torch.logspace(-3.5, 0.5, 17, dtype=torch.float64)
DRAWS = 3  # of what is drawn at random


def measure(key: Row) -> Row:
    """Squared errors on held-out pictures: of probe and kernel, and by directions."""
    torch.set_num_threads(1)
    data, backbone = SETS[key["set"]](), load_backbone("mobilenet_v2").with_size(SIZE)
    some, test = few_shot(data.train_labels, A_CLASS, key["seed"]), held_out(len(data.test), TESTS)
    known, new = data.some(some, test).loaded(backbone)
    made = TangentFeatures(backbone, landmarks=len(known), augment=None).fit(known)
    rows, others = (torch.as_tensor(made.transform(pictures)).double() for pictures in (known, new))
    wide = rows.shape[1] - len(known)
    truth, wanted = (F.one_hot(torch.as_tensor(labels)).double() for labels in (known.labels, new.labels))
    head, head_new = rows[:, :wide], others[:, :wide]
    body, cross = rows[:, wide:] @ rows[:, wide:].T, others[:, wide:] @ rows[:, wide:].T

    def error(own: Tensor, met: Tensor) -> float:
        """By head and some kernel of the body."""
        factor = factor_ridge(head @ head.T + own)
        kernel, tried = head_new @ head.T + met, list[float]()
        for damping in (DAMPINGS * factor.mean_eigenvalue).tolist():
            found = solve(factor, truth, damping)
            tried.append(float((kernel @ found.dual + found.intercept - wanted).square().sum(1).mean()))
        return min(tried)

    def spanned(directions: Tensor) -> float:
        """By what directions (n, m) of the pictures' rows span."""
        root = inverse_root(directions.T @ body @ directions)
        left, right = body @ directions @ root, cross @ directions @ root
        return error(left @ left.T, right @ left.T)

    def pictures_at(places: Tensor) -> Tensor:
        return torch.eye(len(known), dtype=torch.float64)[:, places]

    def drawn(seed: int, count: int) -> dict[str, Tensor]:
        """Directions by how they are chosen."""
        evenly = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        among, unit = evenly[: AMONG * count].sort().values, F.normalize(head, dim=1)
        means = KMeans(count, max_iter=10, random_state=seed).fit(unit.numpy()).labels_
        group = F.one_hot(torch.as_tensor(means).long(), count).double()
        return {
            "evenly": pictures_at(evenly[:count]),
            "as fits do": pictures_at(among[choose_landmarks(unit[among], count, seed)]),
            "pivoted Cholesky on the body's rows": pictures_at(choose_landmarks(rows[:, wide:], count, seed)),
            "means of clusters": group[:, group.any(0)] / group.sum(0)[group.any(0)],
        }

    zero = torch.zeros_like(body)
    out: Row = {"probe": error(zero, torch.zeros_like(cross)), "kernel": error(body, cross), "kept": {}}
    values = torch.linalg.eigh(body)
    for count in (len(known) // 4, len(known) // 2):
        errors = dict[str, list[float]]()
        for seed in range(DRAWS):
            for name, directions in drawn(seed, count).items():
                errors.setdefault(name, []).append(spanned(directions))
        errors["principal directions of all"] = [spanned(values.eigenvectors[:, -count:])]
        out["kept"][str(count)] = errors
    return out


def main() -> None:
    """docs/results/scale_spans.json."""
    begin(study_parser(__doc__))
    fill(NAME, KEYS, measure)


if __name__ == "__main__":
    main()
