"""Labels against the truth: what a method corrects, what a network memorises, what a selection is worth."""

from __future__ import annotations

from torch import Tensor


def selection_quality(mask: Tensor, is_clean: Tensor) -> dict[str, Tensor]:
    """How good the set is that a method takes for clean; positives are the rightly labelled.

    Args:
        mask: (N,) bool, selected as clean.
        is_clean: (N,) bool, the given label is the true one.

    Returns:
        precision: share of the selected that are clean; 0 if nothing is selected.
        recall: share of the clean that are selected; 0 if nothing is clean.
        f1: their harmonic mean; 0 if nothing is selected and nothing clean.
    """
    hit, selected, clean = (mask & is_clean).sum().double(), mask.sum(), is_clean.sum()
    return {
        "precision": hit / selected.clamp(min=1),
        "recall": hit / clean.clamp(min=1),
        "f1": 2 * hit / (selected + clean).clamp(min=1),
    }


def correction(corrected: Tensor, label: Tensor, true_label: Tensor) -> dict[str, Tensor]:
    """Shares that describe a corrected label set; an undefined one (no wrong label, say) is NaN.

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
    """What a network says about its own training samples; an undefined share is NaN.

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
