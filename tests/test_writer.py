"""The writer: commands in groups, answers after the commit, one fault for one command."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._writer import Writer


class Store:
    """Keeps what is committed in a list."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.commits: list[int] = []
        self.closed = False
        self._open: list[Any] = []

    def put(self, value: Any) -> Any:
        """Write ``value``; it is kept when the transaction ends."""
        self._open.append(value)
        return value

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep at the end what was put, nothing if the block raises."""
        self._open = []
        yield
        self.kept += self._open
        self.commits.append(len(self._open))

    @property
    def is_gone(self) -> bool:
        """Whether its file is gone; it has none."""
        return False

    def close(self) -> None:
        """Note it."""
        self.closed = True


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer[Store]]:
    writer = Writer(lambda: store, beat=lambda: None, every=60.0)
    yield writer
    assert writer.close(5)


def hold(writer: Writer[Store]) -> threading.Event:
    """Keep the writer busy until the answer is set, so that what follows comes as one group."""
    begun, go = threading.Event(), threading.Event()

    def command(_: Store) -> None:
        begun.set()
        go.wait(5)

    writer.submit(command)
    assert begun.wait(5)
    return go


def test_an_answer_comes_after_the_commit(writer: Writer[Store], store: Store) -> None:
    done = writer.submit(lambda s: s.put(1))
    assert done.result(5) == 1
    assert store.kept == [1]


def test_what_waits_is_committed_in_groups_of_at_most_a_hundred_and_in_order(
    writer: Writer[Store], store: Store
) -> None:
    go = hold(writer)
    futures = [writer.submit(lambda s, value=value: s.put(value)) for value in range(250)]
    go.set()
    assert [future.result(5) for future in futures] == list(range(250))
    assert store.kept == list(range(250))
    assert store.commits == [0, 100, 100, 50]


@pytest.mark.parametrize("error", [OutboxError("no", path="x"), ValueError("secret")])
def test_a_command_that_fails_does_not_take_the_others_with_it(
    writer: Writer[Store], store: Store, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Store) -> None:
        raise error

    go = hold(writer)
    first, bad, last = writer.submit(lambda s: s.put(1)), writer.submit(fail), writer.submit(lambda s: s.put(2))
    go.set()
    assert (first.result(5), last.result(5)) == (1, 2)
    assert bad.exception(5) is error
    assert store.kept == [1, 2]
    assert ("ValueError" in caplog.text) == isinstance(error, ValueError)
    assert "secret" not in caplog.text


def test_a_store_that_cannot_be_opened_is_tried_once_for_a_group_and_again_for_the_next() -> None:
    store = Store()
    tries: list[str | None] = ["at once", "first", "second", None]
    opened = []
    begun, go = threading.Semaphore(0), threading.Semaphore(0)

    def open_store() -> Store:
        opened.append(1)
        begun.release()
        assert go.acquire(timeout=5)
        error = tries.pop(0)
        if error is not None:
            raise OutboxError(error, path="x")
        return store

    writer = Writer(open_store, beat=lambda: None, every=60.0)
    assert begun.acquire(timeout=5)  # nobody has to ask for it
    first = writer.submit(lambda s: s.put(0))
    go.release()
    assert begun.acquire(timeout=5)
    futures = [writer.submit(lambda s, value=value: s.put(value)) for value in range(5)]
    go.release(2)
    assert str(first.exception(5)) == "first"
    assert {str(future.exception(5)) for future in futures} == {"second"}
    assert len(opened) == 3
    go.release()
    assert writer.submit(lambda s: s.put(6)).result(5) == 6
    assert writer.close(5)
    assert store.kept == [6]
    assert store.closed


def test_closing_does_what_is_queued_and_refuses_what_comes_later(store: Store) -> None:
    writer = Writer(lambda: store, beat=lambda: None, every=60.0)
    queued = [writer.submit(lambda s, value=value: s.put(value)) for value in range(5)]
    assert writer.close(5)
    assert [future.result(0) for future in queued] == list(range(5))
    assert store.closed
    assert isinstance(writer.submit(lambda s: s.put(9)).exception(5), OutboxError)
    assert store.kept == list(range(5))


def test_closing_waits_no_longer_than_it_may(store: Store) -> None:
    writer = Writer(lambda: store, beat=lambda: None, every=60.0)
    go = hold(writer)
    begun = time.monotonic()
    assert writer.close(0.1) is False
    assert time.monotonic() - begun < 1
    go.set()
    assert writer.close(5)


def test_the_heart_beats_while_nothing_is_written(store: Store) -> None:
    beats, go = threading.Semaphore(0), threading.Event()

    def open_store() -> Store:
        assert go.wait(5)
        return store

    writer = Writer(open_store, beat=beats.release, every=0.01)
    assert beats.acquire(timeout=0.1) is False  # not before the store is open
    go.set()
    for _ in range(3):
        assert beats.acquire(timeout=5)
    assert writer.close(5)


def test_many_threads_write_at_once(writer: Writer[Store], store: Store) -> None:
    def write(number: int) -> None:
        for value in range(50):
            writer.submit(lambda s, value=value: s.put((number, value))).result(5)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert [value for of, value in store.kept if of == number] == list(range(50))


STORM = """
import signal, time
from contextlib import contextmanager
from ld_deploy_hooks._waiting import wait
from ld_deploy_hooks._writer import Writer

class Box:
    is_gone = False
    @contextmanager
    def transaction(self):
        yield

class TooLate(Exception): pass
def alarm(number, frame): raise TooLate
signal.signal(signal.SIGALRM, alarm)

writer = Writer(Box, beat=lambda: None, every=60.0)
alarms, until = 0, time.monotonic() + 2
while time.monotonic() < until:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        while True:
            {does}
    except TooLate:
        alarms += 1
print(alarms > 100, writer.submit(lambda box: "still there").result(10))
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs SIGALRM")
@pytest.mark.parametrize("does", ["writer.submit(lambda box: None)", "wait(writer.submit(lambda box: None))"])
def test_what_signal_handlers_raise_leaves_it_at_work(
    run_python: Any, unmeasured_env: dict[str, str], does: str
) -> None:
    done = run_python(STORM.replace("{does}", does), env=unmeasured_env)
    assert (done.stdout, done.stderr) == ("True still there\n", "")
