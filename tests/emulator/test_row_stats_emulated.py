"""tests/ops/test_row_stats.py on csrc's kernels."""

from test_row_stats import *  # noqa: F403


# float32 and half rows are cut into different slots, so their sums may round differently.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])  # noqa: F405
@pytest.mark.parametrize("classes", [2, 17, 1000])  # noqa: F405
def test_half_precision_is_read_exactly(classes, dtype, device):
    z, y = batch_of(classes)  # noqa: F405
    check(z.to(dtype), y, device)  # noqa: F405
