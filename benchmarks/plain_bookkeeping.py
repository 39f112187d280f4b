"""The same as `bookkeeping.py` in the way of research code: loops over samples, NumPy counters, scikit-learn.

Plain transcriptions of what the methods' cards say. ELR's published code is a few torch calls, and so it is here.
"""

import warnings
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from bookkeeping import (
    ALR_MOMENTUM,
    CLEAN,
    CONFIDENT,
    ELR_MOMENTUM,
    ELR_WEIGHT,
    ENTROPY_WEIGHT,
    MAX_COUNT,
    Build,
    Head,
    weights_of_counts,
)
from torch import Tensor

EPOCHS, DECAY, LIMIT, MOMENTUM = 10, 0.9, 6.0, 0.9


def alr(label: Tensor, num_classes: int) -> Head:
    """Soft labels moved sample by sample."""
    soft = F.one_hot(label, num_classes).float()

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        probs = F.softmax(logits[0], dim=1)
        for b, i in enumerate(index.tolist()):
            soft[i] = ALR_MOMENTUM * soft[i] + (1 - ALR_MOMENTUM) * probs[b].detach()
        log_probs = F.log_softmax(logits[0], dim=1)
        entropy = -(probs * log_probs).sum(dim=1)
        return (-(soft[index] * log_probs).sum(dim=1) + ENTROPY_WEIGHT * entropy).mean()

    return Head(loss, state=lambda: soft.nbytes)


def elr(label: Tensor, num_classes: int) -> Head:
    target = torch.zeros(len(label), num_classes, device=label.device)

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        p = F.softmax(logits[0], dim=1).clamp(1e-4, 1 - 1e-4)
        q = p.detach()
        target[index] = ELR_MOMENTUM * target[index] + (1 - ELR_MOMENTUM) * (q / q.sum(dim=1, keepdim=True))
        penalty = (1 - (target[index] * p).sum(dim=1)).log().mean()
        return F.cross_entropy(logits[0], y) + ELR_WEIGHT * penalty

    return Head(loss, state=lambda: target.nbytes)


def ido(label: Tensor, num_classes: int) -> Head:
    """Wrong events counted on the host, weights looked up there, three losses."""
    count = np.zeros(len(label), dtype=np.int32)
    table = weights_of_counts(num_classes, label.device).cpu().numpy()

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        weak, strong = logits
        predicted = [z.argmax(1).cpu().numpy() for z in (weak, strong)]
        given, weights = y.cpu().numpy(), np.empty((len(y), 2), dtype=np.float32)
        for b, i in enumerate(index.cpu().numpy()):
            for guess in predicted:
                if guess[b] != given[b]:
                    count[i] += 1
            weights[b] = table[given[b], min(count[i], MAX_COUNT)]
        tau, eps = torch.from_numpy(weights).to(weak.device).unbind(1)
        ce = F.cross_entropy(strong, y, reduction="none") + F.cross_entropy(weak, y, reduction="none")
        similarity = F.mse_loss(strong, weak, reduction="none").mean(1)
        p, q = (F.softmax(z, dim=1).clamp(1e-4, 1 - 1e-4) for z in (strong, weak))
        mean = (p + q) / 2
        return (tau * ce + eps * similarity - (1 - tau) * (mean * mean.log()).sum(1)).mean()

    return Head(loss, state=lambda: count.nbytes, views=2)


def crema(label: Tensor, num_classes: int) -> Head:
    """Losses into an array and averaged predictions sample by sample; mixture, history and new labels on the host."""
    samples, device = len(label), label.device
    losses, q = torch.zeros(samples), torch.zeros(samples, num_classes, device=device)
    history: deque[np.ndarray] = deque(maxlen=EPOCHS)
    new_label, row_weight = label.cpu().numpy().copy(), np.ones(samples, dtype=np.float32)
    uniform = torch.full((num_classes,), 1 / num_classes, device=device)

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        ids = index.cpu().numpy()
        chosen = torch.from_numpy(new_label[ids]).to(device)
        weight = torch.from_numpy(row_weight[ids]).to(device)
        probs = F.softmax(logits[0], dim=1)
        value = (weight * F.cross_entropy(logits[0], chosen, reduction="none")).mean()
        value = value + (uniform * (uniform / probs.mean(0)).log()).sum()
        nll = F.cross_entropy(logits[0].detach(), y, reduction="none")
        for b, i in enumerate(ids):
            losses[i] = nll[b].item()
            first = q[i].sum() == 0
            q[i] = probs[b].detach() if first else MOMENTUM * q[i] + (1 - MOMENTUM) * probs[b].detach()
        return value

    def end_epoch() -> Tensor:
        clean_prob = posterior(losses.numpy())
        odds = np.log(np.maximum(clean_prob, 1e-12)) - np.log(np.maximum(1 - clean_prob, 1e-12))
        history.append(np.clip(odds, -LIMIT, LIMIT))
        decay = DECAY ** np.arange(len(history))[::-1]
        weight = 1 / (1 + np.exp(-sum(d * h for d, h in zip(decay, history, strict=True)) / decay.sum()))
        confidence, guess = (x.cpu().numpy() for x in q.max(1))
        given, is_clean = label.cpu().numpy(), clean_prob > CLEAN
        accepted = ~is_clean & (confidence > CONFIDENT)
        new_label[:] = np.where(accepted, guess, given)
        row_weight[:] = np.where(is_clean, weight, np.where(accepted, confidence, 0))
        return torch.from_numpy(row_weight)

    def kept() -> int:
        return losses.nbytes + q.nbytes + new_label.nbytes + row_weight.nbytes + sum(h.nbytes for h in history)

    return Head(loss, end_epoch, kept)


def dividemix(label: Tensor, num_classes: int) -> Head:
    """Losses into an array sample by sample, a mixture on the host."""
    losses = torch.zeros(len(label))

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        nll = F.cross_entropy(logits[0].detach(), y, reduction="none")
        for b in range(len(index)):
            losses[index[b]] = nll[b]
        return F.cross_entropy(logits[0], y)

    def end_epoch() -> Tensor:
        return torch.from_numpy(posterior(losses.numpy())).float()

    return Head(loss, end_epoch, lambda: losses.nbytes)


def posterior(values: np.ndarray) -> np.ndarray:
    """Probability of the small-loss component, as DivideMix's code fits it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = ((values - values.min()) / (values.max() - values.min()))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations need not be enough
        mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(values)
    found: np.ndarray = mixture.predict_proba(values)[:, mixture.means_.argmin()]
    return found


PLAIN: dict[str, Build] = {"alr": alr, "elr": elr, "ido": ido, "crema": crema, "dividemix": dividemix}
