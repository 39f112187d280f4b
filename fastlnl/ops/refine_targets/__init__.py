"""Targets of semi-supervised steps: mean of several predictions, mixed with the given label, sharpened, in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, check_logits, describe, floats, integers

__all__ = ["MOST_PREDICTIONS", "refine_targets"]

MOST_PREDICTIONS = 16


def refine_targets(
    logits: Tensor | Sequence[Tensor],
    label: Tensor | None = None,
    clean_prob: Tensor | None = None,
    temperature: float = 0.5,
    *,
    peer: Tensor | Sequence[Tensor] = (),
) -> Tensor:
    """Mean softmax of all predictions of a row, mixed with its label by how clean that is, and sharpened.

        mean[b] = mean of softmax over the predictions of row b
        q[b]    = clean_prob[b] onehot(label[b]) + (1 - clean_prob[b]) mean[b]      where row b has a label
        q[b]    = mean[b]                                                           elsewhere
        out[b]  = softmax(log q[b] / temperature)

    Labelled rows come first: a step of DivideMix is one call, with the trained network's views of all rows in `logits`,
    the labels of the first L, and in `peer` the other network's views of the rest.

    Args:
        logits: M predictions (B, C) of every row, (M, B, C) or a sequence; float16, bfloat16 or float32 (float64 on
            the reference backend). M >= 1, and with `peer` at most 16.
        label: (L,) any integer type, L <= B: labels of the first L rows. One outside [0, C), such as -1, is none.
        clean_prob: (L,) weight of the label in [0, 1]; needed with `label`.
        temperature: > 0; below 1 sharpens, 1 leaves q as it is.
        peer: further predictions (U, C), U <= B, of the last U rows.

    Returns:
        (B, C) float32 (float64 for float64 logits); rows sum to one. Rows with NaN or +inf logits are NaN; -inf counts
        as probability 0.

    Raises:
        ShapeError: shapes or types do not fit, too few or too many predictions.
        ValueError: temperature is not above 0.

    Deterministic. No gradient. Source: Li, Socher, Hoi 2020 (DivideMix), co-refinement and co-guessing.
    """
    own, others = [x.detach() for x in logits], [x.detach() for x in peer]
    if not own or len(own) + len(others) > MOST_PREDICTIONS:
        raise ShapeError(
            f"logits holds {len(own)} predictions and peer {len(others)}; "
            f"expected at least one, and at most {MOST_PREDICTIONS} together"
        )
    batch, classes = check_logits(own[0])
    rest = others[0].shape[0] if others else 0
    for name, given, rows in (("logits", own, batch), ("peer", others, rest)):
        for x in given:
            if x.shape != (rows, classes) or x.dtype != own[0].dtype or rows > batch:
                expected = f"({batch if name == 'logits' else f'U <= {batch}'}, {classes})"
                raise ShapeError(
                    f"a prediction in {name} is {describe(x)}; expected {expected}, all of one shape and in the type "
                    f"{describe(own[0]).split()[-1]} of the first"
                )
            check_device(name, x, own[0])
    if label is None:
        if clean_prob is not None:
            raise ShapeError("clean_prob was given without label; it is the weight of the labels")
    else:
        labelled = label.shape[0] if label.dim() == 1 else -1
        if not 0 <= labelled <= batch:
            raise ShapeError(
                f"label is {describe(label)}; expected (L,) with L <= {batch}, the labels of the first rows"
            )
        if clean_prob is None:
            raise ShapeError("clean_prob is None; it says how much each label counts, (L,) as label")
        label = integers("label", label, labelled, own[0])
        clean_prob = floats("clean_prob", clean_prob.detach(), (labelled,), own[0])
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a value above 0, 0.5 sharpens")
    run = backend.implementation("refine_targets", own[0])
    with torch.no_grad():
        out: Tensor = run(own, others, label, clean_prob, float(temperature))
    return out
