"""The CUDA C++ extension: finds a built library, builds one on request, loads it, and says why it is not there.

Nothing is built unasked and nothing happens at import. A build is known by everything that goes into it (sources,
flags, torch, CUDA, architectures) and lives in a folder of the user's cache; a wheel may bring one along. A build that
failed is remembered until its inputs change or `python -m fastlnl build` is typed again.
"""

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

COMMAND = "python -m fastlnl build"
LIBRARY = "libfastlnl_cuda.so"
ARCHITECTURES = ("80", "90", "100", "120")  # of a library that is to run anywhere
NVCC_FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC")
TORCH_FLAGS = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000")  # the stable ABI of torch 2.10
LOCK_SECONDS = 600.0  # to wait for another process that builds the same
COMPILE_SECONDS = 1800.0
_HERE = Path(__file__).resolve().parent
_BUNDLED = _HERE / "_cuda"  # what a wheel brings along


class BuildError(RuntimeError):
    """The extension could not be built; says why and where the log is."""


def sources() -> list[Path]:
    """The files of csrc: in the package where it was installed, beside it in a checkout; [] if they are not here."""
    for folder in (_HERE / "csrc", _HERE.parent / "csrc"):
        if (folder / "library.cpp").exists():
            return sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".cu", ".cuh", ".h"))
    return []


def nvcc() -> Path | None:
    """The compiler: of CUDA_HOME or CUDA_PATH, on PATH, or in /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [Path(home, "bin", "nvcc") for home in homes if home]
    if (on_path := shutil.which("nvcc")) is not None:
        found.insert(len(found) - 1, Path(on_path))
    return next((path for path in found if path.exists()), None)


def nvcc_release(compiler: Path) -> str:
    """Such as "13.0"."""
    try:
        text = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run ({error})") from error
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        raise BuildError(f"{compiler} --version says {text!r}; expected a release such as 13.0")
    return match[1]


def build_folder(architectures: Sequence[str]) -> Path:
    """Where the library of these inputs is, or will be."""
    root = os.environ.get("FASTLNL_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    state = hashlib.sha256()
    for path in sources():
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    state.update(repr((NVCC_FLAGS, TORCH_FLAGS, torch.__version__, torch.version.cuda, tuple(architectures))).encode())
    return Path(root, "fastlnl", state.hexdigest()[:16])


def architectures_here() -> tuple[str, ...]:
    """Of the current CUDA device, such as ("90",); where there is none, all that a library for anywhere has."""
    if torch.cuda.device_count() == 0:
        return ARCHITECTURES
    major, minor = torch.cuda.get_device_capability()
    return (f"{major}{minor}",)


def library() -> Path | None:
    """The library that serves here: bundled with the package, or built in the cache; None if there is neither."""
    for architectures in (architectures_here(), ARCHITECTURES):
        path = build_folder(architectures) / LIBRARY
        if path.exists():
            return path
    return _BUNDLED / LIBRARY if (_BUNDLED / LIBRARY).exists() else None


def missing() -> str | None:
    """Why the extension cannot work with the CUDA device that is here, in one sentence; None if it can."""
    version = torch.version.cuda
    if version is None:
        return f"This torch ({torch.__version__}) is built without CUDA; install one with CUDA, then type `{COMMAND}`."
    path = library()
    if path is not None:
        release = _built_with(path)
        if release is not None and _major(release) != _major(version):
            return f"The extension was built with CUDA {release} but torch has CUDA {version}; type `{COMMAND}`."
        try:
            operators()
        except OSError as error:
            return f"{path} does not load ({error}); type `{COMMAND}`."
        return None
    folders = [build_folder(architectures) for architectures in (architectures_here(), ARCHITECTURES)]
    failed = next((folder for folder in folders if (folder / "failed").exists()), None)
    if failed is not None:
        log = failed / "log"
        return f"Building the CUDA C++ extension failed here; see it by `cat {log}`, try again by `{COMMAND}`."
    if not sources():
        return "The CUDA C++ extension is not built and its sources are not here; install fastlnl from its source."
    compiler = nvcc()
    if compiler is None:
        return (
            f"nvcc is not on PATH; install the CUDA {_major(version)} toolkit or set CUDA_HOME, then type `{COMMAND}`."
        )
    return f"The CUDA C++ extension is not built; type `{COMMAND}` (about a minute)."


def build(architectures: Sequence[str] | None = None, out: Path | None = None) -> Path:
    """Build the library and return its path.

    Args:
        architectures: such as ["90", "100"]; default that of the CUDA device here, or all where there is none.
        out: folder that gets a copy as well, for a wheel.

    Raises:
        BuildError: something is missing, another process has been building for too long, or a compiler failed.
    """
    if not sources():
        raise BuildError("the sources (csrc) are not here; install fastlnl from its source")
    compiler = nvcc()
    if compiler is None:
        raise BuildError("nvcc is not on PATH; install the CUDA toolkit or set CUDA_HOME")
    release, version = nvcc_release(compiler), torch.version.cuda
    if version is None:
        raise BuildError(f"this torch ({torch.__version__}) is built without CUDA; install one with CUDA")
    if _major(release) != _major(version):
        raise BuildError(f"{compiler} is of CUDA {release} but torch has CUDA {version}; set CUDA_HOME to one of that")
    if architectures is None:
        architectures = architectures_here()
    folder = build_folder(architectures)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "lock"):
        if not (folder / LIBRARY).exists():
            _compile(compiler, architectures, folder)
            (folder / "cuda").write_text(release)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name in (LIBRARY, "cuda"):
            shutil.copy(folder / name, out / name)
    return folder / LIBRARY


@cache
def operators() -> Any:
    """The namespace of the operators, torch.ops.fastlnl_cuda; the library is loaded at the first call."""
    torch.ops.load_library(str(library()))
    return torch.ops.fastlnl_cuda


def compile_commands(
    compiler: Path, architectures: Sequence[str], scratch: Path, link: Sequence[str] = ("-ltorch", "-ltorch_cuda")
) -> tuple[list[list[str]], list[str]]:
    """The commands that compile each source, which may run at once, and the one that links their objects."""
    torch_folder = Path(torch.__file__).parent
    units = [path for path in sources() if path.suffix in (".cu", ".cpp")]
    objects = [str(scratch / f"{unit.name}.o") for unit in units]
    # A smaller code is a smaller download; before CUDA 13 not every driver unpacks it.
    small = "--compress-mode=size" if int(_major(nvcc_release(compiler))) >= 13 else "-Xfatbin=-compress-all"
    targets = [
        "--threads=0",
        small,
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures),
    ]
    commands = []
    for unit, target in zip(units, objects, strict=True):
        extra = targets if unit.suffix == ".cu" else [*TORCH_FLAGS, f"-I{torch_folder / 'include'}"]
        commands.append([str(compiler), *NVCC_FLAGS, *extra, "-c", str(unit), "-o", target])
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", *link, "-cudart=static"]
    return commands, [str(compiler), "-shared", "-Xlinker=-s", *objects, "-o", str(scratch / LIBRARY), *libraries]


def _compile(compiler: Path, architectures: Sequence[str], folder: Path) -> None:
    scratch = folder / f"scratch-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    commands, link = compile_commands(compiler, architectures, scratch)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = list(pool.map(_run, commands))
        if all(code == 0 for code, _ in done):
            done.append(_run(link))
        (folder / "log").write_text("\n".join(text for _, text in done))
        if any(code != 0 for code, _ in done):
            (folder / "failed").touch()
            raise BuildError(f"building the CUDA C++ extension failed; see `cat {folder / 'log'}`")
        (folder / "failed").unlink(missing_ok=True)
        os.replace(scratch / LIBRARY, folder / LIBRARY)  # whole or not at all
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COMPILE_SECONDS
        )
        code, text = done.returncode, done.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        code, text = 1, str(error)
    return code, f"$ {' '.join(command)}\n{text}"


@contextmanager
def _lock(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Only one process builds. The system drops the lock of a process that is gone, so none is ever stale."""
    import fcntl  # not on Windows, where there is no extension

    with open(path, "a+") as file:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= end:
                    raise BuildError(
                        f"another process has been building for more than {seconds:.0f} s (it holds {path}); "
                        "wait for it or end it, then try again"
                    ) from error
                time.sleep(0.1)
        yield


def _built_with(path: Path) -> str | None:
    note = path.parent / "cuda"
    return note.read_text().strip() if note.exists() else None


def _major(release: str) -> str:
    return release.split(".")[0]
