"""mixture_em by the CUDA C++ extension (`csrc/mixture_em.cu`)."""

import torch

from fastlnl import extension
from fastlnl.ops.mixture_em import FAMILIES, INITS, EMInput, EMOptions, MixtureFit

BLOCK_POINTS = 8192  # a group of more, on average, gets a whole grid: values, not bins with their zoomed window
FEW_GROUPS = 16  # one after another; of more groups each has a block
MOST_BLOCKS = 256  # of a grid, which has one a multiprocessor
PARTS = 8  # of a sum, twice (csrc/points.cuh)


def mixture_em(points: EMInput, options: EMOptions) -> MixtureFit:
    groups, place = len(points.offset) - 1, points.value.device
    fitted = torch.empty(groups, 7, dtype=torch.float64, device=place)
    info = torch.empty(groups, 3, dtype=torch.int64, device=place)
    odds = torch.empty(groups, 8, dtype=torch.float64, device=place)
    cut = torch.empty(groups, dtype=torch.float64, device=place)
    sums = None
    if groups <= FEW_GROUPS and len(points.value) > groups * BLOCK_POINTS:
        sums = torch.empty(MOST_BLOCKS, 2, PARTS, dtype=torch.float64, device=place)
    extension.operators().mixture_em(
        *points, fitted, info, odds, cut, sums, FAMILIES.index(options.family), INITS.index(options.init),
        options.max_iter, options.clip, options.reg_covar, options.tol,
    )  # fmt: skip
    return MixtureFit(fitted, info, odds, cut)
