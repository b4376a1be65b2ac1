"""Thinning the past out: what stays is what it was, space comes back, and nobody loses what they need."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from layerfs.store import Store
from layerfs.store.thinning import Rules
from tests.conftest import Layerfs, wait_until
from tests.system.test_past_diff import change, plain

pytestmark = pytest.mark.root
NAME = "agent"


@pytest.fixture
def mnt(layerfs: Layerfs, tmp_path: Path) -> Path:
    """A live mount of a small image."""
    tree, mnt = tmp_path / "tree", tmp_path / "mnt"
    (tree / "d/e").mkdir(parents=True)
    mnt.mkdir()
    for number in range(4):
        (tree / f"d/f{number}").write_text(f"{number}\n")
        (tree / f"d/e/g{number}").write_text(f"{number}")
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    return mnt


def used(layerfs: Layerfs) -> int:
    """Return the bytes below the layers of the store."""
    done = subprocess.run(["du", "-sb", layerfs.root / "layers"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def at(layerfs: Layerfs, mnt: Path, step: str) -> dict[str, tuple[object, ...]]:
    layerfs.ok("rollback", NAME, step)
    return plain(mnt)


def test_what_stays_is_what_it_was(layerfs: Layerfs, mnt: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    was = {}
    for _ in range(9):
        for _ in range(10):
            change(mnt, chance)
        was[layerfs.ok("checkpoint", NAME)] = plain(mnt)
    steps = list(was)
    change(mnt, chance)
    layerfs.ok("umount", NAME)
    assert layerfs.ok("squash", steps[0]) == steps[1]
    gone = layerfs.ok("keep", NAME, "--keep-last", "3").splitlines()[:-1]
    assert gone == steps[1:6]
    layerfs.ok("fsck", "--contents")
    assert layerfs.ok("log", "-n", "4", "--no-trunc", "--format", "{{.ID}}", NAME).split()[:3] == steps[:5:-1]
    assert f"the checkpoint {steps[0][:12]} was squashed: what it changed is in {steps[6][:12]} now" in (
        layerfs.refused("ls", steps[0])
    )
    layerfs.ok("mount", "--name", NAME, mnt)
    for step in steps[6:]:
        assert at(layerfs, mnt, step) == was[step], step
        assert {what[0] for what in plain(mnt).values()} == {what[0] for what in was[step].values()}
    layerfs.ok("rollback", NAME, steps[8])
    (mnt / "after").write_text("x")
    layerfs.ok("checkpoint", NAME)


def test_space_comes_back_and_files_keep_their_numbers_and_links(layerfs: Layerfs, mnt: Path) -> None:
    for number in range(6):
        (mnt / "big").unlink(missing_ok=True)
        (mnt / "big").write_bytes(os.urandom(1 << 20))
        (mnt / f"small{number}").write_text("x")
        os.link(mnt / f"small{number}", mnt / f"other{number}")
        layerfs.ok("checkpoint", NAME)
    numbers = {name: os.stat(mnt / name).st_ino for name in os.listdir(mnt) if name != "d"}
    layerfs.ok("umount", NAME)
    before = used(layerfs)
    told = layerfs.ok("keep", NAME, "--keep-last", "1").splitlines()
    assert told[-1] == "Total reclaimed space: 5.24MB"
    assert before - used(layerfs) > 5 << 20
    layerfs.ok("mount", "--name", NAME, mnt)
    assert {name: os.stat(mnt / name).st_ino for name in numbers} == numbers
    assert {os.stat(mnt / name).st_nlink for name in numbers if name != "big"} == {2}
    assert os.stat(mnt / "big").st_nlink == 1


def test_what_images_mounts_and_forks_need_stays(layerfs: Layerfs, mnt: Path, tmp_path: Path) -> None:
    steps = []
    for number in range(6):
        (mnt / "file").write_text(str(number))
        steps.append(layerfs.ok("checkpoint", NAME))
        if number == 1:
            layerfs.ok("commit", NAME, "app:1")
        if number == 3:
            (tmp_path / "fork").mkdir()
            layerfs.ok("fork", NAME, "other", tmp_path / "fork")
    assert "is in use" in layerfs.refused("keep", NAME, "--keep-last", "1")
    assert "is in use" in layerfs.refused("squash", steps[4])
    layerfs.ok("umount", NAME)
    assert "the image" in layerfs.refused("squash", steps[0])
    assert "no checkpoint stands on it" in layerfs.refused("squash", steps[5])
    assert "the mount other is in use" in layerfs.refused("squash", steps[3])
    inspected = layerfs.ok("inspect", "--format", "{{json .RootFS}}", "app:1")
    done = layerfs("keep", NAME, "--keep-last", "1")
    assert "2 checkpoints stay for now" in done.stderr
    assert done.stdout.splitlines()[:-1] == [steps[4]]
    layerfs.ok("umount", "other")
    assert layerfs.ok("keep", NAME, "--keep-last", "1").splitlines()[:-1] == steps[2:4]
    assert layerfs.ok("inspect", "--format", "{{json .RootFS}}", "app:1") == inspected
    assert layerfs.ok("cat", "other:/file") == "3"
    assert layerfs.ok("cat", f"{NAME}:/file") == "5"
    assert layerfs.ok("cat", "app:1:/file") == "1"


def test_what_was_given_up_is_thinned_out_too(layerfs: Layerfs, mnt: Path) -> None:
    steps = []
    for number in range(3):
        (mnt / "file").write_text(str(number))
        steps.append(layerfs.ok("checkpoint", NAME))
    layerfs.ok("rollback", NAME, steps[0])
    (mnt / "file").write_text("kept")
    last = layerfs.ok("checkpoint", NAME)
    layerfs.ok("umount", NAME)
    assert set(layerfs.ok("keep", NAME, "--keep-last", "1").splitlines()[:-1]) == set(steps)
    assert layerfs.ok("log", "--no-trunc", "--graph", NAME).count("*") == 2
    assert "was squashed or thinned out" in layerfs.refused("ls", steps[2])
    assert layerfs.ok("cat", f"{last}:/file") == "kept"


def test_a_kill_leaves_before_or_after(layerfs: Layerfs, mnt: Path) -> None:
    steps = []
    for number in range(4):
        (mnt / "d" / f"n{number}").write_text("x" * number)
        shutil.copytree(mnt / "d/e", mnt / f"copy{number}")
        steps.append(layerfs.ok("checkpoint", NAME))
    expected = plain(mnt)
    layerfs.ok("umount", NAME)
    for delay in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        process = subprocess.Popen(
            [*layerfs.words, "keep", NAME, "--keep-last", "1"],
            env=layerfs.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Store(layerfs.root) as store:
            store.recover()
            wait_until(lambda: not list(store.check(contents=True)))
        assert layerfs.ok("ls", f"{NAME}:/d").split()[-1] == "n3"
    layerfs.ok("keep", NAME, "--keep-last", "1")
    layerfs.ok("mount", "--name", NAME, mnt)
    assert plain(mnt) == expected


def test_which_are_wanted() -> None:
    minute, day = 60 * 10**9, 86_400 * 10**9
    start = 100 * day
    times = [start + number * 4 * minute for number in range(10)][::-1]
    assert Rules(last=2).wanted(times) == {0, 1}
    assert Rules(every=10 * minute).wanted(times) == {0, 2, 5, 7}
    days = [start + number * day // 2 for number in range(6)][::-1]
    assert Rules(daily=2).wanted(days) == {0, 2}
    assert Rules(daily=1, last=3).wanted(days) == {0, 1, 2}


def test_wrong_rules_are_refused(layerfs: Layerfs, mnt: Path) -> None:
    layerfs.ok("umount", NAME)
    assert "say what is to be kept" in layerfs.refused("keep", NAME)
    assert "invalid span" in layerfs.refused("keep", NAME, "--every", "soon")
    assert "from 1 to" in layerfs.refused("keep", NAME, "--keep-last", "0")
    assert "called nothing" in layerfs.refused("squash", "nothing")
