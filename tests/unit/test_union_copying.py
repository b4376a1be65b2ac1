"""Copies are whole or none: what cannot be read never becomes part of one as zeros, or as an end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.union.copying import copy_data
from layerfs.union.reading import read_at
from tests.conftest import errno_of

LENGTHS = [100, 4096, 4097, 300_000]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Descriptors on a source and a target, both empty."""
    source, target = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("source", "target"))
    yield source, target
    os.close(source)
    os.close(target)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_copy_has_the_length_that_was_asked_for(files: tuple[int, int], length: int) -> None:
    source, target = files
    data = os.urandom(300_000)
    os.pwrite(source, data, 0)
    copy_data(source, target, length)
    assert os.pread(target, 400_000, 0) == data[:length]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("there", [0, 50, 4000])
def test_a_source_that_has_become_shorter_is_an_error(
    files: tuple[int, int], length: int, there: int
) -> None:
    source, target = files
    os.pwrite(source, b"x" * there, 0)
    expected = 0 if there >= length else errno.EIO
    assert errno_of(lambda: copy_data(source, target, length)) == expected


def test_a_source_that_ends_in_a_hole_is_copied_with_it(files: tuple[int, int]) -> None:
    source, target = files
    os.pwrite(source, b"data", 1 << 20)
    os.ftruncate(source, 8 << 20)
    copy_data(source, target, 8 << 20)
    assert os.fstat(target).st_size == 8 << 20
    assert os.pread(target, 8, (1 << 20) - 2) == b"\0\0data\0\0"
    assert os.fstat(target).st_blocks * 512 < 2 << 20


def test_reading_ends_where_the_file_does(files: tuple[int, int]) -> None:
    source, _ = files
    os.pwrite(source, b"content", 0)
    assert read_at(source, 3, 2) == b"nte"
    assert read_at(source, 100, 2) == b"ntent"
    assert read_at(source, 100, 7) == read_at(source, 100, 70) == b""


def test_nothing_to_read_of_a_file_that_should_have_more_is_an_error() -> None:
    """Files of /sys say 4096 bytes and have fewer: a medium that ends early looks like that."""
    fd = os.open("/sys/kernel/uevent_seqnum", os.O_RDONLY)
    try:
        assert os.fstat(fd).st_size == 4096
        assert errno_of(lambda: read_at(fd, 4096, 0)) == errno.EIO
    finally:
        os.close(fd)
