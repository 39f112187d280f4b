"""The CUDA C++ extension: finds a built library, builds one on request, loads it, and says why it is not there.

Nothing is built unasked and nothing happens at import. A build is known by everything that goes into it (sources,
flags, torch, CUDA, architectures) and lives in a folder of the user's cache; a wheel may bring one along. A build that
failed is remembered until its inputs change or `python -m fastlnl build` is typed again.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
LONGEST = ("row_loss.cu", "two_view_loss.cu")  # to compile: they come first
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


def ninja() -> str:
    """The build tool: of this environment, or on PATH.

    Raises:
        BuildError: it is not there.
    """
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which("ninja", path=here)
    if found is None:
        raise BuildError("ninja is not here; pip install ninja, then try again")
    return found


def code_options(architectures: Sequence[str], lowest: str | None = None) -> list[str]:
    """Code for each architecture, all from the intermediate code of the lowest: the long half of the work once."""
    lowest, codes = lowest or min(architectures, key=int), ",".join(f"sm_{a}" for a in architectures)
    return [f"-gencode=arch=compute_{lowest},code=[{codes}]"]


def build_file(compiler: Path, architectures: Sequence[str], link: Sequence[str] = ("-ltorch", "-ltorch_cuda")) -> str:
    """What ninja is to do: an object of each source, and the library of all objects."""
    folder = Path(torch.__file__).parent
    # A smaller code is a smaller download; before CUDA 13 not every driver unpacks it.
    small = "--compress-mode=size" if int(_major(nvcc_release(compiler))) >= 13 else "-Xfatbin=-compress-all"
    libraries = [f"-L{folder / 'lib'}", "-ltorch_cpu", *link, "-cudart=static"]
    options = {
        "cu": [*NVCC_FLAGS, "--threads=0", small, *code_options(architectures), "-c"],
        "cpp": [*NVCC_FLAGS, *TORCH_FLAGS, f"-I{folder / 'include'}", "-c"],
    }
    lines = [f"rule {rule}\n  command = {_shell(compiler, *words)} $in -o $out" for rule, words in options.items()]
    shared = _shell(compiler, "-shared", "-Xlinker=-s")
    lines.append(f"rule library\n  command = {shared} $in -o $out {_shell(*libraries)}")
    units = [path for path in sources() if path.suffix in (".cu", ".cpp")]
    units.sort(key=lambda path: path.name not in LONGEST)
    for unit in units:
        place = re.sub(r"([$ :])", r"$\1", str(unit))
        lines.append(f"build {unit.name}.o: {unit.suffix[1:]} {place}")
    lines.append(f"build {LIBRARY}: library {' '.join(f'{unit.name}.o' for unit in units)}")
    return "\n".join(lines) + "\n"


def run_ninja(folder: Path, text: str) -> tuple[int, str]:
    """Do what a build file says, in a folder; exit code and log."""
    (folder / "build.ninja").write_text(text)
    command = [ninja(), "-v", "-j", str(os.cpu_count()), "-C", str(folder)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COMPILE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, f"{' '.join(command)}: {error}\n"
    return done.returncode, done.stdout


def _compile(compiler: Path, architectures: Sequence[str], folder: Path) -> None:
    scratch = folder / f"scratch-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    try:
        code, log = run_ninja(scratch, build_file(compiler, architectures))
        (folder / "log").write_text(log)
        if code != 0:
            (folder / "failed").touch()
            raise BuildError(f"building the CUDA C++ extension failed; see `cat {folder / 'log'}`")
        (folder / "failed").unlink(missing_ok=True)
        os.replace(scratch / LIBRARY, folder / LIBRARY)  # whole or not at all
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _shell(*words: object) -> str:
    """Words of a command in a build file."""
    return shlex.join(map(str, words)).replace("$", "$$")


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
