"""Credibility: what a batch enters, losses without two groups, the clauses of the selection one by one."""

import hashlib
import math

import pytest
import torch

from fastlnl.errors import LabelError, StateError
from fastlnl.mixture import GaussianMixture1D, MixtureStatus
from fastlnl.state.credibility import Credibility

N, C = 40, 3


def build(**options):
    return Credibility(torch.arange(N) % C, C, **{"dtype": torch.float32, **options})


def separated(generator_seed=0):
    """Losses of 25 clean and 15 noisy samples."""
    generator = torch.Generator().manual_seed(generator_seed)
    loss = torch.rand(N, generator=generator) * 0.3
    loss[25:] += 2.0
    return loss


def rows(classes, confidence):
    """Logits (n, C) whose softmax has `confidence` at the class and the rest elsewhere."""
    probs = torch.full((len(classes), C), 0.0)
    confidence = torch.as_tensor(confidence).expand(len(classes))
    probs += ((1 - confidence) / (C - 1))[:, None]
    probs[torch.arange(len(classes)), classes] = confidence
    return probs.log()


def test_score_and_repeated_ids(device):
    """The last occurrence of an id counts; q moves once, from the old row."""
    label = (torch.arange(6) % C).to(device)
    state = Credibility(label, C, momentum=0.9)
    first, second = torch.randn(2, 6, C).to(device).unbind(0)
    state.score(first, label, torch.arange(6, device=device))
    nll = torch.nn.functional.cross_entropy(first, label, reduction="none")
    torch.testing.assert_close(state.loss, nll, rtol=0, atol=1e-6)
    old = first.softmax(1)
    torch.testing.assert_close(state.memory.rows(torch.arange(6)), old, rtol=0, atol=1e-6)

    index = torch.tensor([2, 5, 2, 2, 1], device=device)
    state.score(second[:5], label[index], index)
    p, nll_again = second[:5].softmax(1), torch.nn.functional.cross_entropy(second[:5], label[index], reduction="none")
    expected_q, expected_loss = old.clone(), nll.clone()
    for position, i in ((3, 2), (1, 5), (4, 1)):
        expected_q[i] = 0.9 * old[i] + 0.1 * p[position]
        expected_loss[i] = nll_again[position]
    torch.testing.assert_close(state.memory.rows(torch.arange(6)), expected_q, rtol=0, atol=1e-6)
    torch.testing.assert_close(state.loss, expected_loss, rtol=0, atol=1e-6)


def test_what_each_rule_and_score_remembers():
    label = torch.arange(N) % C
    logits = torch.randn(N, C)
    p = logits.softmax(1)
    index = torch.arange(N)
    hit = torch.where(p.argmax(1) == label, p.max(1).values, 0.0)
    own = p[index, label]
    for rule, expected in (("mean", own), ("mean_minus_std", own), ("streak", hit)):
        state = build(rule=rule)
        state.score(logits, label, index)
        torch.testing.assert_close(state.observed, expected, rtol=0, atol=1e-6)
    state = build(score="label_logit")
    state.score(logits, label, index)
    torch.testing.assert_close(state.loss, -logits[index, label])


def test_split_follows_the_mixture():
    state = build()
    state.loss.copy_(separated())
    state.split(0.5, 4)
    mixture = GaussianMixture1D().fit(state.loss)
    assert torch.equal(state.clean_prob, mixture.clean_prob(state.loss))
    assert torch.equal(state.is_clean, torch.arange(N) < 25)
    assert torch.equal(state.history.ring[0], mixture.log_odds(state.loss).clamp(-6, 6))
    assert not state.flagged


def test_no_two_components_keeps_what_was_known():
    """All losses equal: clean_prob 1 and log-odds 0 at first, later those of the epoch before."""
    state = build()
    state.loss.fill_(1.5)
    state.split(0.5, 4)
    assert state.flagged
    assert state.status.item() == MixtureStatus.ALL_EQUAL
    assert (state.clean_prob == 1).all()
    assert (state.history.ring[0] == 0).all()
    assert state.is_clean.all()

    state.loss.copy_(separated())
    state.split(0.5, 4)
    assert not state.flagged
    known, row, weight = state.clean_prob.clone(), state.history.ring[1].clone(), state.weight.clone()
    state.loss.fill_(0.0)
    state.split(0.5, 4)
    assert state.flagged
    assert torch.equal(state.clean_prob, known)
    assert torch.equal(state.history.ring[2], row)
    assert not torch.equal(state.weight, weight)  # the zeros of the first epoch are further back


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_single_losses_that_are_not_finite(bad):
    state = build()
    state.loss.copy_(separated())
    state.split(0.5, 4)
    known, row = state.clean_prob.clone(), state.history.ring[0].clone()
    state.loss.copy_(separated(1))
    state.loss[[3, 30]] = bad
    state.split(0.5, 4)
    assert state.flagged
    assert torch.equal(state.clean_prob[[3, 30]], known[[3, 30]])
    assert torch.equal(state.history.ring[1][[3, 30]], row[[3, 30]])
    assert state.weight.isfinite().all()
    assert state.is_clean[3] & ~state.is_clean[30]


def test_rows_that_are_not_finite_score_nan_and_keep_q():
    state = build()
    index = torch.arange(N)
    logits = torch.randn(N, C)
    state.score(logits, state.label, index)
    q = state.memory.rows(index)
    broken = torch.randn(2, C)
    broken[0, 1] = math.nan
    state.score(broken, state.label[:2], index[:2])
    assert state.loss.isnan().tolist() == [True] + [False] * (N - 1)
    assert torch.equal(state.memory.rows(index[:1]), q[:1])
    assert not torch.equal(state.memory.rows(index[1:2]), q[1:2])
    far = torch.zeros(2, C)
    far[:, 0] = 1e4
    state.score(far, torch.tensor([0, 1]), index[:2])
    assert state.loss[:2].tolist() == [0.0, 1e4]


def test_empty_clean_set_takes_the_highest_posteriors():
    state = build()
    state.loss.copy_(separated())
    state.split(1.0, 6)
    assert state.is_clean.sum() == 6
    assert state.clean_prob[state.is_clean].min() >= state.clean_prob[~state.is_clean].max()
    state.split(1.0, 10 * N)
    assert state.is_clean.all()


def scored(state, classes, confidence):
    """The noisy set is 25..39 and q is given, this epoch."""
    state.momentum = 0.0
    state.score(rows(classes, confidence), state.label, torch.arange(N))
    state.loss.copy_(separated())
    state.split(0.5, 4)


def test_clauses_of_the_selection():
    state, peer = build(), build()
    classes = (torch.arange(N) + 1) % C
    confidence = torch.full((N,), 0.95)
    confidence[26], confidence[27] = 0.75, 0.6
    scored(state, classes, confidence)
    exact = state.confidence[26].item()  # a threshold that is exactly reached
    other = classes.clone()
    other[28] = state.label[28]
    scored(peer, other, 0.5)
    digest = hashlib.sha256(state.label.numpy().tobytes()).hexdigest()

    state.correct(exact, peer=peer)
    expected = torch.zeros(N, dtype=torch.bool)
    expected[25:] = True
    expected[[26, 27, 28]] = False  # not above the threshold, below it, the peer says otherwise
    assert torch.equal(state.accepted, expected)
    assert torch.equal(state.new_label, torch.where(expected, classes, state.label).int())
    weight = torch.where(state.is_clean, state.weight, torch.where(expected, state.confidence, 0.0))
    assert torch.equal(state.row_weight, weight)
    state.correct(exact, unlabeled_weight=0.5)  # nobody else is asked
    assert state.accepted[28]
    assert state.row_weight[28] == 0.5 * state.confidence[28]
    state.correct(exact, unlabeled_weight=0.0)
    assert not state.accepted.any()

    state.correct(exact, peer=peer)  # and is revoked when confidence is gone
    confidence[30] = 0.5
    scored(state, classes, confidence)
    state.correct(exact, peer=peer)
    assert not state.accepted[30]
    assert state.new_label[30] == state.label[30]
    assert state.row_weight[30] == 0
    assert hashlib.sha256(state.label.numpy().tobytes()).hexdigest() == digest


def test_stability_counts_epochs_without_a_change():
    state = build()
    classes = torch.zeros(N, dtype=torch.int64)
    moved = classes.clone()
    moved[30] = 1
    for epoch, predicted in enumerate([classes, classes, moved, moved, moved]):
        scored(state, predicted, 0.95)
        state.correct(0.9, stable_epochs=2)
        assert state.accepted[31].item() == (epoch >= 2)
        assert state.accepted[30].item() == (epoch >= 4)
    assert state.unchanged[31] == 4
    state.unchanged.fill_(255)
    scored(state, moved, 0.95)
    assert state.unchanged[31] == 255  # no wrap-around


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "uint8", "topk:2"])
def test_storage_of_the_averaged_predictions(storage):
    state = build(storage=storage)
    scored(state, (torch.arange(N) + 1) % C, 0.95)
    state.correct(0.9)
    assert torch.equal(state.accepted, torch.arange(N) >= 25)
    assert (state.confidence - 0.95).abs().max() < 0.01


def test_state_is_saved_whole_and_refused_elsewhere():
    def step(state, seed):
        generator = torch.Generator().manual_seed(seed)
        state.score(torch.randn(N, C, generator=generator), state.label, torch.arange(N))
        state.split(0.5, 4)
        state.correct(0.4)

    def warm():
        return build(mixture=GaussianMixture1D(warm_start=True), length=3, rule="streak")

    state, again = warm(), warm()
    for seed in range(4):
        step(state, seed)
    again.load_state_dict(state.state_dict())
    for seed in (10, 11):
        step(state, seed)
        step(again, seed)
    for (name, ours), theirs in zip(state.state_dict().items(), again.state_dict().values(), strict=True):
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), name

    with pytest.raises(StateError, match="history_length 3 but this one has 10"):
        build(rule="streak").load_state_dict(state.state_dict())
    other = Credibility((torch.arange(N) + 1) % C, C, rule="streak", length=3)
    with pytest.raises(StateError, match="made with other given labels"):
        other.load_state_dict(state.state_dict())


def test_types_stay():
    state = build(dtype=torch.float16)
    before = {name: buffer.dtype for name, buffer in state.named_buffers()}
    state.half().to(torch.bfloat16).double()
    assert {name: buffer.dtype for name, buffer in state.named_buffers()} == before
    assert state.history.ring.dtype == torch.float16
    assert state.clean_prob.dtype == torch.float32


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"score is 'margin' and momentum 0\.9; expected loss or label_logit"):
        build(score="margin")
    state = build()
    state.score(torch.zeros(1, C), torch.tensor([C]), torch.tensor([7]))
    with pytest.raises(LabelError, match="label of sample 7"):
        state.check()
