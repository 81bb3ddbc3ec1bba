"""One linearised problem, solved by whichever solver was asked for."""

from __future__ import annotations

from tangentune.jacobian.kfac import kfac
from tangentune.jacobian.tangents import Tangent
from tangentune.methods.lqf.conjugate import conjugate
from tangentune.methods.lqf.exact import Exact, Views, solve_exactly
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.stochastic import Precondition, train

DRAWS = 4


def solve(objective: Objective, settings: LQFSettings, progress: Progress) -> Tangent:
    """The tangent that the solver ends with; measurements go to `progress`.

    Raises:
        InputError: the exact solver would be too large, or training diverged.
        BudgetError: one parameter's rows do not fit into the exact solver's memory.
    """
    if progress.solved:
        return progress.tangents["u"]
    if settings.exact_optimum and settings.solver != "dual" and progress.optimum is None:
        progress.optimum = solve_exactly(objective, progress.verbose).value
    if settings.solver == "dual":
        return _dual(objective, progress)
    if settings.solver == "pcg":
        approximate = preconditioner(objective, settings.preconditioner, settings, progress)
        return conjugate(objective, settings, progress, approximate)
    kind = "kfac" if settings.solver == "kfac" else "none"
    return train(objective, settings, progress, preconditioner(objective, kind, settings, progress))


def preconditioner(objective: Objective, kind: str, settings: LQFSettings, progress: Progress) -> Precondition:
    """Approximate inverse of the problem's Hessian, up to a factor; "none" is the identity.

    Cost: four backward passes over the pictures, eight for "ekfac".
    """
    if kind == "none":
        return lambda gradient: gradient
    curvature = kfac(
        objective.lin, Views(objective), kind=kind, cotangents="signs", draws=DRAWS, seed=settings.seed,
        verbose=progress.verbose,
    )  # fmt: skip
    progress.passes += DRAWS * objective.views * (2 if kind == "ekfac" else 1)
    damping = objective.damping * objective.views  # the curvature is a sum over views, the problem's a mean
    return lambda gradient: curvature.solve(gradient, damping)


def _dual(objective: Objective, progress: Progress) -> Tangent:
    progress.measure(objective, objective.lin.zeros())
    found: Exact = solve_exactly(objective, progress.verbose)
    progress.epoch, progress.passes, progress.optimum = 1, progress.passes + found.passes, found.value
    progress.tangents |= {"u": found.u, "loo": {"outputs": found.loo}}
    progress.measure(objective, found.u)
    progress.solved = True
    progress.keep()
    return found.u
