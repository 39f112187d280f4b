"""mixture_posterior by the CUDA C++ extension (`csrc/mixture_posterior.cu`)."""

import torch
from torch import Tensor

from fastlnl import extension


def mixture_posterior(x: Tensor, odds: Tensor, group: Tensor | None, beta: bool, log_odds: bool) -> Tensor:
    posterior = torch.empty(len(x), device=x.device)
    extension.operators().mixture_posterior(x, odds, group, posterior, beta, log_odds)
    return posterior
