"""The house: imports go down only, heavy packages wait, files stay short, every primitive has its four files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastlnl"

# Lower floors first; a module may import from its own floor and those before it.
FLOORS = [
    ["errors", "arithmetic", "philox"],
    ["backend", "cpu", "extension"],
    ["ops"],
    ["state", "losses", "mixture", "selection", "refinement", "confident", "noise", "metrics", "augment"],
    ["data", "networks", "checkpoint", "runlog"],
    ["methods", "frame", "learner", "graph", "evaluation"],
    ["trainer", "schedule", "profiling", "report"],
    ["cli", "__main__", "__init__"],
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
HEAVY = {"numba", "triton", "matplotlib", "sklearn", "pandas", "PIL", "tqdm", "llvmlite"}
KERNELS = (
    "numba_kernel",
    "numba_coefficients",
    "numba_pass",
    "numba_storage",
    "numba_sweeps",
    "triton_kernel",
    "triton_rows",
    "triton_storage",
    "triton_wide",
)


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def top_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, at_import_only=True):
    """(module, names) of the import statements, relative ones made absolute; those inside functions left out."""
    package = ("fastlnl", *path.relative_to(PACKAGE).parts[:-1])
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.If, ast.Try, ast.With)) or not at_import_only:
            nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(filter(None, [base, node.module])), tuple(alias.name for alias in node.names)


def used_floors(path):
    for module, names in imports(path, at_import_only=False):
        if module == "fastlnl":
            yield from (name for name in names if name in FLOOR)
        elif module.startswith("fastlnl."):
            yield module.split(".")[1]


def test_every_module_has_a_floor():
    assert {top_of(path) for path in modules()} == set(FLOOR)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    mine = top_of(path)
    up = [other for other in used_floors(path) if FLOOR[other] > FLOOR[mine]]
    assert not up, f"{path.name} (floor {FLOOR[mine]}) imports {up} from above"


def test_no_module_imports_a_module_of_its_floor_in_a_circle():
    graph = {name: set() for name in FLOOR}
    for path in modules():
        graph[top_of(path)] |= {other for other in used_floors(path) if other != top_of(path)}
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_when_first_used(path):
    if path.stem in KERNELS or top_of(path) == "cpu":
        return  # loaded by backend.py when first chosen
    heavy = {module.split(".")[0] for module, _ in imports(path)} & HEAVY
    assert not heavy, f"{path.name} imports {heavy} at import"


def test_import_loads_nothing_heavy_and_costs_little_beyond_torch():
    code = (
        "import time, sys, torch; before = set(sys.modules); a = time.process_time(); import fastlnl; "
        f"b = time.process_time(); print(b - a, sorted((set(sys.modules) - before) & {HEAVY!r}))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.split(maxsplit=1) for run in runs), strict=True)
    assert {text.strip() for text in loaded} == {"[]"}
    assert min(map(float, seconds)) < 0.3


def test_files_are_short():
    folders = [PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "csrc"]
    files = [
        p
        for folder in folders
        if folder.exists()
        for p in folder.rglob("*")
        if p.suffix in (".py", ".cu", ".cpp", ".cuh", ".h")
    ]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_every_primitive_has_its_files_and_its_test():
    primitives = [p for p in (PACKAGE / "ops").iterdir() if (p / "__init__.py").exists()]
    assert {p.name for p in primitives} >= {"row_loss", "row_stats", "scale_rows"}
    for folder in primitives:
        for name in ("reference.py", "numba_kernel.py", "triton_kernel.py"):
            assert (folder / name).exists(), f"{folder.name} has no {name}"
        assert (ROOT / "tests" / "ops" / f"test_{folder.name}.py").exists(), f"{folder.name} has no test"


def test_only_backend_knows_devices():
    words = ("is_cuda", "device.type ==", "cuda.is_available")
    found = {
        f"{path.relative_to(PACKAGE)}: {word}"
        for path in modules()
        if path.name != "backend.py"
        for word in words
        if word in path.read_text()
    }
    assert not found
