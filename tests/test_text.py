"""Texts: words, vocabulary, readers on small made-up files and on the published ones, and the two networks."""

import csv
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastlnl.data import load_dataset, text_dataset
from fastlnl.data.sources import held_out
from fastlnl.data.text import HAUSA_NAMES, SPECIAL, build_vocabulary, encode, read_sentences, words
from fastlnl.errors import LabelError, ShapeError
from fastlnl.networks import TEXT_NETWORKS, build_network
from fastlnl.noise import apply_noise

ROOT = Path(os.environ.get("FASTLNL_DATA") or "../shared/data")
needs_data = pytest.mark.skipif(not (ROOT / "text").is_dir(), reason=f"there is no {ROOT}/text; set FASTLNL_DATA")


def test_words():
    assert words("What 's the U.S. re-imagining?") == [
        "what", "'", "s", "the", "u", ".", "s", ".", "re", "-", "imagining", "?",
    ]  # fmt: skip
    assert words("‘Yan Jama’a 500\xa0naira") == ["'", "yan", "jama'a", "500", "naira"]
    assert words(" \t") == []
    assert not set(SPECIAL) & set(words(" ".join(SPECIAL)))


def test_vocabulary_by_frequency_then_alphabet():
    texts = [["b", "a", "c", "c"], ["c", "d", "d"]]
    assert build_vocabulary(texts) == (*SPECIAL, "c", "d", "a", "b")
    assert build_vocabulary(texts, min_count=2) == (*SPECIAL, "c", "d")


def test_encode():
    ids = encode([["b", "x", "a", "a"], [], ["a"]], (*SPECIAL, "a", "b"), 3)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[3, 1, 2], [0, 0, 0], [2, 0, 0]]
    assert encode([], SPECIAL, 3).shape == (0, 3)


def test_text_dataset_learns_nothing_from_the_test_texts():
    data = text_dataset("own", (["a b a", "b"], [0, 1]), (["a z z z z"], [1]), ("no", "yes"), max_length=10)
    assert data.vocabulary == (*SPECIAL, "a", "b")
    assert data.image_shape == (3,)  # the longest training text
    assert data.test_images.tolist() == [[2, 1, 1]]
    assert (data.mean, data.std, data.num_classes, data.note) == ((), (), 2, "own")
    capped = text_dataset("own", (["a b a", "b"], [0, 1]), ([], []), ("no", "yes"), max_length=2)
    assert capped.train_images.tolist() == [[3, 2], [2, 0]]  # "b" is the more frequent one now
    assert capped.test_images.shape == (0, 2)
    cut = text_dataset("own", (["a b c"], [0]), (["c"], [1]), ("no", "yes"), max_length=2)
    assert (cut.vocabulary[2:], cut.test_images.tolist()) == (("a", "b"), [[1, 0]])


def test_text_dataset_errors():
    texts, names = ["a", "b"], ("no", "yes")
    with pytest.raises(ValueError, match="train of own has 2 texts and 1 labels"):
        text_dataset("own", (texts, [0]), ([], []), names)
    with pytest.raises(ValueError, match="train of own has 0 texts"):
        text_dataset("own", ([], []), (texts, [0, 1]), names)
    with pytest.raises(LabelError, match=r"labels in \[1, 2\] but there are 2 classes; are labels 1-based"):
        text_dataset("own", (texts, [0, 1]), (texts, [1, 2]), names)
    with pytest.raises(ValueError, match="max_length is 0 and min_count is 1 but both must be at least 1"):
        text_dataset("own", (texts, [0, 1]), ([], []), names, max_length=0)


def write_sentences(root, name, rows):
    folder = root / "text/sentences"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes("".join(f"{label} {text}\n" for label, text in rows).encode("latin-1"))


def test_sentences(tmp_path):
    # \x85 is a line break for str.splitlines and part of a sentence here.
    write_sentences(tmp_path, "TREC.train.all", [(c, f"Caf\xe9 {c} \x85 ?") for c in range(6)])
    write_sentences(tmp_path, "TREC.test.all", [(5, "how many caf\xe9")])
    data = load_dataset("trec", tmp_path)
    assert data.train_label.tolist() == list(range(6))
    assert "caf\xe9" in data.vocabulary
    assert data.test_images[0].tolist() == [1, 1, data.vocabulary.index("caf\xe9")]
    assert data.class_names[data.test_label] == "number"
    (tmp_path / "text/sentences/TREC.test.all").write_text("no class\n")
    with pytest.raises(ValueError, match=r"TREC.test.all has the line 'no class', expected '<class> <sentence>'"):
        load_dataset("trec", tmp_path)


def test_sst2_looks_at_dev_only_when_asked(tmp_path):
    write_sentences(tmp_path, "stsa.binary.train", [(0, "dull"), (1, "fun")])
    write_sentences(tmp_path, "stsa.binary.test", [(1, "fun")])
    assert load_dataset("sst2", tmp_path).note == "SST-2"
    write_sentences(tmp_path, "stsa.binary.dev", [(0, "dull"), (0, "dull")])
    dev = load_dataset("sst2", tmp_path, test_split="dev")
    assert (dev.test_label.tolist(), dev.note) == ([0, 0], "SST-2 (dev)")
    with pytest.raises(ValueError, match="test_split is 'train', expected one of test, dev"):
        load_dataset("sst2", tmp_path, test_split="train")


@pytest.mark.parametrize(("name", "file"), [("mr", "rt-polarity.all"), ("subj", "subj.all")])
def test_a_fixed_tenth_is_held_out(name, file, tmp_path):
    rows = [(int(i >= 40), f"word{i}") for i in range(100)]
    write_sentences(tmp_path, file, rows)
    data = load_dataset(name, tmp_path)
    assert (data.num_samples, data.test_label.bincount().tolist()) == (90, [4, 6])
    held = held_out(name, torch.tensor([label for label, _ in rows]), 10)
    assert set(data.vocabulary[2:]) == {text for (_, text), out in zip(rows, held.tolist(), strict=True) if not out}
    assert torch.equal(load_dataset(name, tmp_path).train_images, data.train_images)


def write_headlines(root, split, rows, first=()):
    folder = root / "text/newsclass"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"hausa_newsclass_{split}.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([(*first, "news_title", "label"), *((*[0] * len(first), *row) for row in rows)])


def write_small_hausa(root):
    titles = ['Ya Ce "A\'a" Ga Ɓarayi', "Jama’a", "Zabe"]
    write_headlines(root, "train_clean", zip(titles, ["Africa", "World", "Politics"], strict=True))
    write_headlines(root, "train_clean_noisy_labels", zip(titles, ["World", "World", "Health"], strict=True), ("",))
    write_headlines(root, "test", [("jama'a zabe sabo", "Health")])


def test_hausa(tmp_path):
    write_small_hausa(tmp_path)
    data = load_dataset("hausa", tmp_path)
    assert data.class_names == HAUSA_NAMES
    assert [data.class_names[c] for c in data.train_label] == ["Africa", "World", "Politics"]
    assert data.train_images[0].tolist() == [data.vocabulary.index(w) for w in words('ya ce "a\'a" ga ɓarayi')]
    assert data.test_images[0, :3].tolist() == [data.vocabulary.index("jama'a"), data.vocabulary.index("zabe"), 1]
    noisy = apply_noise("human/hausa", data, seed=0)
    assert [data.class_names[c] for c in noisy.label] == ["World", "World", "Health"]
    assert noisy.realised_rate == 2 / 3


def test_hausa_files_that_do_not_fit(tmp_path):
    write_small_hausa(tmp_path)
    write_headlines(tmp_path, "test", [("zabe", "Sport")])
    with pytest.raises(ValueError, match=r"test.tsv has the label 'Sport', expected one of Africa, .*World"):
        load_dataset("hausa", tmp_path)
    write_small_hausa(tmp_path)
    write_headlines(tmp_path, "train_clean_noisy_labels", [("zabe", "World")])
    with pytest.raises(ValueError, match="hold different headlines"):
        load_dataset("hausa", tmp_path)
    (tmp_path / "text/newsclass/hausa_newsclass_test.tsv").write_text("title\tlabel\nzabe\tWorld\n")
    write_headlines(tmp_path, "train_clean_noisy_labels", [("Zabe", "World")])
    with pytest.raises(ValueError, match=r"test.tsv has no column news_title"):
        load_dataset("hausa", tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "num_test", "num_classes"),
    [
        ("trec", (5452, 37), 500, 6),
        ("sst2", (6920, 60), 1821, 2),
        ("mr", (9595, 60), 1067, 2),
        ("subj", (9000, 60), 1000, 2),
        ("hausa", (2045, 28), 582, 5),
    ],
)
def test_published_files(name, shape, num_test, num_classes):
    data = load_dataset(name, ROOT)
    assert data.train_images.shape == shape
    assert data.test_images.shape == (num_test, shape[1])
    assert data.num_classes == len(data.class_names) == num_classes
    for images, label in ((data.train_images, data.train_label), (data.test_images, data.test_label)):
        assert label.unique().tolist() == list(range(num_classes))
        assert (images[:, 0] != 0).all()  # no text is empty
        assert ((images[:, 1:] != 0) <= (images[:, :-1] != 0)).all()  # padding at the end alone
    assert data.train_images.unique().tolist() == [i for i in range(len(data.vocabulary)) if i != 1]


@needs_data
def test_rule_labels_of_hausa():
    assert round(100 * apply_noise("human/hausa", load_dataset("hausa", ROOT), 0).realised_rate, 2) == 50.37


@needs_data
def test_no_sentence_is_lost():
    texts, label = read_sentences(ROOT, "rt-polarity.all")
    assert (len(texts), sum(label)) == (10_662, 5_331)


@pytest.mark.parametrize("name", TEXT_NETWORKS)
class TestNetworks:
    def network(self, name, num_tokens=50, num_classes=3):
        return build_network(name, (12,), num_classes, num_tokens=num_tokens)

    def test_padding_changes_nothing(self, name):
        network = self.network(name).double().eval()
        texts = [torch.randint(1, 50, (length,)) for length in (0, 1, 2, 5, 12)]
        for extra in (0, 1, 30):
            batch = torch.zeros(len(texts), 12 + extra, dtype=torch.int64)
            for row, text in zip(batch, texts, strict=True):
                row[: len(text)] = text
            together = network(batch)
            assert together.isfinite().all()
            for logits, text in zip(together, texts, strict=True):
                alone = network(text[None] if len(text) else torch.zeros(1, 1, dtype=torch.int64))
                torch.testing.assert_close(alone[0], logits, rtol=1e-10, atol=1e-12)

    def test_order_of_the_words_matters(self, name):
        network = self.network(name).double().eval()
        tokens = torch.tensor([[2, 3, 4, 5, 6, 7, 0, 0]])
        turned = torch.tensor([[7, 6, 5, 4, 3, 2, 0, 0]])
        assert (network(tokens) - network(turned)).abs().max() > 1e-4

    def test_padding_learns_nothing(self, name):
        network, tokens = self.network(name), torch.tensor([[2, 3, 0, 0], [4, 0, 0, 0]])
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        F.cross_entropy(network(tokens), torch.tensor([0, 1])).backward()
        optimizer.step()
        assert (network.embedding.weight[0] == 0).all()
        assert (network.embedding.weight.grad[[2, 3, 4]] != 0).any(1).all()

    def test_memorises(self, name):
        network, tokens = self.network(name), torch.randint(1, 50, (32, 12))
        label = torch.randint(3, (32,))
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(network(tokens), label).backward()
            optimizer.step()
        with torch.no_grad():
            assert (network.eval()(tokens).argmax(1) == label).all()

    def test_autocast(self, name):
        network, tokens = self.network(name).eval(), torch.randint(0, 50, (4, 12))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(tokens)
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), network(tokens), rtol=0.05, atol=0.02)

    def test_errors(self, name):
        with pytest.raises(ShapeError, match=f"num_tokens 0 but {name} reads texts: .* for images use 'cnn'"):
            build_network(name, (3, 32, 32), 10)
        with pytest.raises(ShapeError, match=f"but {name} reads texts"):
            build_network(name, (3, 32, 32), 10, num_tokens=50)
        with pytest.raises(ShapeError, match=r"must be ids \(B, L\) of an integer type; neither normalise texts"):
            self.network(name)(torch.randn(2, 12))


def test_networks_for_images_refuse_texts():
    for name in ("mlp", "cnn", "timm:resnet18"):
        with pytest.raises(ShapeError, match=f"is 50, .* but {name} reads numbers; use 'textcnn' or 'bilstm'"):
            build_network(name, (12,), 3, num_tokens=50)


def test_sizes():
    def size(name):
        return sum(p.numel() for p in build_network(name, (12,), 6, num_tokens=1000).parameters())

    assert size("textcnn") == 128_000 + 100 * (128 * (3 + 4 + 5) + 3) + 301 * 6
    assert size("bilstm") == 128_000 + 2 * 4 * (256 * (128 + 256) + 2 * 256) + 513 * 6
