"""The record of a container that runs, its lock, its log, and what runtimes say when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.container import ending, logs
from layerfs.container.ociruntime import failure, installed
from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.host.record import Lock, Record, Watch, born, directory, look
from layerfs.store import Store
from layerfs.store.model import Image

ID = "f" * 64


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory of the test's own."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_and_its_end(sleeper: subprocess.Popen[bytes]) -> None:
    record = Record(sleeper.pid, born(sleeper.pid) or 0, "runc")
    assert record.alive()
    assert not record.wait(0.01)
    assert record.signal(signal.SIGTERM)
    assert record.wait(5)
    assert not record.alive()  # although it is not reaped yet
    assert not record.signal(signal.SIGTERM)
    sleeper.wait()
    assert record.wait(0)


def test_another_process_with_the_same_pid(sleeper: subprocess.Popen[bytes]) -> None:
    record = Record(sleeper.pid, (born(sleeper.pid) or 0) - 1, "runc")
    assert not record.alive()
    assert not record.signal(signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_signal_waits_for_a_start_that_is_going_on(
    sleeper: subprocess.Popen[bytes], store: Store, base: Image
) -> None:
    """A container may write, and somebody may answer by a signal, before its record is there."""
    mount = store.create_mount("box", image=base)
    with ThreadPoolExecutor() as threads:
        with Lock(mount.id) as lock:
            sent = threads.submit(ending.send, mount, signal.SIGTERM)
            time.sleep(0.1)
            assert not sent.done()
            lock.write(Record(sleeper.pid, born(sleeper.pid) or 0, "runc"))
        assert sent.result(10)
    assert sleeper.wait(10) == -signal.SIGTERM


def test_the_lock() -> None:
    assert look(ID) is None
    with Lock(ID) as lock:
        assert lock.read() is None
        assert lock.is_empty()
        with pytest.raises(Conflict, match="another process is starting or stopping"):
            Lock(ID, patience=0.03)
        lock.write(Record(1, 2, "a longer name of a runtime"))
        lock.write(Record(1, 2, "runc"))
        assert look(ID) == lock.read() == Record(1, 2, "runc")
    with Lock(ID) as lock:
        assert lock.read() == Record(1, 2, "runc")


def test_the_last_word_outlives_the_directory() -> None:
    with Lock(ID) as lock, Watch(ID) as watch:
        (lock.path / "config.json").touch()
        (lock.path / "rootfs").mkdir()
        assert not lock.is_empty()
        lock.write(Record(1, 2, "runc", 137))
        lock.discard()
        assert not directory(ID).exists()
        record = watch.read()
        assert record is not None
        assert record.exit_code == 137
        with Lock(ID, patience=0) as another:  # of a directory that has been made anew
            assert another.read() is None


def test_nothing_goes_while_something_is_mounted() -> None:
    with Lock(ID) as lock:
        (lock.path / "rootfs").mkdir()
        (lock.path / "rootfs/file").touch()  # as a mount that is still there would show
        (lock.path / "config.json").touch()
        with pytest.raises(OSError):
            lock.discard()
        assert (lock.path / "rootfs/file").exists()
        assert (lock.path / "config.json").exists()


def test_a_damaged_record() -> None:
    with Lock(ID):
        for content in (b"", b"{", b"[]", b'{"pid": 1}', b"\xff"):
            (directory(ID) / "record").write_bytes(content)
            assert look(ID) is None


def test_logs(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert list(logs.read(path)) == []
    path.write_bytes(
        b"T1 stdout F one\nT2 stderr F two\nT3 stdout P thr\nT4 stdout F ee\n"
        b"nonsense\nT5 stdout F  a b \nT6 std"
    )
    pieces = [(piece.time, piece.stream, piece.text) for piece in logs.read(path) if piece]
    assert pieces == [
        (b"T1", b"stdout", b"one\n"),
        (b"T2", b"stderr", b"two\n"),
        (b"T3", b"stdout", b"thr"),
        (b"T4", b"stdout", b"ee\n"),
        (b"T5", b"stdout", b" a b \n"),
    ]
    assert [piece.time for piece in logs.read(path, tail=2) if piece] == [b"T4", b"T5"]
    assert list(logs.read(path, tail=0)) == []


def test_a_log_that_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"T1 stdout F one\nT2 std")
    parts = [b"err F two\n", b"", b"T3 stdout P three\n"]

    def goes_on() -> bool:
        if not parts:
            return False
        with path.open("ab") as file:
            file.write(parts.pop(0))
        return True

    assert [piece.text for piece in logs.read(path, goes_on=goes_on) if piece] == [
        b"one\n",
        b"two\n",
        b"three",
    ]


def test_a_directory_that_goes_while_others_want_its_lock() -> None:
    end = time.monotonic() + 1

    def take_and_discard() -> int:
        taken = 0
        while time.monotonic() < end:
            with Lock(ID) as lock:
                lock.discard()
                taken += 1
        return taken

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(take_and_discard) for _ in range(4)]
    assert all(one.result() > 0 for one in found)
    assert not directory(ID).exists()


@pytest.mark.parametrize(
    ("said", "text", "code"),
    [
        (
            'time="2026-01-01T00:00:00Z" level=error msg="runc create failed: exec: \\"x\\": '
            'executable file not found in $PATH"\n',
            'runc create failed: exec: "x": executable file not found in $PATH',
            127,
        ),
        ('exec: "/x": stat /x: no such file or directory', None, 127),
        ("executable file `x` not found in $PATH: No such file or directory", None, 127),
        ('exec: "/etc/passwd": permission denied', None, 126),
        ('exec: "/etc": is a directory', None, 126),
        ("mount /a to /b: no such file or directory", None, 125),
        ("first\ncgroups: cannot enter\n\n", "cgroups: cannot enter", 125),
        ("", "the OCI runtime failed without a word", 125),
    ],
)
def test_what_runtimes_say(said: str, text: str | None, code: int) -> None:
    error = failure(said)
    assert (str(error), error.exit_code) == (text or said, code)
    assert error.is_about_the_command == (code != 125)


def test_the_choice_of_a_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crun", "runc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LAYERFS_RUNTIME", raising=False)
    assert [found.path for found in installed()] == [str(tmp_path / "runc"), str(tmp_path / "crun")]
    monkeypatch.setenv("LAYERFS_RUNTIME", "crun")
    assert [found.path for found in installed()] == [str(tmp_path / "crun")]
    monkeypatch.setenv("LAYERFS_RUNTIME", "/no/such")
    with pytest.raises(NotFound, match="LAYERFS_RUNTIME is /no/such"):
        installed()
    monkeypatch.delenv("LAYERFS_RUNTIME")
    monkeypatch.setattr("layerfs.container.ociruntime._SYSTEM", "")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(NotFound, match="install the package runc or crun"):
        installed()


def test_a_process_that_never_was() -> None:
    assert born(2**22 + 1) is None
    assert born(os.getpid()) is not None


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "/etc", "../x"])
def test_what_is_no_id_has_no_directory(id: str) -> None:
    with pytest.raises(BadRequest, match="give the full id"):
        directory(id)
