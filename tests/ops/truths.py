"""The losses as their papers write them, in plain torch, and the tools to hold a primitive against them.

Nothing here knows coefficient functions: gradients come from autograd, in float64 for the truth and in float32 for
what a user without fastlnl would run.
"""

import torch
import torch.nn.functional as F

from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word, row_loss


def onehot(logp, y):
    return F.one_hot(y, logp.shape[1]).to(logp.dtype)


def sce(logp, y, alpha, beta):
    reverse = -(logp.exp() * onehot(logp, y).clamp(min=1e-4).log()).sum(1)
    return alpha * nll(logp, y) + beta * reverse


def nll(logp, y):
    return F.nll_loss(logp, y, reduction="none")


def nce(logp, y):
    return nll(logp, y) / -logp.sum(1) if logp.shape[1] > 1 else logp[:, 0] * 0


def focal(logp, y, gamma=2.0):
    return (1 - (-nll(logp, y)).exp()) ** gamma * nll(logp, y)


def entropy(logp):
    return -(logp.exp() * logp).sum(1)


def bootstrapping(logp, y, beta=0.95):
    target = beta * onehot(logp, y) + (1 - beta) * logp.exp()
    return -(target * logp).sum(1)


# Each takes log p (B, C), label (B,), target (B, C) or None, and gives the loss (B,) with the default parameters.
LOSS = {
    "cross_entropy": lambda logp, y, t: nll(logp, y),
    "label_smoothing": lambda logp, y, t: F.cross_entropy(logp, y, reduction="none", label_smoothing=0.1),
    "soft_cross_entropy": lambda logp, y, t: -(t * logp).sum(1),
    "alr": lambda logp, y, t: -(t * logp).sum(1) + 0.3 * entropy(logp),
    "selc": lambda logp, y, t: -(t * logp).sum(1),
    "elr": lambda logp, y, t: nll(logp, y) + 3 * (1 - (t * logp.exp()).sum(1)).clamp(min=1e-4).log(),
    "gce": lambda logp, y, t: -torch.expm1(-0.7 * nll(logp, y)) / 0.7,
    "sce": lambda logp, y, t: sce(logp, y, 0.1, 1.0),
    "mae": lambda logp, y, t: (logp.exp() - onehot(logp, y)).abs().sum(1) / 2,
    "nce": lambda logp, y, t: nce(logp, y),
    "nce_rce": lambda logp, y, t: nce(logp, y) + sce(logp, y, 0.0, 1.0),
    "focal": lambda logp, y, t: focal(logp, y),
    "poly1": lambda logp, y, t: nll(logp, y) + 1 - (-nll(logp, y)).exp(),
    "bootstrapping": lambda logp, y, t: bootstrapping(logp, y),
    "confidence_penalty": lambda logp, y, t: nll(logp, y) - entropy(logp),
}


def truth(name, logits, label, target=None, dtype=torch.float64):
    """Loss (B,) and dlogits (B, C) of the formula, computed in `dtype` by autograd."""
    z = logits.detach().cpu().to(dtype).requires_grad_()
    t = None if target is None else target.to(dtype)
    loss = LOSS[name](torch.log_softmax(z, 1), label.cpu().long(), t)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


def distance(x, y):
    """Relative error, norm over norm; the norm of x where y is 0."""
    x, y = x.detach().cpu().double(), y.detach().cpu().double()
    return float((x - y).norm() / (y.norm() if y.any() else 1.0))


def on(device, x):
    """x on the device; None stays None."""
    return None if x is None else x.to(device)


def call(logits, label, name, parameters=None, errors=None, **options):
    """row_loss with the loss's default parameters, or those named."""
    loss = LOSSES[name]
    errors = new_error_word(logits.device) if errors is None else errors
    return row_loss(logits, label, loss, loss.parameters(**(parameters or {})), errors=errors, **options)


def table_of(rows, device, use=0.9, keep=0.9, one_hot=True):
    """A label memory with these rows, on its own storage."""
    return TableTarget(rows.to(device, torch.float32).clone(), use, keep, one_hot)


def targets(batch, classes, total=1.0):
    """Soft labels (B, C) whose rows sum to `total`."""
    return torch.softmax(torch.randn(batch, classes), 1) * total


def same_bits(x, y):
    """Equal, NaN and -0.0 included."""
    as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    x, y = x.cpu().contiguous(), y.cpu().contiguous()
    return x.dtype == y.dtype and torch.equal(x.view(as_bits[x.itemsize]), y.view(as_bits[y.itemsize]))
