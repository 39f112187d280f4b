"""What only a GPU shows of the row kernels: nothing waits for the device, and a graph replays the eager steps."""

import pytest
import torch

from fastlnl.backend import use_backend
from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word, row_loss

pytestmark = pytest.mark.gpu


class Training:
    """Steps of ALR on a label memory, all on the device."""

    def __init__(self, classes):
        generator = torch.Generator("cuda").manual_seed(0)
        self.z = torch.randn(64, classes, device="cuda", generator=generator)
        self.label = torch.randint(0, classes, (64,), device="cuda", generator=generator)
        self.index = torch.randperm(200, device="cuda", generator=generator)[:64]
        self.memory = TableTarget(torch.full((200, classes), -1.0, device="cuda"), 0.9, 0.9, True)
        self.errors = new_error_word("cuda")

    def step(self):
        result = row_loss(
            self.z, self.label, LOSSES["alr"], (0.3, 0.0), memory=self.memory, index=self.index, grad_scale=1 / 64,
            reduction="mean", with_stats=True, errors=self.errors,
        )  # fmt: skip
        self.z.sub_(result.dlogits)
        self.index.add_(7).remainder_(200)
        return result.loss


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("classes", [10, 1000, 21841])
def test_a_graph_replays_eager_steps(name, classes):
    with use_backend(name):
        eager, captured = Training(classes), Training(classes)
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
        assert not captured.errors.any()
