"""Texts as token ids, and readers of the sentence data sets.

Words: the text in lower case, curly apostrophes made straight; a word is a run of letters, digits and underscores with
apostrophes inside (jama'a), and every other sign that is not space is a word of its own. Words that the training texts
do not hold `min_count` times become UNKNOWN; the vocabulary never sees a test text.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastlnl.data.dataset import Dataset
from fastlnl.data.sources import data_file, held_out
from fastlnl.errors import LabelError

PADDING, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unk>")  # no word of a text: there "<" stands alone
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
STRAIGHT = str.maketrans("‘’", "''")

TREC_NAMES = ("description", "entity", "abbreviation", "human", "location", "number")
HAUSA_NAMES = ("Africa", "Health", "Nigeria", "Politics", "World")
SPLITS = ("test", "dev")


def words(text: str) -> list[str]:
    """The words of a text, see the head of this module."""
    return WORD.findall(text.lower().translate(STRAIGHT))


def build_vocabulary(texts: Sequence[Sequence[str]], min_count: int = 1) -> tuple[str, ...]:
    """The two special words, then every word seen `min_count` times, the most frequent first, ties by alphabet."""
    counts = Counter(word for text in texts for word in text)
    kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    return (*SPECIAL, *(word for _, word in kept))


def encode(texts: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> Tensor:
    """Token ids (N, length) int64: the first `length` words of each text, then PADDING."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    rows = [[ids.get(word, UNKNOWN) for word in text[:length]] for text in texts]
    rows = [row + [PADDING] * (length - len(row)) for row in rows]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)


def text_dataset(
    name: str,
    train: tuple[Sequence[str], Sequence[int]],
    test: tuple[Sequence[str], Sequence[int]],
    class_names: Sequence[str],
    *,
    max_length: int = 60,
    min_count: int = 1,
    human_labels: dict[str, Tensor] | None = None,
    note: str = "",
) -> Dataset:
    """A data set of texts, for the networks "textcnn" and "bilstm".

    Args:
        name: of the data set.
        train, test: texts and their true classes in [0, C).
        class_names: C names.
        max_length: words kept of a text; shorter where the longest training text is.
        min_count: how often the training texts must hold a word, otherwise it is UNKNOWN.
        human_labels: (N,) int64 given labels of the training texts, by name.
        note: what to write beside every result.

    Returns:
        Dataset with token ids (N, L) as images and its vocabulary.

    Raises:
        ValueError: another number of labels than of texts, no training text, max_length or min_count below 1.
        LabelError: a class outside [0, C).
    """
    if max_length < 1 or min_count < 1:
        raise ValueError(f"max_length is {max_length} and min_count is {min_count} but both must be at least 1")
    for split, (texts, label) in (("train", train), ("test", test)):
        if len(texts) != len(label) or (split == "train" and not texts):
            raise ValueError(
                f"{split} of {name} has {len(texts)} texts and {len(label)} labels; pass one label a text, and texts"
            )
        if label and not 0 <= min(label) <= max(label) < len(class_names):
            raise LabelError(
                f"{split} of {name} has labels in [{min(label)}, {max(label)}] but there are {len(class_names)} "
                f"classes; are labels 1-based?"
            )
    # Cut first: a word that no network sees in training must not have a vector of its own at test time.
    train_words, test_words = ([words(text)[:max_length] for text in texts] for texts, _ in (train, test))
    vocabulary = build_vocabulary(train_words, min_count)
    length = max(1, *map(len, train_words))
    return Dataset(
        name=name,
        train_images=encode(train_words, vocabulary, length),
        train_label=torch.tensor(train[1], dtype=torch.int64),
        test_images=encode(test_words, vocabulary, length),
        test_label=torch.tensor(test[1], dtype=torch.int64),
        num_classes=len(class_names),
        class_names=tuple(class_names),
        mean=(),
        std=(),
        human_labels=human_labels or {},
        note=note or name,
        vocabulary=vocabulary,
    )


def trec(root: Path, *, max_length: int = 40, min_count: int = 1) -> Dataset:
    """TREC-6 (Li and Roth 2002): the kind of answer that a question asks for; 5,452 to train on, 500 to test on."""
    train, test = (read_sentences(root, f"TREC.{split}.all") for split in ("train", "test"))
    return text_dataset("trec", train, test, TREC_NAMES, max_length=max_length, min_count=min_count, note="TREC-6")


def sst2(root: Path, *, max_length: int = 60, min_count: int = 1, test_split: str = "test") -> Dataset:
    """SST-2 (Socher et al. 2013), whole sentences: 6,920 to train on, 1,821 to test on, or the 872 of "dev"."""
    train, test = (read_sentences(root, f"stsa.binary.{split}") for split in ("train", chosen_split(test_split)))
    note = "SST-2" if test_split == "test" else "SST-2 (dev)"
    names = ("negative", "positive")
    return text_dataset("sst2", train, test, names, max_length=max_length, min_count=min_count, note=note)


def mr(root: Path, *, max_length: int = 60, min_count: int = 1) -> Dataset:
    """MR (Pang and Lee 2005): film reviews, one sentence each. A fixed tenth of each class is the test set."""
    train, test = split_sentences(root, "mr", "rt-polarity.all")
    names, note = ("negative", "positive"), "MR (fixed tenth held out)"
    return text_dataset("mr", train, test, names, max_length=max_length, min_count=min_count, note=note)


def subj(root: Path, *, max_length: int = 60, min_count: int = 1) -> Dataset:
    """Subj (Pang and Lee 2004): opinion or plot. A fixed tenth of each class is the test set."""
    train, test = split_sentences(root, "subj", "subj.all")
    names, note = ("subjective", "objective"), "Subj (fixed tenth held out)"
    return text_dataset("subj", train, test, names, max_length=max_length, min_count=min_count, note=note)


def hausa(root: Path, *, max_length: int = 40, min_count: int = 1, test_split: str = "test") -> Dataset:
    """Topics of Hausa headlines (Hedderich et al. 2020), the labels of keyword rules as noise "human/hausa".

    2,045 headlines to train on: true labels by people, given labels by rules, half of them wrong. 582 to test on, or
    the 290 of "dev". The headlines that have rule labels only are left out: nobody knows what is wrong there.

    Raises:
        ValueError: the two files of the training headlines hold other texts or another order.
    """
    train = read_headlines(root, "train_clean")
    ruled = read_headlines(root, "train_clean_noisy_labels")
    test = read_headlines(root, chosen_split(test_split))
    if train[0] != ruled[0]:
        raise ValueError("the files of Hausa's true labels and rule labels hold different headlines; fetch both again")
    return text_dataset(
        "hausa",
        train,
        test,
        HAUSA_NAMES,
        max_length=max_length,
        min_count=min_count,
        human_labels={"hausa": torch.tensor(ruled[1], dtype=torch.int64)},
        note="Hausa headlines" if test_split == "test" else "Hausa headlines (dev)",
    )


def chosen_split(name: str) -> str:
    if name not in SPLITS:
        raise ValueError(f"test_split is {name!r}, expected one of {', '.join(SPLITS)}")
    return name


def read_sentences(root: Path, name: str) -> tuple[list[str], list[int]]:
    """Texts and classes of a file of lines `<class> <sentence>`, latin-1.

    Raises:
        ValueError: a line that does not start with a class.
    """
    path = data_file(root, f"text/sentences/{name}")
    texts, label = [], []
    for line in path.read_bytes().decode("latin-1").split("\n"):  # sentences may hold other line breaks
        if not line.strip():
            continue
        number, _, text = line.partition(" ")
        if not number.isdecimal():
            raise ValueError(f"{path} has the line {line[:40]!r}, expected '<class> <sentence>'; fetch it again")
        texts.append(text)
        label.append(int(number))
    return texts, label


def split_sentences(root: Path, name: str, file: str) -> tuple[tuple[list[str], list[int]], ...]:
    """Training and test part of a file of sentences: every tenth of each class is tested on."""
    texts, label = read_sentences(root, file)
    is_test = held_out(name, torch.tensor(label), every=10).tolist()
    parts = []
    for wanted in (False, True):
        kept = [i for i, held in enumerate(is_test) if held is wanted]
        parts.append(([texts[i] for i in kept], [label[i] for i in kept]))
    return tuple(parts)


def read_headlines(root: Path, split: str) -> tuple[list[str], list[int]]:
    """Headlines and classes of a tab-separated file with the columns `news_title` and `label`, UTF-8, CSV quotes.

    Raises:
        ValueError: a column is missing, or a class is none of HAUSA_NAMES.
    """
    path = data_file(root, f"text/newsclass/hausa_newsclass_{split}.tsv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    texts = [row.get("news_title") for row in rows]
    names = [row.get("label") for row in rows]
    if unknown := [name for name in names if name not in HAUSA_NAMES]:
        raise ValueError(f"{path} has the label {unknown[0]!r}, expected one of {', '.join(HAUSA_NAMES)}")
    if None in texts:
        raise ValueError(f"{path} has no column news_title; fetch it again")
    return [str(text) for text in texts], [HAUSA_NAMES.index(str(name)) for name in names]
