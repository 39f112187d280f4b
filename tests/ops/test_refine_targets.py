"""refine_targets against the formulas written out in float64, and its laws."""

import pytest
import torch
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.refine_targets import refine_targets

pytestmark = pytest.mark.usefixtures("poison")


def truth(logits, label, clean_prob, temperature, peer=()):
    """Row after row."""
    rows, batch = [], len(logits[0])
    for b in range(batch):
        views = [z[b] for z in logits]
        if len(peer) and b >= batch - len(peer[0]):
            views += [z[b - batch + len(peer[0])] for z in peer]
        q = torch.stack([v.double().softmax(0) for v in views]).mean(0)
        if label is not None and b < len(label) and 0 <= label[b] < len(q):
            w = float(clean_prob[b])
            q = (1 - w) * q + w * torch.nn.functional.one_hot(label[b].long(), len(q))
        rows.append(((q.log()) / temperature).softmax(0))
    return torch.stack(rows)


def problem(batch, classes, views=2, dtype=torch.float32, spread=3.0):
    logits = [(spread * torch.randn(batch, classes)).to(dtype) for _ in range(views)]
    return logits, torch.randint(classes, (batch,)), torch.rand(batch)


def moved(device, *given):
    return [[x.to(device) for x in g] if isinstance(g, (list, tuple)) else g.to(device) for g in given]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (3, 2), (9, 10), (5, 17), (7, 100), (2, 1000)])
def test_labelled_and_unlabelled_in_one_call(batch, classes, dtype, device):
    """Views of all rows, labels of the first, a peer's views of the rest; one label is missing."""
    logits, label, w = problem(batch, classes, 2, dtype)
    labelled = (batch + 1) // 2
    peer = [(3 * torch.randn(batch - labelled, classes)).to(dtype) for _ in range(2)]
    label, w = label[:labelled].clone(), w[:labelled]
    label[-1] = -1
    here = moved(device, logits, label, w, peer)
    out = refine_targets(here[0], here[1], here[2], 0.5, peer=here[3])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.cpu().double(), truth(logits, label, w, 0.5, peer), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("temperature", [0.1, 0.3, 0.5, 0.7, 1.0, 2.0])
def test_temperatures(temperature, device):
    logits, label, w = problem(6, 23, 3)
    here = moved(device, logits, label, w)
    out = refine_targets(*here, temperature)
    torch.testing.assert_close(out.cpu().double(), truth(logits, label, w, temperature), rtol=1e-5, atol=5e-7)


def test_rows_wider_than_a_tile(device):
    """Above 4,096 columns Triton reads the predictions again; a strong logit in each block of the row."""
    logits, label, w = problem(2, 9001, 2)
    for z in logits:
        z[:, [3, 5000, 9000]] += 8
    peer = [torch.randn(1, 9001)]
    here = moved(device, logits, label[:1], w[:1], peer)
    out = refine_targets(here[0], here[1], here[2], 0.5, peer=here[3])
    torch.testing.assert_close(out.cpu().double(), truth(logits, label[:1], w[:1], 0.5, peer), rtol=1e-5, atol=1e-7)


def test_golden(device):
    """peers.md 1.8: mean softmax (.6, .3, .1), y = 1, w = .7, temperature .5."""
    views = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], device=device).log()[:, None]
    label, w = torch.tensor([1], device=device), torch.tensor([0.7], device=device)
    refined = refine_targets(views, label, w, 1.0)
    torch.testing.assert_close(refined.cpu(), torch.tensor([[0.18, 0.79, 0.03]]))
    sharpened = refine_targets(views, label, w, 0.5)
    torch.testing.assert_close(sharpened.cpu(), torch.tensor([[0.049285062, 0.949345908, 0.001369030]]))


def test_rows_sum_to_one_and_a_shift_changes_nothing(device):
    logits, label, w = moved(device, *problem(8, 37))
    out = refine_targets(logits, label, w)
    torch.testing.assert_close(out.sum(1).cpu(), torch.ones(8))
    shifted = refine_targets([z + 50 * torch.arange(8, device=device)[:, None] for z in logits], label, w)
    torch.testing.assert_close(shifted, out, rtol=1e-4, atol=1e-6)


def test_a_clean_label_is_the_target_and_a_wrong_one_is_not_looked_at(device):
    logits, label, _ = moved(device, *problem(5, 12))
    out = refine_targets(logits, label, torch.ones(5, device=device))
    assert torch.equal(out, torch.nn.functional.one_hot(label, 12).float())
    other = refine_targets(logits, (label + 1) % 12, torch.zeros(5, device=device))
    assert torch.equal(other, refine_targets(logits))


@pytest.mark.parametrize("temperature", [0.5, 0.3])
def test_gaps_of_ten_thousand(temperature, device):
    z = torch.tensor([[1e4, 0.0, -1e4], [-torch.inf, 0.0, 1.0], [0.0, 0.0, -1e4]], device=device)
    label, w = torch.tensor([1, 0], device=device), torch.tensor([0.0, 1e-30], device=device)
    out = refine_targets([z, z], label, w, temperature).cpu()
    assert out.isfinite().all()
    assert out[0].tolist() == [1.0, 0.0, 0.0]
    assert out[2].tolist() == [0.5, 0.5, 0.0]
    assert out[1, 0] == 0


def test_nan_stays_in_its_row(device):
    z = torch.randn(3, 20, device=device)
    z[1, 4] = torch.nan
    out = refine_targets([torch.randn(3, 20, device=device), z])
    assert out.isnan().all(1).tolist() == [False, True, False]
    assert out[[0, 2]].isfinite().all()


def test_strides_order_and_inputs(device):
    """A transposed view gives the same bits; a permuted batch the permuted rows; nothing is written to."""
    logits, label, w = moved(device, *problem(9, 21))
    before = [z.clone() for z in logits]
    out = refine_targets(logits, label, w)
    assert same_bits(out, refine_targets([z.t().contiguous().t() for z in logits], label, w))
    order = torch.randperm(9, device=device)
    assert same_bits(out[order], refine_targets([z[order] for z in logits], label[order], w[order]))
    assert all(map(same_bits, logits, before))


def test_empty_batch_and_all_rows_the_peers(device):
    assert refine_targets(torch.zeros(2, 0, 4, device=device)).shape == (0, 4)
    z = torch.randn(2, 3, 4, device=device)
    torch.testing.assert_close(refine_targets(z[:1], peer=z[1:]), refine_targets(z))


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    torch.set_num_threads(threads)
    logits, label, w = problem(1500, 100)
    with use_backend("reference"):
        expected = refine_targets(logits, label, w)
    with use_backend("numba"):
        torch.testing.assert_close(refine_targets(logits, label, w), expected, rtol=1e-5, atol=1e-6)


def test_float64_on_the_reference():
    logits, label, w = problem(4, 6, dtype=torch.float64)
    with use_backend("reference"):
        out = refine_targets(logits, label, w)
    torch.testing.assert_close(out, truth(logits, label, w, 0.5))


def test_refused_at_the_door():
    z, label, w = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3)
    with pytest.raises(ShapeError, match=r"holds 0 predictions and peer 0; expected at least one"):
        refine_targets([])
    with pytest.raises(ShapeError, match=r"a prediction in peer is \(4, 4\) float32; expected \(U <= 3, 4\)"):
        refine_targets([z], peer=[torch.zeros(4, 4)])
    with pytest.raises(ShapeError, match=r"a prediction in logits is \(3, 5\) float32; expected \(3, 4\)"):
        refine_targets([z, torch.zeros(3, 5)])
    with pytest.raises(ShapeError, match=r"label is \(5,\) int64; expected \(L,\) with L <= 3"):
        refine_targets([z], torch.zeros(5, dtype=torch.int64), w)
    with pytest.raises(ShapeError, match="clean_prob is None"):
        refine_targets([z], label)
    with pytest.raises(ShapeError, match="clean_prob was given without label"):
        refine_targets([z], None, w)
    with pytest.raises(ValueError, match=r"temperature is 0.*expected a value above 0"):
        refine_targets([z], label, w, 0.0)
