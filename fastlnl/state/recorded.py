"""From the error word that kernels write to the exception that a person reads."""

from torch import Tensor

from fastlnl.errors import LabelError


def raise_recorded(errors: Tensor, num_classes: int, num_samples: int, holder: str) -> None:
    """Raise LabelError if a label or id was out of range since the last call. Reads from the device once.

    Args:
        errors: (4,) int64 of `new_error_word`; set to 0 again.
        num_classes, num_samples: what was allowed. holder: who has the samples.
    """
    kind, position, sample, value = errors.tolist()
    if kind == 0:
        return
    errors.zero_()
    if kind == 1:
        hint = "; are labels 1-based?" if value == num_classes else ""
        raise LabelError(
            f"label of sample {sample} (position {position} in its batch) is {value} but logits has "
            f"{num_classes} classes (0..{num_classes - 1}){hint}"
        )
    raise LabelError(
        f"index at position {position} of a batch is {value} but {holder} {num_samples} samples "
        f"(0..{num_samples - 1}); pass each sample's id in the data set, not its place in the batch"
    )
