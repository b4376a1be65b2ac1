"""fsync waits for the store: until it is on its disk, or until the disk has said no."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from layerfs.fuse.lost import PlainLost
from layerfs.fuse.syncing import StoreSync
from tests.conftest import errno_of


class Disk:
    """What the store is brought to: it may fail, and be slow."""

    def __init__(self) -> None:
        self.fails = False
        self.writes = 0
        self.free = threading.Event()
        self.free.set()

    def write(self) -> None:
        """Bring the store to the disk."""
        assert self.free.wait(10)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.writes += 1


async def refusal(store: StoreSync) -> int | None:
    """Wait for *store*; return the errno of what that raises."""
    try:
        await store.wait()
    except OSError as error:
        return error.errno
    return None


async def test_there_is_nothing_to_wait_for_at_first() -> None:
    store = StoreSync()
    assert store.is_done
    await store.wait()


async def test_a_change_is_brought_to_the_disk_without_being_waited_for() -> None:
    disk = Disk()
    store = StoreSync(disk.write)
    store.changed()
    with trio.fail_after(10):
        for _ in range(10_000):
            if disk.writes:
                break
            await trio.sleep(0.001)
    assert disk.writes == 1
    await store.wait()
    assert disk.writes == 1


async def test_a_wait_ends_when_what_came_before_it_is_on_disk() -> None:
    disk = Disk()
    store = StoreSync(disk.write)
    disk.free.clear()
    store.changed()
    await trio.testing.wait_all_tasks_blocked(0.02)  # the first write is under way
    store.changed()  # and does not cover this
    disk.free.set()
    await store.wait()
    assert store.is_done
    assert disk.writes == 2


async def test_a_failure_is_told_to_everybody_who_waits_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    store = StoreSync(disk.write)
    disk.fails = True
    store.changed()
    answers: list[int | None] = []

    async def ask() -> None:
        answers.append(await refusal(store))

    with caplog.at_level(logging.INFO):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        answers.append(await refusal(store))  # tried again
    assert answers == [errno.EIO] * 4
    assert not store.is_done
    (line,) = caplog.messages
    assert "cannot be written to its disk, so fsync fails with EIO: [Errno 5]" in line


async def test_a_later_success_heals_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    store = StoreSync(disk.write)
    disk.fails = True
    store.changed()
    assert await refusal(store) == errno.EIO
    disk.fails = False
    with caplog.at_level(logging.INFO):
        assert await refusal(store) is None
    assert store.is_done
    assert caplog.messages[-1] == "the store is on its disk again"


def test_a_failure_that_the_system_tells_another_thread_is_everybodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both share an open file, so only one of two syncs that run at once is told."""
    both = threading.Barrier(2)
    told = threading.Lock()

    def fsync(fd: int) -> None:
        both.wait(10)
        if told.acquire(blocking=False):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    lost, answers = PlainLost(), list[int]()
    with (tmp_path / "file").open("wb") as file:
        monkeypatch.setattr(os, "fsync", fsync)
        threads = [
            threading.Thread(target=lambda: answers.append(errno_of(lambda: lost.sync(file.fileno(), False))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert answers == [errno.EIO] * 2
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        assert errno_of(lambda: lost.sync(file.fileno(), False)) == errno.EIO
        lost.forgive(file.fileno())
        lost.sync(file.fileno(), False)
    assert not lost.has_lost()
