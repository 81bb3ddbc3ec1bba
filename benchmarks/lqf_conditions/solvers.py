"""How LQF's linear problem is solved: `python -m benchmarks.lqf_conditions.solvers`; a quarter of an hour.

"dual": pre-conditioners of conjugate gradients, counted in products with the exact Gram matrix of LQF's rows on 100
CIFAR-10 pictures (MobileNetV2, 32 px, 1,000 rows): a product is a pass over the pictures. How many are needed until the
gradient of the tangent has fallen to a thousandth? "stochastic": how far above the optimum training ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import DUAL, STOCHASTIC, publish
from benchmarks.record import Row
from benchmarks.study import begin, quietly, study_parser
from tangentune import load_backbone
from tangentune.methods.fine_tuning.labelled import class_positions
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.methods.lqf.start import mean_eigenvalue, start
from tangentune.solvers.landmarks import choose_landmarks
from tangentune.solvers.pcg import pcg

SHOTS, SIZE, TARGET, CAP = 10, 32, 1e-3, 300
DAMPINGS, LANDMARKS = (0.1, 0.01, 0.001), (10, 20, 50)
Apply = Callable[[Tensor], Tensor]
RUNS = {  # epochs, what is trained and how: solver, batch, rate
    "adam": LQFSettings(solver="adam"),
    "kfac": LQFSettings(solver="kfac"),
    "kfac, small batches": LQFSettings(solver="kfac", batch_size=8),
}


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    warnings.simplefilter("ignore", RuntimeWarning)  # conjugate gradients that stop at the cap say so
    with quietly():
        if not record.load(DUAL).get("directions"):
            dual()
        keys = [{"run": run, "size": size, "seed": seed} for size in (SIZE, 96) for seed in range(2) for run in RUNS]
        record.fill(STOCHASTIC, keys, stochastic)
    publish()


def stochastic(key: Row) -> Row:
    """Share of the way to the exact optimum that is left after twelve epochs."""
    backbone = load_backbone("mobilenet_v2").with_size(key["size"])
    train, _ = datasets.cifar_split(backbone, SHOTS, key["seed"], test=10)
    settings = replace(RUNS[key["run"]], epochs=12, seed=key["seed"], exact_optimum=True, measure_every=4)
    found = fit_lqf(backbone, train, settings).records[0]
    left = [found.suboptimality(place) for place in range(1, len(found.points))]
    return {"epochs": [point.epoch for point in found.points[1:]], "left": left, "last": left[-1]}


def dual() -> None:
    """Products with the Gram matrix, by damping and pre-conditioner."""
    kernel, wanted, features, unit, head = problem()
    rows = []
    for damping in DAMPINGS:
        absolute = damping * unit
        line = {"damping": damping, "plain, on the tangent": products(kernel, wanted, absolute, None, primal=True)}
        for name, inverse in ways(kernel, features, head, absolute).items():
            line[name] = products(kernel, wanted, absolute, inverse)
        rows.append(line)
        print(line, flush=True)
    record.record(DUAL, {"pictures": len(features), "target": TARGET, "directions": len(head), "rows": rows})


def problem() -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """Gram matrix (n C, n C) and residuals (n C,) of LQF, features (n, d), the unit of damping, the head's (C, d)."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    train, _ = datasets.cifar_split(backbone, SHOTS, 0, test=10)
    settings, positions = LQFSettings(flip=False), torch.from_numpy(class_positions(train)[1])
    began = start(backbone, train, positions, settings)
    objective = began.objective(train, positions, settings, 1.0)
    unit = mean_eigenvalue(objective, settings.seed)[0]
    system = replace(objective, damping=unit).solved().system
    features = began.backbone.features(objective.inputs(torch.arange(len(train)), 0)).detach()
    head = began.head.weight.detach().double()
    return system.kernel.double(), system.targets.double().reshape(-1), features.double(), unit, head


def ways(kernel: Tensor, features: Tensor, head: Tensor, damping: float) -> dict[str, Apply | None]:
    """Approximate inverses of the damped Gram matrix; None is none.

    "One kernel for all outputs" is the mean of the outputs' kernels. "Head and body apart": the head's kernel is that
    of the features for every output, exactly; the body's is taken to be one kernel times a matrix G of the outputs,
    whose eigenvectors are output directions with a kernel each. "Direction by direction" takes the true kernel of each.
    """
    n, outputs = len(features), len(head)
    blocks = kernel.view(n, outputs, n, outputs)
    of_head = features @ features.T + 1
    body = blocks - torch.einsum("ij,ab->iajb", of_head, torch.eye(outputs).double())
    gram = torch.einsum("iaib->ab", body) / n
    scales, turn = torch.linalg.eigh((gram + gram.T) / 2)
    one_body = torch.einsum("iaja->ij", body) / scales.sum()
    turned = torch.einsum("iajb,ac,bc->cij", blocks, turn, turn)
    shared = torch.einsum("iaja->ij", blocks) / outputs
    damp = damping * torch.eye(n).double()

    def by_direction(kernels: Tensor) -> Tensor:
        """Dense inverse of the kernels (C, n, n) of the output directions, damped."""
        inverses = torch.linalg.inv(kernels + damp)
        return torch.einsum("cij,ac,bc->iajb", inverses, turn, turn).reshape(len(kernel), -1)

    one = by_direction(shared.expand(outputs, n, n))
    apart = by_direction(of_head + scales.clamp_min(0)[:, None, None] * one_body)
    each = by_direction(turned)
    damped = kernel + damping * torch.eye(len(kernel)).double()
    inner = {"one kernel for all outputs": one, "head and body apart": apart, "direction by direction": each}
    found: dict[str, Apply | None] = {"plain": None} | {name: own.__matmul__ for name, own in inner.items()}
    for count, (name, own) in product(
        LANDMARKS, ({"nothing": torch.eye(len(damped)).double() / damping} | inner).items()
    ):
        chosen = choose_landmarks(features, count)
        members = (chosen[:, None] * outputs + torch.arange(outputs)).reshape(-1)
        found[f"{count} landmarks, and {name}"] = balanced(own, damped, members)
    return found


def balanced(inner: Tensor, damped: Tensor, members: Tensor) -> Apply:
    """Solve for the landmarks' own coordinates exactly, and elsewhere as `inner` does (Mandel 1993: balancing)."""
    columns, core = damped[:, members], torch.linalg.inv(damped[members][:, members])

    def apply(residual: Tensor) -> Tensor:
        coarse = core @ residual[members]
        rest = inner @ (residual - columns @ coarse)
        rest[members] += coarse - core @ (columns.T @ rest)
        return rest

    return apply


def products(kernel: Tensor, wanted: Tensor, damping: float, inverse: Apply | None, primal: bool = False) -> int:
    """Products with the Gram matrix until the gradient's length is a thousandth of that at the start; at most CAP.

    On the tangent, conjugate gradients see the same matrix in the inner product of the rows.
    """
    identity = torch.eye(len(kernel), dtype=torch.float64)
    root = rows_of(kernel) if primal else identity
    matrix = root.T @ root + damping * identity if primal else kernel + damping * identity
    lengths = [float(length(kernel, wanted))]

    def note(_number: int, _residual: float, x: Tensor) -> None:
        gradient = root.T @ wanted - matrix @ x if primal else wanted - matrix @ x
        lengths.append(float(gradient.norm() if primal else length(kernel, gradient)))

    pcg(
        matrix.__matmul__, root.T @ wanted if primal else wanted, precondition=inverse, tolerance=1e-9,
        max_iterations=CAP, callback=note,
    )  # fmt: skip
    return next((i for i, value in enumerate(lengths) if value <= TARGET * lengths[0]), CAP)


def length(kernel: Tensor, dual: Tensor) -> Tensor:
    """Of the tangent `J^T dual`."""
    return (dual @ kernel @ dual).clamp_min(0).sqrt()


def rows_of(kernel: Tensor) -> Tensor:
    """Rows whose products are the Gram matrix."""
    values, vectors = torch.linalg.eigh(kernel)
    return vectors * values.clamp_min(0).sqrt()


if __name__ == "__main__":
    main()
