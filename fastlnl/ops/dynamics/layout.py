"""Where things stand in a record, 32 bytes a sample, and among the counters.

| word | low 16 bits            | high 16 bits                                |
|------|------------------------|---------------------------------------------|
| 0    | visits                 | wrong events                                |
| 1    | prediction flips       | forgetting events                           |
| 2    | 1 + last prediction, in 32 bits                                      |
| 3    | 1 + epoch first learned | visit of the last wrong prediction, from 1 |
| 4    | running mean, float32                                                |
| 5    | sum of squared deviations from it, float32                           |
| 6    | moving average, float32                                              |
| 7    | sum of margins, float32                                              |

0 means never in words 2 and 3, so a record starts as zeros. Halves stop at 65,535; mean, deviations and margins stop
with the visits, so that they stay those of the first 65,535.
"""

from torch import Tensor

WORDS = 8
FLIPS, LAST_PREDICTION, LEARNED, MEAN, DEVIATIONS, EMA, MARGINS = range(1, WORDS)  # word 0: visits and wrong events
FULL = 65535

# Words of the counters, int64. The last four are an error word, see `new_error_word`.
EPOCH, CURSOR, STORED, ROWS, CHANGED, CORRECT, LOSS, SKIPPED, ERRORS = range(9)
COUNTERS = ERRORS + 4
LOSS_UNIT = 2.0**-24  # nats; whole numbers add up to the same sum in any order
LOSS_LIMIT = 2.0**17  # nats that one row adds at most

LOG_ODDS_LIMIT = 6.0
HISTORY_LIMIT = 65504.0  # the largest float16


def low_half(records: Tensor, word: int) -> Tensor:
    """(N,) int32 from the low halves of a word."""
    return records[:, word] & 0xFFFF


def high_half(records: Tensor, word: int) -> Tensor:
    """(N,) int32 from the high halves of a word."""
    return (records[:, word] >> 16) & 0xFFFF
