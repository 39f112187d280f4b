"""Readers: the embedded digits, the published files where they are, small made-up files everywhere."""

import gzip
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlnl.data import DATASETS, Dataset, load_dataset
from fastlnl.data import readers as readers_module
from fastlnl.data.readers import read_idx

ROOT = Path(os.environ.get("FASTLNL_DATA") or "../shared/data")
needs_data = pytest.mark.skipif(not ROOT.is_dir(), reason=f"there is no data folder {ROOT}; set FASTLNL_DATA")
SHA256 = {
    "train": "5aaf8a2cf2e577ff4dbb15e4f368840fab5aca1812bcc69682005f8dc661d466",
    "test": "b7018a062865e9348a704e72416eb53c816b43cc8ac42ab43276a2b967508ab6",
}


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield load_dataset("cifar10", ROOT)


def assert_consistent(data):
    """What every data set promises."""
    for images, label in ((data.train_images, data.train_label), (data.test_images, data.test_label)):
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert label.dtype == torch.int64
        assert len(images) == len(label)
        assert label.unique().tolist() == list(range(data.num_classes))
    assert data.image_shape == tuple(data.test_images.shape[1:])
    assert data.num_samples == len(data.train_label)
    assert len(data.class_names) == data.num_classes
    assert data.note
    grey = torch.arange(256, dtype=torch.float64) / 255
    for channel, mean, std in zip(data.train_images.unbind(1), data.mean, data.std, strict=True):
        share = channel.flatten().bincount(minlength=256).double() / channel.numel()
        centre = (share * grey).sum()
        assert mean == round(centre.item(), 4)
        assert std == round((share * (grey - centre) ** 2).sum().sqrt().item(), 4)


def test_digits():
    data = load_dataset("digits")
    assert_consistent(data)
    assert data.image_shape == (1, 8, 8)
    assert (len(data.train_label), len(data.test_label)) == (1437, 360)
    assert data.train_images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    share = data.test_label.bincount() / (data.test_label.bincount() + data.train_label.bincount())
    assert (share - 0.2).abs().max() < 1 / 174  # stratified to within one image of the smallest class
    assert torch.equal(load_dataset("digits").test_images, data.test_images)


@pytest.mark.parametrize("n", [0, 7, -1])
def test_first_samples_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=f"n is {n} but toy has 6 training samples"):
        toy().first(n)


def test_first_keeps_images_true_and_human_labels_together():
    whole = toy()
    part = whole.first(4)
    assert (part.num_samples, part.note, whole.first(6)) == (4, "toy, first 4 samples", whole)
    assert torch.equal(part.train_images, whole.train_images[:4])
    assert torch.equal(part.train_label, whole.train_label[:4])
    assert torch.equal(part.human_labels["crowd"], whole.human_labels["crowd"][:4])
    assert torch.equal(part.test_images, whole.test_images)


def toy() -> Dataset:
    """Six features with true labels and those of a crowd."""
    x, label = torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3
    return Dataset("toy", x, label, x, label, 3, ("a", "b", "c"), (), (), {"crowd": label.flip(0)})


def test_digits_keep_every_image_once():
    from sklearn.datasets import load_digits

    data, bunch = load_dataset("digits"), load_digits()
    ours = torch.cat([data.train_images, data.test_images]).flatten(1).double() * (16 / 255)
    ours = torch.cat([ours.round(), torch.cat([data.train_label, data.test_label])[:, None]], dim=1)
    theirs = torch.from_numpy(np.column_stack([bunch.data, bunch.target]))
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_files(name):
    data = load_dataset(name, ROOT)
    assert_consistent(data)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)


@needs_data
def test_cifar10_pixels(cifar10):
    assert_consistent(cifar10)
    assert cifar10.note == "CIFAR-10 (JPEG q75)"
    for split, images in (("train", cifar10.train_images), ("test", cifar10.test_images)):
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        assert hashlib.sha256(pixels).hexdigest() == SHA256[split]
    assert cifar10.train_label.bincount().tolist() == [5000] * 10
    assert cifar10.class_names[9] == "truck"


@needs_data
def test_cifar10n_labels(cifar10):
    with np.load(ROOT / "cifar10n/labels.npz", allow_pickle=False) as file:
        assert np.array_equal(file["clean_label"], cifar10.train_label)  # the same order of images
    wrong = {name: (label != cifar10.train_label).double().mean() for name, label in cifar10.human_labels.items()}
    assert {name: round(100 * share.item(), 2) for name, share in wrong.items()} == {
        "cifar10n_worst": 40.21,
        "cifar10n_random1": 17.23,
        "cifar10n_aggregate": 9.01,
    }


def write_small_cifar10(root, num_train=20, num_test=10):
    """A folder in the layout of the JPEG copy; returns what Pillow itself decodes."""
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (num_train + num_test, 32, 32, 3), dtype=np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "jpeg", quality=75)
        files.append(buffer.getvalue())
    head = files[0].index(b"\xff\xda")  # start of scan: what comes before is the same in all files
    assert len({file[:head] for file in files}) == 1
    scans = [file[head:] for file in files]
    np.savez(
        folder / "jpeg_pack.npz",
        head=np.frombuffer(files[0][:head], np.uint8),
        scan=np.frombuffer(b"".join(scans), np.uint8),
        off=np.cumsum([0, *map(len, scans)], dtype=np.int32),
    )
    label = (np.arange(num_train + num_test) % 10).astype(np.uint8)
    names = np.array([f"class{c}" for c in range(10)])
    np.savez(folder / "labels.npz", train=label[:num_train], test=label[num_train:], names=names)
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def test_jpeg_pack_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = write_small_cifar10(tmp_path).transpose(0, 3, 1, 2)
    first = load_dataset("cifar10", tmp_path)
    assert np.array_equal(first.train_images, expected[:20])
    assert np.array_equal(first.test_images, expected[20:])
    assert first.human_labels == {}
    (kept,) = (tmp_path / "cache/fastlnl").iterdir()
    assert kept.suffix == ".npy"

    monkeypatch.setattr(readers_module, "decode_jpeg_pack", None)  # a second decoding would fail
    assert torch.equal(load_dataset("cifar10", tmp_path).train_images, first.train_images)


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = write_small_cifar10(tmp_path)
    assert np.array_equal(load_dataset("cifar10", tmp_path).train_images.permute(0, 2, 3, 1), expected[:20])


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def test_idx_files(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "good.gz").write_bytes(gzip.compress(idx_bytes(array)))
    assert np.array_equal(read_idx(tmp_path, "good.gz"), array)
    (tmp_path / "short.gz").write_bytes(gzip.compress(idx_bytes(array)[:-1]))
    with pytest.raises(ValueError, match=r"promises \[2, 3, 4\] values but holds 23"):
        read_idx(tmp_path, "short.gz")
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match="is no idx file"):
        read_idx(tmp_path, "other.gz")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_files_say_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLNL_DATA", str(tmp_path))
    folder = name if name in ("mnist", "fashion_mnist", "cifar10") else "text"
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/{folder}/.* is missing: set FASTLNL_DATA .* 'digits'"):
        load_dataset(name)


def test_root_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTLNL_DATA", str(tmp_path / "empty"))
    write_small_cifar10(tmp_path / "full")
    assert load_dataset("cifar10", tmp_path / "full").num_samples == 20


def test_unknown_name():
    with pytest.raises(
        ValueError, match="no data set 'imagenet'; expected one of digits, mnist, fashion_mnist, cifar10"
    ):
        load_dataset("imagenet")


def test_unknown_option():
    with pytest.raises(TypeError, match="data set 'digits' has no option 'min_count'; it has none"):
        load_dataset("digits", min_count=2)
    with pytest.raises(TypeError, match="'trec' has no option 'test_split'; it has max_length, min_count"):
        load_dataset("trec", test_split="dev")
