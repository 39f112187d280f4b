"""Finding, building and explaining the CUDA C++ extension, with compilers and devices that are made up."""

import fcntl
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastlnl import backend, extension, losses
from fastlnl.cli import main

ROOT = Path(__file__).resolve().parents[2]
NVCC = """#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release {release}, V{release}.0"; exit;; esac
echo "$@" >> {log}
[ -n "$FAIL" ] && {{ echo "csrc/row_loss.cu(1): error: broken" >&2; exit 2; }}
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo made > "$2"; shift; done
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine with a CUDA torch, a device of capability 9.0, nvcc 13.0 and an empty cache."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("FASTLNL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extension, "_BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(extension, "operators", lambda: None)
    install_nvcc(tmp_path, monkeypatch, "13.0")
    return tmp_path


def install_nvcc(tmp_path, monkeypatch, release):
    compiler = tmp_path / "toolkit" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True, exist_ok=True)
    compiler.write_text(NVCC.format(release=release, log=tmp_path / "commands"))
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))


def no_nvcc(monkeypatch):
    monkeypatch.setattr(extension, "nvcc", lambda: None)


def test_built_once_and_then_found(place):
    assert (
        extension.missing() == "The CUDA C++ extension is not built; type `python -m fastlnl build` (about a minute)."
    )
    path = extension.build()
    assert path.parent.parent == place / "cache" / "fastlnl"
    assert extension.missing() is None
    assert extension.library() == path
    commands = (place / "commands").read_text()
    assert "-gencode=arch=compute_90,code=[sm_90]" in commands
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in commands
    extension.build()
    assert (place / "commands").read_text() == commands
    assert sorted(p.name for p in path.parent.iterdir()) == ["cuda", "libfastlnl_cuda.so", "lock", "log"]


def test_a_build_belongs_to_its_inputs(place, monkeypatch):
    folders = {extension.build_folder(["90"]), extension.build_folder(["80", "90"])}
    monkeypatch.setattr(torch.version, "cuda", "13.1")
    folders.add(extension.build_folder(["90"]))
    monkeypatch.setattr(torch, "__version__", "2.99")
    folders.add(extension.build_folder(["90"]))
    monkeypatch.setattr(extension, "NVCC_FLAGS", ("-O0",))
    folders.add(extension.build_folder(["90"]))
    monkeypatch.setattr(extension, "sources", lambda: [ROOT / "setup.py"])
    folders.add(extension.build_folder(["90"]))
    assert len(folders) == 6


def test_a_failure_is_remembered_until_it_is_tried_again(place, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(extension.BuildError, match=r"building the CUDA C\+\+ extension failed; see `cat (.*)/log`"):
        extension.build()
    log = extension.build_folder(["90"]) / "log"
    assert extension.missing() == (
        f"Building the CUDA C++ extension failed here; see it by `cat {log}`, try again by `python -m fastlnl build`."
    )
    assert "error: broken" in log.read_text()
    assert "nvcc" in log.read_text()
    monkeypatch.delenv("FAIL")
    extension.build()
    assert extension.missing() is None


def test_places_with_blanks_and_dollars_are_built_as_well(place, monkeypatch):
    folder = place / "a $HOME: b"
    folder.mkdir()
    for path in extension.sources():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(extension, "sources", lambda: sorted(folder.iterdir()))
    assert extension.build().exists()
    assert str(folder / "library.cpp") in (place / "commands").read_text()


def test_without_ninja_it_is_said_what_to_install(place, monkeypatch):
    monkeypatch.setattr(extension.shutil, "which", lambda name, path=None: None)
    with pytest.raises(extension.BuildError, match="ninja is not here; pip install ninja"):
        extension.build()
    assert not (extension.build_folder(["90"]) / "failed").exists()


def test_a_failed_build_for_anywhere_is_told_as_well(place, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(extension.BuildError, match="failed"):
        extension.build(extension.ARCHITECTURES)
    assert extension.missing().startswith("Building the CUDA C++ extension failed here; see it by `cat ")


def test_without_a_device_it_is_built_for_all(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = extension.build()
    commands = (place / "commands").read_text()
    assert "-gencode=arch=compute_80,code=[sm_80,sm_90,sm_100,sm_120]" in commands
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert extension.library() == path


@pytest.mark.parametrize(("change", "says"), [
    ("nothing", "The CUDA C++ extension is not built; type `python -m fastlnl build` (about a minute)."),
    ("no device", "No CUDA device is visible; check the driver and CUDA_VISIBLE_DEVICES."),
    ("no nvcc", "nvcc is not on PATH; install the CUDA 13 toolkit or set CUDA_HOME, then type"),
    ("no CUDA", "is built without CUDA; install one with CUDA, then type `python -m fastlnl build`."),
    ("failed", "Building the CUDA C++ extension failed here; see it by `cat "),
    ("another CUDA", "The extension was built with CUDA 12.8 but torch has CUDA 13.0; type `python -m fastlnl build`."),
    ("built", "works on cuda"),
])  # fmt: skip
def test_doctor_says_it_and_all_else_works(change, says, place, monkeypatch, capsys):
    monkeypatch.setattr(backend, "_missing", backend._missing.__wrapped__)
    if change in ("built", "another CUDA"):
        folder = extension.build().parent
        (folder / "cuda").write_text("13.0" if change == "built" else "12.8")
    if change == "no device":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if change == "no nvcc":
        no_nvcc(monkeypatch)
    if change == "no CUDA":
        monkeypatch.setattr(torch.version, "cuda", None)
    if change == "failed":
        monkeypatch.setenv("FAIL", "1")
        with pytest.raises(extension.BuildError, match="failed"):
            extension.build()
    assert main(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cuda "))
    assert says in line
    with backend.use_backend("reference"):
        assert losses.CrossEntropy()(torch.zeros(2, 3), torch.tensor([0, 2])).item() == pytest.approx(1.0986, abs=1e-4)


def test_each_thing_that_is_missing_has_its_sentence(place, monkeypatch):
    no_nvcc(monkeypatch)
    assert extension.missing() == (
        "nvcc is not on PATH; install the CUDA 13 toolkit or set CUDA_HOME, then type `python -m fastlnl build`."
    )
    with pytest.raises(extension.BuildError, match="nvcc is not on PATH; install"):
        extension.build()
    monkeypatch.setattr(extension, "sources", list)
    assert extension.missing().endswith("its sources are not here; install fastlnl from its source.")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA; install one with CUDA, then type `python -m fastlnl build`" in extension.missing()


def test_nvcc_of_another_cuda_is_refused(place, monkeypatch):
    install_nvcc(place, monkeypatch, "12.8")
    with pytest.raises(extension.BuildError, match=r"is of CUDA 12\.8 but torch has CUDA 13\.0; set CUDA_HOME"):
        extension.build()


def test_a_bundled_library_of_another_cuda_is_told(place, monkeypatch):
    extension.build(["80", "90"], out=extension._BUNDLED)
    assert extension.library() == extension._BUNDLED / "libfastlnl_cuda.so"
    assert extension.missing() is None
    (extension._BUNDLED / "cuda").write_text("12.8")
    assert extension.missing() == (
        "The extension was built with CUDA 12.8 but torch has CUDA 13.0; type `python -m fastlnl build`."
    )


def test_a_library_that_does_not_load_is_told(place, monkeypatch):
    extension.build()

    def fail():
        raise OSError("undefined symbol: aoti_torch_abi_version")

    monkeypatch.setattr(extension, "operators", fail)
    assert "does not load (undefined symbol: aoti_torch_abi_version); type `python -m" in extension.missing()


def test_waiting_for_another_build_ends(tmp_path):
    path = tmp_path / "lock"
    with open(path, "a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        begin = time.monotonic()
        text = r"another process has been building .* wait for it or end it"
        with pytest.raises(extension.BuildError, match=text), extension._lock(path, 0.3):
            pass
        assert time.monotonic() - begin < 3


def test_a_lock_of_a_dead_process_is_free(tmp_path):
    path = tmp_path / "lock"
    code = f"import fcntl, os; file = open({str(path)!r}, 'a+'); fcntl.flock(file, fcntl.LOCK_EX); os._exit(1)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert path.exists()
    with extension._lock(path, 0.3):
        pass


@pytest.mark.parametrize(("wish", "code"), [("1", 0), ("require", 1), ("yes", 1)])
def test_setup_without_torch_or_nvcc(tmp_path, wish, code):
    """Where neither can be found a wheel is built without the extension, or not at all if it is required."""
    environment = {"PATH": "/nowhere", "FASTLNL_BUILD_EXT": wish, "HOME": str(tmp_path), "CUDA_HOME": "/nowhere"}
    blocked = tmp_path / "torch.py"
    blocked.write_text("raise ImportError('no torch here')\n")
    environment["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(code), done.stderr
    expected = {
        "1": "fastlnl: installed without the CUDA C++ extension: no torch here",
        "require": "FASTLNL_BUILD_EXT=require, but no torch here",
        "yes": "FASTLNL_BUILD_EXT is 'yes'; expected 1, require, or nothing",
    }
    assert expected[wish] in done.stderr
    if wish == "1":
        assert (tmp_path / "built" / "fastlnl" / "csrc" / "row_loss.cu").exists()


def test_nothing_happens_at_import():
    code = "import fastlnl.extension, os; print(os.path.exists(os.environ['FASTLNL_CACHE']))"
    environment = os.environ | {"FASTLNL_CACHE": "/nowhere/at/all", "PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
