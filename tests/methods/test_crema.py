"""CREMA: the gradient of its loss, its traps, resuming, and what it is for; `test_crema_lockstep.py` has the steps."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import CLASSES, assert_same_weights, fit, noisy_label, toy_data, toy_run, twins_of

from fastlnl import checkpoint
from fastlnl.data import Dataset
from fastlnl.methods import CE, CREMA
from fastlnl.methods.crema import default_threshold
from fastlnl.noise import apply_noise
from fastlnl.trainer import Trainer

N, C = 120, CLASSES
SHORT = {"warmup_epochs": 1, "confidence_threshold": 0.6}


def build_run(epochs=3, num_networks=2):
    data = toy_data(num_samples=N, spread=2.0)
    return toy_run(data, noisy_label(data), num_networks=num_networks, epochs=epochs, batch_size=12)


def loss_by_hand(logits, clean, label, weight, accepted, new_label, confidence, prior_weight):
    logp = logits.log_softmax(1)
    rows = torch.arange(len(logits))
    supervised = -(clean * weight * logp[rows, label]) - accepted * confidence * logp[rows, new_label]
    uniform = torch.full((logits.shape[1],), 1 / logits.shape[1], dtype=logits.dtype)
    prior = (uniform * (uniform / logp.exp().mean(0)).log()).sum()
    return supervised.sum() / len(logits) + prior_weight * prior


@pytest.mark.parametrize("prior_weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("present", ["both", "no accepted", "no clean"])
def test_gradient_against_finite_differences(present, prior_weight):
    method = CREMA(prior_weight=prior_weight, unlabeled_weight=0.7)
    method.setup(build_run())
    state, index = method.states[1], torch.tensor([3, 50, 7, 90, 11])
    in_clean = {"both": [1, 0, 1, 0, 1], "no accepted": [1] * 5, "no clean": [0] * 5}[present]
    state.is_clean.zero_()
    state.is_clean[index] = torch.tensor(in_clean).bool()
    state.weight.copy_(torch.rand(N))
    state.confidence.copy_(0.95 + 0.04 * torch.rand(N))
    state.prediction.copy_((state.label + 1) % C)
    state.correct(0.9, unlabeled_weight=0.7)
    logits = torch.randn(5, C, requires_grad=True)
    method.loss(logits, 1, index).backward()
    given = (
        state.is_clean[index].double(),
        state.label[index],
        state.weight[index].double(),
        state.accepted[index].double(),
        state.new_label[index].long(),
        0.7 * state.confidence[index].double(),
        prior_weight,
    )
    base, step = logits.detach().double(), 1e-6
    for row in range(5):
        for column in range(C):
            moved = torch.zeros_like(base)
            moved[row, column] = step
            up, down = loss_by_hand(base + moved, *given), loss_by_hand(base - moved, *given)
            assert abs(logits.grad[row, column].item() - ((up - down) / (2 * step)).item()) < 1e-6
    torch.testing.assert_close(method.loss(logits, 1, index).double(), loss_by_hand(base, *given), rtol=0, atol=1e-6)


def test_loss_is_finite_for_far_logits():
    method = CREMA()
    method.setup(build_run())
    logits = torch.zeros(3, C)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    loss = method.loss(logits, 0, torch.arange(3))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("co_divide", [True, False])
def test_each_network_trains_on_the_sets_of_its_teacher(co_divide):
    """Network 0 is frozen: what network 1 sees is decided by it alone, epoch after epoch the same."""
    run, seen = build_run(epochs=4), {}
    batches = run.batches

    def recorded(ids=None, *, stream, **options):
        seen[stream] = ids
        return batches(ids, stream=stream, **options)

    run.batches = recorded
    run.networks[0].step = lambda loss: None
    method = CREMA(co_divide=co_divide, **SHORT)
    method.setup(run)
    fit(method, run, epochs=1)
    for t in (2, 3, 4):
        before = [(state.is_clean | state.accepted).nonzero()[:, 0] for state in method.states]
        frozen = method.states[0].is_clean.clone()
        fit(method, run, epochs=t, first=t)
        assert not torch.equal(*before)
        assert torch.equal(seen["crema/0"], before[1 if co_divide else 0])
        assert torch.equal(seen["crema/1"], before[0 if co_divide else 1])
        assert torch.equal(method.states[0].is_clean, frozen)


def test_scoring_leaves_the_networks_alone():
    run = build_run()
    run.networks[0].module.append(nn.BatchNorm1d(C))
    run.networks[0].module.append(nn.Dropout(0.5))
    method = CREMA()
    method.setup(run)
    statistics = run.networks[0].module[-2].running_mean.clone()
    method.score_all()
    once = method.states[0].loss.clone()
    method.score_all()
    assert torch.equal(method.states[0].loss, once)
    assert torch.equal(run.networks[0].module[-2].running_mean, statistics)
    assert run.networks[0].module.training


def test_losses_that_are_all_equal_train_on_everything():
    run = build_run()
    for network in run.networks:
        for parameter in network.module.parameters():
            parameter.data.zero_()
    method = CREMA(**SHORT)
    method.setup(run)
    method.score_all()
    method.divide()
    assert method.metrics()["flagged"] == 1
    for state in method.states:
        assert state.is_clean.all()
        assert (state.row_weight == 0.5).all()  # log-odds 0: nothing is known
    fit(method, run, first=2)
    assert method.metrics()["flagged"] == 0


def test_nothing_clean_and_nothing_accepted_still_trains():
    run = build_run()
    method = CREMA(**{**SHORT, "clean_threshold": 1.0, "confidence_threshold": 1.0})
    method.setup(run)
    fit(method, run)
    assert [int(state.is_clean.sum()) for state in method.states] == [12, 12]
    assert not any(state.accepted.any() for state in method.states)
    assert [network.steps for network in run.networks] == [1, 1]


OPTIONS = [
    {},
    {"score_source": "train", "new_label": "soft", "weight_rule": "streak"},
    {"init": "warm", "weight_rule": "mean_minus_std", "storage": "float16", "stable_epochs": 1},
    {"mixture": "beta", "init": "warm", "normalise": "p5p95", "score": "label_logit", "networks": 1},
    {"preset": "gmm_split"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(v) for v in options.values()) or "crema")
def test_resume_is_bitwise(options, tmp_path):
    def start():
        run = build_run(epochs=6, num_networks=options.get("networks", 2))
        method = CREMA(warmup_epochs=2, confidence_threshold=0.5, **options)
        method.setup(run)
        return run, method

    run, method = start()
    fit(method, run, epochs=4)
    saved = {"method": method.state_dict(), "networks": [network.state_dict() for network in run.networks]}
    checkpoint.save(saved, tmp_path / "state.pt")
    fit(method, run, first=5)
    run_again, again = start()
    state = checkpoint.load(tmp_path / "state.pt")
    again.load_state_dict(state["method"])
    for network, part in zip(run_again.networks, state["networks"], strict=True):
        network.load_state_dict(part)
    fit(again, run_again, first=5)
    assert_same_weights(run_again.networks, twins_of(run), atol=0)
    for ours, theirs in zip(again.states, method.states, strict=True):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            if isinstance(a, torch.Tensor):
                assert torch.equal(a.nan_to_num(nan=-7), b.nan_to_num(nan=-7)), name


def test_options_presets_and_defaults():
    assert CREMA().num_networks == 2
    assert CREMA("single").num_networks == 1
    assert CREMA("gmm_split").options["weight_rule"] == "posterior"
    assert CREMA("no_update").options["unlabeled_weight"] == 0
    assert CREMA("dividemix_weights").options["weight_rule"] == "none"
    for option, value in (("networks", 3), ("mixture", "normal"), ("score_source", "both"), ("new_label", "sharp")):
        with pytest.raises(ValueError, match=f"{option} is {value!r}; expected one of"):
            CREMA(**{option: value})
    with pytest.raises(ValueError, match="history_dtype is 'int8'"):
        CREMA(history_dtype="int8")
    assert [default_threshold(c) for c in (2, 14, 100, 1000)] == pytest.approx([0.9, 0.9, 0.7, 0.7])
    assert 0.79 < default_threshold(37) < 0.81  # the middle on a logarithmic scale
    for epochs, warmup in ((3, 1), (30, 5), (300, 10)):
        method = CREMA()
        method.setup(build_run(epochs=epochs))
        assert method.options["warmup_epochs"] == warmup


def gaussians():
    """Four overlapping classes in 32 dimensions, in which an MLP finds room to memorise every wrong label."""
    generator = torch.Generator().manual_seed(0)
    centers = 0.5 * torch.randn(4, 32, generator=generator)

    def draw(n):
        label = torch.arange(n) % 4
        return centers[label] + torch.randn(n, 32, generator=generator), label

    (train, train_label), (test, test_label) = draw(800), draw(800)
    return Dataset("gaussians", train, train_label, test, test_label, 4, ("a", "b", "c", "d"), (0.0,), (1.2,))


def test_gaussians_with_noise_are_learned_and_the_history_ranks():
    """40 % symmetric noise: above cross-entropy, and the history tells clean from noisy no worse than one epoch."""
    data = gaussians()
    noisy = apply_noise("symmetric/exclusive:0.4", data, seed=0)
    recipe = {"noise": noisy, "epochs": 20, "batch_size": 64, "optimizer": "adam", "lr": 1e-3, "schedule": "constant"}
    ce = Trainer(CE(), data, "mlp", **recipe).fit()
    crema = Trainer(CREMA(momentum=0.7), data, "mlp", **recipe).fit()
    assert crema.last > ce.last + 0.15
    mean = {k: np.mean([epoch[k] for epoch in crema.history[-10:]]) for k in ("auroc_weight", "auroc_posterior")}
    assert mean["auroc_weight"] >= mean["auroc_posterior"]
    assert crema.metrics["accepted_correct"] > 0.85  # of a confidence above 0.9
    assert crema.metrics["repair"] > 0.5
    assert crema.metrics["accepted_largest_class"] < 0.5
