"""Batches made ahead: the next one while the one before is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fastlnl.data.dataset import Batch


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches in the same order, each made by a thread while the one before is used.

    One batch is made ahead. Its views are launched on the thread's current stream, the default one of the device, so
    on a GPU the order of the work stays as it is, and what is saved is the time of the host. An error in the making of
    a batch is raised where that batch would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fastlnl-prefetch") as thread:
        ahead = thread.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(next, batches, None)
            yield batch
