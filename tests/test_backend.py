"""Who does the work: choosing by name, falling back only where nobody was named, and saying why."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from fastlnl import backend, extension
from fastlnl.backend import backends, current_backend, implementation, use_backend
from fastlnl.errors import BackendError
from fastlnl.ops.row_loss import LOSSES, new_error_word, row_loss

ON_CPU = torch.zeros(1, 2)


@pytest.fixture(autouse=True)
def _nobody_chosen():
    with use_backend(None):
        yield


def python(code, **environment):
    """Run code in a fresh process, without the interpreter of Triton unless asked for; (return code, output)."""
    keep = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTLNL_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=keep | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_backend_works_or_says_why_not():
    here = backends()
    assert list(here) == ["cuda", "triton", "numba", "reference"]
    assert here["reference"] == "works on cpu and cuda"
    assert here["numba"] == "works on cpu"
    assert here["cuda"].endswith(".")
    assert not here["cuda"].startswith("works")


@pytest.mark.parametrize("primitive", ["row_loss", "row_stats", "scale_rows"])
def test_numba_is_preferred_on_the_cpu(primitive):
    function = implementation(primitive, ON_CPU)
    assert function.__module__ == f"fastlnl.ops.{primitive}.numba_kernel"
    assert function.__name__ == primitive


@pytest.mark.parametrize("primitive", ["row_loss", "row_stats", "scale_rows"])
@pytest.mark.parametrize("name", ["reference", "numba", "triton"])
def test_every_listed_backend_serves_every_primitive(name, primitive):
    like = ON_CPU if name != "triton" or not torch.cuda.is_available() else ON_CPU.cuda()
    with use_backend(name):
        assert implementation(primitive, like).__module__ == f"fastlnl.ops.{primitive}.{backend.MODULES[name]}"


def test_float64_goes_to_the_reference():
    assert implementation("row_loss", ON_CPU.double()).__module__ == "fastlnl.ops.row_loss.reference"
    z = torch.randn(3, 4, dtype=torch.float64)
    result = row_loss(z, torch.zeros(3).long(), LOSSES["cross_entropy"], errors=new_error_word())
    assert result.loss.dtype == torch.float64


def test_a_named_backend_never_falls_back():
    with use_backend("numba"), pytest.raises(BackendError) as refused:
        implementation("row_loss", ON_CPU.double())
    text = str(refused.value)
    assert "backend numba was asked for row_loss on cpu (float64)" in text
    assert "numba takes float32, bfloat16 and float16, not float64." in text
    assert text.endswith("Here there is: reference.")


def test_a_backend_that_is_not_there():
    with use_backend("cuda"), pytest.raises(BackendError) as refused:
        implementation("row_stats", ON_CPU)
    text = str(refused.value)
    assert f"backend cuda was asked for row_stats on cpu (float32): {extension.missing()}" in text
    assert "Here there is: " in text
    assert "numba, reference." in text


def test_triton_without_a_gpu_says_what_it_needs():
    code, output = python("""
        import torch
        from fastlnl.backend import backends, implementation, use_backend
        print(backends()["triton"])
        use_backend("triton")
        implementation("row_loss", torch.zeros(1, 2))
    """)
    assert code == 1
    assert output.startswith(
        "Triton needs a CUDA device (or TRITON_INTERPRET=1, which runs kernels slowly on the CPU)."
    )
    assert "backend triton was asked for row_loss on cpu (float32): Triton needs a CUDA device" in output
    assert "Here there is: numba, reference." in output


def test_a_package_that_does_not_import_is_a_reason_and_the_reference_takes_over():
    code, output = python("""
        import sys
        sys.modules["numba"] = None
        import torch
        from fastlnl.backend import backends, implementation
        print(backends()["numba"])
        print(implementation("row_loss", torch.zeros(1, 2)).__module__)
    """)
    assert code == 0, output
    reason, module = output.splitlines()
    assert reason.startswith("numba does not import here (ModuleNotFoundError: ")
    assert module == "fastlnl.ops.row_loss.reference"


def test_unknown_name():
    with pytest.raises(BackendError, match="backend 'tritn' was asked for; there are cuda, triton, numba, reference"):
        use_backend("tritn")
    assert current_backend() is None


def test_use_backend_as_a_call_stays():
    use_backend("reference")
    assert current_backend() == "reference"
    use_backend(None)
    assert current_backend() is None


def test_use_backend_as_a_block_ends_with_it():
    use_backend("numba")
    with use_backend("reference") as chosen:
        assert isinstance(chosen, use_backend)
        assert current_backend() == "reference"
        with use_backend(None):
            assert current_backend() is None
        assert current_backend() == "reference"
    assert current_backend() == "numba"


def test_use_backend_ends_with_an_exception_too():
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    assert current_backend() is None


@pytest.mark.parametrize("name", ["reference", "numba"])
def test_environment_variable(name):
    code, output = python(
        """
        import torch
        from fastlnl.backend import current_backend, implementation
        print(current_backend(), implementation("row_loss", torch.zeros(1, 2)).__module__)
        """,
        FASTLNL_BACKEND=name,
    )
    assert code == 0, output
    assert output.split() == [name, f"fastlnl.ops.row_loss.{backend.MODULES[name]}"]


def test_environment_variable_with_a_wrong_name():
    code, output = python("import fastlnl.backend", FASTLNL_BACKEND="cudnn")
    assert code == 1
    assert "backend 'cudnn' was asked for; there are cuda, triton, numba, reference" in output


def test_nothing_heavy_is_imported_before_it_is_used():
    code, output = python("""
        import sys
        import torch
        before = set(sys.modules)
        import fastlnl.backend, fastlnl.ops.row_loss, fastlnl.ops.row_stats, fastlnl.ops.scale_rows
        print([m for m in ("numba", "triton", "llvmlite") if m in sys.modules and m not in before])
    """)
    assert code == 0, output
    assert output.strip() == "[]"


@pytest.mark.gpu
def test_triton_is_preferred_on_the_gpu():
    assert implementation("row_loss", ON_CPU.cuda()).__module__ == "fastlnl.ops.row_loss.triton_kernel"


@pytest.mark.gpu
def test_numba_does_not_serve_the_gpu():
    with use_backend("numba"), pytest.raises(BackendError, match="numba does not serve device type 'cuda'"):
        implementation("row_loss", ON_CPU.cuda())
