"""co_refine, co_guess, sharpen: the words of DivideMix, against its golden numbers."""

import pytest
import torch

from fastlnl.errors import ShapeError
from fastlnl.ops.refine_targets import refine_targets
from fastlnl.refinement import co_guess, co_refine, sharpen

GOLDEN = torch.tensor([[0.049285062, 0.949345908, 0.001369030]])


def test_golden():
    views = torch.tensor([[[0.7, 0.2, 0.1]], [[0.5, 0.4, 0.1]]]).log()
    torch.testing.assert_close(co_refine(views, torch.tensor([1]), torch.tensor([0.7])), GOLDEN)
    torch.testing.assert_close(sharpen(torch.tensor([[0.18, 0.79, 0.03]])), GOLDEN)
    torch.testing.assert_close(co_guess(views), sharpen(torch.tensor([[0.6, 0.3, 0.1]])))


def test_guessing_sharpens_the_mean_of_both_networks():
    own, peer = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mean = torch.cat([own, peer]).softmax(2).mean(0)
    torch.testing.assert_close(co_guess([*own, *peer]), sharpen(mean))
    torch.testing.assert_close(refine_targets(own, peer=peer), sharpen(mean))


def test_swapping_the_networks_swaps_nothing_in_a_guess():
    own, peer = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(co_guess([*own, *peer]), co_guess([*peer, *own]))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_sharpening(temperature):
    probs = torch.randn(4, 6).softmax(1)
    out = sharpen(probs, temperature)
    power = probs.double() ** (1 / temperature)
    torch.testing.assert_close(out.double(), power / power.sum(1, keepdim=True), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(out.sum(1), torch.ones(4))
    assert torch.equal(out.argmax(1), probs.argmax(1))
    if temperature == 1:
        torch.testing.assert_close(out, probs)


def test_half_precision_does_not_underflow_and_zero_stays_zero():
    """1e-4 squared is below the smallest float16."""
    out = sharpen(torch.tensor([[1e-4, 1e-4, 0.0]], dtype=torch.float16))
    assert out.tolist() == [[0.5, 0.5, 0.0]]


def test_refused():
    with pytest.raises(ValueError, match="temperature is 0"):
        sharpen(torch.ones(1, 2), 0)
    with pytest.raises(ShapeError, match=r"probs is \(2,\) int64"):
        sharpen(torch.ones(2, dtype=torch.int64))
