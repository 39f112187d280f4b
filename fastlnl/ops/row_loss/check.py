"""Is the gradient of a loss definition the gradient of its loss? And if not, which coefficient is wrong?"""

import torch

from fastlnl.errors import DefinitionError
from fastlnl.ops.row_loss.definition import COEFFICIENTS, TORCH_NAMESPACE, LossDefinition


def check_loss(loss: LossDefinition, *, tolerance: float = 1e-8, **parameters: float) -> dict[str, float]:
    """Compare the gradient of a loss with float64 autograd, row by row.

    Whatever a loss makes of the row statistics, its gradient is a sum of the six terms p, onehot(y), t, p t,
    p (log p + H) and 1. On random rows of twelve classes these are linearly independent, so the true coefficients
    follow from autograd's gradient by least squares and can be compared one by one. The target is a constant.

    Args:
        loss: what `define_loss` returned.
        tolerance: largest allowed difference, relative to the largest coefficient of the row (at least 1).
        parameters: of the loss; its defaults where not given.

    Returns:
        The largest relative difference of each coefficient.

    Raises:
        DefinitionError: names the wrong coefficients, with what they are and what they should be.
    """
    generator = torch.Generator().manual_seed(0)
    rows, classes = 64, 12
    spread = torch.logspace(-1, 0.7, rows, dtype=torch.float64)[:, None]
    z = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * spread).requires_grad_()
    label = torch.randint(classes, (rows,), generator=generator)
    target = torch.softmax(torch.randn(rows, classes, generator=generator, dtype=torch.float64), 1)
    logp = torch.log_softmax(z, 1)
    p = logp.exp()
    nll = -logp.gather(1, label[:, None])[:, 0]
    entropy = -(p * logp).sum(1)
    statistics = {
        "nll": nll,
        "p_label": (-nll).exp(),
        "entropy": entropy,
        "target_sum": target.sum(1),
        "target_p": (target * p).sum(1),
        "target_logp": (target * logp).sum(1),
        "logp_sum": logp.sum(1),
        "num_classes": torch.full_like(nll, classes),
    }
    function = loss.bind(TORCH_NAMESPACE)
    value, *claimed = function(*(statistics[k] for k in loss.statistics), *loss.parameters(**parameters))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    if not (value.isfinite().all() and gradient.isfinite().all()):
        raise DefinitionError(f"loss '{loss.name}' or its gradient is not finite on ordinary rows of twelve classes")
    onehot = torch.zeros_like(p).scatter_(1, label[:, None], 1.0)
    terms = [p, -onehot, -target, p * (logp + entropy[:, None]), p * target, torch.ones_like(p)]
    basis = torch.stack(terms, 2).detach()
    true = torch.linalg.lstsq(basis, gradient[..., None], driver="gelsd").solution[..., 0]
    scale = true.abs().amax(1).clamp(min=1.0)
    errors, wrong = {}, []
    for i, name in enumerate(COEFFICIENTS):
        mine = torch.as_tensor(claimed[i], dtype=torch.float64).detach().expand(rows)
        difference = (mine - true[:, i]).abs() / scale
        errors[name] = float(difference.max())
        if not errors[name] <= tolerance:
            worst = int(difference.nan_to_num(torch.inf).argmax())
            wrong.append(f"{name} is {float(mine[worst]):.6g} where autograd gives {float(true[worst, i]):.6g}")
    if wrong:
        raise DefinitionError(f"loss '{loss.name}': {'; '.join(wrong)} (on the row where they differ most)")
    return errors
