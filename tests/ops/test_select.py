"""select against a plain sort by (score, id), its laws and its limits."""

from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truths import same_bits

from fastlnl.backend import current_backend, use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.select import select

pytestmark = pytest.mark.usefixtures("poison")


def ways():
    """Both kernels of Triton, by counting and by digits, whatever the number of samples; elsewhere there is one."""
    yield nullcontext()
    if current_backend() == "triton":
        from fastlnl.ops.select import triton_kernel

        yield patch.object(triton_kernel, "ONE_LAUNCH", 0)


def truth(scores, quota, group=None, largest=True):
    """Mask and cuts, sample after sample."""
    mask, cuts = torch.zeros(len(scores), dtype=torch.bool), []
    for g, number in enumerate(quota.tolist()):
        mine = [i for i in range(len(scores)) if (group is None or group[i] == g) and not scores[i].isnan()]
        mine.sort(key=lambda i: (-scores[i].item() if largest else scores[i].item(), i))
        taken = mine[: max(0, number)]
        mask[taken] = True
        cuts.append(scores[taken[-1]].item() if taken else (torch.inf if largest else -torch.inf))
    return mask, torch.tensor(cuts, dtype=scores.dtype)


def check(scores, quota, group, device, largest=True):
    there = None if group is None else group.to(device)
    mask, cut = truth(scores, quota, group, largest)
    for way in ways():
        with way:
            ours = select(scores.to(device), quota.to(device), there, largest=largest)
        assert ours.mask.dtype == torch.bool
        assert torch.equal(ours.mask.cpu(), mask)
        assert ours.cut.dtype == torch.float32
        assert torch.equal(ours.cut.cpu(), cut)


KINDS = {
    "distinct": lambda n: torch.randn(n),
    "tied": lambda n: torch.randint(-3, 3, (n,)).float(),
    "equal": lambda n: torch.full((n,), 0.25),
    "with NaN": lambda n: torch.where(torch.rand(n) < 0.4, torch.nan, torch.randn(n).round()),
    "only NaN": lambda n: torch.full((n,), torch.nan),
    "infinite": lambda n: torch.where(torch.rand(n) < 0.5, torch.inf, torch.randn(n)) * (torch.rand(n) - 0.5).sign(),
    "signed zeros": lambda n: torch.where(torch.rand(n) < 0.5, 0.0, -0.0),
    "denormal": lambda n: torch.randint(-3, 3, (n,)) * 1e-44,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [True, False])
def test_one_group(kind, largest, device):
    scores = KINDS[kind](29)
    for k in (0, 13, 29, 40):
        check(scores, torch.tensor([k]), None, device, largest)


@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind, device):
    scores, group = KINDS[kind](60), torch.randint(-2, 9, (60,))  # -2, -1, 7 and 8 are no groups
    group[group == 3] = 2  # and nobody is in this one
    check(scores, torch.tensor([0, 3, 100, 2, 1, -5, 7]), group, device)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 127, 128, 129, 4097])
def test_sizes(n, device):
    scores, group = torch.randn(n).round(decimals=2), torch.randint(0, 5, (n,))
    check(scores, torch.tensor([n // 3]), None, device)
    check(scores, torch.tensor([n, 100, 1, 0, n // 9]), group, device, largest=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scores=st.lists(st.floats(width=32) | st.integers(-2, 2).map(float), max_size=24),
    quota=st.lists(st.integers(-1, 8), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    largest=st.booleans(),
)
def test_any_scores(scores, quota, seed, largest, device):
    group = torch.randint(-1, len(quota) + 1, (len(scores),), generator=torch.Generator().manual_seed(seed))
    check(torch.tensor(scores, dtype=torch.float32), torch.tensor(quota), group, device, largest)


def test_every_group_gives_its_quota_or_all_it_has(device):
    group = torch.randint(0, 7, (200,))
    quota = torch.tensor([0, 5, 10, 1, 300, 29, 28])
    chosen = select(torch.rand(200).to(device), quota.to(device), group.to(device)).mask.cpu()
    counts = [int(chosen[group == g].sum()) for g in range(7)]
    assert counts == torch.minimum(quota, group.bincount(minlength=7)).tolist()


def test_a_monotone_transform_changes_nothing(device):
    scores, group, quota = torch.randn(90), torch.randint(0, 4, (90,)), torch.tensor([3, 8, 1, 9])
    plain = select(scores.to(device), quota.to(device), group.to(device)).mask
    for moved in (scores.double().exp().float(), 4 * scores, scores / 1024):
        assert torch.equal(select(moved.to(device), quota.to(device), group.to(device)).mask, plain)


def test_the_order_of_distinct_scores_does_not_matter(device):
    scores, group, quota = torch.randn(90), torch.randint(0, 4, (90,)), torch.tensor([3, 8, 1, 9])
    order = torch.randperm(90)
    plain = select(scores.to(device), quota.to(device), group.to(device))
    moved = select(scores[order].to(device), quota.to(device), group[order].to(device))
    assert torch.equal(moved.mask.cpu(), plain.mask.cpu()[order])
    assert same_bits(moved.cut, plain.cut)


def test_lowest_is_highest_of_the_negative(device):
    scores, quota = torch.randint(-4, 5, (80,)).float().to(device), torch.tensor([33]).to(device)
    lowest, highest = select(scores, quota, largest=False), select(-scores, quota)
    assert torch.equal(lowest.mask, highest.mask)
    assert torch.equal(lowest.cut, -highest.cut)


def test_the_cut_is_an_order_statistic(device):
    scores = torch.randn(101)
    cut = select(scores.to(device), torch.tensor([51], device=device)).cut
    assert cut.item() == scores.median()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, device):
    scores, quota = torch.randn(70).to(dtype), torch.tensor([31])
    check(scores.float(), quota, None, device)
    ours = select(scores.to(device), quota.to(device))
    assert torch.equal(ours.mask.cpu(), truth(scores.float(), quota)[0])


def test_float64_is_not_rounded():
    scores = 1 + torch.arange(8).flip(0).double() * 2.0**-50  # equal in float32, where the lowest id would win
    ours = select(scores, torch.tensor([2]), largest=False)
    assert ours.mask.nonzero().flatten().tolist() == [6, 7]
    assert ours.cut.dtype == torch.float64
    assert ours.cut.item() == scores[6]


def test_types_and_strides_change_nothing(device):
    scores, group, quota = torch.randn(60), torch.randint(0, 3, (60,)), torch.tensor([4, 5, 6])
    plain = select(scores.to(device), quota.to(device), group.to(device))
    other = select(
        scores.repeat_interleave(2).to(device)[::2],
        quota.to(torch.int32).to(device),
        group.to(torch.uint8).repeat_interleave(3).to(device)[::3],
    )
    assert all(same_bits(x.to(torch.float32), y.to(torch.float32)) for x, y in zip(plain, other, strict=True))


def test_inputs_are_not_modified(device):
    given = [torch.randn(50), torch.tensor([3, 70]), torch.randint(0, 2, (50,))]
    inputs = [x.to(device) for x in given]
    inputs[0].requires_grad_()
    mask, cut = select(*inputs)
    assert not mask.requires_grad
    assert not cut.requires_grad
    assert all(torch.equal(x.detach().cpu(), y) for x, y in zip(inputs, given, strict=True))


def test_many_samples_equal_the_reference():
    scores, group = torch.randn(200_000).round(decimals=3), torch.randint(-1, 100, (200_000,))
    quota = torch.from_numpy(np.random.default_rng(0).integers(0, 3000, 100))
    with use_backend("reference"):
        plain = select(scores, quota, group)
    with use_backend("numba"):
        ours = select(scores, quota, group)
    assert torch.equal(ours.mask, plain.mask)
    assert torch.equal(ours.cut, plain.cut)


@pytest.mark.parametrize(
    ("scores", "quota", "group", "text"),
    [
        (torch.zeros(3, 2), torch.tensor([1]), None, r"scores is \(3, 2\) float32; expected \(N,\) of a floating type"),
        (torch.zeros(3).long(), torch.tensor([1]), None, r"scores is \(3,\) int64; expected \(N,\) of a floating type"),
        (torch.zeros(3), torch.tensor(1), None, r"quota is \(\) int64; expected \(G,\), a number for each group"),
        (torch.zeros(3), torch.ones(1), None, r"quota is \(1,\) float32; expected an integer type"),
        (torch.zeros(3), torch.tensor([1, 1]), None, "quota is for 2 groups but there is no group; say which sample"),
        (torch.zeros(3), torch.tensor([1, 1]), torch.zeros(2).long(), r"group is \(2,\) int64; expected \(3,\)"),
        (torch.zeros(3), torch.tensor([1, 1]), torch.zeros(3), r"group is \(3,\) float32; expected an integer type"),
        (torch.zeros(3), torch.tensor([1], device="meta"), None, "quota is on meta but scores is on cpu; move one"),
    ],
)
def test_refused_at_the_door(scores, quota, group, text):
    with pytest.raises(ShapeError, match=text):
        select(scores, quota, group)
