"""A run small enough to be repeated by hand: the real frame over float features, plain SGD learners.

    run = toy_run(toy_data(), label, num_networks=2)
    twins = twins_of(run)               # the same weights, for a transcription that steps them on its own
    fit(method, run)

Two runs built from the same arguments give the same batches, so a transcription takes its own from a second one.
"""

import copy

import torch
from torch import nn

from fastlnl.data import Dataset
from fastlnl.frame import Frame, Learner

FEATURES, CLASSES, LR = 6, 4, 0.2


def toy_data(num_samples=96, num_classes=CLASSES, features=FEATURES, spread=1.0, seed=0):
    """Gaussian classes with true labels; as many test samples as training samples."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2.0 * torch.randn(num_classes, features, generator=generator)

    def draw():
        label = torch.arange(num_samples) % num_classes
        return centers[label] + spread * torch.randn(num_samples, features, generator=generator), label

    (train, train_label), (test, test_label) = draw(), draw()
    names = tuple(f"class {c}" for c in range(num_classes))
    return Dataset("toy", train, train_label, test, test_label, num_classes, names, (0.0,), (1.0,))


def noisy_label(data, rate=0.3, seed=1):
    """(N,) given labels, this share of them moved to the next class."""
    wrong = torch.rand(data.num_samples, generator=torch.Generator().manual_seed(seed)) < rate
    return torch.where(wrong, (data.train_label + 1) % data.num_classes, data.train_label)


def sgd(module, lr=LR):
    return torch.optim.SGD(module.parameters(), lr=lr)


def toy_network(features=FEATURES, num_classes=CLASSES, hidden=16):
    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, num_classes))


def toy_run(data, label, *, num_networks=2, epochs=3, batch_size=16, seed=0, build=None, optimizer=sgd):
    """A frame whose networks differ from each other and are the same for the same seed."""
    device = torch.device("cpu")
    torch.manual_seed(seed)
    build = build or (lambda: toy_network(data.image_shape[0], data.num_classes))
    learners = [
        Learner(build(), optimizer, device=device, amp=None, channels_last=False, compile=False)
        for _ in range(num_networks)
    ]
    return Frame(learners, data, label, epochs=epochs, batch_size=batch_size, augment=None, seed=seed, device=device)


def twins_of(run):
    """Copies of the modules of a run."""
    return [copy.deepcopy(network.module) for network in run.networks]


def plain_step(module, loss, lr=LR):
    """One step of SGD written out."""
    module.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= lr * parameter.grad


def fit(method, run, epochs=None, first=1, lr=LR):
    """Epochs first..epochs of a method that is set up, at a constant learning rate."""
    for t in range(first, (epochs or run.epochs) + 1):
        run.start_epoch(t, lr)
        method.epoch(t)


def assert_same_weights(networks, twins, atol=1e-5):
    """Every parameter of the learners equals that of its twin."""
    for network, twin in zip(networks, twins, strict=True):
        for ours, theirs in zip(network.module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
