"""Two or more Python threads on the rows of one numba kernel.

numba's own `parallel=True` aborts when two threads call at once (its default layer) or after a fork (OpenMP), and on
busy cores an OpenMP region waits for its slowest member. Here the calling thread starts at once, helpers join when
they wake, and everyone takes the next chunk of rows until none is left, so a helper that never wakes costs nothing.
Kernels release the GIL and take the address of the shared cursor first.
"""

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class _Helper(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="fastlnl", daemon=True)
        self.wake, self.done = threading.Lock(), threading.Lock()
        self.wake.acquire()
        self.done.acquire()
        self.job: Callable[[], Any] | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        while True:
            self.wake.acquire()
            try:
                assert self.job is not None
                self.job()
            except BaseException as error:
                self.error = error
            self.done.release()


def alone(kernel: Callable[..., Any], *args: Any) -> None:
    """Call `kernel(cursor_address, *args)` in this thread only."""
    cursor = np.zeros(1, np.int64)
    kernel(cursor.ctypes.data, *args)


class Team:
    """The calling thread and `torch.get_num_threads() - 1` helpers, one call at a time."""

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._helpers: list[_Helper] = []
        self._process = os.getpid()

    def run(self, kernel: Callable[..., Any], *args: Any) -> None:
        """Call `kernel(cursor_address, *args)` on every member; returns when all rows are done.

        The kernel takes rows by `take(cursor_address, chunk)`. A call that finds the team at work, or that has one
        thread by `torch.set_num_threads`, does all rows itself.
        """
        count = torch.get_num_threads() - 1
        if count < 1 or not self._free.acquire(blocking=False):
            alone(kernel, *args)
            return
        try:
            helpers = self._members(count)
            cursor = np.zeros(1, np.int64)
            address = cursor.ctypes.data
            for helper in helpers:
                helper.job = lambda: kernel(address, *args)
                helper.wake.release()
            try:
                kernel(address, *args)
            finally:
                for helper in helpers:
                    if not helper.wake.acquire(blocking=False):  # it woke up, else its call is taken back
                        helper.done.acquire()
            for helper in helpers:
                error, helper.error = helper.error, None
                if error is not None:
                    raise error
        finally:
            self._free.release()

    def _members(self, count: int) -> list[_Helper]:
        while len(self._helpers) < count:
            self._helpers.append(_Helper())
        return self._helpers[:count]


team = Team()


def _after_fork() -> None:
    """Threads do not survive a fork: the child starts with a new team."""
    global team
    team = Team()


os.register_at_fork(after_in_child=_after_fork)
