"""history_weight against a plain list of epochs, and its laws."""

import numpy as np
import pytest
import torch

from fastlnl.errors import ShapeError
from fastlnl.ops.history_weight import history_weight

pytestmark = pytest.mark.usefixtures("poison")


def plain(epochs, decay):
    """Epochs are lists of values, newest first; None is a gap."""
    out = []
    for values in zip(*epochs, strict=True):
        there = [(j, v) for j, v in enumerate(values) if v is not None]
        if not there:
            out.append(0.0)
            continue
        a = [decay ** (j - there[0][0]) for j, _ in there]
        out.append(sum(w * v for w, (_, v) in zip(a, there, strict=True)) / sum(a))
    return out


def ring_of(epochs, rows, device, dtype=torch.float32):
    """Epochs, oldest first, written around a ring of NaN; and the position after them."""
    history = torch.full((rows, len(epochs[0])), torch.nan, dtype=dtype)
    for t, values in enumerate(epochs):
        history[t % rows] = torch.tensor([np.nan if v is None else v for v in values])
    return history.to(device), torch.tensor([len(epochs) % rows, min(len(epochs), rows)], device=device)


def random_epochs(count, num_samples, gaps=0.3):
    random = np.random.default_rng(0)
    values = random.uniform(-6, 6, (count, num_samples)).astype(np.float16).astype(float)
    return [[None if random.random() < gaps else float(v) for v in row] for row in values]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 4, 5, 12])
def test_decayed_mean_over_a_ring_of_five(count, decay, dtype, device):
    """Partly filled, just full, and twice around; 1,031 samples end inside the second piece."""
    epochs = random_epochs(count, 1031)
    out = history_weight(*ring_of(epochs, 5, device, dtype), decay)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.cpu(), plain(epochs[::-1][:5], decay), rtol=1e-6, atol=2e-6)


def test_wrapping_around_equals_a_list_for_25_epochs(device):
    epochs = random_epochs(25, 6, gaps=0)
    for t in range(1, 26):
        out = history_weight(*ring_of(epochs[:t], 7, device), 0.8)
        np.testing.assert_allclose(out.cpu(), plain(epochs[:t][::-1][:7], 0.8), rtol=1e-6, atol=2e-6)


def test_golden_log_odds(device):
    """CREMA's card: g newest first .9, .8, .5, .2."""
    odds = [np.log(g / (1 - g)) for g in (0.2, 0.5, 0.8, 0.9)]
    out = history_weight(*ring_of([[v] for v in odds], 10, device), 0.9)
    assert abs(out.item() - 0.707845569) < 1e-6
    assert abs(torch.sigmoid(out).item() - 0.669924935) < 1e-6


def test_constant_history_gives_the_constant_for_any_decay(device):
    for decay in (0.0, 0.3, 1.0):
        out = history_weight(*ring_of([[1.5, -2.0]] * 4, 6, device), decay)
        assert out.tolist() == [1.5, -2.0]


def test_nothing_stored_gives_zero_and_rows_beyond_are_not_read(device):
    history = torch.full((3, 4), torch.nan, device=device)
    assert history_weight(history, torch.tensor([0, 0], device=device), 0.9).tolist() == [0.0] * 4
    history[:] = torch.inf
    history[1] = 2.0
    assert history_weight(history, torch.tensor([2, 1], device=device), 0.9).tolist() == [2.0] * 4


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.backend import use_backend
    from fastlnl.ops.history_weight.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    history, position = torch.randn(3, SERIAL_BELOW), torch.tensor([1, 3])
    with use_backend("reference"):
        expected = history_weight(history, position, 0.7)
    with use_backend("numba"):
        torch.testing.assert_close(history_weight(history, position, 0.7), expected)


def test_no_samples(device):
    assert history_weight(torch.zeros(2, 0, device=device), torch.tensor([0, 1], device=device), 0.5).shape == (0,)


def test_refused_at_the_door():
    position = torch.tensor([0, 1])
    with pytest.raises(ShapeError, match=r"history is \(3,\) float32; expected contiguous \(R, N\)"):
        history_weight(torch.zeros(3), position, 0.9)
    with pytest.raises(ShapeError, match=r"position is \(1,\) int64; expected \(2,\) int64"):
        history_weight(torch.zeros(3, 2), position[:1], 0.9)
    with pytest.raises(ValueError, match=r"decay is 1.5; expected a value in \[0, 1\]"):
        history_weight(torch.zeros(3, 2), position, 1.5)
