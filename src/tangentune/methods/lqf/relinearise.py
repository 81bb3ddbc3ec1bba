"""Move to the solution, or part of the way, and linearise again: Gauss-Newton steps on the network itself.

All steps lower one objective, the network's own: `F(w) = sum_i loss(f_w(x_i) + s_i, y_i) + 1/2 lambda ||w - w0||^2`
with the pre-trained w0 and the lambda of the start. Two things keep a step where the linear model is right: the
penalty always pulls towards w0, never towards the last point, so that more steps do not undo the damping; and the
step is halved until F falls. Where eleven halvings do not lower F, re-linearising ends.
"""

from __future__ import annotations

from torch import Tensor

from tangentune.jacobian.tangents import Tangent, combine
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.start import Start
from tangentune.pictures.pictures import Pictures

HALVINGS = 11


def relinearise(
    objective: Objective,
    u: Tangent,
    began: Start,
    pictures: Pictures,
    labels: Tensor,
    settings: LQFSettings,
    progress: Progress,
) -> Objective | None:
    """The problem at the new point, and progress moved there; None where no step lowers the network's objective.

    Cost: one forward pass over the pictures for the old point and one for every step that is tried.
    """
    before = objective.value_at_point()
    for halving in range(HALVINGS + 1):
        step = 0.5**halving
        moved = combine(1, objective.centre, step, u)
        trial = began.objective(pictures, labels, settings, objective.damping, moved)
        if trial.value_at_point() < before:
            progress.next_stage(step, moved)
            progress.keep()
            return trial
    progress.step = 0.0
    progress.keep()
    return None
