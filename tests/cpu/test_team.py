"""Several threads on the rows of one numba kernel: right results whoever calls, after a fork, and with one thread."""

import ctypes
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from fastlnl.backend import use_backend
from fastlnl.cpu import team as module
from fastlnl.cpu.team import Team, alone
from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word, row_loss

BATCH, CLASSES = 2800, 100  # above the size from which the team is called


@pytest.fixture(autouse=True)
def _numba():
    pytest.importorskip("numba")
    from fastlnl.ops.row_loss.numba_kernel import SERIAL_BELOW

    assert BATCH * CLASSES > SERIAL_BELOW
    with use_backend("numba"):
        yield


def step(seed):
    """One ALR step whose inputs depend on the seed only; nothing in it but the kernel runs in parallel."""
    random = np.random.default_rng(seed)
    z = torch.from_numpy(random.standard_normal((BATCH, CLASSES), dtype=np.float32))
    index = torch.from_numpy(random.integers(0, BATCH // 2, BATCH))
    table = torch.from_numpy(np.full((BATCH // 2, CLASSES), 1 / CLASSES, np.float32))
    memory = TableTarget(table, 0.9, 0.9, True)
    loss = LOSSES["alr"]
    result = row_loss(z, index % CLASSES, loss, loss.parameters(), memory=memory, index=index, errors=new_error_word())
    return [x.numpy() for x in (result.loss, result.dlogits, table)]


def equal(ours, expected):
    return all((x == y).all() for x, y in zip(ours, expected, strict=True))


class Recorder:
    """In place of a kernel: takes `total` pieces of work and notes which thread did each."""

    def __init__(self, total, pause=0.0):
        self.total, self.pause, self.done, self.lock = total, pause, [], threading.Lock()
        self.next, self.calls = 0, 0

    def __call__(self, cursor, *args):
        with self.lock:
            self.calls += 1
        while True:
            with self.lock:
                if self.next >= self.total:
                    return
                self.next += 1
                self.done.append(threading.current_thread().name)
            time.sleep(self.pause)


def test_one_and_several_threads_give_the_same_bits():
    expected = step(0)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        for _ in range(5):
            assert equal(step(0), expected)


def test_one_thread_needs_no_helpers():
    torch.set_num_threads(1)
    team, kernel = Team(), Recorder(5)
    team.run(kernel)
    assert kernel.calls == 1
    assert set(kernel.done) == {threading.current_thread().name}
    assert team._helpers == []


def test_helpers_join():
    torch.set_num_threads(3)
    team, kernel = Team(), Recorder(60, pause=2e-3)
    team.run(kernel)
    assert len(kernel.done) == 60
    assert set(kernel.done) == {threading.current_thread().name, "fastlnl"}
    assert len(team._helpers) == 2


def test_nobody_works_after_run_has_returned():
    """A helper that woke up late has been waited for, or its call was taken back."""
    torch.set_num_threads(4)
    team = Team()
    for _ in range(200):
        kernel = Recorder(1)
        team.run(kernel)
        calls = kernel.calls
        assert 1 <= calls <= 4
        time.sleep(1e-5)
        assert kernel.calls == calls


def test_two_threads_call_at_once():
    expected = [step(seed) for seed in range(4)]
    torch.set_num_threads(2)
    wrong, start = [], threading.Barrier(4)

    def work(seed):
        torch.set_num_threads(2)
        start.wait()
        for _ in range(15):
            if not equal(step(seed), expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_busy_team_lets_the_caller_work_alone():
    torch.set_num_threads(2)
    team, kernel = Team(), Recorder(5)
    with team._free:
        team.run(kernel)
    assert kernel.calls == 1
    assert len(kernel.done) == 5


@pytest.mark.parametrize("in_use", [False, True])
def test_after_a_fork(in_use):
    """The child has neither the helpers nor, if the parent was at work, a free team: it starts with a new one."""
    torch.set_num_threads(2)
    expected = step(7)
    if in_use:
        assert module.team._free.acquire(timeout=10)
    try:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fresh = module.team._helpers == []
                code = 0 if fresh and equal(step(7), expected) and len(module.team._helpers) == 1 else 2
            finally:
                os._exit(code)
    finally:
        if in_use:
            module.team._free.release()
    assert wait_for(child) == 0
    assert equal(step(7), expected)  # the parent's team is as it was


def wait_for(child, seconds=30):
    """Exit code of the child; it is ended if it hangs."""
    for _ in range(seconds * 100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_an_error_in_a_kernel_reaches_the_caller_and_the_team_lives_on(who):
    torch.set_num_threads(2)
    team, started = Team(), threading.Event()

    def kernel(cursor):
        mine = "helper" if threading.current_thread().name == "fastlnl" else "caller"
        if mine == "helper":
            started.set()
        else:
            assert started.wait(10)  # both are at work
        if mine == who:
            raise ValueError(who)

    with pytest.raises(ValueError, match=who):
        team.run(kernel)
    good = Recorder(10)
    team.run(good)
    assert len(good.done) == 10


def test_alone_hands_over_a_cursor_at_zero():
    seen = []

    def kernel(cursor, *args):
        seen.append((ctypes.c_int64.from_address(cursor).value, args))

    alone(kernel, 4, 5)
    assert seen == [(0, (4, 5))]
