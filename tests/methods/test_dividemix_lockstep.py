"""DivideMix against a float64 transcription of the paper, from warm-up to the last step."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy import CLASSES, FEATURES, LR, fit, noisy_label, plain_step, toy_data, toy_run, twins_of

from fastlnl.methods import DivideMix
from fastlnl.methods.dividemix import ends_in_one, mixup_draws

WARMUP, EPOCHS = 4, 6
AUGMENT = "noise:0.3"


def network_with_norm():
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, CLASSES))


def build_run(**options):
    data = toy_data(num_samples=90, spread=2.0)
    return toy_run(data, noisy_label(data, 0.35), epochs=EPOCHS, build=network_with_norm, **options)


def clean_probability(loss):
    """scikit-learn's two Gaussians from a 2-means start at the extremes, and the posterior of the lower one."""
    x = ((loss - loss.min()) / (loss.max() - loss.min()))[:, None]
    centers = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for _ in range(100):
        nearest = (x - centers).abs().argmin(1)
        centers = torch.stack([x[nearest == i].mean() for i in (0, 1)])

    def maximise(r):
        n = r.sum(0) + 10 * torch.finfo(torch.float64).eps
        means = (r * x).sum(0) / n
        return n / len(x), means, (r * (x - means) ** 2).sum(0) / n + 5e-4

    def expect(weights, means, variances):
        joint = weights.log() - 0.5 * (2 * math.pi * variances).log() - 0.5 * (x - means) ** 2 / variances
        return joint.softmax(1), joint.logsumexp(1).mean().item()

    fitted, last = maximise(F.one_hot(nearest, 2).double()), -math.inf
    for _ in range(10):
        r, bound = expect(*fitted)
        fitted = maximise(r)
        if abs(bound - last) < 1e-2:
            break
        last = bound
    return expect(*fitted)[0][:, fitted[1].argmin()]


GOLDEN = (0, .02, .05, .08, .1, .15, .2, .3, .45, .6, .75, .9, 1)  # fmt: skip
GOLDEN_PROB = (.997586288, .997392219, .996864718, .995909549, .994890008, .989572098, .973556768, .736477060,
               .010446602, .000005115, 0, 0, 0)  # fmt: skip


def test_the_transcription_has_the_mixture_of_scikit_learn():
    ours = clean_probability(torch.tensor(GOLDEN, dtype=torch.float64))
    torch.testing.assert_close(ours, torch.tensor(GOLDEN_PROB, dtype=torch.float64), rtol=0, atol=1e-8)


def sharpen(q, temperature=0.5):
    powered = q ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)


def transcription(run, nets, *, unlabeled_weight, alpha, penalty, first=1, last=EPOCHS):
    """peers.md 1.3, line by line, in float64, on the batches of `run`."""
    half = run.batch_size // 2
    size = len(run.label)
    steps_taken, sizes = 0, []
    for t in range(first, last + 1):
        run.start_epoch(t, LR)
        if t <= WARMUP:
            for k, net in enumerate(nets):
                for batch in run.batches(stream=f"warmup{k}"):
                    logp = net(batch.views[0].double()).log_softmax(1)
                    loss = F.nll_loss(logp, batch.label) + penalty * (logp.exp() * logp).sum(1).mean()
                    plain_step(net, loss)
            continue
        probs = []
        for net in nets:
            net.eval()
            with torch.no_grad():
                logits = net(run.train.images.double())
            probs.append(clean_probability(F.cross_entropy(logits, run.label, reduction="none")))
            net.train()
        for k, (net, peer) in enumerate((nets, nets[::-1])):
            w = probs[1 - k]
            clean = w > 0.5
            ids_x, ids_u = torch.arange(size)[clean], torch.arange(size)[~clean]
            sizes.append((len(ids_x), len(ids_u)))
            single_x, single_u = ends_in_one(ids_x, half), ends_in_one(ids_u, half)  # a batch norm of one row
            steps = math.ceil(len(ids_x) / half) - single_x
            lam, order = mixup_draws(run.seed, t, k, steps, 4 * half, alpha, run.device)
            views = {"augment": (AUGMENT, AUGMENT), "batch_size": half}
            peer.eval()
            pairs = zip(
                run.batches(ids_x, stream=f"labelled{k}", drop_last=single_x, **views),
                run.cycle(ids_u, stream=f"unlabelled{k}", drop_last=single_u, **views),
                strict=False,
            )
            for i, (x, u) in enumerate(pairs):
                (x1, x2), (u1, u2) = [[view.double() for view in batch.views] for batch in (x, u)]
                with torch.no_grad():
                    q = (net(u1).softmax(1) + net(u2).softmax(1) + peer(u1).softmax(1) + peer(u2).softmax(1)) / 4
                    target_u = sharpen(q)
                    mean = (net(x1).softmax(1) + net(x2).softmax(1)) / 2
                    wx = w[x.index][:, None]
                    target_x = sharpen(wx * F.one_hot(x.label, CLASSES) + (1 - wx) * mean)
                inputs = torch.cat((x1, x2, u1, u2))
                targets = torch.cat((target_x, target_x, target_u, target_u))
                other = order[i, : len(inputs)].argsort()
                l = lam[i].double()
                inputs, targets = l * inputs + (1 - l) * inputs[other], l * targets + (1 - l) * targets[other]
                logits, n = net(inputs), 2 * len(x1)
                p = logits.softmax(1)
                loss_x = -(targets[:n] * logits[:n].log_softmax(1)).sum(1).mean()
                loss_u = ((p[n:] - targets[n:]) ** 2).mean()
                pi = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
                prior = (pi * (pi / p.mean(0)).log()).sum()
                ramp = min(max((t - 1 + i / steps - WARMUP) / 16, 0), 1)
                plain_step(net, loss_x + unlabeled_weight * ramp * loss_u + prior)
                steps_taken += 1
            peer.train()
    return steps_taken, sizes, probs


def assert_same_networks(ours, theirs, atol):
    """Parameters and running statistics of learners or modules."""
    for network, net in zip(ours, theirs, strict=True):
        ours, theirs = getattr(network, "module", network).state_dict(), net.state_dict()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].double(), value.double(), rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(("preset", "penalty"), [("default", 0.0), ("asymmetric", 1.0)])
def test_lockstep_with_transcription(preset, penalty):
    run, second = build_run(), build_run()
    nets = [twin.double() for twin in twins_of(second)]
    second.train.augment = run.train.augment
    method = DivideMix(preset, warmup_epochs=WARMUP, unlabeled_weight=30.0, alpha=0.75, augment=AUGMENT)
    method.setup(run)
    fit(method, run, first=1)
    steps, sizes, probs = transcription(second, nets, unlabeled_weight=30.0, alpha=0.75, penalty=penalty)
    assert steps >= 20
    assert all(min(pair) > 8 for pair in sizes)  # both parts were there, in more than one batch
    for split, prob in zip(method.splits, probs, strict=True):
        torch.testing.assert_close(split.clean_prob.double(), prob, rtol=0, atol=1e-4)
    assert_same_networks(run.networks, nets, atol=2e-5)
