"""A MixMatch step's primitives one after the other: nothing is read by the host, and a CUDA graph replays them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastlnl.backend import use_backend
from fastlnl.losses import MixMatch
from fastlnl.ops.erase_peaks import Masking, erase_peaks
from fastlnl.ops.mix_views import mix_views
from fastlnl.ops.refine_targets import refine_targets

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "unique")


class NoReads(TorchDispatchMode):
    """Refuses operations whose result has to reach the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in READS, f"{name} reads from the device"
        if function is torch.ops.aten.index.Tensor:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask's size is read from the device"
        return function(*args, **(kwargs or {}))


def problem(device, batch=3, classes=5):
    random = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=random).to(device)

    return {
        "logits": [normal(2 * batch, classes) for _ in range(2)],
        "peer": [normal(batch, classes) for _ in range(2)],
        "label": torch.tensor([0, 1, 4], device=device),
        "clean_prob": normal(2 * batch).sigmoid(),
        "features": normal(2 * batch, 4, 2, 2),
        "views": [normal(2 * batch, 3, 8, 8) for _ in range(2)],
        "draws": torch.rand(2 * batch, 8, dtype=torch.float64, generator=random).to(device),
        "partner": torch.randperm(8 * batch, generator=random).to(device),
        "weight": torch.tensor(3.0, device=device),
        "coefficient": torch.tensor(0.7, device=device),
        "student": normal(8 * batch, classes).requires_grad_(),
        "criterion": MixMatch().to(device),
    }


def step(given):
    target = refine_targets(given["logits"], given["label"], given["clean_prob"][:3], peer=given["peer"])
    masking = Masking(target_floor="clamp")
    pair = erase_peaks(given["features"], given["views"][0], target, given["clean_prob"], given["draws"], masking)
    views = [*given["views"], pair.high, pair.low]
    targets = [target, target, pair.target, pair.low_target]
    images, mixed = mix_views(views, targets, given["partner"], given["coefficient"])
    loss = given["criterion"](given["student"], mixed, 12, given["weight"])
    given["student"].grad = None
    loss.backward()
    return loss.detach(), given["student"].grad, images, pair.boxes


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_no_operation_reads_from_the_device(name):
    pytest.importorskip({"reference": "torch"}.get(name, name))
    with use_backend(name):
        given = problem("cuda" if torch.cuda.is_available() else "cpu")
        plain = step(given)
        with NoReads():
            watched = step(given)
        assert all(map(torch.equal, plain, watched))
        with NoReads(), pytest.raises(AssertionError, match="reads from the device"):
            given["weight"].item()


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_step():
    given = problem("cuda")
    for _ in range(3):
        eager = step(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(given)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, eager, captured))
