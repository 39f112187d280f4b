"""class_prior against the formula in float64, and its laws."""

import pytest
import torch
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.class_prior import class_prior

pytestmark = pytest.mark.usefixtures("poison")


def truth(logits, prior=None):
    """terms (C,) and ratio (C,)."""
    mean = logits.double().softmax(1).mean(0).clamp(min=1e-12)
    pi = torch.full_like(mean, 1 / len(mean)) if prior is None else prior.double()
    return torch.xlogy(pi, pi / mean), pi / mean


def check(device, logits, prior=None):
    found = class_prior(logits.to(device), None if prior is None else prior.to(device))
    for ours, exact in zip(found, truth(logits, prior), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.cpu().double(), exact, rtol=2e-6, atol=1e-7)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (3, 2), (70, 10), (33, 17), (64, 100), (5, 1000)])
def test_definition(batch, classes, dtype, device):
    """With the uniform prior, and with one where some class has no mass."""
    logits = (2 * torch.randn(batch, classes)).to(dtype)
    check(device, logits)
    prior = torch.rand(classes)
    if classes > 1:
        prior[0] = 0
    check(device, logits, prior / prior.sum())


def test_rows_wider_than_a_tile_and_more_rows_than_programs(device):
    check(device, torch.randn(3, 5001))
    from fastlnl.ops.class_prior import triton_kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernel, "GROUPS", 2)
        check(device, torch.randn(5, 5001))
        check(device, torch.randn(70, 10))


def test_mean_equal_to_the_prior_costs_nothing(device):
    """Rows that are the prior, and rows whose mean it is."""
    prior = torch.tensor([0.5, 0.3, 0.2])
    assert abs(float(check(device, prior.log().expand(4, 3), prior).loss)) < 1e-6
    one_hot = torch.full((10, 3), -torch.inf)
    one_hot[range(10), [0] * 5 + [1] * 3 + [2] * 2] = 0.0
    found = class_prior(one_hot.to(device), prior.to(device))
    torch.testing.assert_close(found.ratio.cpu(), torch.ones(3))


def test_a_class_nobody_predicts_is_finite(device):
    """Gaps of 1e4: the mean is floored at 1e-12."""
    logits = torch.tensor([[0.0, -1e4], [1e4, 0.0]])
    found = check(device, logits)
    assert found.ratio[1] == pytest.approx(0.5e12, rel=1e-6)


def test_nan_reaches_everybody(device):
    logits = torch.randn(40, 12, device=device)
    logits[33, 4] = torch.nan
    found = class_prior(logits)
    assert found.ratio.isnan().all()
    assert found.terms.isnan().all()


def test_order_of_rows_strides_and_empty_batch(device):
    logits = torch.randn(40, 12, device=device)
    found = class_prior(logits)
    shuffled = class_prior(logits[torch.randperm(40, device=device)])
    torch.testing.assert_close(found.ratio, shuffled.ratio, rtol=1e-6, atol=0)
    strided = class_prior(logits.t().contiguous().t())
    assert all(map(same_bits, found, strided))
    empty = class_prior(logits[:0])
    assert empty.terms.tolist() == empty.ratio.tolist() == [0.0] * 12


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    """Any number of threads gives the same bits."""
    logits = torch.randn(3000, 100)
    with use_backend("numba"):
        alone = class_prior(logits)
        torch.set_num_threads(threads)
        assert all(map(same_bits, alone, check("cpu", logits)))


def test_refused_at_the_door():
    with pytest.raises(ShapeError, match=r"prior is \(3,\) float32; expected \(4,\) of a floating type"):
        class_prior(torch.zeros(2, 4), torch.ones(3))
    with pytest.raises(ShapeError, match=r"logits is \(4,\) float32; expected \(B, C\)"):
        class_prior(torch.zeros(4))
