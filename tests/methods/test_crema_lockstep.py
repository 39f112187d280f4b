"""CREMA, step by step and set by set, against a float64 transcription of its description."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy import CLASSES, LR, assert_same_weights, fit, noisy_label, plain_step, toy_data, toy_run, twins_of

from fastlnl.methods import CREMA
from fastlnl.mixture import GaussianMixture1D

N, C, WARMUP, EPOCHS = 120, CLASSES, 1, 3  # batches of 12: ten steps of a network in the warm-up
THRESHOLD = 0.6
EXACT = {"warmup_epochs": WARMUP, "confidence_threshold": THRESHOLD, "history_dtype": "float32", "bins": None}


def build_run(num_networks):
    data = toy_data(num_samples=N, spread=2.0)
    return toy_run(data, noisy_label(data), num_networks=num_networks, epochs=EPOCHS, batch_size=12)


def gaussian_log_odds(loss):
    """Section 1.4 of the peers' description: scikit-learn's EM, ten iterations at most, from a 2-means start."""
    x = ((loss - loss.min()) / (loss.max() - loss.min()))[:, None]
    centers = np.array([0.0, 1.0])
    for _ in range(100):
        nearest = np.abs(x - centers).argmin(1)
        centers = np.array([x[nearest == k].mean() for k in (0, 1)])

    def maximise(share):
        count = share.sum(0) + 10 * np.finfo(float).eps
        mean = (share * x).sum(0) / count
        return count / len(x), mean, (share * (x - mean) ** 2).sum(0) / count + 5e-4

    def log_joint(weight, mean, variance):
        return np.log(weight) - 0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)

    fitted, before = maximise(np.eye(2)[nearest]), -np.inf
    for _ in range(10):
        joint = log_joint(*fitted)
        total = np.logaddexp(joint[:, 0], joint[:, 1])
        fitted = maximise(np.exp(joint - total[:, None]))
        if abs(total.mean() - before) < 1e-2:
            break
        before = total.mean()
    low, joint = fitted[1].argmin(), log_joint(*fitted)
    return joint[:, low] - joint[:, 1 - low]


def transcription(run, twins, *, score_source="eval", new_label="hard", co_divide=True, warmup_penalty=0.0):
    """Section 3 of the description, line by line; after each epoch the state of every network is handed out."""
    images, label = run.train.images.double(), run.label
    networks = len(twins)
    state = [{"loss": torch.zeros(N).double(), "q": None, "ring": []} for _ in twins]

    def score(k, index):
        p = twins[k](images[index]).softmax(1).detach()
        state[k]["loss"][index] = -p[torch.arange(len(index)), label[index]].log()
        if state[k]["q"] is None:
            state[k]["q"] = torch.full((N, C), -1.0).double()
        q = state[k]["q"]
        q[index] = torch.where(q[index, :1] < 0, p, 0.9 * q[index] + 0.1 * p)

    for t in range(1, EPOCHS + 1):
        run.start_epoch(t, LR)
        fixed_q = [None if s["q"] is None else s["q"].clone() for s in state]
        for k, twin in enumerate(twins):
            teacher = state[networks - 1 - k] if co_divide else state[k]
            q = fixed_q[networks - 1 - k] if co_divide else fixed_q[k]
            ids = None
            if t > WARMUP and score_source == "eval":
                ids = (teacher["clean"] | teacher["accepted"]).nonzero()[:, 0]
            one_left = ids is not None and len(ids) % 12 == 1
            for index, _, _ in run.batches(ids, stream=f"crema/{k}", drop_last=one_left):
                logp = twin(images[index]).log_softmax(1)
                p = logp.exp()
                if t <= WARMUP:
                    loss = F.nll_loss(logp, label[index]) + warmup_penalty * (p * logp).sum(1).mean()
                else:
                    loss = 0
                    for row, i in enumerate(index.tolist()):
                        if teacher["clean"][i]:
                            loss = loss - teacher["weight"][i] * logp[row, label[i]]
                        elif teacher["accepted"][i] and new_label == "soft":
                            loss = loss - teacher["confidence"][i] * (q[i] * logp[row]).sum()
                        elif teacher["accepted"][i]:
                            loss = loss - teacher["confidence"][i] * logp[row, teacher["predicted"][i]]
                    loss = loss / len(index) + (1 / C * (1 / C / p.mean(0)).log()).sum()
                if score_source == "train":
                    score(k, index)
                plain_step(twin, loss)
        if score_source == "eval":
            for k in range(networks):
                score(k, torch.arange(N))
        for s in state:
            odds = torch.from_numpy(gaussian_log_odds(s["loss"].numpy()))
            s["ring"] = [odds.clamp(-6, 6), *s["ring"]]
            powers = [0.9**j for j in range(len(s["ring"]))]
            s["weight"] = (sum(a * h for a, h in zip(powers, s["ring"], strict=True)) / sum(powers)).sigmoid()
            s["clean_prob"] = odds.sigmoid()
            s["clean"] = odds.sigmoid() > 0.5
            s["confidence"], s["predicted"] = s["q"].max(1)
        for k, s in enumerate(state):
            s["accepted"] = ~s["clean"] & (s["confidence"] > THRESHOLD)
            s["accepted"] &= s["predicted"] == state[networks - 1 - k]["predicted"]
        yield state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_source": "train"},
        {"new_label": "soft"},
        {"new_label": "soft", "score_source": "train"},
        {"co_divide": False, "warmup_penalty": 0.5},
        {"networks": 1},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "default",
)
def test_lockstep_with_transcription(options):
    networks = options.get("networks", 2)
    run, beside = build_run(num_networks=networks), build_run(num_networks=networks)
    twins = [twin.double() for twin in twins_of(run)]
    method = CREMA(**EXACT, **options)
    method.setup(run)
    plain = {name: value for name, value in options.items() if name != "networks"}
    steps, moved = 0, 0
    for t, expected in enumerate(transcription(beside, twins, **plain), start=1):
        fit(method, run, epochs=t, first=t)
        steps += run.network.steps
        for ours, theirs in zip(method.states, expected, strict=True):
            assert torch.equal(ours.is_clean, theirs["clean"])
            assert torch.equal(ours.accepted, theirs["accepted"])
            target = torch.where(theirs["accepted"], theirs["predicted"], run.label)
            assert torch.equal(ours.new_label.long(), target)
            for mine, other in (("loss", "loss"), ("clean_prob", "clean_prob"), ("weight", "weight")):
                torch.testing.assert_close(getattr(ours, mine).double(), theirs[other], rtol=0, atol=1e-5)
            torch.testing.assert_close(ours.memory.rows(torch.arange(N)).double(), theirs["q"], rtol=0, atol=1e-5)
            moved += int((theirs["accepted"] & (theirs["predicted"] != run.label)).sum())
        assert_same_weights(run.networks, [copy.deepcopy(twin).float() for twin in twins])
    assert steps >= 20
    assert moved > 5  # labels were corrected
    assert not all(s["clean"].all() for s in expected)


def test_the_transcribed_mixture_is_the_known_one():
    x = torch.tensor([0, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1])
    odds = torch.from_numpy(gaussian_log_odds(x.double().numpy()))
    assert abs(odds.sigmoid()[7].item() - 0.736477060) < 1e-6
    ours = GaussianMixture1D(bins=None).fit(x).log_odds(x).double()
    torch.testing.assert_close(ours, odds, rtol=1e-4, atol=1e-4)
