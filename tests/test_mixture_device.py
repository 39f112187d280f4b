"""Nothing in a mixture waits for the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastlnl.backend import use_backend
from fastlnl.mixture import BetaMixture1D, GaussianMixture1D
from fastlnl.ops.beta_cdf import reference

KINDS = [
    (GaussianMixture1D, {}),
    (GaussianMixture1D, {"bins": None}),
    (GaussianMixture1D, {"init": "kmeans++"}),
    (GaussianMixture1D, {"normalise": "p5p95"}),
    (BetaMixture1D, {}),
    (BetaMixture1D, {"bins": None, "method": "likelihood"}),
]


@pytest.mark.parametrize("num_groups", [None, 3])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_tensors_without_data_are_enough(kind, options, num_groups):
    """Whoever asked such a tensor for a value would fail."""
    with FakeTensorMode(), use_backend("reference"):
        x = torch.empty(50)
        group = None if num_groups is None else torch.zeros(50, dtype=torch.int64)
        mixture = kind(num_groups=num_groups, max_iter=2, warm_start=True, **options)
        for _ in range(2):
            mixture.fit(x, group)
        assert mixture.clean_prob(x, group).shape == (50,)
        assert mixture.predict_proba(x, group).shape == (50, 2)


@pytest.mark.parametrize("num_groups", [None, 3])
def test_counts_as_well(num_groups, monkeypatch):
    monkeypatch.setattr(reference, "STEPS", 2)
    with FakeTensorMode(), use_backend("reference"):
        count = torch.zeros(50, dtype=torch.int64)
        group = None if num_groups is None else torch.zeros(50, dtype=torch.int64)
        mixture = BetaMixture1D(num_groups=num_groups, max_iter=2).fit_counts(count, group, max_count=5)
        assert mixture.count_table().shape[-2:] == (6, 2)
