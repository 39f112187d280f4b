"""scale_rows_: exact in float32, in place, and without a trace where the factor is 1."""

import pytest
import torch
from truths import distance, same_bits

from fastlnl.backend import current_backend, use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.scale_rows import scale_rows_

pytestmark = pytest.mark.usefixtures("poison")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 100), (2, 5000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_product(dtype, shape, per_row, device):
    x = torch.randn(shape).to(dtype)
    factor = torch.randn(shape[0] if per_row else ())
    expected = x.double() * factor.double().reshape(-1, 1) * 0.5
    ours = x.to(device).clone()
    assert scale_rows_(ours, factor.to(device), 0.5) is ours
    # float32: factor and product are rounded. Half types: the product is, and the interpreter of Triton cuts bits off.
    unit = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    assert ours.dtype == dtype
    assert ((ours.cpu().double() - expected).abs() <= unit * expected.abs() + 2.0**-25).all()


def test_float64_on_the_reference():
    x, factor = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5, -4.0])
    ours = scale_rows_(x.clone(), factor)
    assert torch.equal(ours, x * factor[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("factor", "constant"), [(1.0, 1.0), (0.25, 4.0)])
def test_factor_one_leaves_every_bit(factor, constant, dtype, device):
    """Infinities, -0.0 and subnormals included."""
    x = torch.randn(3, 8).to(dtype)
    x[1, :4] = torch.tensor([torch.inf, -torch.inf, -0.0, torch.finfo(dtype).tiny / 4], dtype=dtype)
    for shape in ((), (3,)):
        ours = scale_rows_(x.to(device).clone(), torch.full(shape, factor, device=device), constant)
        assert same_bits(ours, x)


def test_only_rows_whose_factor_is_not_one_are_touched(device):
    x = torch.randn(3, 5)
    ours = scale_rows_(x.to(device).clone(), torch.tensor([1.0, 3.0, 1.0], device=device))
    assert same_bits(ours[[0, 2]], x[[0, 2]])
    assert distance(ours[1], x[1].double() * 3) <= 2.0**-24


@pytest.mark.parametrize(
    ("dtype", "value", "factor"),
    # neighbours of 2, and factors that round to 1 in the half type: there nothing would change
    [(torch.float16, 2047 / 1024, 1.0003), (torch.bfloat16, 255 / 128, 1.003)],
)
@pytest.mark.parametrize("per_row", [True, False])
def test_half_precision_is_multiplied_in_float32(dtype, value, factor, per_row, device):
    if dtype == torch.bfloat16 and current_backend() == "triton" and device.type == "cpu":
        pytest.skip("the interpreter of Triton cuts bits off")
    x = torch.full((2, 3), value, dtype=dtype, device=device)
    scale_rows_(x, torch.full((2,) if per_row else (), factor, device=device))
    assert (x == 2.0).all()


def test_zero_and_nan_factors(device):
    x = torch.ones(3, 2, device=device)
    scale_rows_(x, torch.tensor([0.0, torch.nan, torch.inf], device=device))
    assert x[0].tolist() == [0.0, 0.0]
    assert x[1].isnan().all()
    assert x[2].isinf().all()


def test_empty_batch(device):
    x = torch.empty(0, 4, device=device)
    assert scale_rows_(x, torch.empty(0, device=device)).shape == (0, 4)
    assert scale_rows_(x, torch.tensor(2.0, device=device)).shape == (0, 4)


def test_factor_of_another_type_and_stride(device):
    x = torch.randn(4, 3)
    factor = torch.arange(8, dtype=torch.float64)[::2]
    ours = scale_rows_(x.to(device).clone(), factor.to(device))
    assert torch.equal(ours.cpu(), x * factor.float()[:, None])
    assert factor.tolist() == [0, 2, 4, 6]
    same = scale_rows_(x.to(device).clone(), torch.tensor(2.0, device=device).expand(4))  # what mean() hands back
    assert torch.equal(same.cpu(), 2 * x)


@pytest.mark.parametrize("factor", [torch.ones(3), torch.ones(4, 1), torch.ones(1)])
def test_refused_factor(factor):
    with pytest.raises(ShapeError, match=r"factor has .* and dlogits \(4, 3\); expected \(\) or \(B,\)"):
        scale_rows_(torch.zeros(4, 3), factor)


def test_refused_gradient():
    with pytest.raises(ShapeError, match=r"contiguous \(B, C\)"):
        scale_rows_(torch.zeros(3, 4).t(), torch.ones(4))
    with use_backend("reference"), pytest.raises(ShapeError, match=r"contiguous \(B, C\)"):
        scale_rows_(torch.zeros(4), torch.ones(4))
