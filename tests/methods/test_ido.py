"""IDO against a plain transcription of its description, the choice of its base model, its degenerate cases."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution
from torch.nn import functional as F
from toy import LR, assert_same_weights, fit, noisy_label, sgd, toy_data, toy_network, toy_run, twins_of

from fastlnl.methods import IDO
from fastlnl.methods.ido import base_epoch
from fastlnl.noise import NoisyLabels
from fastlnl.trainer import Trainer

N, C, E1, E2 = 60, 3, 4, 4  # 8 epochs of 4 batches
FLOOR = 1e-6


def toy():
    """The data, labels of which 30 % are wrong, and a run on them."""
    data = toy_data(N, C)
    label = noisy_label(data)
    return data, label, toy_run(data, label, num_networks=1, epochs=E1 + E2)


def as_noise(label):
    return NoisyLabels(label, "test", "", 0.0, 0.0, torch.zeros(C, C, dtype=torch.int64))


def fitted(counts, parameters, iterations):
    """Moment matching of two Beta distributions to the values of the counts, one value a sample."""
    alpha, beta, mix = (list(values) for values in parameters)
    low, high = counts.min(), counts.max()
    x = (counts - low) / (high - low) * (1 - 2 * FLOOR) + FLOOR
    for _ in range(iterations):
        density = [np.maximum(mix[k] * beta_distribution.pdf(x, alpha[k], beta[k]), FLOOR) for k in (0, 1)]
        share = [density[k] / (density[0] + density[1] + FLOOR) for k in (0, 1)]
        for k in (0, 1):
            mean = (share[k] * x).sum() / (share[k].sum() + FLOOR)
            variance = max((share[k] * (x - mean) ** 2).sum() / (share[k].sum() + FLOOR), FLOOR)
            a = mean * (mean * (1 - mean) / variance - 1)
            alpha[k], beta[k] = max(a, FLOOR), max(a * (1 - mean) / mean, FLOOR)
        if beta[0] < 1.02:
            beta[0] = 1.1
        if alpha[1] < 1.02:
            alpha[1] = 1.1
        mix = [share[k].sum() / (share[0].sum() + share[1].sum()) for k in (0, 1)]
    return alpha, beta, mix


def weights_of(counts, parameters, low, high):
    """Clean probability and similarity weight of counts."""
    alpha, beta, mix = parameters
    x = (counts - low) / (high - low) * (1 - 2 * FLOOR) + FLOOR
    density = [mix[k] * beta_distribution.pdf(x, alpha[k], beta[k]) for k in (0, 1)]
    q = [density[k] / (density[0] + density[1] + FLOOR) for k in (0, 1)]
    below = [beta_distribution.cdf(x, alpha[k], beta[k]) for k in (0, 1)]
    tau, eps = q[0], q[0] * below[0] + (1 - q[1]) * (1 - below[1])
    return np.where(counts > high, 0, tau), np.where(counts > high, 0, eps)


class Mixtures:
    """One mixture a group and one of all; a group that cannot be fitted uses the latter."""

    def __init__(self, groups):
        self.groups, self.parameters = groups, {}

    def fit(self, counts, iterations):
        self.ranges = {}
        for g in [*range(C), "all"]:
            member = counts[self.groups == g] if g != "all" else counts
            if len(member) >= 4 and member.min() < member.max():
                start = self.parameters.get(g, ((1, 2), (2, 1), (0.5, 0.5)))
                self.parameters[g] = fitted(member.astype(float), start, iterations)
                self.ranges[g] = member.min(), member.max()

    def weights(self, counts, group):
        tau, eps = np.ones(len(counts)), np.ones(len(counts))
        for i, g in enumerate(group):
            g = g if g in self.ranges else "all"
            if g in self.ranges:
                tau[i], eps[i] = weights_of(float(counts[i]), self.parameters[g], *self.ranges[g])
        return torch.from_numpy(tau), torch.from_numpy(eps)


def two_view_objective(weak, strong, label, tau, eps, entropy_scale):
    cross_entropy = F.cross_entropy(weak, label, reduction="none") + F.cross_entropy(strong, label, reduction="none")
    q = (weak.softmax(1).clamp(1e-4, 1 - 1e-4) + strong.softmax(1).clamp(1e-4, 1 - 1e-4)) / 2
    noisy = (1 - tau) * -(q * q.log()).sum(1)
    if entropy_scale == "batchmean":
        noisy = q.max(1, keepdim=True).values * noisy  # (B, 1) times (B,): averaged over B x B
    elif entropy_scale == "sample":
        noisy = q.max(1).values * noisy
    return (tau * cross_entropy).mean() + (eps * (strong - weak).square().mean(1)).mean() + noisy.mean()


def transcription(network, frame, label, options):
    """methods/ido.md section 3 in float64, counts and mixtures sample by sample."""

    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizer = sgd(network)
    counts, last = np.zeros(N, int), np.full(N, -1)
    best, saved, base = N, False, None
    for t in range(1, E1 + 1):
        frame.start_epoch(t, LR)
        changed = 0
        for batch in frame.batches():
            logits = network(batch.views[0].double())
            for i, predicted in zip(batch.index.tolist(), logits.argmax(1).tolist(), strict=True):
                counts[i] += predicted != label[i]
                changed += last[i] not in (-1, predicted)
                last[i] = predicted
            step(optimizer, F.cross_entropy(logits, batch.label))
        if t == 1:
            base = copy.deepcopy(network.state_dict())
        elif not saved:
            if changed < best:
                best, base = changed, copy.deepcopy(network.state_dict())
                saved = t == E1
            else:
                saved = True
    network.load_state_dict(base)
    optimizer = sgd(network)
    group = label.numpy() if options["mixture_scope"] == "class" else np.full(N, -1)  # -1 is no class: all together
    mixtures = Mixtures(group)
    mixtures.fit(counts, 20)
    for t in range(E1 + 1, E1 + E2 + 1):
        frame.start_epoch(t, LR)
        for batch in frame.batches(augment=(None, "noise:0.3")):
            weak, strong = (network(view.double()) for view in batch.views)
            index = batch.index.numpy()
            wrong = (weak.argmax(1) != batch.label).int() + (strong.argmax(1) != batch.label)
            if options["counter_order"] == "before_weights":
                counts[index] += wrong.numpy()
            tau, eps = mixtures.weights(counts[index], group[index])
            if options["counter_order"] == "after_weights":
                counts[index] += wrong.numpy()
            if options["similarity"] != "dynamic":
                eps = torch.full_like(eps, {"one": 1.0, "zero": 0.0}[options["similarity"]])
            step(optimizer, two_view_objective(weak, strong, batch.label, tau, eps, options["entropy_scale"]))
        mixtures.fit(counts, 2 if options["mixture_scope"] == "class" else 1)
    return counts


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"mixture_scope": "pooled"},
        {"entropy_scale": "batchmean"},
        {"entropy_scale": "sample"},
        {"counter_order": "after_weights"},
        {"similarity": "one"},
        {"similarity": "zero", "merge_views": True},
    ],
)
def test_lockstep_with_transcription(changed):
    _, label, frame = toy()
    exact = twins_of(frame)[0].double()
    options = {
        "mixture_scope": "class",
        "entropy_scale": "none",
        "counter_order": "before_weights",
        "similarity": "dynamic",
        **changed,
    }
    expected = transcription(exact, toy()[2], label, options)

    method = IDO(warmup_epochs=E1, strong="noise:0.3", **options)
    method.setup(frame)
    before = frame.network.weights()
    fit(method, frame)

    assert method.criterion.wrong_count.tolist() == expected.tolist()
    assert any((before[name] - now).abs().max() > 0.05 for name, now in frame.network.weights().items())
    assert_same_weights(frame.networks, [exact.float()])


@pytest.mark.parametrize(
    ("changes", "first_minimum", "aliased"),
    [
        ([0, 40, 30, 35, 20], 3, 4),  # falls, rises: what comes after does not matter
        ([0, 40, 30, 30], 3, 4),  # no fall is a rise
        ([0, 40, 30, 20], 4, 4),  # falls to the end
        ([0, 100, 30], 1, 2),  # every prediction changed in epoch 2
        ([0], 1, 1),
    ],
)
def test_base_model_is_taken_before_the_first_rise(changes, first_minimum, aliased):
    assert base_epoch(changes, 100, "first_minimum") == first_minimum
    assert base_epoch(changes, 100, "aliased") == aliased
    assert base_epoch(changes, 100, "initial") == 0
    assert base_epoch(changes, 100, "last") == len(changes)


@pytest.mark.parametrize("base_model", ["first_minimum", "aliased", "initial", "last"])
def test_stage_two_starts_from_the_weights_of_that_epoch(base_model):
    _, _, frame = toy()
    method = IDO(warmup_epochs=E1, base_model=base_model)
    method.setup(frame)
    seen = [frame.network.weights()]
    for t in range(1, E1 + 1):
        fit(method, frame, t, first=t)
        seen.append(frame.network.weights())
    expected = seen[base_epoch(method.changes, N, base_model)]
    for name, value in method.base_weights.items():
        assert torch.equal(value, expected[name])


def run(label, epochs=4, **options):
    method, network = IDO(warmup_epochs=2, **options), toy_network(num_classes=C)
    return Trainer(
        method, toy_data(N, C), network, noise=as_noise(label), epochs=epochs, batch_size=16, monitor=False
    ).fit()


@pytest.mark.parametrize(
    "label",
    [
        torch.zeros(N, dtype=torch.int64),  # two classes are absent, the third is learned at once
        torch.arange(N) % 2,  # one class is absent
        torch.cat((torch.tensor([2]), torch.arange(N - 1) % 2)),  # one sample of its class
    ],
)
@pytest.mark.parametrize("mixture_scope", ["class", "pooled"])
@pytest.mark.parametrize("entropy_scale", ["none", "batchmean", "sample"])
def test_degenerate_classes_never_give_nan(label, mixture_scope, entropy_scale):
    result = run(label, mixture_scope=mixture_scope, entropy_scale=entropy_scale)
    assert all(math.isfinite(record["train_loss"]) for record in result.history)


def test_without_any_wrong_event_both_views_are_trained_by_cross_entropy():
    frame, method = toy_run(toy_data(N, C), torch.zeros(N, dtype=torch.int64), num_networks=1), IDO(warmup_epochs=1)
    with torch.no_grad():
        frame.network.module[2].bias[0] = 100.0  # always predicts class 0
    method.setup(frame)
    fit(method, frame, 1)
    method.fit_mixture(20)
    assert (method.criterion.table == 1).all()


def test_a_run_that_is_resumed_in_stage_two_is_the_run_itself(tmp_path):
    data, label, _ = toy()

    def trainer(folder, method):
        return Trainer(
            method,
            data,
            lambda: toy_network(num_classes=C),
            noise=as_noise(label),
            epochs=6,
            batch_size=16,
            monitor=False,
            out_dir=tmp_path / folder,
        )

    class Interrupted(IDO):
        def epoch(self, t):
            if t == 5:
                raise KeyboardInterrupt
            super().epoch(t)

    whole, first, second = IDO(warmup_epochs=3), Interrupted(warmup_epochs=3), IDO(warmup_epochs=3)
    expected = trainer("whole", whole).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer("parts", first).fit()
    resumed = trainer("parts", second).fit(resume=True)
    assert [r["train_loss"] for r in resumed.history] == [r["train_loss"] for r in expected.history]
    for name, value in whole.run.network.weights().items():
        assert torch.equal(value, second.run.network.weights()[name])
    assert torch.equal(whole.criterion.wrong_count, second.criterion.wrong_count)
    assert torch.equal(whole.mixture.alpha_, second.mixture.alpha_)


def test_learning_rate_is_constant_in_stage_one_and_falls_in_stage_two():
    trainer = Trainer(IDO(warmup_epochs=2), toy_data(N, C), toy_network(num_classes=C), epochs=6, lr=0.1, min_lr=0.01)
    trainer._prepare()
    rates = [trainer.learning_rate(t) for t in range(1, 7)]
    assert rates[:3] == [0.1] * 3
    assert rates[3] > rates[4] > rates[5] > 0.01
    trainer.method.options["refine_lr"] = 0.05
    assert [trainer.learning_rate(t) for t in (2, 3)] == [0.1, 0.05]


@pytest.mark.parametrize("option", ["base_model", "mixture_scope", "similarity", "entropy_scale", "counter_order"])
def test_unknown_values_name_the_known_ones(option):
    with pytest.raises(ValueError, match=f"{option} is 'other'; expected one of"):
        IDO(**{option: "other"}).setup(toy()[2])


def test_stage_one_cannot_be_longer_than_the_run():
    with pytest.raises(ValueError, match=r"warmup_epochs is 9; expected 1\.\.8"):
        IDO(warmup_epochs=9).setup(toy()[2])
