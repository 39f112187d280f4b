"""mixture_em by the CUDA C++ extension (`csrc/mixture_em.cu`)."""

import torch

from fastlnl import extension
from fastlnl.ops.mixture_em import FAMILIES, INITS, EMInput, EMOptions, MixtureFit


def mixture_em(points: EMInput, options: EMOptions) -> MixtureFit:
    groups, place = len(points.offset) - 1, points.value.device
    fitted = torch.empty(groups, 7, dtype=torch.float64, device=place)
    info = torch.empty(groups, 3, dtype=torch.int64, device=place)
    odds = torch.empty(groups, 8, dtype=torch.float64, device=place)
    cut = torch.empty(groups, dtype=torch.float64, device=place)
    extension.operators().mixture_em(
        *points, fitted, info, odds, cut, FAMILIES.index(options.family), INITS.index(options.init), options.max_iter,
        options.clip, options.reg_covar, options.tol,
    )  # fmt: skip
    return MixtureFit(fitted, info, odds, cut)
