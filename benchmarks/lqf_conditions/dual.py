"""Pre-conditioners in the dual of LQF, counted in products: `python -m benchmarks.lqf_conditions.dual`; two minutes.

The exact Gram of LQF's rows on 100 CIFAR-10 pictures at 32 px (MobileNetV2, 1,000 rows) stands for the passes: a
product with it is one pass over the pictures. How many are needed until the gradient has fallen to a thousandth?
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import datasets
from benchmarks.record import record
from benchmarks.study import begin, quietly, study_parser
from tangentune import load_backbone
from tangentune.methods.fine_tuning.labelled import class_positions
from tangentune.methods.lqf import LQFSettings
from tangentune.methods.lqf.start import mean_eigenvalue, start
from tangentune.solvers.landmarks import choose_landmarks, inverse_root
from tangentune.solvers.pcg import pcg

NAME, SHOTS, SIZE, TARGET, CAP = "lqf_dual", 10, 32, 1e-3, 300
DAMPINGS, LANDMARKS = (0.1, 0.01, 0.001), (10, 20, 50)


def main() -> None:
    """Measure, print, write docs/results/lqf_dual.json."""
    begin(study_parser(__doc__))
    warnings.simplefilter("ignore", RuntimeWarning)  # conjugate gradients that stop at the cap say so
    with quietly():
        kernel, wanted, features, unit = problem()
    rows = []
    for damping in DAMPINGS:
        absolute = damping * unit
        line = {"damping": damping, "plain, on the tangent": products(kernel, wanted, absolute, None, primal=True)}
        for name, approximate in ways(kernel, features).items():
            line[name] = products(kernel, wanted, absolute, approximate)
        rows.append(line)
        print(line, flush=True)
    record(NAME, {"pictures": len(features), "target": TARGET, "rows": rows})


def problem() -> tuple[Tensor, Tensor, Tensor, float]:
    """Gram matrix (n C, n C) and residuals (n C,) of LQF, features (n, d), and the unit of damping."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    train, _ = datasets.cifar_split(backbone, SHOTS, 0, test=10)
    settings, positions = LQFSettings(flip=False), torch.from_numpy(class_positions(train)[1])
    began = start(backbone, train, positions, settings)
    objective = began.objective(train, positions, settings, 1.0)
    unit = mean_eigenvalue(objective, settings.seed)[0]
    system = replace(objective, damping=unit).solved().system
    features = began.backbone.features(objective.inputs(torch.arange(len(train)), 0)).detach()
    assert isinstance(system.kernel, Tensor)
    return system.kernel.double(), system.targets.double().reshape(-1), features.double(), unit


def ways(kernel: Tensor, features: Tensor) -> dict[str, Tensor | None]:
    """What stands for the Gram matrix in each pre-conditioner; None is none."""
    n, found = len(features), dict[str, Tensor | None]()
    outputs = len(kernel) // n
    found["plain"] = None
    # One kernel for all outputs, their mean: what the library's own tangent kernel estimates from one pass.
    shared = torch.einsum("icjc->ij", kernel.view(n, outputs, n, outputs)) / outputs
    found["one kernel for all outputs"] = torch.kron(shared.contiguous(), torch.eye(outputs, dtype=torch.float64))
    for count in LANDMARKS:
        chosen = choose_landmarks(features, count)
        members = (chosen[:, None] * outputs + torch.arange(outputs)).reshape(-1)
        factor = kernel[:, members] @ inverse_root(kernel[members][:, members])
        found[f"{count} landmark pictures"] = factor @ factor.T
    return found


def products(kernel: Tensor, wanted: Tensor, damping: float, approximate: Tensor | None, primal: bool = False) -> int:
    """Products with the Gram matrix until the gradient's length is a thousandth of that at the start; at most CAP.

    On the tangent, conjugate gradients see the same matrix in the inner product of the rows.
    """
    identity = torch.eye(len(kernel), dtype=torch.float64)
    root = rows_of(kernel) if primal else identity
    matrix = root.T @ root + damping * identity if primal else kernel + damping * identity
    inverse: Callable[[Tensor], Tensor] | None = None
    if approximate is not None:
        dense = torch.cholesky_inverse(torch.linalg.cholesky(approximate + damping * identity))
        inverse = dense.__matmul__
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
