"""What only a GPU shows of the row kernels: nothing waits for the device, and a graph replays the eager steps."""

import pytest
import torch

from fastlnl.backend import use_backend
from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.row_loss import LOSSES, Storage, TableTarget, new_error_word, row_loss
from fastlnl.state import SampleDynamics

pytestmark = pytest.mark.gpu


class Training:
    """Steps of ALR on a label memory whose rows are entered in the records of their samples, all on the device."""

    def __init__(self, classes, text):
        generator = torch.Generator("cuda").manual_seed(0)
        self.z = torch.randn(64, classes, device="cuda", generator=generator)
        self.label = torch.randint(0, classes, (64,), device="cuda", generator=generator)
        self.index = torch.randperm(200, device="cuda", generator=generator)[:64]
        storage = Storage.parse(text, classes)
        table = torch.full((200, storage.width(classes)), storage.never_written, dtype=storage.dtype, device="cuda")
        step = torch.zeros((), dtype=torch.int64, device="cuda") if storage.lossy else None
        self.memory = TableTarget(table, 0.9, 0.9, True, storage, 7, step)
        self.dynamics = SampleDynamics(200, classes, history=2).to("cuda")
        self.errors = new_error_word("cuda")

    def step(self):
        result = row_loss(
            self.z, self.label, LOSSES["alr"], (0.3, 0.0), memory=self.memory, index=self.index, grad_scale=1 / 64,
            reduction="mean", book=self.dynamics, errors=self.errors,
        )  # fmt: skip
        self.z.sub_(result.dlogits)
        self.index.add_(7).remainder_(200)
        return result.loss


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("text", ["float32", "topk:8"])
@pytest.mark.parametrize("classes", [10, 1000, 21841])
def test_a_graph_replays_eager_steps(name, classes, text):
    with use_backend(name):
        eager, captured = Training(classes, text), Training(classes, text)
        eager.step(), captured.step()  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = captured.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(100):
                expected = eager.step()
                graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(loss, expected)
        assert torch.equal(captured.z, eager.z)
        assert torch.equal(captured.memory.table, eager.memory.table)
        assert all(
            torch.equal(x, y) for x, y in zip(captured.dynamics.buffers(), eager.dynamics.buffers(), strict=True)
        )
        assert not captured.errors.any()


@pytest.mark.parametrize("classes", [10, 1000, 21841])
def test_one_launch_enters_what_two_do(classes):
    """Bit for bit, repeated ids included: csrc's row pass with a book, and `dynamics` on the statistics it gives."""
    z = torch.randn(96, classes, device="cuda")
    index = torch.randint(0, 40, (96,), device="cuda")
    label = torch.randint(0, classes, (40,), device="cuda")[index]
    one, two = (SampleDynamics(40, classes, history=2).to("cuda") for _ in range(2))
    loss, errors = LOSSES["cross_entropy"], new_error_word("cuda")
    with use_backend("cuda"):
        for _ in range(2):
            row_loss(z, label, loss, index=index, book=one, errors=errors)
            row_loss(z, label, loss, index=index, book=two, with_stats=True, errors=errors)
    assert torch.equal(one.records, two.records)
    assert torch.equal(one.counters, two.counters)
    assert torch.equal(one.history.view(torch.int16), two.history.view(torch.int16))


def test_an_exact_fit_waits_for_nothing_and_is_replayed():
    """The cooperative grid, captured; the fit of the reference, and the same bits each time."""
    x = torch.cat([0.2 * torch.rand(30_000), 0.5 + 0.4 * torch.rand(20_000)]).cuda()
    value = x.sort().values.double()
    points = EMInput(value, torch.ones_like(value, dtype=torch.int64), torch.tensor([0, len(x)]).cuda(),
                     torch.tensor([[0.0, 1.0]]).double().cuda(), None, None)  # fmt: skip
    with use_backend("reference"):
        expected = mixture_em(points, EMOptions())
    with use_backend("cuda"):
        eager = mixture_em(points, EMOptions())
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = mixture_em(points, EMOptions())
        graph.replay()
    assert torch.allclose(eager.fitted, expected.fitted, rtol=0, atol=1e-6)
    assert torch.equal(captured.fitted, eager.fitted)
