"""Two pictures of finding wrong labels on the digits: the split of the losses, and how well three scores rank them."""

from pathlib import Path

import torch
from accuracy import DATASET, NOISE
from torch import Tensor

from fastlnl.data import IndexedLoader, load_dataset
from fastlnl.losses import CrossEntropy
from fastlnl.mixture import GaussianMixture1D
from fastlnl.networks import build_network
from fastlnl.noise import apply_noise
from fastlnl.report.plots import detection_curves, loss_histogram
from fastlnl.state import SampleDynamics

EPOCHS, SEED = 10, 0


def train() -> tuple[SampleDynamics, Tensor]:
    """What cross-entropy showed of every sample in its first epochs, and which labels are right (N,)."""
    torch.manual_seed(SEED)
    data = load_dataset(DATASET)
    label = apply_noise(NOISE, data, SEED).label
    network = build_network("mlp", data.image_shape, data.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = IndexedLoader(data.train_images, label, batch_size=128, mean=data.mean, std=data.std, seed=SEED)
    dynamics = SampleDynamics(len(label), data.num_classes, label=label)
    criterion = CrossEntropy(dynamics=dynamics)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            criterion(network(batch.views[0]), batch.label, batch.index).backward()
            optimizer.step()
        criterion.end_epoch()
    return dynamics, label == data.train_label


def write_plots(folder: Path, stem: str) -> list[Path]:
    """PNGs of both pictures in `folder`; returns the paths."""
    dynamics, is_clean = train()
    loss = dynamics.mean
    mixture = GaussianMixture1D(normalise="none").fit(loss)
    clean_prob = mixture.clean_prob(loss)
    figures = {
        "split": loss_histogram(
            loss,
            is_clean=is_clean,
            means=mixture.means_,
            variances=mixture.variances_,
            weights=mixture.weights_,
            threshold=loss[clean_prob > 0.5].max(),
            name=f"mean loss of the first {EPOCHS} epochs, {DATASET}, {NOISE}",
        ),
        "detection": detection_curves(
            {"small mean loss": -loss, "AUM": dynamics.aum, "few wrong events": -dynamics.wrong_events.float()},
            is_clean,
        ),
    }
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{stem}-{name}.png")
        figure.savefig(written[-1])
    return written
