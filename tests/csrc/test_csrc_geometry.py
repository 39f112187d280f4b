"""How rows are dealt out to threads: heads and tails, grids. Host code, no GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++ or c++)")
BATCHES = [1, 2, 127, 128, 1000, 4096, 16384, 10**6, 2**30]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    library = tmp_path_factory.mktemp("geometry") / "geometry.so"
    source = Path(__file__).with_name("geometry.cpp")
    subprocess.run(
        [COMPILER, "-std=c++20", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}", source, "-o", library], check=True
    )
    loaded = ctypes.CDLL(str(library))
    loaded.head_shift.argtypes = [ctypes.c_uint64, ctypes.c_int]
    loaded.slot_count.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    loaded.slot_count.restype = ctypes.c_int64
    loaded.row_geometry.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)]
    return loaded


def geometry(host, batch, classes, scans):
    out = (ctypes.c_int64 * 6)()
    host.row_geometry(batch, classes, scans, out)
    return list(out)


@pytest.mark.parametrize("size", [2, 4])
def test_slots_cover_each_element_once(host, size):
    per_slot = 16 // size
    for base in (0, 2**40):
        for begin in range(0, 16, size):
            for classes in [*range(1, 40), 1000, 21841]:
                shift = host.head_shift(base + begin, size)
                assert 0 <= shift < per_slot
                assert (base + begin - shift * size) % 16 == 0
                slots = host.slot_count(classes, shift, size)
                first, last = -shift, slots * per_slot - shift  # columns that the slots reach
                assert first <= 0 < first + per_slot
                assert last - per_slot < classes <= last


@pytest.mark.parametrize("scans", [0, 1])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("classes", [1, 10, 16, 17, 64, 65, 100, 256, 257, 1000, 1024, 1025, 21841, 2**30])
def test_every_row_has_one_team(host, batch, classes, scans):
    tile, lanes, elements, threads, rounds, blocks = geometry(host, batch, classes, scans)
    rows = threads // lanes * rounds  # a block
    assert rows * (blocks - 1) < batch <= rows * blocks
    assert blocks < 2**31
    assert threads % 32 == 0
    assert 1 <= rows <= host.max_block_rows() or not scans
    if tile < 4:
        assert classes <= lanes * elements
        assert host.tile_units(tile) * host.unit() == elements
    else:
        assert (classes > 1024, rows) == (True, 1)


def test_large_batches_scan_less_but_fill_the_device(host):
    for classes, batch in ((1000, 16384), (100, 65536), (10, 10**6)):
        _, _, _, _, rounds, blocks = geometry(host, batch, classes, 1)
        assert blocks >= 1024
        assert rounds > 1 or classes == 10  # there a block has 32 rows as it is
        assert geometry(host, batch, classes, 0)[4] == 1
