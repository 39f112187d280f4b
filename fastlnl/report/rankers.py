"""Who looks mislabelled, from what training showed of every sample: published rankings on top of `SampleDynamics`.

Each gives vectors over the samples, on the device. Suspicion is high for suspicious samples; `ranked` sorts by it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl.state.dynamics import SampleDynamics


def ranked(suspicion: Tensor) -> Tensor:
    """(N,) int64 sample ids, most suspicious first; of equal ones the lowest id; samples without a value (NaN) last."""
    return suspicion.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)


def aum(dynamics: SampleDynamics) -> Tensor:
    """(N,) suspicion: minus the mean margin of the given label. Source: Pleiss et al. 2020."""
    if dynamics.num_classes == 1:
        raise ValueError("AUM needs at least 2 classes; with one there is no other logit to keep a margin from")
    return -dynamics.aum


def aum_flags(dynamics: SampleDynamics, threshold_index: Tensor, share: float = 0.01) -> Tensor:
    """(N,) bool, samples whose margin is like that of samples which surely are mislabelled.

    A sample is flagged when more than `share` of the threshold samples have a higher AUM. Source: Pleiss et al. 2020.

    Args:
        dynamics: of a run with C + 1 classes, in which the threshold samples carried the extra label C.
        threshold_index: (M,) their ids, about N / C of them. Another run with others covers them.
        share: in [0, 1].
    """
    suspicion = aum(dynamics)
    threshold = suspicion[threshold_index.long()].sort().values
    return torch.searchsorted(threshold, suspicion) > share * len(threshold)


def forgetting(dynamics: SampleDynamics) -> Tensor:
    """(N,) suspicion: forgetting events; of a sample that was never learned its presentations.

    Source: Toneva et al. 2019 and their code, which ranks the unlearned highest.
    """
    return torch.where(dynamics.first_learned < 0, dynamics.visits, dynamics.forgetting_events).float()


class DataMap(NamedTuple):
    """Where a sample lies: easy (high confidence), ambiguous (high variability) or hard to learn (both low)."""

    confidence: Tensor  # mean probability of the given label
    variability: Tensor  # its standard deviation over the presentations
    correctness: Tensor  # share of presentations predicted as the given label


def data_map(dynamics: SampleDynamics) -> DataMap:
    """(N,) coordinates of each sample; NaN where it was never seen. Source: Swayamdipta et al. 2020.

    Mislabelled samples gather where confidence is low. Correctness is that of training with one view.
    """
    if dynamics.track[0] != "p_label":
        raise ValueError(f"track is {dynamics.track}; a data map needs SampleDynamics(track='p_label')")
    return DataMap(dynamics.mean, dynamics.variance.sqrt(), 1 - dynamics.wrong_events / dynamics.visits)
