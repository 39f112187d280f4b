"""Pictures of a noisy data set: how the losses split, and how well the split finds the wrong labels.

Each function returns a matplotlib Figure of its own (`figure.savefig(...)`, or shown as it is by a notebook) and leaves
pyplot alone. Tensors are copied to the host: for the end of an epoch or a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastlnl.metrics import auroc, average_precision, precision_recall_curve, roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Tensor | np.ndarray | Sequence[float]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"  # told apart by the colour-blind
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
POINTS = 2000  # of a drawn curve


def loss_histogram(
    values: Values,
    *,
    is_clean: Values | None = None,
    means: Values | None = None,
    variances: Values | None = None,
    weights: Values | None = None,
    threshold: float | Tensor | None = None,
    bins: int = 80,
    name: str = "loss",
) -> Figure:
    """Histogram of the samples' losses with the fitted Gaussian components and the threshold.

    Args:
        values: (N,), losses or another value; those that are not finite are left out.
        is_clean: (N,) bool, if known: the rightly and the wrongly labelled are drawn apart, as shares of all.
        means, variances, weights: (K,) each, of the fitted components; all or none.
        threshold: where the split is.
        name: of the values, for the axis.
    """
    x = _array(values)
    finite = np.isfinite(x)
    figure, (axes,) = _figure(1)
    edges = np.histogram_bin_edges(x[finite], bins)
    one = 1 / max(1, finite.sum()) / (edges[1] - edges[0])  # height of a sample
    groups = {"samples": (finite, GREY)}
    if is_clean is not None:
        clean = _array(is_clean).astype(bool)
        groups = {"right labels": (finite & clean, BLUE), "wrong labels": (finite & ~clean, ORANGE)}
    highest = 0.0
    for label, (chosen, colour) in groups.items():
        heights = one * np.histogram(x[chosen], edges)[0]
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35, label=f"{label} ({chosen.sum():,})")
        highest = max(highest, heights.max())
    if means is not None and variances is not None and weights is not None:
        at = np.linspace(edges[0], edges[-1], 1000)[:, None]
        mean, variance = _array(means), _array(variances)
        density = _array(weights) * np.exp(-((at - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        for k, column in enumerate(density.T[np.argsort(mean)]):
            axes.plot(at, column, color=COLOURS[k % len(COLOURS)], lw=1.8, label=f"component {k + 1}")
        axes.plot(at, density.sum(1), color="black", lw=1, ls=":", label="mixture")
        highest = min(max(highest, density.sum(1).max()), 2 * highest)  # a narrow component must not hide the rest
    if threshold is not None:
        axes.axvline(float(threshold), color="black", lw=1.2, ls="--", label=f"threshold {float(threshold):.3g}")
    axes.set(xlabel=name, ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, 1.08 * highest or 1))
    axes.legend(frameon=False)
    return figure


def detection_curves(scores: Values | Mapping[str, Values], is_clean: Values) -> Figure:
    """ROC and precision-recall curve of finding the wrong labels, one line for each score.

    Args:
        scores: (N,), higher = cleaner; or several by name.
        is_clean: (N,) bool, the given label is the true one.
    """
    noisy = ~torch.from_numpy(_array(is_clean).astype(bool))
    named = scores if isinstance(scores, Mapping) else {"": scores}
    figure, (roc, pr) = _figure(2)
    share = noisy.double().mean().item() if len(noisy) else 0.0
    roc.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    pr.plot([0, 1], [share, share], color=GREY, lw=0.8, ls=":", label=f"chance {share:.3f}")
    for k, (name, values) in enumerate(named.items()):
        suspicion = -torch.from_numpy(_array(values))
        style: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "lw": 1.6}
        area, precision = auroc(suspicion, noisy).item(), average_precision(suspicion, noisy).item()
        roc.plot(*_thinned(*roc_curve(suspicion, noisy)), label=f"{name} AUROC {area:.3f}".strip(), **style)
        recall, height = _thinned(*precision_recall_curve(suspicion, noisy))
        height[:1] = height[1:2]  # the first step, not the point (0, 1) that stands before it
        pr.plot(recall, height, drawstyle="steps-pre", label=f"{name} AP {precision:.3f}".strip(), **style)
    roc.set(xlabel="right labels suspected", ylabel="wrong labels found", title="ROC")
    pr.set(
        xlabel="wrong labels found (recall)", ylabel="wrong among suspected (precision)", title="precision and recall"
    )
    for axes in (roc, pr):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
        axes.legend(frameon=False, loc="lower right" if axes is roc else "best")
    return figure


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0) if panels == 1 else (4.6 * panels, 4.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, lw=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _array(x: Any) -> np.ndarray:
    """A tensor of any device and type, or a sequence, as a flat float64 array."""
    return np.asarray(x.detach().cpu().double().numpy() if isinstance(x, Tensor) else x, np.float64).reshape(-1)


def _thinned(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A curve without its repeated points, and with no more than can be seen."""
    points = torch.stack([x, y])
    new = torch.cat([torch.ones(1, dtype=torch.bool), (points[:, 1:] != points[:, :-1]).any(0)])
    points = points[:, new]
    some = torch.linspace(0, points.shape[1] - 1, min(POINTS, points.shape[1])).round().long()
    return points[0, some].numpy(), points[1, some].numpy()
