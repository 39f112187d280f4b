"""tests/ops/test_two_view_loss_extremes.py on csrc's kernels."""

from test_two_view_loss_extremes import *  # noqa: F403
from test_two_view_loss_extremes import call, problem


# float32 and half rows are cut into different slots, so their sums may round differently.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])  # noqa: F405
@pytest.mark.parametrize("scale", ENTROPY_SCALES)  # noqa: F405
def test_half_precision_is_computed_in_float32(scale, dtype, device):
    zw, zs, *rest = problem(5, 12)
    zw, zs = zw.to(dtype), zs.to(dtype)
    half, count = call((zw, zs, *rest), device, entropy_scale=scale)
    full, counted = call((zw.float(), zs.float(), *rest), device, entropy_scale=scale)
    assert (half.dlogits.dtype, half.loss.dtype) == (dtype, torch.float32)  # noqa: F405
    assert distance(half.loss, full.loss) <= 3e-7  # noqa: F405
    step = torch.finfo(dtype).eps  # noqa: F405
    torch.testing.assert_close(half.dlogits.float(), full.dlogits, rtol=step, atol=2.0**-24)  # noqa: F405
    assert torch.equal(half.prediction, full.prediction)  # noqa: F405
    assert torch.equal(count, counted)  # noqa: F405
