"""What an engine hands on to the daemon of a mount, while that, the engine or a client comes or goes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.store import Store
from tests.conftest import Layerfs, wait_until
from tests.system.apirequests import Answer, Api, engine

pytestmark = pytest.mark.root


class Place:
    """An engine, and mounts of an image that it has made."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        tree = layerfs.directory / "tree"
        tree.mkdir()
        layerfs.ok("import", tree, "base:1")
        self.api: Api = engine(layerfs)

    def mount(self, name: str) -> Path:
        """Mount the image; return where."""
        place = self.layerfs.directory / name
        place.mkdir(exist_ok=True)
        self.layerfs.ok("mount", "--image", "base:1", "--name", name, place)
        return place

    def commit(self, name: str, tag: str) -> Answer:
        return self.api.ask("POST", "/v1.41/commit", container=name, repo="made", tag=tag)

    def files(self, reference: str) -> set[str]:
        """Return the names in an image, of which no layer removes any."""
        with Store(self.layerfs.root) as store:
            layers = store.layers_of(store.resolve(reference))
        return {name for layer in layers for name in os.listdir(layer.path)}

    def no_engine_runs(self) -> bool:
        """Return whether nobody holds the engine's lock: a killed process may take a moment to end."""
        with (self.layerfs.run / "engine.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    @property
    def engine_pid(self) -> int:
        return int((self.layerfs.run / "engine.lock").read_text().split()[0])


@pytest.fixture
def place(layerfs: Layerfs) -> Place:
    """An engine and an image."""
    return Place(layerfs)


def test_two_commits_at_once_are_both_done(place: Place) -> None:
    there = place.mount("m")
    for number in range(5):
        (there / f"{number}").write_text("x")
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda tag: place.commit("m", tag), (f"a{number}", f"b{number}")))
        assert [answer.status for answer in answers] == [201, 201]
        for tag in (f"a{number}", f"b{number}"):
            assert place.files(f"made:{tag}") == {f"{one}" for one in range(number + 1)}


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.005, 0.01, 0.02])
def test_a_commit_while_the_mount_is_unmounted_is_whole_or_refused(place: Place, delay: float) -> None:
    there = place.mount("m")
    (there / "file").write_text("x")
    with ThreadPoolExecutor(2) as pool:
        unmounted = pool.submit(place.api.ask, "POST", "/layerfs/unmount", name="m")
        time.sleep(delay)
        answer = place.commit("m", "1")
        assert unmounted.result().status in (204, 409)  # a commit may have the mount open
    if answer.status == 201:
        assert place.files("made:1") == {"file"}
    else:
        assert answer.status == 409
        assert "\n" not in answer.message().rstrip()
        again = place.commit("m", "1")  # of a mount at rest, or of one that stayed mounted
        assert again.status == 201
        assert place.files("made:1") == {"file"}


def test_a_daemon_killed_during_a_commit_is_told_of_and_the_engine_goes_on(place: Place) -> None:
    there = place.mount("m")
    other = place.mount("n")
    pid = place.layerfs.pid("m")
    with (there / "large").open("wb") as file:
        file.write(bytes(64 << 20))  # which takes the commit a while to collect
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.commit, "m", "1")
        time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert answer.result().status in (201, 409)
    (other / "file").write_text("x")
    assert place.commit("n", "2").status == 201
    refused = place.commit("m", "3")
    assert (refused.status, "is not running" in refused.message()) == (409, True)


def test_a_stopped_daemon_is_not_waited_for(place: Place) -> None:
    place.mount("m")
    pid = place.layerfs.pid("m")
    os.kill(pid, signal.SIGSTOP)
    try:
        refused = place.commit("m", "1")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (refused.status, f"kill -CONT {pid}" in refused.message()) == (409, True)


def test_an_engine_killed_during_a_commit_leaves_the_old_state_or_the_new(place: Place) -> None:
    there = place.mount("m")
    for number in range(4):
        (there / f"{number}").write_bytes(bytes(1 << 20))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(place.commit, "m", f"{number}")
            time.sleep(0.002 * number)
            os.kill(place.engine_pid, signal.SIGKILL)
            if answer.exception() is None:
                assert answer.result().status == 201
        wait_until(place.no_engine_runs)
        place.api = engine(place.layerfs)
        made = place.commit("m", f"after{number}")
        assert made.status == 201
        assert place.files(f"made:after{number}") == {f"{one}" for one in range(number + 1)}


def test_a_mount_that_is_mounted_again_or_renamed_is_found(place: Place) -> None:
    there = place.mount("m")
    (there / "one").write_text("x")
    assert place.commit("m", "1").status == 201
    place.layerfs.ok("umount", "m")
    (there / "shadow").mkdir()
    place.layerfs.ok("mount", "--name", "m", there)
    (there / "two").write_text("x")
    assert place.commit("m", "2").status == 201
    place.layerfs.ok("rename", "m", "n")
    (there / "three").write_text("x")
    assert place.commit("n", "3").status == 201
    assert place.commit("m", "4").status == 404
    assert place.files("made:3") == {"one", "two", "three"}


def test_nothing_stays_open_for_a_mount(place: Place) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{place.engine_pid}/fd"))

    names = [f"m{number}" for number in range(4)]
    for name in names:
        place.mount(name)
    assert place.commit(names[0], "1").status == 201
    before = descriptors()
    for name in names:
        assert place.commit(name, f"of-{name}").status == 201
    wait_until(lambda: descriptors() <= before)


def test_the_store_may_be_another_one_since(place: Place) -> None:
    place.mount("m")
    assert place.commit("m", "1").status == 201
    place.layerfs.ok("umount", "m")
    store = place.layerfs.root
    store.rename(store.with_name("old"))
    try:
        assert place.commit("m", "2").status == 404
    finally:
        subprocess.run(["rm", "-rf", store], check=True)
        store.with_name("old").rename(store)
    assert place.commit("m", "3").status == 201
