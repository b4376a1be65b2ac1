"""A mount that cannot be finished leaves nothing mounted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Layerfs, mounts_below

pytestmark = pytest.mark.root

_MOUNT = """
import sys
from layerfs.fuse import session
from layerfs.host import mountcalls, mounttable
import os, pyfuse3

{trouble}
place = mounttable.Place(sys.argv[1])
try:
    session.mount(pyfuse3.Operations(), place, "source", frozenset())
except Exception as error:
    print(type(error).__name__, error)
"""
_IDENTIFY_FAILS = """
identify, calls = mountcalls.identify, []
def failing(path, **more):
    calls.append(path)
    if len(calls) == 2:
        raise PermissionError(13, "Permission denied")
    return identify(path, **more)
mountcalls.identify = failing
"""
_MOVED_MEANWHILE = """
init = pyfuse3.init
def moving(*arguments):
    os.rename(sys.argv[1], sys.argv[1] + "-moved")
    os.mkdir(sys.argv[1])
    init(*arguments)
pyfuse3.init = moving
"""


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (_IDENTIFY_FAILS, "Forbidden cannot mount at {}: Permission denied"),
        (_MOVED_MEANWHILE, "Conflict {} was moved while it was mounted on: try again"),
    ],
    ids=["nobody knows what is there", "the mountpoint was moved"],
)
def test_nothing_is_left_of_a_mount_that_was_made_and_failed(
    layerfs: Layerfs, trouble: str, message: str
) -> None:
    mnt = layerfs.directory / "mnt"
    mnt.mkdir()
    said = mount(layerfs, mnt, trouble)
    assert said == message.format(mnt)
    assert mounts_below(layerfs.directory) == []


def mount(layerfs: Layerfs, mnt: Path, trouble: str) -> str:
    """Mount at *mnt*, after *trouble* has been prepared; return what was said."""
    program = _MOUNT.format(trouble=trouble)
    done = subprocess.run(
        [sys.executable, "-c", program, mnt],
        env=layerfs.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()
