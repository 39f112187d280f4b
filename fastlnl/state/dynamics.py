"""What training showed of every sample: a record of 32 bytes each, a ring of epochs on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlnl.errors import ShapeError, StateError
from fastlnl.ops.dynamics import HISTORY_STATISTICS, TRACKED, columns_of, enter, layout, operator  # noqa: F401
from fastlnl.ops.history_weight import history_weight
from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.row_loss.contract import BOOK_WORDS, BookTensors
from fastlnl.state.fingerprint import check_fingerprint
from fastlnl.state.label_memory import check_labels, label_fingerprint
from fastlnl.state.recorded import raise_recorded
from fastlnl.state.records import SampleRecords

HERE = object()  # addresses are good in this process; what comes out of a pickle or a deepcopy is another object


class EpochSummary(NamedTuple):
    """What one epoch did, over the presentations of its samples."""

    epoch: int  # from 0
    rows: int  # presentations
    changed: int  # whose prediction was not the sample's last one; a first presentation is no change
    accuracy: float  # share predicted as the given label
    loss: float  # mean -log p of the given label, nats
    skipped: int  # rows left out because their statistics were not finite


class SampleDynamics(SampleRecords):
    """Counts and averages over each sample's presentations, moved by the statistics of the row pass.

    Give it to a criterion (`CrossEntropy(dynamics=SampleDynamics(N, C))`), or call `update` with what `row_stats`
    returned. Nothing is read back from the device in a step; `end_epoch` reads once. A step that a GradScaler skips
    still counts as a presentation, for the network did predict; rows whose statistics are not finite do not count.
    Repeated ids in a batch: see `ops.dynamics`. Vectors are (N,), on the device, made when asked for.

    A sample costs 32 bytes, and a ring of T epochs in float16 2 (T + 1) more, or 2 T where `push` writes it.

    Args:
        num_samples, num_classes: N and C; ids are 0..N-1.
        label: (N,) given labels, only for the fingerprint that is saved with the state.
        track: the statistic of `mean` and `variance`, and that of `ema`: nll, p_label, confidence, margin, entropy.
            One name stands for both.
        history: T, keep a ring of the last T complete epochs.
        history_statistic: nll, p_label or log_odds, written by `update` for the samples of the batch (log_odds is
            log(p_y / (1 - p_y)) within [-6, 6]); None where `push` writes a whole epoch.
        history_dtype: torch.float16 or torch.float32.
        ema_momentum: weight of the old moving average.

    Raises:
        ShapeError, LabelError: label is not (N,) in [0, C).
    """

    counters: Tensor
    history: Tensor | None

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        label: Tensor | None = None,
        track: str | tuple[str, str] = ("nll", "p_label"),
        history: int | None = None,
        history_statistic: str | None = "log_odds",
        history_dtype: torch.dtype = torch.float16,
        ema_momentum: float = 0.9,
    ) -> None:
        if num_samples < 1 or num_classes < 1:
            raise ShapeError(f"dynamics of {num_samples} samples, {num_classes} classes; both must be at least 1")
        both = (track, track) if isinstance(track, str) else tuple(track)
        if len(both) != 2 or not set(both) <= set(TRACKED):
            raise ValueError(f"track is {track!r}; expected one or two of {', '.join(TRACKED)}")
        if history is not None and history < 1:
            raise ValueError(f"history is {history}; expected a number of epochs >= 1, or None")
        if history_statistic not in (*HISTORY_STATISTICS, None):
            raise ValueError(
                f"history_statistic is {history_statistic!r}; expected one of {', '.join(HISTORY_STATISTICS)}, or None"
            )
        if history_dtype not in (torch.float16, torch.float32):
            raise ValueError(f"history_dtype is {history_dtype}; expected torch.float16 or torch.float32")
        if not 0 <= ema_momentum <= 1:
            raise ValueError(f"ema_momentum is {ema_momentum}; expected a value in [0, 1]")
        if label is not None:
            if label.shape != (num_samples,):
                raise ShapeError(f"label is {tuple(label.shape)}; expected ({num_samples},)")
            check_labels(label, num_classes)
        device = None if label is None else label.device
        super().__init__(num_samples, both, device)
        self.num_samples, self.num_classes, self.history_length = num_samples, num_classes, history
        self.history_statistic, self.ema_momentum = history_statistic, ema_momentum
        self._columns = columns_of((both[0], both[1]), history_statistic or "log_odds")
        self.fingerprint = None if label is None else label_fingerprint(label)
        self.summary: EpochSummary | None = None  # of the last epoch that ended
        self.register_buffer("counters", torch.zeros(layout.COUNTERS, dtype=torch.int64, device=device))
        ring = None
        if history is not None:  # the epoch in progress has a row of its own
            rows = history + (history_statistic is not None)
            ring = torch.full((rows, num_samples), torch.nan, dtype=history_dtype, device=device)
        self.register_buffer("history", ring)
        self._native: tuple[Any, ...] = ()  # what the block says
        self._block = torch.zeros(BOOK_WORDS, dtype=torch.int64, device="cpu")

    def update(self, index: Tensor, label: Tensor, stats: RowStats, second_prediction: Tensor | None = None) -> None:
        """Enter a batch; one kernel call.

        Args:
            index, label: (B,) sample ids and given labels, any integer type.
            stats: of the row pass, or of `row_stats`.
            second_prediction: (B,) predicted classes of a second view, which add wrong events only.

        Updates: records, counters, history.
        """
        if torch.compiler.is_compiling():
            kept = self.history_statistic or "log_odds"
            ring = None if self.history_statistic is None else self.history
            torch.ops.fastlnl.dynamics(
                self.records, self.counters, index, label, stats.numbers, stats.prediction, self.num_classes,
                list(self.track), self.ema_momentum, second_prediction, ring, kept)  # fmt: skip
            return
        state: dict[str, Any] = self._buffers  # as attributes of a module they cost about 1 us each
        ring = None if self.history_statistic is None else state["history"]
        enter(
            state["records"], state["counters"], index, label, stats, self.num_classes, self._columns,
            self.ema_momentum, second_prediction, ring,
        )  # fmt: skip

    def tensors(self) -> BookTensors:
        """By which a row pass on a GPU enters its rows itself, see `Book`."""
        state: dict[str, Any] = self._buffers
        ring = None if self.history_statistic is None else state["history"]
        return BookTensors(
            state["records"], state["counters"], ring, self.num_classes, self._columns, self.ema_momentum
        )

    def native(self) -> int:
        """Address by which a row pass on the CPU enters its rows itself, see `Book`; 0 if the records are elsewhere."""
        state: dict[str, Any] = self._buffers
        records, counters = state["records"], state["counters"]
        ring = None if self.history_statistic is None else state["history"]
        history = 0 if ring is None else ring.data_ptr()
        now = HERE, records.data_ptr(), counters.data_ptr(), history, self.ema_momentum
        if now != self._native:
            if records.device != self._block.device:
                return 0
            from fastlnl.ops.dynamics.numba_kernel import write_block

            write_block(self._block, records, counters, self.num_classes, self._columns, self.ema_momentum, ring)
            self._native = now
        return self._block.data_ptr()

    def end_epoch(self) -> EpochSummary:
        """What the epoch did; then the next one begins. Reads from the device once.

        Raises:
            LabelError: a label or id was out of range since the last check; names the first one.
        """
        values = self.counters.tolist()
        if values[layout.ERRORS]:
            self.check()
        rows = values[layout.ROWS]
        shares = values[layout.CORRECT], values[layout.LOSS] * layout.LOSS_UNIT
        accuracy, loss = (value / rows if rows else torch.nan for value in shares)
        self.counters[layout.EPOCH] += 1
        self.counters[layout.ROWS : layout.ERRORS] = 0
        if self.history is not None and self.history_statistic is not None:
            self._advance()
            self.history.index_fill_(0, self.counters[layout.CURSOR, None], torch.nan)
        self.summary = EpochSummary(
            values[layout.EPOCH], rows, values[layout.CHANGED], accuracy, loss, values[layout.SKIPPED]
        )
        return self.summary

    def check(self) -> None:
        """Raise LabelError if a label or id was out of range since the last check. Reads from the device once."""
        raise_recorded(self.counters[layout.ERRORS :], self.num_classes, self.num_samples, "the dynamics have")

    def push(self, values: Tensor) -> None:
        """Store the values (N,) of a whole epoch in the ring, for `history_statistic=None`; NaN where there is none.

        Updates: history, counters.
        """
        if self.history is None or self.history_statistic is not None:
            raise StateError(
                "push needs dynamics with history=T and history_statistic=None; "
                "with a statistic the ring is written by update()"
            )
        if values.shape != (self.num_samples,):
            raise ShapeError(f"values is {tuple(values.shape)}; expected ({self.num_samples},)")
        row = values.detach().clamp(-layout.HISTORY_LIMIT, layout.HISTORY_LIMIT).to(self.history.dtype)
        self.history.index_copy_(0, self.counters[layout.CURSOR, None], row[None])
        self._advance()

    def _advance(self) -> None:
        """The row at the cursor is complete."""
        assert self.history is not None
        cursor, stored = self.counters[layout.CURSOR], self.counters[layout.STORED]
        cursor.copy_((cursor + 1) % self.history.shape[0])
        stored.add_(1).clamp_(max=self.history_length)

    def weighted_history(self, decay: float) -> Tensor:
        """(N,) float32, each sample's mean over the stored epochs, of weight decay^j j epochs before the newest.

        Over complete epochs and the entries that are there; 0 where a sample has none. See `ops.history_weight`.
        """
        if self.history is None:
            raise StateError("there is no history; build SampleDynamics with history=T, the number of epochs to keep")
        return history_weight(self.history, self.counters[layout.CURSOR : layout.STORED + 1], decay)

    def extra_repr(self) -> str:
        options = {key: value for key, value in self.get_extra_state().items() if key != "label"}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SampleDynamics:
        """Follow the device; keep the type of the ring."""
        before = self.history
        super()._apply(fn, recurse)
        if before is not None and self.history is not None and self.history.dtype != before.dtype:
            self.history = before.to(self.history.device)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "track": list(self.track),
            "ema_momentum": self.ema_momentum,
            "history": self.history_length,
            "history_statistic": self.history_statistic,
            "history_dtype": None if self.history is None else str(self.history.dtype),
            "label": self.fingerprint,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.fingerprint = self.fingerprint or state["label"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the records of other data before anything is overwritten."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is not None:
            check_fingerprint("sample dynamics", saved, self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)
