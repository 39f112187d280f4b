"""What all tests share: one thread, fixed seeds, guarded memory, and the backends a primitive is tested on."""

import os

import pytest
import torch
from hypothesis import settings

from fastlnl import extension

# Elsewhere every run draws new examples; what CI says must depend on the commit alone.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported: its kernels then run on the CPU

TRITON_DEVICE = "cuda" if HAS_CUDA else "cpu"
BACKENDS = [("reference", "cpu"), ("numba", "cpu"), ("triton", TRITON_DEVICE)]
if HAS_CUDA:
    BACKENDS.append(("reference", "cuda"))
    if extension.missing() is None:
        BACKENDS.append(("cuda", "cuda"))


def pytest_configure(config):
    # NumPy, which interprets Triton, warns where a GPU silently gives the inf or NaN that a test asks for.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


def pytest_collection_modifyitems(items):
    if not HAS_CUDA:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def poison(monkeypatch):
    """torch.empty gives NaN and senseless integers, and keeps an eye on the memory before and behind.

    So an output that nobody wrote is seen, and so is a write beside an output.
    """
    allocate, given, margin = torch.empty, [], 64

    def poisoned(*size, **options):
        shape = torch.Size(size if isinstance(size[0], int) else size[0])
        whole = allocate(shape.numel() + 2 * margin, **options)
        whole.fill_(torch.nan if whole.is_floating_point() else -77)
        given.append(whole)
        return whole[margin : margin + shape.numel()].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    yield
    for whole in given:
        beside = torch.cat([whole[:margin], whole[-margin:]])
        assert (beside.isnan() if whole.is_floating_point() else beside == -77).all(), "written beside an output"


@pytest.fixture
def served_or_skipped():
    """Of `backend.implementation`: csrc has not every loss and primitive; what it refuses by name is no failure."""
    from fastlnl.errors import BackendError

    def around(implementation):
        def find(primitive, like):
            try:
                function = implementation(primitive, like)
            except BackendError as error:
                pytest.skip(f"not served: {error}")

            def run(*arguments):
                try:
                    return function(*arguments)
                except BackendError as error:
                    pytest.skip(f"not served: {error}")

            return run

        return find

    return around


@pytest.fixture(params=BACKENDS, ids=lambda pair: f"{pair[0]}-{pair[1]}" if HAS_CUDA else pair[0])
def device(request, served_or_skipped):
    """Each backend in turn is chosen by name; the value is the device its tensors live on."""
    from fastlnl import backend

    name, where = request.param
    pytest.importorskip({"reference": "torch", "cuda": "torch"}.get(name, name))
    with backend.use_backend(name), pytest.MonkeyPatch.context() as patch:  # of its own: tests undo theirs
        if name == "cuda":
            patch.setattr(backend, "implementation", served_or_skipped(backend.implementation))
        yield torch.device(where)
