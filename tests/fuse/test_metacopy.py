"""Metadata alone is copied up where that form is asked for; the kernel reads it, and the other way round."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, detach

pytestmark = pytest.mark.root

SIZE = 3_000_000
ON = ("-o", "metacopy=on")


@pytest.fixture
def big(stack: Stack) -> Stack:
    """A stack with a file in its lowest layer, in a directory."""
    (stack.bottom / "d").mkdir()
    (stack.bottom / "d/big").write_bytes(b"0123456789" * (SIZE // 10))
    os.utime(stack.bottom / "d/big", ns=(1, 1_500_000_000_000_000_001))
    return stack


@contextmanager
def kernel(stack: Stack) -> Iterator[Path]:
    """Mount what layerfs left under the kernel's overlayfs, with metacopy=on."""
    mnt, work = stack.directory / "kernel", stack.directory / "kernel-work"
    mnt.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    options = f"lowerdir={stack.top}:{stack.bottom},upperdir={stack.upper},workdir={work},metacopy=on"
    assert os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "overlay", "overlay", "-o", options, str(mnt)) == 0
    try:
        yield mnt
    finally:
        detach(mnt)


def is_metacopy(path: Path) -> bool:
    return "trusted.overlay.metacopy" in os.listxattr(path)


def test_metadata_changes_copy_no_contents(big: Stack) -> None:
    mnt = big.mount(*ON)
    file = mnt / "d/big"
    before = file.stat()
    file.chmod(0o600)
    os.chown(file, 7, 8)
    os.setxattr(file, "user.note", b"1")
    os.utime(file, ns=(2, 1_600_000_000_000_000_001))
    upper = big.upper / "d/big"
    assert is_metacopy(upper)
    assert upper.stat().st_blocks * 512 < SIZE / 10
    st = file.stat()
    assert (st.st_size, st.st_ino, st.st_blocks) == (SIZE, before.st_ino, before.st_blocks)
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_mtime_ns) == (0o600, 7, 1_600_000_000_000_000_001)
    assert file.read_bytes() == (big.bottom / "d/big").read_bytes()
    assert "trusted.overlay.metacopy" not in os.listxattr(file)
    big.remount()
    assert file.stat().st_ino == before.st_ino
    assert file.read_bytes() == (big.bottom / "d/big").read_bytes()


def test_the_first_write_fills_it_in(big: Stack) -> None:
    mnt = big.mount(*ON)
    file = mnt / "d/big"
    with file.open("rb") as opened_before:
        file.chmod(0o640)
        with file.open("r+b") as writer:
            writer.write(b"NEW")
        assert opened_before.read(5) == b"NEW34"
    assert not is_metacopy(big.upper / "d/big")
    assert (big.upper / "d/big").read_bytes() == b"NEW" + (big.bottom / "d/big").read_bytes()[3:]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_truncate_after_chmod(big: Stack) -> None:
    mnt = big.mount(*ON)
    (mnt / "d/big").chmod(0o640)
    os.truncate(mnt / "d/big", 5)
    assert (mnt / "d/big").read_bytes() == b"01234"
    big.remount()
    assert (mnt / "d/big").read_bytes() == b"01234"


def test_renamed_and_linked(big: Stack) -> None:
    mnt = big.mount(*ON)
    wanted = (big.bottom / "d/big").read_bytes()
    (mnt / "d/big").chmod(0o640)
    (mnt / "d/big").rename(mnt / "moved")
    os.link(mnt / "moved", mnt / "d/also")
    assert os.getxattr(big.upper / "moved", "trusted.overlay.redirect") == b"/d/big"
    (mnt / "d").rename(mnt / "e")
    big.remount()
    assert (mnt / "moved").read_bytes() == (mnt / "e/also").read_bytes() == wanted
    assert (mnt / "moved").stat().st_nlink == 2
    big.umount()
    with kernel(big) as merged:
        assert (merged / "moved").read_bytes() == (merged / "e/also").read_bytes() == wanted
        assert stat.S_IMODE((merged / "moved").stat().st_mode) == 0o640


def test_over_several_commits(big: Stack) -> None:
    mnt = big.mount(*ON)
    wanted = (big.bottom / "d/big").read_bytes()
    for mode in (0o600, 0o640, 0o644):
        (mnt / "d/big").chmod(mode)
        (mnt / "d/big").rename(mnt / f"d/{mode}")
        (mnt / f"d/{mode}").rename(mnt / "d/big")
        big.commit()
        assert (mnt / "d/big").read_bytes() == wanted
    big.remount()
    assert (mnt / "d/big").read_bytes() == wanted
    with (mnt / "d/big").open("ab") as end:
        end.write(b"!")
    assert (mnt / "d/big").read_bytes() == wanted + b"!"


def test_what_the_kernel_wrote(big: Stack) -> None:
    with kernel(big) as merged:
        (merged / "d/big").chmod(0o604)
        (merged / "d/big").rename(merged / "kernels")
    assert is_metacopy(big.upper / "kernels")
    mnt = big.mount()
    assert (mnt / "kernels").read_bytes() == (big.bottom / "d/big").read_bytes()
    assert stat.S_IMODE((mnt / "kernels").stat().st_mode) == 0o604


def test_what_the_kernel_renamed_in_its_directory_may_move_on(big: Stack) -> None:
    with kernel(big) as merged:
        (merged / "d/big").chmod(0o604)
        (merged / "d/big").rename(merged / "d/near")  # the kernel notes the name alone
    wanted = (big.bottom / "d/big").read_bytes()
    mnt = big.mount(*ON)
    os.link(mnt / "d/near", mnt / "linked")
    (mnt / "d/near").rename(mnt / "far")
    big.remount()
    assert (mnt / "linked").read_bytes() == (mnt / "far").read_bytes() == wanted


def test_off_unless_asked_for(big: Stack) -> None:
    mnt = big.mount()
    (mnt / "d/big").chmod(0o600)
    assert not is_metacopy(big.upper / "d/big")
    assert (big.upper / "d/big").read_bytes() == (big.bottom / "d/big").read_bytes()


def test_contents_that_are_missing_are_an_error(big: Stack, layerfs: Layerfs) -> None:
    (big.top / "lost").write_bytes(b"\0" * 100)
    os.setxattr(big.top / "lost", "trusted.overlay.metacopy", b"")
    (big.top / "outside").write_bytes(b"\0" * 100)
    os.setxattr(big.top / "outside", "trusted.overlay.metacopy", b"")
    os.setxattr(big.top / "outside", "trusted.overlay.redirect", b"/../../etc/passwd")
    mnt = big.mount()
    for name in ("lost", "outside"):
        with pytest.raises(OSError, match=r"Input/output error|Invalid argument"):
            (mnt / name).read_bytes()
    assert (mnt / "d/big").stat().st_size == SIZE
