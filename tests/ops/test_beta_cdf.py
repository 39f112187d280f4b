"""beta_cdf against scipy, its symmetry and its limits."""

import numpy as np
import pytest
import torch
from scipy.special import betainc

from fastlnl.errors import ShapeError
from fastlnl.ops.beta_cdf import beta_cdf

pytestmark = pytest.mark.usefixtures("poison")


def problem(n, largest):
    random = np.random.default_rng(0)
    a, b = 10 ** random.uniform(-3, np.log10(largest), (2, n))
    x = random.uniform(0, 1, n)
    x[: n // 2] = np.clip((a / (a + b))[: n // 2] * random.uniform(0.9, 1.1, n // 2), 0, 1)
    return x, a, b


@pytest.mark.parametrize(("largest", "error"), [(1e3, 1e-11), (1e6, 1e-8)])
def test_values(largest, error, device):
    x, a, b = problem(60, largest)
    ours = beta_cdf(*(torch.from_numpy(v).to(device) for v in (x, 1 - x, a, b)))
    assert ours.dtype == torch.float64
    assert np.abs(ours.cpu().numpy() - betainc(a, b, x)).max() <= error


def test_ends_broadcasting_and_the_upper_tail(device):
    x = torch.tensor([[0.0], [1.0], [1 - 1e-12]], dtype=torch.float64)
    a, b = torch.tensor([0.5, 3.0, 1e-3]).double(), torch.tensor(0.01).double()
    rest = torch.tensor([[1.0], [0.0], [1e-30]], dtype=torch.float64)  # more than 1 - x can say
    ours = beta_cdf(*(v.to(device) for v in (x, rest, a, b))).cpu()
    assert ours.shape == (3, 3)
    assert ours[0].tolist() == [0.0] * 3
    assert ours[1].tolist() == [1.0] * 3
    assert torch.allclose(1 - ours[2], torch.from_numpy(betainc(0.01, a.numpy(), 1e-30)), rtol=1e-9)


def test_symmetry(device):
    x, a, b = (torch.from_numpy(v).to(device) for v in problem(40, 100))
    assert torch.allclose(beta_cdf(x, 1 - x, a, b), 1 - beta_cdf(1 - x, x, b, a), rtol=0, atol=1e-12)


def test_neighbours_do_not_matter(device):
    x, a, b = (torch.from_numpy(v).to(device) for v in problem(4, 100))
    ours, one = beta_cdf(x, 1 - x, a, b), slice(2, 3)
    assert (beta_cdf(x[one], 1 - x[one], a[one], b[one]) - ours[one]).abs() <= 1e-14


def test_empty_and_refused(device):
    empty = torch.empty(0, dtype=torch.float64, device=device)
    assert beta_cdf(empty, empty, empty, empty).shape == (0,)
    with pytest.raises(ShapeError, match=r"alpha is \(2,\) float32; expected float64"):
        beta_cdf(torch.zeros(2).double(), torch.ones(2).double(), torch.ones(2), torch.ones(2).double())
