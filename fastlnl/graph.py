"""Training steps that are captured once and replayed: one launch for the host instead of one for every kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from fastlnl.data import Batch

WARM_UP = 3  # steps before a capture: kernels are compiled in them, and the optimiser makes its state
Step = Callable[[], None]


class Recording(Protocol):
    """A step that was captured, not run; `replay` runs it on the tensors that it was captured with."""

    def __init__(self, step: Step) -> None: ...

    def replay(self) -> None: ...

    @staticmethod
    def warm_up(step: Step) -> None:
        """Run a step that will be captured later."""


class CudaRecording:
    """`Recording` with a CUDA graph."""

    def __init__(self, step: Step) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step()

    def replay(self) -> None:
        self.graph.replay()

    @staticmethod
    def warm_up(step: Step) -> None:
        """On a stream of its own, as a capture is, so that autograd does not remember the main one."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            step()
        here.wait_stream(aside)


RECORDINGS: dict[str, type[Recording]] = {"cuda": CudaRecording}


def recording_for(device: torch.device) -> type[Recording]:
    """How steps are captured on a device.

    Raises:
        ValueError: they cannot be.
    """
    if device.type not in RECORDINGS:
        raise ValueError(
            f"cuda_graph is True but device is {str(device)!r}; graphs need a CUDA device: pass device='cuda', or "
            "leave cuda_graph out (compile=True works here too)"
        )
    return RECORDINGS[device.type]


class RecordedStep:
    """Called with a batch and a step on it, it takes the step: the first ones as they come, then from a recording.

    Batches are copied into buffers that stay where they are. A batch of another size, such as the last of an epoch, is
    stepped on as it comes: filled up with padding it would reach the statistics of batch norm and the mean of the loss.

    Args:
        recording: captures a step.
    """

    def __init__(self, recording: type[Recording]) -> None:
        self._recording = recording
        self.forget()

    def forget(self) -> None:
        """Capture anew: tensors of the step were replaced."""
        self._phase: Hashable = None
        self._taken = 0
        self._buffers: list[Tensor] = []
        self._recorded: Recording | None = None

    def __call__(self, batch: Batch, step: Callable[[Batch], None], phase: Hashable) -> None:
        tensors = [batch.index, batch.label, *batch.views]
        if phase != self._phase:
            self.forget()
            self._phase = phase
        if not self._buffers:
            self._buffers = [tensor.clone() for tensor in tensors]
        if [tensor.shape for tensor in tensors] != [buffer.shape for buffer in self._buffers]:
            step(batch)
            return
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer.copy_(tensor)
        index, label, *views = self._buffers
        held = Batch(index, tuple(views), label)
        if self._taken < WARM_UP:
            self._taken += 1
            self._recording.warm_up(lambda: step(held))
            return
        if self._recorded is None:
            self._recorded = self._recording(lambda: step(held))
        self._recorded.replay()
