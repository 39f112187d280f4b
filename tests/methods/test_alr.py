"""ALR against a float64 transcription of its description, its laws in time, and what it is for."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlnl import losses
from fastlnl.data import Batch, Dataset
from fastlnl.learner import Learner
from fastlnl.methods import ALR, CE
from fastlnl.noise import apply_noise
from fastlnl.trainer import Trainer

N, C, WARMUP, EPOCHS, LR = 30, 4, 1, 6, 0.2  # 6 epochs of 4 batches: 4 steps of warm-up, 20 of refinement


class ToyRun:
    """The frame of a run, reduced to what ALR uses: plain SGD over given batches."""

    def __init__(self, network, images, label, batch_ids):
        self.num_samples, self.num_classes, self.epochs = N, C, EPOCHS
        self.label, self.true_label, self.device = label, label, torch.device("cpu")
        self.network = Learner(network, sgd, device=torch.device("cpu"), amp=None, channels_last=False, compile=False)
        self.images, self.batch_ids = images, batch_ids

    def batches(self):
        for index in self.batch_ids:
            yield Batch(index, (self.images[index],), self.label[index])

    @contextmanager
    def inference(self):
        with torch.no_grad():
            yield [Batch(index, (self.images[index],), self.label[index]) for index in torch.arange(N).split(16)]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=LR)


def transcription(network, images, label, batch_ids, *, momentum, entropy_weight, update_order, detach, target_source):
    """methods/alr.md section 3, line by line, in float64."""
    memory = F.one_hot(label, C).double()

    def refine_all():
        with torch.no_grad():
            memory.mul_(momentum).add_((1 - momentum) * network(images).softmax(1))

    for t in range(1, EPOCHS + 1):
        refines = t > WARMUP
        by_pass = refines and target_source == "eval"
        if by_pass and update_order == "update_then_use":
            refine_all()
        for index in batch_ids:
            logits = network(images[index])
            log_p = logits.log_softmax(1)
            p = log_p.exp()
            if not refines:
                loss = F.cross_entropy(logits, label[index])
            else:
                old = memory[index]
                new = momentum * old + (1 - momentum) * (p.detach() if detach else p)
                target = old if target_source == "eval" or update_order == "use_then_update" else new
                loss = (-(target * log_p).sum(1) - entropy_weight * (p * log_p).sum(1)).mean()
                if target_source == "train":
                    memory[index] = new.detach()
            network.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= LR * parameter.grad
        if by_pass and update_order == "use_then_update":
            refine_all()
    return memory


@pytest.mark.parametrize("target_source", ["train", "eval"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("update_order", ["update_then_use", "use_then_update"])
def test_lockstep_with_transcription(update_order, detach, target_source):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, C))
    images, label = torch.randn(N, 6), torch.randint(C, (N,))
    batch_ids = torch.randperm(N).split(8)
    options = {
        "momentum": 0.7,
        "entropy_weight": 0.3,
        "update_order": update_order,
        "detach": detach,
        "target_source": target_source,
    }
    exact = copy.deepcopy(network).double()
    expected = transcription(exact, images.double(), label, batch_ids, **options)

    method = ALR(warmup_epochs=WARMUP, **options)
    method.setup(ToyRun(network, images, label, batch_ids))
    for t in range(1, EPOCHS + 1):
        method.epoch(t)

    assert (expected - F.one_hot(label, C)).abs().max() > 0.3  # the soft labels did move
    torch.testing.assert_close(method.criterion.memory.table.double(), expected, rtol=0, atol=1e-6)
    for ours, theirs in zip(network.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)


def one_row(momentum, **options):
    criterion = losses.ALR(1, 10, torch.tensor([0]), momentum=momentum, **options)
    return criterion, torch.tensor([0]), torch.tensor([0])


@pytest.mark.parametrize(("momentum", "flip"), [(0.9, 7), (0.7, 2)])
def test_constant_prediction_flips_the_label_at_the_known_step(momentum, flip):
    """R_n = m^n onehot(y) + (1 - m^n) onehot(k): the class changes at the first n with m^n < 1/2."""
    criterion, label, index = one_row(momentum)
    logits = torch.full((1, 10), -1e4)
    logits[0, 3] = 1e4
    for n in range(1, 101):
        criterion(logits, label, index)
        row = criterion.memory.table[0].double()
        assert (row.argmax() == 3) == (n >= flip)
        closed_form = torch.zeros(10, dtype=torch.float64)
        closed_form[0], closed_form[3] = momentum**n, 1 - momentum**n
        torch.testing.assert_close(row, closed_form, rtol=0, atol=1e-6)


TIME_SCALE = {  # momentum, entropy_weight: epochs from .6 to .99, from .3 to .99
    (0.9, 0.05): (196, 307),
    (0.9, 0.1): (111, 163),
    (0.9, 0.3): (56, 71),
    (0.9, 0.5): (47, 56),
    (0.9, 0.8): (42, 49),
    (0.7, 0.05): (52, 81),
    (0.7, 0.1): (30, 43),
    (0.7, 0.3): (16, 20),
    (0.7, 0.5): (14, 16),
    (0.7, 0.8): (12, 15),
}


def stationary(r, momentum, entropy_weight):
    """Probability q of the dominant of ten classes at which the gradient of the row with soft label r vanishes."""

    def slope(q):
        entropy = -q * math.log(q) - (1 - q) * math.log((1 - q) / 9)
        return momentum * (q - r) - entropy_weight * q * (math.log(q) + entropy)

    low, high = r, 1 - 1e-15
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize(("setting", "epochs"), TIME_SCALE.items())
def test_time_scale_of_hardening(setting, epochs):
    """A network at its stationary point: the gradient is zero there, and the soft label hardens in the known time."""
    momentum, entropy_weight = setting
    for start, expected in zip((0.6, 0.3), epochs, strict=True):
        criterion, label, index = one_row(momentum, entropy_weight=entropy_weight)
        r, row = start, torch.full((10,), (1 - start) / 9)
        row[0] = start
        criterion.memory.table[0] = row
        n = 0
        while r < 0.99:
            q = stationary(r, momentum, entropy_weight)
            logits = torch.full((1, 10), math.log((1 - q) / 9))
            logits[0, 0] = math.log(q)
            logits.requires_grad_()
            criterion(logits, label, index).backward()
            assert logits.grad.abs().max() < 1e-6
            r, n = momentum * r + (1 - momentum) * q, n + 1
            assert abs(criterion.memory.table[0, 0].item() - r) < 1e-6
        assert n == expected


def gaussians():
    """Four well separated classes in 32 dimensions, in which an MLP finds room to memorise every wrong label."""
    generator = torch.Generator().manual_seed(0)
    centers = 0.7 * torch.randn(4, 32, generator=generator)

    def draw(n):
        label = torch.arange(n) % 4
        return centers[label] + torch.randn(n, 32, generator=generator), label

    (train, train_label), (test, test_label) = draw(800), draw(800)
    names = ("a", "b", "c", "d")
    return Dataset("gaussians", train, train_label, test, test_label, 4, names, (0.0,), (1.2,))


def test_gaussians_with_noise_are_learned_and_labels_corrected():
    """40 % symmetric noise: test accuracy above cross-entropy's, correction accuracy above 90 %."""
    data = gaussians()
    noisy = apply_noise("symmetric/exclusive:0.4", data, seed=0)
    recipe = {"noise": noisy, "epochs": 30, "batch_size": 64, "optimizer": "adam", "lr": 1e-3, "schedule": "constant"}
    ce = Trainer(CE(), data, "mlp", **recipe).fit()
    alr = Trainer(ALR(momentum=0.7), data, "mlp", **recipe).fit()
    assert ce.metrics["memorised"] > 0.5  # the baseline does have something to suffer from
    assert alr.last > ce.last + 0.05
    assert alr.metrics["correction_accuracy"] > 0.9
    assert alr.metrics["changed"] > 0.3


def test_options_presets_and_warmup():
    assert ALR().options["entropy_weight"] == 0.3
    assert ALR("selc").options["entropy_weight"] == 0.0
    assert ALR("selc", momentum=0.8).options["momentum"] == 0.8
    assert ALR("temporal").options["target_source"] == "eval"
    with pytest.raises(ValueError, match=r"presets of alr are: alr, selc, temporal"):
        ALR("elr+")
    with pytest.raises(ValueError, match=r"alr has no option 'lambda'; its options are: momentum, entropy_weight"):
        ALR(**{"lambda": 0.3})
    with pytest.raises(ValueError, match=r"ce has no option 'momentum'; its options are: none"):
        CE(momentum=0.9)

    label = torch.arange(N) % C
    method = ALR()
    method.setup(ToyRun(nn.Linear(6, C), torch.randn(N, 6), label, torch.arange(N).split(10)))
    assert method.warmup_epochs == 1  # 0.15 of 6
    method.epoch(1)
    assert torch.equal(method.criterion.memory.table, F.one_hot(label, C).float())  # warm-up touches nothing
    method.epoch(2)
    assert not torch.equal(method.criterion.memory.table, F.one_hot(label, C).float())


def test_no_warmup_is_allowed_with_a_warning():
    method = ALR(warmup_epochs=0)
    with pytest.warns(UserWarning, match="warmup_epochs is 0"):
        method.setup(ToyRun(nn.Linear(6, C), torch.randn(N, 6), torch.arange(N) % C, ()))


@pytest.mark.parametrize("init", ["zeros", "first_prediction"])
def test_corrected_label_is_the_given_one_before_the_first_touch(init):
    label = torch.arange(N) % C
    method = ALR(init=init)
    method.setup(ToyRun(nn.Linear(6, C), torch.randn(N, 6), label, ()))
    assert torch.equal(method.corrected_label(), label)
    method.criterion.memory.table[0] = torch.tensor([0.1, 0.2, 0.5, 0.2])
    assert method.corrected_label()[0] == 2


@pytest.mark.parametrize("storage", ["bfloat16", "uint8", "topk:2"])
def test_storage_reaches_the_label_memory(storage):
    label = torch.arange(N) % C
    method = ALR(storage=storage)
    method.setup(ToyRun(nn.Linear(6, C), torch.randn(N, 6), label, torch.arange(N).split(10)))
    assert str(method.criterion.memory.storage) == storage
    assert torch.equal(method.corrected_label(), label)
    method.epoch(1)
    method.epoch(2)
    rows = method.criterion.memory.rows(torch.arange(N))
    assert not torch.equal(rows, F.one_hot(label, C).float())
    assert (rows.sum(1) - 1).abs().max() < 0.05
