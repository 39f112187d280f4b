"""What the records of `ops.dynamics` say, as vectors over the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlnl.cpu.pages import advise
from fastlnl.ops.dynamics import layout

if TYPE_CHECKING:
    import pandas


class SampleRecords(nn.Module):
    """One record of 32 bytes a sample; each property is (N,), on the device, made when asked for.

    Averages of a sample that was never seen are NaN.

    Args:
        num_samples: N.
        track: the statistic of `mean` and `variance`, and that of `ema`.
        device: of the records.
    """

    records: Tensor

    def __init__(self, num_samples: int, track: tuple[str, str], device: torch.device | None) -> None:
        super().__init__()
        self.track = track
        records = torch.empty(num_samples, layout.WORDS, dtype=torch.int32, device=device)
        self.register_buffer("records", advise(records).zero_())

    @property
    def visits(self) -> Tensor:
        """Presentations, at most 65,535, as all counts."""
        return layout.low_half(self.records, 0)

    @property
    def wrong_events(self) -> Tensor:
        """Predictions that differ from the given label, of the second view too."""
        return layout.high_half(self.records, 0)

    @property
    def flips(self) -> Tensor:
        """Predictions that differ from the one before."""
        return layout.low_half(self.records, layout.FLIPS)

    @property
    def forgetting_events(self) -> Tensor:
        """Wrong predictions right after a correct one."""
        return layout.high_half(self.records, layout.FLIPS)

    @property
    def last_prediction(self) -> Tensor:
        """The class predicted last, -1: never seen."""
        return self.records[:, layout.LAST_PREDICTION] - 1

    @property
    def first_learned(self) -> Tensor:
        """Epoch, from 0, of the first correct prediction, -1: none yet."""
        return layout.low_half(self.records, layout.LEARNED) - 1

    @property
    def last_wrong(self) -> Tensor:
        """Presentation, from 1, of the last wrong prediction, 0: none. A sample counts as learned after it."""
        return layout.high_half(self.records, layout.LEARNED)

    @property
    def mean(self) -> Tensor:
        """Mean of the first tracked statistic."""
        return torch.where(self.visits > 0, self._number(layout.MEAN), torch.nan)

    @property
    def variance(self) -> Tensor:
        """Population variance of the first tracked statistic (divided by the visits)."""
        return self._number(layout.DEVIATIONS) / self.visits

    @property
    def ema(self) -> Tensor:
        """Moving average of the second tracked statistic, started by its first value."""
        return torch.where(self.visits > 0, self._number(layout.EMA), torch.nan)

    @property
    def margin_sum(self) -> Tensor:
        """Sum of the margins z_y - max of the other logits."""
        return self._number(layout.MARGINS)

    @property
    def aum(self) -> Tensor:
        """Area under the margin: mean margin over the presentations. Source: Pleiss et al. 2020."""
        return self.margin_sum / self.visits

    def _number(self, word: int) -> Tensor:
        return self.records.view(torch.float32)[:, word].clone()

    def table(self) -> pandas.DataFrame:
        """Everything as a pandas DataFrame, a row a sample. Reads from the device."""
        from pandas import DataFrame

        first, second = self.track
        columns = {
            name: getattr(self, name)
            for name in ("visits", "wrong_events", "flips", "forgetting_events", "last_prediction", "first_learned")
        }
        columns |= {f"mean_{first}": self.mean, f"variance_{first}": self.variance, f"ema_{second}": self.ema}
        columns |= {"last_wrong": self.last_wrong, "aum": self.aum}
        return DataFrame({name: column.cpu().numpy() for name, column in columns.items()}).rename_axis("index")
