"""What goes into the row pass and what comes out: one signature for every backend."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastlnl.ops.row_loss.definition import LossDefinition
from fastlnl.ops.row_loss.storage import FLOAT32, Storage

PADDING = -1  # the id of a row that only fills up a batch of fixed shape


class TableTarget(NamedTuple):
    """Soft targets that live in a label memory and move with the predictions.

    With R the decoded row table[index[b]] and p the prediction, the target of row b is t = use R + (1 - use) p, a
    constant for the gradient, and the row becomes keep R + (1 - keep) p. A row whose first entry is negative was never
    written: it is onehot(label[b]) with `one_hot`, and p itself without.

    Formats other than float32 round the new row at random, by (seed, step, id, column); every call counts one step.
    With keep = 1 their written rows are left alone.
    """

    table: Tensor  # (N, W) records of `storage`, (N, C) but for topk; contiguous; updated
    use: float
    keep: float
    one_hot: bool
    storage: Storage = FLOAT32
    seed: int = 0  # in [0, 2^32)
    step: Tensor | None = None  # () int64, not for float32; updated


@dataclass(slots=True)
class RowLossInput:
    """Checked arguments of one call; see `row_loss`."""

    logits: Tensor  # (B, C)
    label: Tensor | None  # (B,) int64
    loss: LossDefinition
    parameters: tuple[float, ...]
    target: Tensor | None  # (B, C) float32, contiguous
    memory: TableTarget | None
    index: Tensor | None  # (B,) int64
    weight: Tensor | None  # (B,) float32
    grad_scale: float
    reduction: str
    with_stats: bool
    errors: Tensor  # (4,) int64; updated
    book: "Book | None"  # a backend that has entered the batch there gives no statistics back


NUMBERS = ("nll", "p_label", "confidence", "margin", "entropy")  # the rows of `RowStats.numbers`


@dataclass(slots=True, eq=False)
class RowStats:
    """What one pass over the rows of the logits tells about them, as kernels write it and as vectors (B,)."""

    numbers: Tensor  # (5, B) float32, contiguous, see `NUMBERS`
    prediction: Tensor  # (B,) int64, the lowest class that attains the maximum

    @classmethod
    def of(
        cls, nll: Tensor, p_label: Tensor, confidence: Tensor, prediction: Tensor, margin: Tensor, entropy: Tensor
    ) -> "RowStats":
        """From six vectors (B,)."""
        return cls(torch.stack([x.float() for x in (nll, p_label, confidence, margin, entropy)]), prediction)

    @property
    def nll(self) -> Tensor:
        """-log p_y of the given label, nats."""
        return self.numbers[0]

    @property
    def p_label(self) -> Tensor:
        """p_y, the probability of the given label."""
        return self.numbers[1]

    @property
    def confidence(self) -> Tensor:
        """The highest probability."""
        return self.numbers[2]

    @property
    def margin(self) -> Tensor:
        """z_y less the highest of the other logits; 0 with one class."""
        return self.numbers[3]

    @property
    def entropy(self) -> Tensor:
        """-sum p log p, nats."""
        return self.numbers[4]

    def __iter__(self) -> Iterator[Tensor]:
        """The vectors in the order of `of`."""
        return iter((self.nll, self.p_label, self.confidence, self.prediction, self.margin, self.entropy))


class BookTensors(NamedTuple):
    """The arguments of `ops.dynamics` with which a book enters a batch."""

    records: Tensor
    counters: Tensor
    history: Tensor | None
    num_classes: int
    columns: tuple[int, int, int, bool]  # rows of `NUMBERS` for mean, moving average and ring; log-odds of the last
    momentum: float


class Book(Protocol):
    """What keeps the statistics of a batch, sample by sample: `state.SampleDynamics`."""

    def update(self, index: Tensor, label: Tensor, stats: RowStats) -> None:
        """Enter a batch."""

    def native(self) -> int:
        """Address of `BOOK_WORDS` int64 by which a pass on the CPU enters its rows itself (`numba_pass`); 0 if none."""

    def tensors(self) -> BookTensors:
        """By which a pass on a GPU enters its rows itself."""


BOOK_WORDS = 32


class RowLossOutput(NamedTuple):
    """loss (B,) or () float32; dlogits (B, C) in the type of the logits; statistics on request."""

    loss: Tensor
    dlogits: Tensor
    stats: RowStats | None
