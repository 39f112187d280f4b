"""How well a method undoes label noise: correction of the labels, memorisation of the wrong ones.

Everything stays on the device of its arguments; an undefined share (no wrong label, say) is NaN.
"""

from __future__ import annotations

from torch import Tensor


def correction(corrected: Tensor, label: Tensor, true_label: Tensor) -> dict[str, Tensor]:
    """Shares that describe a corrected label set.

    Args:
        corrected: (N,) integer, the labels a method proposes, such as the argmax of its soft labels.
        label: (N,) integer, the given labels.
        true_label: (N,) integer.

    Returns:
        changed: share of all samples whose proposed label is not the given one.
        correction_accuracy: share of all samples whose proposed label is true.
        repair: share of the wrongly labelled that are now right.
        damage: share of the rightly labelled that are now wrong.
    """
    wrong = label != true_label
    hit = corrected == true_label
    return {
        "changed": (corrected != label).double().mean(),
        "correction_accuracy": hit.double().mean(),
        "repair": _share(hit, wrong),
        "damage": _share(~hit, ~wrong),
    }


def memorisation(predicted: Tensor, label: Tensor, true_label: Tensor) -> dict[str, Tensor]:
    """What a network says about its own training samples.

    Args:
        predicted: (N,) integer, predicted class of each training sample under the test transform.
        label: (N,) integer, the given labels.
        true_label: (N,) integer.

    Returns:
        memorised: share of the wrongly labelled predicted as their given class.
        wrong_as_true: share of the wrongly labelled predicted as their true class.
        wrong_as_other: the rest of the wrongly labelled.
        right_as_true: share of the rightly labelled predicted as their class.
    """
    wrong = label != true_label
    is_given, is_true = predicted == label, predicted == true_label
    return {
        "memorised": _share(is_given, wrong),
        "wrong_as_true": _share(is_true, wrong),
        "wrong_as_other": _share(~(is_given | is_true), wrong),
        "right_as_true": _share(is_true, ~wrong),
    }


def _share(hit: Tensor, among: Tensor) -> Tensor:
    return (hit & among).sum().double() / among.sum()  # 0 / 0 is NaN: undefined, not zero
