"""The random words that round label memories, and the rounding: against plain Python, on every backend."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlnl.ops.row_loss.storage import ROUND, STREAM, decode, random_words, row_key, to_float16

try:
    import triton
    import triton.language as tl

    from fastlnl.ops.row_loss import triton_storage
except ImportError:
    triton = None

WORDS = [(0, 0, 0), (1, 2, 3), (2**32 - 1, 2**33 + 5, 2**35 + 9), (7, 2**32, 14_197_121)]  # seed, step, sample
COLUMNS = 64


def plain_words(seed, step, sample, columns):
    """Philox4x32-10 and lowbias32 in Python integers, written from their papers."""
    mask = 0xFFFFFFFF
    c = [sample & mask, sample >> 32, step & mask, step >> 32]
    k = [seed, STREAM]
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(high >> 32) ^ c[1] ^ k[0], high & mask, (low >> 32) ^ c[3] ^ k[1], low & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    words = []
    for column in columns:
        x = column ^ c[0]
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
        x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
        words.append(x ^ (x >> 16) ^ c[1])
    return words


@pytest.mark.parametrize(("seed", "step", "sample"), WORDS)
def test_words_are_those_of_a_plain_transcription(seed, step, sample):
    columns = [*range(40), 21_841, 65_535, 65_536, 200_000]
    ours = random_words(row_key(seed, torch.tensor(step), torch.tensor([sample])), torch.tensor(columns))
    assert ours[0].tolist() == plain_words(seed, step, sample, columns)


@pytest.mark.parametrize(("seed", "step", "sample"), WORDS)
def test_words_of_numba(seed, step, sample):
    numba = pytest.importorskip("numba")
    from fastlnl.cpu.simd import store
    from fastlnl.cpu.words import count_from, floats_of
    from fastlnl.ops.row_loss import numba_storage

    @numba.njit("void(int64,int64,int64,int64)")
    def write_words(seed, step, sample, out):
        first, second = numba_storage.row_key(seed, step, sample)
        for j in range(0, COLUMNS, 16):
            store(out, j, floats_of(numba_storage.random_words(count_from(j), first, second)))

    out = torch.zeros(COLUMNS, dtype=torch.int32)
    write_words(seed, step, sample, out.data_ptr())
    assert (out.long() & 0xFFFFFFFF).tolist() == plain_words(seed, step, sample, range(COLUMNS))


if triton is not None:

    @triton.jit(do_not_specialize=["seed"])
    def words_kernel(out, samples, step, seed, COLUMNS: tl.constexpr):
        rows, columns = tl.arange(0, 2), tl.arange(0, COLUMNS)
        first, second = triton_storage.row_key(seed, step, tl.load(samples + rows))
        words = triton_storage.random_words(columns[None, :], first[:, None], second[:, None])
        tl.store(out + rows[:, None] * COLUMNS + columns[None, :], words.to(tl.int32, bitcast=True))


@pytest.mark.skipif(triton is None, reason="Triton is for Linux only")
@pytest.mark.parametrize(("seed", "step", "sample"), WORDS)
def test_words_of_triton(seed, step, sample):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = torch.zeros(2, COLUMNS, dtype=torch.int32, device=device)
    words_kernel[(1,)](out, torch.tensor([sample, 5], device=device), torch.tensor(step, device=device), seed, COLUMNS)
    expected = [plain_words(seed, step, i, range(COLUMNS)) for i in (sample, 5)]
    assert (out.cpu().long() & 0xFFFFFFFF).tolist() == expected


def test_words_are_uniform_and_those_of_neighbours_are_independent():
    """Every bit is set half of the time; columns, samples and steps next to each other share nothing."""
    samples, columns = torch.arange(2000), torch.arange(64)
    bits = []
    for step in (0, 1):
        words = random_words(row_key(3, torch.tensor(step), samples), columns)
        bits.append((words[..., None] >> torch.arange(32)) & 1)
    x, y = (b.double() - 0.5 for b in bits)
    deviation = 0.5 / x[..., 0].numel() ** 0.5
    assert x.mean((0, 1)).abs().max() <= 5 * deviation
    for other in (y, x.roll(1, 0), x.roll(1, 1)):
        assert (4 * x * other).mean((0, 1)).abs().max() <= 5 * 2 * deviation


def exact_rounding(kind, x, word):
    """The rounded number as a fraction: down to a multiple of the last digit, after a random part of it was added."""
    x = Fraction(x)
    if kind == "uint8":
        digit, part = Fraction(1, 254), Fraction(word >> 8, 1 << 24)
        x = min(Fraction(math.floor(x * 2**24 + Fraction(1, 2)), 1 << 24), Fraction(1))
    elif kind == "bfloat16":
        digit, part = Fraction(2) ** (math.frexp(x)[1] - 8) if x else Fraction(1, 2**133), Fraction(word >> 16, 1 << 16)
    elif x >= Fraction(1, 2**14):
        digit, part = Fraction(2) ** (math.frexp(x)[1] - 11), Fraction(word >> 19, 1 << 13)
    else:
        digit, part = Fraction(1, 2**24), Fraction(word >> 19, 1 << 13)
        x = Fraction(math.floor(x * 2**37), 1 << 37)
    return math.floor(x / digit + part) * digit


@pytest.mark.parametrize("kind", ROUND)
@settings(max_examples=300, deadline=None)
@given(x=st.floats(2.0**-60, 1.0, width=32), word=st.integers(0, 2**32 - 1))
def test_rounding_is_what_the_formats_say(kind, x, word):
    record = ROUND[kind](torch.tensor([[x]]), torch.tensor([[word]]))
    exact = exact_rounding(kind, x, word)
    expected = float(exact * 254) if kind == "uint8" else float(exact)
    assert record.item() == expected


@pytest.mark.parametrize("kind", ROUND)
def test_rounding_keeps_the_mean(kind):
    """Over many words: within five standard deviations, for numbers large, small and below the smallest."""
    x = torch.cat((torch.rand(20), torch.tensor([0.0, 1.0, 1e-3, 1e-5, 3e-8, 0.9, 1 / 254, 2.0**-14])))
    words = random_words(row_key(5, torch.tensor(0), torch.arange(1 << 14)), torch.arange(len(x)))
    rounded = ROUND[kind](x.expand(len(words), -1).contiguous(), words)
    value = rounded.double() / 254 if kind == "uint8" else rounded.double()
    error = (value - x.double()).mean(0).abs()
    step = 1 / 254 if kind == "uint8" else (x.double() * 2.0 ** (-7 if kind == "bfloat16" else -10)).clamp(min=2.0**-24)
    assert (error <= 5 * step / 2 / len(words) ** 0.5 + 2.0**-25).all()
    exact = x * 254 % 1 == 0 if kind == "uint8" else ROUND[kind](x, torch.zeros_like(x).long()).float() == x
    assert (error[exact] <= 2.0**-25).all()
    assert (value[:, :20].std(0) > 0).all()  # and it is random


def test_every_float16_in_range_comes_back():
    bits = torch.arange(0x3C01, dtype=torch.int16)  # 0 to 1
    x = bits.view(torch.float16).float()[None]
    for word in (0, 2**32 - 1):
        assert torch.equal(to_float16(x, torch.full_like(x, word, dtype=torch.int64)).view(torch.int16)[0], bits)


def test_numba_reads_every_word_like_torch():
    numba = pytest.importorskip("numba")
    from fastlnl.ops.row_loss import numba_storage as ours
    from fastlnl.ops.row_loss.storage import Storage

    @numba.njit("void(int64,int64,int64,int64)")
    def read(storage, record, columns, row):
        ours.read_row(storage, record, columns, 0, row, 0)

    for kind, count, view in (("float16", 0x3C01, torch.float16), ("bfloat16", 0x3F81, torch.bfloat16)):
        record = torch.arange(count, dtype=torch.int16).view(view)
        row = torch.zeros(count + 16)
        read(ours.CODES[kind], record.data_ptr(), count, row.data_ptr())
        assert torch.equal(row[:count], record.float())
    record, row = torch.arange(256, dtype=torch.uint8), torch.zeros(272)
    read(ours.CODES["uint8"], record.data_ptr(), 256, row.data_ptr())
    assert torch.equal(row[:256], decode(Storage("uint8"), record, 256))
