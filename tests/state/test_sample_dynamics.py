"""SampleDynamics: epochs, rings, what is saved and refused, types and devices."""

import copy

import numpy as np
import pytest
import torch

import fastlnl
from fastlnl.backend import use_backend
from fastlnl.ops.row_loss import RowStats, new_error_word
from fastlnl.ops.row_stats import row_stats
from fastlnl.state import SampleDynamics


def stats_of(prediction, nll=None, margin=None):
    """Row statistics with these predictions."""
    batch = len(prediction)
    nll = torch.ones(batch) if nll is None else torch.as_tensor(nll, dtype=torch.float32)
    margin = torch.zeros(batch) if margin is None else torch.as_tensor(margin, dtype=torch.float32)
    p = (-nll).exp()
    return RowStats.of(nll, p, p, torch.as_tensor(prediction), margin, p)


def trained(epochs=3, num_samples=31, num_classes=5, device="cpu", **options):
    """Dynamics after some epochs of random logits; the last two samples never come."""
    random = torch.Generator().manual_seed(0)
    label = torch.randint(num_classes, (num_samples,), generator=random)
    dynamics = SampleDynamics(num_samples, num_classes, **options).to(device)
    logits = []
    for _ in range(epochs):
        order = torch.randperm(num_samples - 2, generator=random)
        logits.append(torch.zeros(num_samples, num_classes))
        for index in order.split(8):
            z = 2 * torch.randn(len(index), num_classes, generator=random)
            logits[-1][index] = z
            batch = (z.to(device), label[index].to(device))
            dynamics.update(index.to(device), batch[1], row_stats(*batch, errors=new_error_word(device)))
        dynamics.end_epoch()
    return dynamics, label, torch.stack(logits).double()


def test_vectors_from_real_logits(device):
    dynamics, label, logits = trained(epochs=4, device=device)
    p = logits.softmax(2)[:, torch.arange(31), label]
    hit = logits.argmax(2) == label
    prediction = logits.argmax(2)
    others = logits.scatter(2, label.expand(4, 31)[..., None], -torch.inf).amax(2)
    margin = logits[:, torch.arange(31), label] - others
    ema = p[0]
    for t in range(1, 4):
        ema = 0.9 * ema + 0.1 * p[t]
    expected = {
        "visits": torch.full((31,), 4),
        "wrong_events": (~hit).sum(0),
        "flips": (prediction[1:] != prediction[:-1]).sum(0),
        "forgetting_events": (hit[:-1] & ~hit[1:]).sum(0),
        "last_prediction": prediction[-1],
        "first_learned": torch.where(hit.any(0), hit.long().argmax(0), -1),
        "last_wrong": (torch.arange(1, 5)[:, None] * ~hit).amax(0),
        "mean": -p.log().mean(0),
        "variance": p.log().var(0, correction=0),
        "ema": ema,
        "aum": margin.mean(0),
    }
    for name, exact in expected.items():
        ours = getattr(dynamics, name).cpu()
        torch.testing.assert_close(ours[:-2].double(), exact[:-2].double(), rtol=1e-5, atol=1e-6, msg=name)
    never = {name: getattr(dynamics, name)[-2:].tolist() for name in ("visits", "last_prediction", "first_learned")}
    assert never == {"visits": [0, 0], "last_prediction": [-1, -1], "first_learned": [-1, -1]}
    for name in ("mean", "variance", "ema", "aum"):
        assert getattr(dynamics, name)[-2:].isnan().all()


def test_label_wave_and_summary(device):
    """Changed predictions by epoch; a first presentation is no change."""
    dynamics = SampleDynamics(4, 3).to(device)
    label, index = torch.zeros(4, dtype=torch.int64, device=device), torch.arange(4, device=device)
    script = [[0, 1, 2, 0], [1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    summaries = []
    for prediction in script:
        stats = RowStats.of(*(x.to(device) for x in stats_of(prediction, nll=[1.0, 2.0, 3.0, 4.0])))
        dynamics.update(index[:3], label[:3], RowStats.of(*(x[:3] for x in stats)))
        dynamics.update(index[3:], label[3:], RowStats.of(*(x[3:] for x in stats)))
        summaries.append(dynamics.end_epoch())
    assert [s.changed for s in summaries] == [0, 3, 1, 3]
    assert [s.epoch for s in summaries] == [0, 1, 2, 3]
    assert [s.accuracy for s in summaries] == [0.5, 0.25, 0.5, 0.75]
    assert all(s.loss == 2.5 and s.rows == 4 and s.skipped == 0 for s in summaries)
    assert dynamics.summary == summaries[-1]


def test_an_epoch_without_a_batch_has_no_mean():
    summary = SampleDynamics(3, 2).end_epoch()
    assert summary.rows == 0
    assert np.isnan([summary.accuracy, summary.loss]).all()


def test_ring_holds_the_last_complete_epochs(device):
    """Of five epochs the last three count, whatever the one in progress has written."""
    dynamics = SampleDynamics(3, 2, history=3, history_statistic="nll", history_dtype=torch.float32).to(device)
    index = torch.arange(3, device=device)
    epochs = []
    for t in range(5):
        values = [float(t), 10.0 + t, 20.0 + t]
        stats = RowStats.of(*(x.to(device) for x in stats_of([0, 0, 0], nll=values)))
        came = 2 if t == 3 else 3  # the third sample misses an epoch
        dynamics.update(index[:came], index[:came] * 0, RowStats.of(*(x[:came] for x in stats)))
        epochs.append(values)
        before = [epochs[s] for s in range(max(0, t - 3), t)][::-1]
        if before and t < 4:
            a = 0.5 ** np.arange(len(before))
            expected = (a[:, None] * np.array(before)).sum(0) / a.sum()
            np.testing.assert_allclose(dynamics.weighted_history(0.5).cpu(), expected, rtol=1e-6)
        dynamics.end_epoch()
    expected = [(4 + 0.5 * 3 + 0.25 * 2) / 1.75, (14 + 0.5 * 13 + 0.25 * 12) / 1.75, (24 + 0.25 * 22) / 1.25]
    np.testing.assert_allclose(dynamics.weighted_history(0.5).cpu(), expected, rtol=1e-6)


def test_ring_of_pushed_epochs_equals_a_list(device):
    dynamics = SampleDynamics(7, 2, history=4, history_statistic=None).to(device)
    kept = []
    for t in range(9):
        values = torch.randn(7)
        if t > 2:
            values[t % 7] = torch.nan
        dynamics.push(values.to(device))
        kept = [values.half().double().numpy(), *kept][:4]
        rows = np.array(kept)
        there, first = ~np.isnan(rows), (~np.isnan(rows)).argmax(0)
        a = np.where(there, 0.8 ** np.maximum(np.arange(len(rows))[:, None] - first, 0), 0)
        expected = np.where(there, a * rows, 0).sum(0) / a.sum(0)
        np.testing.assert_allclose(dynamics.weighted_history(0.8).cpu(), expected, rtol=1e-5, atol=1e-6)
        dynamics.end_epoch()  # does not move the ring


def test_history_used_the_wrong_way_is_refused():
    with pytest.raises(fastlnl.StateError, match="there is no history; build SampleDynamics with history=T"):
        SampleDynamics(3, 2).weighted_history(0.9)
    with pytest.raises(fastlnl.StateError, match="push needs dynamics with history=T and history_statistic=None"):
        SampleDynamics(3, 2, history=2).push(torch.zeros(3))
    with pytest.raises(fastlnl.ShapeError, match=r"values is \(2,\); expected \(3,\)"):
        SampleDynamics(3, 2, history=2, history_statistic=None).push(torch.zeros(2))


def test_table_is_a_data_frame():
    pytest.importorskip("pandas")
    dynamics, *_ = trained()
    table = dynamics.table()
    assert len(table) == 31
    assert table["visits"].tolist() == dynamics.visits.tolist()
    assert {"mean_nll", "variance_nll", "ema_p_label", "aum", "flips"} <= set(table.columns)
    assert table["aum"].isna().sum() == 2


def test_state_dict_brings_everything_back(tmp_path):
    first, label, _ = trained(history=2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = SampleDynamics(31, 5, history=2)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    index = torch.arange(31)
    for dynamics in (first, second):
        dynamics.update(index, label, stats_of(label.flip(0) % 5, nll=index / 9))
        dynamics.end_epoch()
    assert torch.equal(first.records, second.records)
    assert torch.equal(first.counters, second.counters)
    assert torch.equal(first.history.view(torch.int16), second.history.view(torch.int16))


LABEL = torch.arange(31) % 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_samples": 30, "label": LABEL[:30]}, "the saved sample dynamics has num_samples 31 but this one has 30"),
        ({"num_classes": 6}, "num_classes 5 but this one has 6"),
        ({"track": "margin"}, r"track \['nll', 'p_label'\] but this one has \['margin', 'margin'\]"),
        ({"history": 3}, "history 2 but this one has 3"),
        ({"history": None}, "history 2 but this one has None"),
        ({"history_statistic": "nll"}, "history_statistic log_odds but this one has nll"),
        ({"history_dtype": torch.float32}, "history_dtype torch.float16 but this one has torch.float32"),
        ({"ema_momentum": 0.5}, "ema_momentum 0.9 but this one has 0.5"),
        ({"label": (LABEL + 1) % 5}, "made with other given labels"),
    ],
)
def test_state_of_other_data_is_refused_and_nothing_is_overwritten(options, text):
    given = {"num_samples": 31, "num_classes": 5, "label": LABEL, "history": 2}
    other = SampleDynamics(**(given | options))
    before = other.records.clone()
    saved = trained(label=LABEL, history=2)[0].state_dict()
    with pytest.raises(fastlnl.StateError, match=text):
        other.load_state_dict(saved)
    assert torch.equal(other.records, before)


def test_labels_are_compared_where_both_know_them():
    saved = trained(label=LABEL)[0].state_dict()
    unknown = SampleDynamics(31, 5)
    unknown.load_state_dict(saved)
    assert unknown.fingerprint == SampleDynamics(31, 5, label=LABEL.to(torch.uint8)).fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_types_stay_and_copies_are_their_own(dtype):
    dynamics, label, _ = trained(history=2, history_dtype=dtype)
    before = [x.clone() for x in dynamics.buffers()]
    for moved in (dynamics.half(), dynamics.to(torch.bfloat16), dynamics.double()):
        for x, y in zip(moved.buffers(), before, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))
    other = copy.deepcopy(dynamics)
    other.update(torch.arange(31), label, stats_of(label))
    assert torch.equal(dynamics.records, before[0])
    assert not torch.equal(other.records, before[0])
    assert dynamics.to("meta").history.device.type == "meta"


def test_ids_and_labels_out_of_range_are_named_once():
    dynamics = SampleDynamics(4, 3)
    dynamics.update(torch.tensor([0, 4]), torch.tensor([0, 0]), stats_of([0, 0]))
    with pytest.raises(
        fastlnl.LabelError, match=r"index at position 1 of a batch is 4 but the dynamics have 4 samples"
    ):
        dynamics.end_epoch()
    assert dynamics.end_epoch() == (0, 1, 0, 1.0, 1.0, 0)
    dynamics.update(torch.tensor([2]), torch.tensor([3]), stats_of([0]))
    with pytest.raises(fastlnl.LabelError, match=r"label of sample 2 .* is 3 .* 3 classes .*are labels 1-based\?"):
        dynamics.check()
    dynamics.check()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"track": "loss"}, "track is 'loss'; expected one or two of nll, p_label"),
        ({"track": ("nll", "nll", "nll")}, "track is"),
        ({"history": 0}, "history is 0; expected a number of epochs >= 1"),
        ({"history_statistic": "margin"}, "history_statistic is 'margin'; expected one of nll, p_label, log_odds"),
        ({"history_dtype": torch.bfloat16}, "history_dtype is torch.bfloat16; expected"),
        ({"ema_momentum": 1.5}, r"ema_momentum is 1.5; expected a value in \[0, 1\]"),
        ({"label": torch.zeros(4)}, r"label is \(4,\)"),
        ({"label": torch.tensor([0, 1, 3, 0, 0])}, "label of sample 2 is 3"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(ValueError, match=text):
        SampleDynamics(5, 3, **options)


def test_a_backend_is_asked_for_by_name_here_too():
    with use_backend("reference"):
        reference = trained(history=2)[0]
    numba = trained(history=2)[0]
    assert torch.equal(reference.counters, numba.counters)
    assert reference.table().round(4).equals(numba.table().round(4))
