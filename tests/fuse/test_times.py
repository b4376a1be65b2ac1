"""Modification times: what the mount shows is what is on disk, also where the kernel writes late."""

from __future__ import annotations

import os

import pytest

from tests.conftest import Stack

pytestmark = pytest.mark.root


def test_new_files_have_the_same_time_after_a_remount(stack: Stack) -> None:
    mnt = stack.mount()
    for number in range(200):
        (mnt / f"f{number}").write_text("new")
    before = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(mnt)}
    stack.remount()
    after = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(mnt)}
    assert before == after


def test_a_time_that_was_set_survives_the_writes_before_it(stack: Stack) -> None:
    (stack.bottom / "lower").write_text("old")
    mnt = stack.mount()
    for name in ("lower", "new"):
        with (mnt / name).open("a") as file:
            file.write("text")
            file.flush()
            os.utime(file.fileno(), ns=(1, 1_234_567_890_123_456_789))
    stack.remount()
    assert {entry.stat().st_mtime_ns for entry in os.scandir(mnt)} == {1_234_567_890_123_456_789}


def test_a_write_after_a_set_time_counts(stack: Stack) -> None:
    mnt = stack.mount()
    with (mnt / "new").open("w") as file:
        os.utime(file.fileno(), ns=(1, 1_234_567_890_123_456_789))
        file.write("text")
    shown = (mnt / "new").stat().st_mtime_ns
    assert shown > 1_700_000_000_000_000_000
    stack.remount()
    assert (mnt / "new").stat().st_mtime_ns == shown


def test_a_commit_takes_the_time_that_is_shown(stack: Stack) -> None:
    mnt = stack.mount()
    with (mnt / "new").open("w") as file:
        file.write("text")
        file.flush()
        stack.commit()
        shown = (mnt / "new").stat().st_mtime_ns
    stack.remount()
    assert (mnt / "new").stat().st_mtime_ns == shown
