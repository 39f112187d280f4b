"""What only a GPU shows of csrc's two_view_loss: nothing waits for the device, and a graph replays the eager steps."""

import pytest
import torch

from fastlnl.backend import use_backend
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.two_view_loss import ENTROPY_SCALES, two_view_loss

pytestmark = pytest.mark.gpu


class Training:
    """Steps on two views with counters, all on the device."""

    def __init__(self, classes, scale):
        generator = torch.Generator("cuda").manual_seed(0)
        self.views = torch.randn(2, 64, classes, device="cuda", generator=generator)
        self.label = torch.randint(0, classes, (64,), device="cuda", generator=generator)
        self.index = torch.randint(0, 50, (64,), device="cuda", generator=generator)  # ids repeat
        self.count = torch.zeros(50, dtype=torch.int32, device="cuda")
        self.table = torch.rand(classes, 30, 2, device="cuda", generator=generator)
        self.errors, self.scale = new_error_word("cuda"), scale

    def step(self):
        result = two_view_loss(
            *self.views, self.label, self.index, self.count, self.table, entropy_scale=self.scale, grad_scale=1 / 64,
            reduction="mean", errors=self.errors,
        )  # fmt: skip
        self.views.sub_(result.dlogits)
        self.index.add_(7).remainder_(50)
        return result.loss


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize("classes", [10, 1000, 21841])
def test_a_graph_replays_eager_steps(name, classes, scale):
    with use_backend(name):
        eager, captured = Training(classes, scale), Training(classes, scale)
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
        assert torch.equal(captured.views, eager.views)
        assert torch.equal(captured.count, eager.count)
        assert not captured.errors.any()
