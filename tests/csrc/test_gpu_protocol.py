"""What is to be run where there is a GPU (benchmarks/gpu.md, gpu.py), checked where there is none."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SHEET = """==PROF== Connected to process 7 (python)
==PROF== Profiling "rows_kernel": 0%....100% - 1 pass
some words of the program
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"
"","","","byte","byte","nsecond"
"0","7","void fastlnl::rows_kernel<fastlnl::Float, 1, 32, 8>(RowArgs)","16,400,000","15000000","9000"
"1","7","void at::native::elementwise_kernel(int)","77","77","77"
"2","7","void fastlnl::rows_kernel<fastlnl::Float, 1, 32, 8>(RowArgs)","600000","0","1000"
"""


@pytest.fixture
def protocol(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def counting(protocol):
    return importlib.import_module("gpu_bytes")


def test_gpu_md_and_the_script_name_the_same_parts(protocol):
    named = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "benchmarks" / "gpu.md").read_text(), re.MULTILINE)
    assert named == list(protocol.PARTS)


def test_every_part_ends_within_ten_minutes_and_runs_what_is_there(protocol):
    for part in protocol.PARTS.values():
        assert part.minutes < 10
        for word in (word for command in part.commands for word in command):
            assert not word.endswith(".py") or (ROOT / word).exists(), word


def test_every_tool_looks_at_every_primitive_of_csrc(protocol):
    for tool in ("memcheck", "racecheck", "initcheck"):
        words = [word for name, part in protocol.PARTS.items() if tool in name for word in part.commands[0]]
        for kernel in (ROOT / "csrc").glob("*.cu"):
            assert f"tests/ops/test_{kernel.stem}.py" in words


def test_without_a_device_it_says_so(protocol, counting, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ([], ["memcheck-rows", "steps"]):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        assert protocol.main() == 2
        assert "no CUDA device is visible to torch: nothing was run" in capsys.readouterr().err
    assert counting.main() == 2
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--list", "memcheck-rows"])
    assert protocol.main() == 0
    line = "memcheck-rows      PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1"
    assert capsys.readouterr().out.startswith(line)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        protocol.main()
    assert "there is no part nothing; there are build, table" in capsys.readouterr().err


def test_a_part_ends_at_its_first_failure(protocol, tmp_path):
    log, failing = tmp_path / "log", [sys.executable, "-c", "print('seen'); raise SystemExit(3)"]
    assert protocol.run_part(protocol.Part([failing, ["never"]], 1), log).startswith("exit status 3")
    assert "seen" in log.read_text()
    assert "never" not in log.read_text()
    assert protocol.run_part(protocol.Part([["no-such-program"]], 1), log).startswith("no-such-program does not run")
    assert protocol.run_part(
        protocol.Part([[sys.executable, "-c", "import time; time.sleep(9)"]], 0.01), log
    ).startswith("longer than 0.01 minutes")
    assert protocol.run_part(protocol.Part([[sys.executable, "-c", ""]], 1), log) == "ok"


def test_bytes_are_read_from_the_sheet_and_judged(counting):
    found = counting.counted(SHEET, "rows_kernel")
    assert list(found.values()) == [17_000_000, 15_000_000, 10_000]

    def said(read, written):
        return counting.verdict(counting.Call("rows_kernel", read, written, print), found)

    assert said(16_384_000, 16_384_000) == "ok"
    assert said(8_192_000, 16_384_000) == "reads 2.08 of its model"
    assert said(16_384_000, 8_192_000) == "writes 1.83 of its model"
    assert said(40_000_000, 0) == "reads less than it has to: another kernel was counted"
