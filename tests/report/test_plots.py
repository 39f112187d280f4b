"""The plots hold what they were given, and no figure of pyplot is left behind."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from fastlnl.metrics import auroc, average_precision
from fastlnl.report.plots import POINTS, detection_curves, loss_histogram


@pytest.fixture
def data():
    noisy = torch.rand(2000) < 0.3
    return torch.where(noisy, 3 + torch.randn(2000), torch.rand(2000)), ~noisy


def drawn(figure, tmp_path):
    """Whether the figure can be saved, and is not blank."""
    figure.savefig(tmp_path / "figure.png")
    from matplotlib.image import imread

    return imread(tmp_path / "figure.png").std() > 0.01


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_loss_histogram(data, tmp_path):
    loss, is_clean = data
    fit = {"means": torch.tensor([3.0, 0.5]), "variances": [1.0, 0.1], "weights": np.array([0.3, 0.7])}
    figure = loss_histogram(loss, is_clean=is_clean, **fit, threshold=torch.tensor(1.25), name="cross-entropy")
    axes = figure.axes[0]
    right, wrong = int(is_clean.sum()), int((~is_clean).sum())
    assert legend(axes) == [
        f"right labels ({right:,})",
        f"wrong labels ({wrong:,})",
        "component 1",
        "component 2",
        "mixture",
        "threshold 1.25",
    ]
    assert axes.get_xlabel() == "cross-entropy"
    area = sum(np.sum(part.get_data().values * np.diff(part.get_data().edges)) for part in axes.patches)
    assert area == pytest.approx(1, abs=1e-9)
    first, second, mixture, threshold = axes.lines
    x = np.asarray(first.get_xdata()).ravel()
    assert first.get_ydata().argmax() == np.abs(x - 0.5).argmin()  # component 1 has the lower mean
    expected = 0.3 / np.sqrt(2 * np.pi) * np.exp(-((x - 3) ** 2) / 2)
    assert np.allclose(second.get_ydata(), expected)
    assert np.allclose(mixture.get_ydata(), first.get_ydata() + second.get_ydata())
    assert list(threshold.get_xdata()) == [1.25, 1.25]
    assert drawn(figure, tmp_path)


def test_a_narrow_component_does_not_hide_the_histogram():
    figure = loss_histogram(torch.rand(500), means=[0.5], variances=[1e-10], weights=[1.0])
    assert figure.axes[0].get_ylim()[1] < 5


@pytest.mark.parametrize(
    "values", [torch.ones(5), torch.tensor([1.0, torch.nan, torch.inf, 2.0]), [0.5], torch.zeros(0), np.arange(9)]
)
def test_degenerate_values_are_drawn(values, tmp_path):
    assert drawn(loss_histogram(values), tmp_path)


def test_detection_curves(data, tmp_path):
    loss, is_clean = data
    scores = {"loss": -loss, "coin": torch.rand(2000)}
    figure = detection_curves(scores, is_clean)
    roc, pr = figure.axes
    areas = [auroc(s, is_clean).item() for s in scores.values()]
    precisions = [average_precision(-s, ~is_clean).item() for s in scores.values()]
    assert legend(roc) == [f"{name} AUROC {area:.3f}" for name, area in zip(scores, areas, strict=True)]
    share = (~is_clean).double().mean().item()
    names = [f"{name} AP {precision:.3f}" for name, precision in zip(scores, precisions, strict=True)]
    assert legend(pr) == [f"chance {share:.3f}", *names]
    for line, area in zip(roc.lines[1:], areas, strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        assert len(x) <= POINTS
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(y, x) == pytest.approx(area, abs=1e-3)
    for line, precision in zip(pr.lines[1:], precisions, strict=True):
        recall, height = line.get_xdata(), line.get_ydata()
        assert np.sum(np.diff(recall) * height[1:]) == pytest.approx(precision, abs=1e-3)
    assert drawn(figure, tmp_path)


def test_one_score_needs_no_name(data):
    loss, is_clean = data
    figure = detection_curves(-loss.numpy(), is_clean.tolist())
    assert legend(figure.axes[0]) == [f"AUROC {auroc(-loss, is_clean).item():.3f}"]


@pytest.mark.parametrize("n", [1, 30])
def test_without_noise_there_is_still_a_figure(n, tmp_path):
    assert drawn(detection_curves(torch.rand(n), torch.ones(n, dtype=torch.bool)), tmp_path)


def test_pyplot_is_left_alone(data):
    before = "matplotlib.pyplot" in sys.modules
    loss_histogram(data[0])
    detection_curves(*data)
    if not before:
        assert "matplotlib.pyplot" not in sys.modules
