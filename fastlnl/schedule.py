"""Learning rates: a function of the epoch alone, so that there is no schedule to save."""

import math
from collections.abc import Sequence

SCHEDULES = ("cosine", "step", "constant")


def scheduled(schedule: str, lr: float, min_lr: float, milestones: Sequence[float], t: int, epochs: int) -> float:
    """Learning rate of epoch `t` = 1..epochs; where `epochs` is 0, the first one.

    "cosine" falls from `lr` towards `min_lr`, which it would reach after the last epoch; "step" is a tenth after each
    share of the epochs in `milestones`.
    """
    if schedule == "constant" or epochs == 0:
        return lr
    if schedule == "step":
        return lr * 0.1 ** sum(t > share * epochs for share in milestones)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (t - 1) / epochs))
