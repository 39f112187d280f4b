"""row_loss on rows worked out by hand: three classes, logits (2, 1, 0), label 1."""

import pytest
import torch
from truths import call, table_of

pytestmark = pytest.mark.usefixtures("poison")
ALR_TARGET = (0.066524096, 0.924472847, 0.009003057)
ALR, ALR_LAMBDA_0 = (0.513940625, -0.637513269, 0.123572644), (0.598716860, -0.679744376, 0.081027515)
ALR_UNDETACHED = (0.485681880, -0.623436230, 0.137754350)

PLAIN = [
    ("gce", {"q": 0.7}, 0.895259733, (0.24834655, -0.28195660, 0.03361005)),
    ("sce", {"alpha": 0.1, "beta": 1.0}, 7.097068451, (1.56599884, -1.77793374, 0.21193490)),
    ("nce", {}, 0.333333333, (0.07893623, -0.15787246, 0.07893623)),
    ("nce_rce", {"alpha": 1.0, "beta": 1.0}, 7.289641188, None),
]
# loss, parameters, first row of the memory (None: never written), momentum, value, gradient
REMEMBERED = [
    ("alr", {"entropy_weight": 0.3}, (0.0, 1.0, 0.0), 0.9, 1.599803601, ALR),
    ("alr", {"entropy_weight": 0.3}, None, 0.9, 1.599803601, ALR),
    ("alr", {"entropy_weight": 0.0}, None, 0.9, 1.350084926, ALR_LAMBDA_0),
    ("selc", {}, None, 0.9, 1.350084926, ALR_LAMBDA_0),
    ("alr", {"entropy_weight": 0.3, "undetached": 0.1}, None, 0.9, 1.599803601, ALR_UNDETACHED),
    ("elr", {"elr_weight": 3.0}, (0.0, 0.0, 0.0), 0.7, 0.908865117, (0.55586899, -0.68613526, 0.13026627)),
]


def row(device):
    return torch.tensor([[2.0, 1.0, 0.0]], device=device), torch.tensor([1], device=device)


def assert_close(ours, expected):
    """Two roundings of a float32 near the value; the golden numbers end at the ninth digit."""
    expected = torch.tensor(expected)
    assert torch.allclose(ours.cpu().reshape(expected.shape), expected, rtol=1.3e-7, atol=1.3e-7)


@pytest.mark.parametrize(
    ("name", "parameters", "value", "gradient"), PLAIN, ids=lambda x: x if isinstance(x, str) else ""
)
def test_golden_row(name, parameters, value, gradient, device):
    result = call(*row(device), name, parameters)
    assert_close(result.loss, [value])
    if gradient is not None:
        assert_close(result.dlogits, gradient)


@pytest.mark.parametrize(("name", "parameters", "first", "momentum", "value", "gradient"), REMEMBERED)
def test_golden_row_of_a_label_memory(name, parameters, first, momentum, value, gradient, device):
    rows = torch.full((1, 3), -1.0) if first is None else torch.tensor([first])
    memory = table_of(rows, device, use=momentum, keep=momentum)
    result = call(*row(device), name, parameters, memory=memory, index=torch.zeros(1, dtype=torch.int64, device=device))
    assert_close(result.loss, [value])
    assert_close(result.dlogits, gradient)
    if name != "elr":
        assert_close(memory.table, ALR_TARGET)


def test_golden_statistics(device):
    stats = call(*row(device), "cross_entropy", with_stats=True).stats
    assert_close(stats.nll, [1.407605964])
    assert_close(stats.p_label, [0.244728471])
    assert_close(stats.confidence, [0.665240956])
    assert_close(stats.entropy, [0.832395582])
    assert_close(stats.margin, [-1.0])
    assert stats.prediction.tolist() == [0]
