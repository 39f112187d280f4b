"""Readers of the known data sets. Only `digits` comes with a package; the others are files below FASTLNL_DATA."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import io
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlnl.data import text
from fastlnl.data.dataset import Dataset
from fastlnl.data.sources import data_file, held_out, load_npz

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Our names of the CIFAR-10N label sets, and theirs.
CIFAR10N = {
    "cifar10n_worst": "worse_label",
    "cifar10n_random1": "random_label1",
    "cifar10n_aggregate": "aggre_label",
}


def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Load a data set into memory.

    Args:
        name: images: "digits" (scikit-learn, needs no files), "mnist", "fashion_mnist", "cifar10" (with CIFAR-10N
            labels); texts: "trec", "sst2", "mr", "subj", "hausa" (with the labels of keyword rules).
        root: folder that holds the data sets; default the environment variable FASTLNL_DATA, else ../shared/data.
        options: of a text data set: `max_length` in words, `min_count` of a word; for "sst2" and "hausa" also
            `test_split="dev"`, to choose options without a look at the test set.

    Returns:
        Dataset, on the CPU.

    Raises:
        ValueError: unknown name.
        TypeError: an option that this data set does not have.
        FileNotFoundError: a file of the data set is not there.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; expected one of {', '.join(DATASETS)}")
    known = list(inspect.signature(DATASETS[name]).parameters)[1:]
    for option in options:
        if option not in known:
            raise TypeError(f"data set {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return DATASETS[name](Path(root or os.environ.get("FASTLNL_DATA") or "../shared/data"), **options)


def digits(root: Path) -> Dataset:
    """1,797 handwritten digits, 8 x 8 pixels of 17 grey levels, scaled to 0..255 (Alpaydin and Kaynak 1998, UCI).

    The split is fixed: the images in order of (class, random number), every fifth to the test set. It leaves 1,437
    images to train on and 360 to test on, each class within one image of a fifth.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    label = torch.from_numpy(bunch.target).long()
    is_test = held_out("digits", label, every=5)
    return Dataset(
        name="digits",
        train_images=images[~is_test],
        train_label=label[~is_test],
        test_images=images[is_test],
        test_label=label[is_test],
        num_classes=10,
        class_names=DIGIT_NAMES,
        mean=(0.3056,),
        std=(0.3760,),
        note="digits (scikit-learn)",
    )


def mnist(root: Path) -> Dataset:
    """MNIST (LeCun et al. 1998), the official idx files."""
    return idx_dataset(root, "mnist", DIGIT_NAMES, mean=0.1307, std=0.3081, note="MNIST")


def fashion_mnist(root: Path) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017), the official idx files."""
    return idx_dataset(root, "fashion_mnist", FASHION_NAMES, mean=0.2860, std=0.3530, note="Fashion-MNIST")


def idx_dataset(root: Path, name: str, class_names: tuple[str, ...], mean: float, std: float, note: str) -> Dataset:
    """A data set of 28 x 28 grey images in four gzipped idx files, as MNIST is published."""
    return Dataset(
        name=name,
        train_images=read_idx(root, f"{name}/train-images-idx3-ubyte.gz")[:, None],
        train_label=read_idx(root, f"{name}/train-labels-idx1-ubyte.gz").long(),
        test_images=read_idx(root, f"{name}/t10k-images-idx3-ubyte.gz")[:, None],
        test_label=read_idx(root, f"{name}/t10k-labels-idx1-ubyte.gz").long(),
        num_classes=len(class_names),
        class_names=class_names,
        mean=(mean,),
        std=(std,),
        note=note,
    )


def read_idx(root: Path, name: str) -> Tensor:
    """The uint8 array of a gzipped idx file: magic number 0x0000080d with d dimensions, d sizes, the values."""
    path = data_file(root, name)
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes: it starts with {content[:4]!r}; fetch it again")
    dims = content[3]
    shape = np.frombuffer(content, ">u4", count=dims, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    if len(values) != np.prod(shape):
        raise ValueError(f"{path} promises {shape} values but holds {len(values)}; fetch it again")
    return torch.from_numpy(values.reshape(shape).copy())


def cifar10(root: Path) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009) as JPEG copies of quality 75, in torchvision's order, with the labels of CIFAR-10N.

    The human labels (Wei et al. 2022) are left out where their file is not there.
    """
    labels = load_npz(data_file(root, "cifar10/labels.npz"))
    images = torch.from_numpy(decoded(data_file(root, "cifar10/jpeg_pack.npz")))
    num_train = len(labels["train"])
    human_labels = {}
    if (root / "cifar10n/labels.npz").exists():
        human = load_npz(root / "cifar10n/labels.npz")
        human_labels = {ours: torch.from_numpy(human[theirs]).long() for ours, theirs in CIFAR10N.items()}
    return Dataset(
        name="cifar10",
        train_images=images[:num_train],
        train_label=torch.from_numpy(labels["train"]).long(),
        test_images=images[num_train:],
        test_label=torch.from_numpy(labels["test"]).long(),
        num_classes=10,
        class_names=tuple(labels["names"].tolist()),
        mean=(0.4913, 0.4821, 0.4465),
        std=(0.2452, 0.2428, 0.2606),
        human_labels=human_labels,
        note="CIFAR-10 (JPEG q75)",
    )


def decoded(pack: Path) -> np.ndarray:
    """The images of a JPEG pack; kept in the user's cache folder, since decoding 60,000 of them takes seconds."""
    key = hashlib.sha256(pack.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastlnl" / f"{key}.npy"
    if cache.exists():
        return np.load(cache, allow_pickle=False)
    images = decode_jpeg_pack(load_npz(pack))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_name(f"{cache.stem}.{os.getpid()}.npy")
        np.save(part, images, allow_pickle=False)
        os.replace(part, cache)  # whole or not at all, also when two processes decode at once
    except OSError:
        pass  # a home that cannot be written only costs the decoding next time
    return images


def decode_jpeg_pack(pack: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 (n, 3, H, W): image i is the JPEG file `head` + `scan[off[i] : off[i + 1]]`."""
    from PIL import Image

    head, scan, off = pack["head"].tobytes(), pack["scan"].tobytes(), pack["off"].tolist()
    files = (head + scan[start:end] for start, end in pairwise(off))
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "trec": text.trec,
    "sst2": text.sst2,
    "mr": text.mr,
    "subj": text.subj,
    "hausa": text.hausa,
}
