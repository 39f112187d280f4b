"""The last epochs of every sample's credibility, and the weight that they come to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastlnl.ops.dynamics.layout import LOG_ODDS_LIMIT
from fastlnl.ops.history_weight import history_weight
from fastlnl.ops.mixture_em import CERTAIN

WEIGHT_RULES = ("logodds", "mean", "mean_minus_std", "streak", "posterior", "none")


class FixedTypes(nn.Module):
    """A module whose buffers follow the device but never `.half()` or `.to(bfloat16)`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedTypes:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class CredibilityHistory(FixedTypes):
    """A ring of T epochs, one row of N entries each, and a weight rule over it.

    | rule | weight, over the T' stored epochs (j = 0 the newest) | an entry is |
    |---|---|---|
    | "logodds" | sigmoid of the mean of h_j, weighted by decay^j | h = log(g / (1 - g)) within +-limit |
    | "mean" | mean of c_j | c = p of the given label |
    | "mean_minus_std" | mean(c) exp(-fluctuation std(c)) | c |
    | "streak" | (sum of s_j + [never right, then wrong]) / (T' + 1) | s = [prediction = label] max p |
    | "posterior", "none" | g; 1 | nothing: there is no ring |

    g is the posterior of the mixture's lower component. Nothing waits for the device; sums are float32.

    Args:
        num_samples: N.
        rule: see above.
        length: T. decay, fluctuation: of the rules.
        limit: of log-odds. Samples that are beyond it in all epochs share one weight; a higher one tells them apart.
        dtype: torch.float16 (an error of 2e-3 at log-odds of 6) or torch.float32.
        device: of the ring.

    Raises:
        ValueError: an option is none of the above.

    Source: our reconstruction of CREMA (Zhang et al. 2022); "streak" is the rule of Self-Filtering (Wei et al. 2022).
    """

    ring: Tensor | None
    position: Tensor

    def __init__(
        self,
        num_samples: int,
        rule: str = "logodds",
        *,
        length: int = 10,
        decay: float = 0.9,
        fluctuation: float = 2.0,
        limit: float = LOG_ODDS_LIMIT,
        dtype: torch.dtype = torch.float16,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if rule not in WEIGHT_RULES:
            raise ValueError(f"weight_rule is {rule!r}; expected one of {', '.join(WEIGHT_RULES)}")
        if length < 1 or dtype not in (torch.float16, torch.float32):
            raise ValueError(
                f"history_length is {length} and history_dtype {dtype}; expected at least 1, and torch.float16 or "
                "torch.float32"
            )
        if not (0 <= decay <= 1 and fluctuation >= 0 and 0 < limit <= CERTAIN):
            raise ValueError(
                f"history_decay is {decay}, fluctuation {fluctuation}, history_limit {limit}; expected values in "
                f"[0, 1], [0, inf) and (0, {CERTAIN:g}]"
            )
        self.rule, self.length, self.decay, self.fluctuation, self.limit = rule, length, decay, fluctuation, limit
        self.by_odds, has_ring = rule == "logodds", rule not in ("posterior", "none")
        ring = torch.zeros(length, num_samples, dtype=dtype, device=device) if has_ring else None
        self.register_buffer("ring", ring)
        self.register_buffer("position", torch.zeros(2, dtype=torch.int64, device=device))  # next row, rows stored

    @torch.no_grad()
    def push(self, entry: Tensor, there: Tensor) -> None:
        """Store one epoch.

        Args:
            entry: (N,) float.
            there: (N,) bool, or (): where it is False the newest entry is stored once more, 0 if there is none.

        Updates: ring, position.
        """
        if self.ring is None:
            return
        if self.by_odds:
            entry = entry.clamp(-self.limit, self.limit)
        row, stored = self.position
        newest = self.ring.index_select(0, ((row - 1) % self.length)[None])[0].float()
        entry = torch.where(there, entry, torch.where(stored > 0, newest, 0.0))
        self.ring.index_copy_(0, row[None], entry.to(self.ring.dtype)[None])
        self.position.copy_(torch.stack(((row + 1) % self.length, (stored + 1).clamp(max=self.length))))

    @torch.no_grad()
    def weight(self, clean_prob: Tensor) -> Tensor:
        """(N,) float32 in [0, 1], after at least one `push`; clean_prob (N,) is g of this epoch."""
        if self.ring is None:
            return clean_prob if self.rule == "posterior" else torch.ones_like(clean_prob)
        if self.by_odds:
            return history_weight(self.ring, self.position, self.decay).sigmoid()
        if self.rule == "mean":
            return history_weight(self.ring, self.position, 1.0)
        row, stored = self.position
        age = torch.arange(self.length, device=self.ring.device)
        there = (age < stored)[:, None]
        entry = torch.where(there, self.ring[(row - 1 - age) % self.length].float(), 0.0)  # newest first
        if self.rule == "mean_minus_std":
            mean = entry.sum(0) / stored
            variance = torch.where(there, (entry - mean) ** 2, 0.0).sum(0) / stored
            return mean * torch.exp(-self.fluctuation * variance.sqrt())
        right = entry > 0
        forgotten = (right[1:] & ~right[:-1]).any(0)
        return (entry.sum(0) + ~forgotten) / (stored + 1)
