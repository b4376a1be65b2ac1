"""What programs were promised holds after a power cut at any moment, on ext4 and XFS.

In the suite this takes well under a minute. LAYERFS_CUTS=5000 cuts the power that often. With
LAYERFS_CUTS_SEED=7 the first seed is 7: the programs make the same choices again, at nearly the same moments.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.promises.world import Contents

CUTS = int(os.environ.get("LAYERFS_CUTS", "0"))
SEED = int(os.environ.get("LAYERFS_CUTS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SECONDS = 5.0
_STACKS = [(rig, disk) for rig in ("store", "dirs") for disk in ("ext4", "xfs")]
_CHECKOUT = Path(__file__).parents[2]

needs_root = pytest.mark.root
long = pytest.mark.timeout(0 if CUTS else 120)


def cut(room: Path, *arguments: str) -> tuple[int, str]:
    """Cut the power, in a process with mounts of its own; return its exit status and what it found."""
    room.mkdir()
    command = [sys.executable, "-m", "tests.system.promises.cuts", str(room), *arguments]
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_root
@long
@pytest.mark.parametrize(("rig", "disk"), _STACKS)
def test_no_promise_is_broken(tmp_path: Path, rig: str, disk: str) -> None:
    runners = (os.cpu_count() or 1) if CUTS else 1
    share = CUTS // len(_STACKS) // runners + 1
    bound = ["--cuts", str(share)] if CUTS else ["--seconds", str(SECONDS)]

    def run(number: int) -> tuple[int, str]:
        seed = SEED + number * share
        return cut(tmp_path / f"{number}", "--rig", rig, "--disk", disk, "--seed", str(seed), *bound)

    with ThreadPoolExecutor(runners) as pool:
        for status, text in pool.map(run, range(runners)):
            print(text)
            assert status == 0


@needs_root
@pytest.mark.parametrize("disk", ["ext4", "xfs"])
def test_a_filesystem_alone_breaks_no_promise_by_this_measure(tmp_path: Path, disk: str) -> None:
    status, text = cut(
        tmp_path / "room", "--rig", "plain", "--disk", disk, "--seed", str(SEED), "--cuts", "4"
    )
    assert status == 0, text


@needs_root
def test_programs_that_forget_to_sync_are_found_out(tmp_path: Path) -> None:
    words = ("--rig", "plain", "--forgetful", "--stop", "--seed", str(SEED), "--seconds", "20")
    status, text = cut(tmp_path / "room", *words)
    assert status == 1
    assert "1 with broken promises" in text


@needs_root
def test_copy_ups_that_wait_for_no_disk_are_found_out(tmp_path: Path) -> None:
    words = ("--rig", "dirs", "--option=-ovolatile", "--stop", "--seed", str(SEED), "--seconds", "40")
    status, text = cut(tmp_path / "room", *words)
    assert status == 1
    assert "1 with broken promises" in text


def test_what_was_synced_must_be_there_and_what_came_later_may_be() -> None:
    contents = Contents(b"old" * 1000)
    contents.write(3, b"NEW")
    assert contents.objection(b"old" * 1000) is None
    assert contents.objection(b"oldNEW" + b"old" * 998) is None
    assert (
        contents.objection(b"oldNEX" + b"old" * 998) == "has bytes that nobody wrote there at byte 5 of 3000"
    )
    contents.promise()
    assert contents.objection(b"old" * 1000) is not None
    assert contents.objection(b"oldNEW" + b"old" * 998) is None


def test_zeros_may_be_seen_only_where_nothing_was_promised() -> None:
    contents = Contents(b"x" * 1000)
    contents.write(2000, b"y" * 1000)
    assert contents.objection(b"x" * 1000 + bytes(2000)) is None
    assert contents.objection(b"x" * 1000 + bytes(500)) is None
    assert contents.objection(bytes(1000)) == "has zeros at byte 0 of 1000"
    assert contents.objection(b"x" * 999) == "has 999 bytes instead of 1000 to 3000"


def test_a_truncate_that_was_not_synced_may_have_happened() -> None:
    contents = Contents(b"x" * 1000)
    contents.truncate(10)
    contents.write(20, b"y")
    assert contents.objection(b"x" * 10) is None
    assert contents.objection(b"x" * 10 + bytes(10) + b"y") is None
    assert contents.objection(b"x" * 5 + bytes(10) + b"y") is not None


def test_a_write_that_was_synced_alone_promises_its_own_bytes() -> None:
    contents = Contents(b"x" * 1000)
    contents.write(0, b"y" * 100)
    contents.write(50, b"z" * 10)
    contents.promise_part(50, 60)
    assert contents.objection(b"x" * 50 + b"z" * 10 + b"x" * 940) is None
    assert contents.objection(b"y" * 50 + b"z" * 10 + b"y" * 40 + b"x" * 900) is None
    assert contents.objection(b"y" * 100 + b"x" * 900) is not None
