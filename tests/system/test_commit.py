"""Commits of a mount in use: what is in the layer, and who notices."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.mounting.find import mount_of
from layerfs.mounting.mount import Checkpoint
from layerfs.store import Store
from tests.conftest import Layerfs, Stack, wait_until

pytestmark = pytest.mark.root
NAME = "base-container"


class Live:
    """A mounted image, and more mounts of what is committed from it."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        tree = layerfs.directory / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/passwd").write_text("root\n")
        (tree / "file").write_bytes(b"old")
        (tree / "gone").write_text("to be removed")
        self.mnt = layerfs.directory / "mnt"
        self.mnt.mkdir()
        layerfs.ok("import", tree, "base")
        layerfs.ok("mount", "--image", "base", "--name", NAME, self.mnt)
        self._views = 0

    def commit(self, reference: str) -> None:
        """Commit through the control socket."""
        target = f"/commit?container={NAME}&repo={reference}&comment=as+{reference}"
        status, answer = self.layerfs.ask(NAME, "POST", target)
        assert status == 201, answer

    def view(self, reference: str) -> Path:
        """Mount an image and return where."""
        self._views += 1
        path = self.layerfs.directory / f"view-{self._views}"
        path.mkdir()
        self.layerfs.ok("mount", "--image", reference, "--read-only", path)
        return path

    def diff(self) -> list[str]:
        """Return the lines of the diff."""
        return self.layerfs.ok("diff", NAME).splitlines()


def test_a_command_of_a_build_waits_for_no_disk(layerfs: Layerfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fsync is answered by the kernel, once the daemon has said that it has none."""
    monkeypatch.setenv("LAYERFS_RUN", str(layerfs.run))
    tree, place = layerfs.directory / "tree", layerfs.directory / "mnt"
    tree.mkdir()
    place.mkdir()
    layerfs.ok("import", tree, "base")
    with Store(layerfs.root) as store, store.building() as build:
        row = store.create_mount("run", image=None, step=store.steps.step_of(store.resolve("base")))
        layerfs.ok("mount", "--name", "run", place)
        for number in range(20):
            with (place / f"file-{number}").open("w") as file:
                file.write(str(number))
                file.flush()
                os.fsync(file.fileno())
                os.fdatasync(file.fileno())
        mount = mount_of(store, row)
        counts = mount.status()["Requests"]
        assert counts.get("fsync", 0) <= 1
        step = mount.checkpoint(Checkpoint(build=build.id))
        top = store.steps.layers_of_step(step)[-1].path
        assert {path.read_text() for path in top.iterdir()} == {str(number) for number in range(20)}
        assert mount.status()["LayersToSettle"] == 1
        layerfs.ok("umount", "run")
        layerfs.ok("rm", "run")
        image = store.steps.make_image(step, {}, references=["made"])
    layer = image.layers[-1]
    wait_until(lambda: Store(layerfs.root).layer(layer).manifest_done)  # by the build, at its end


@pytest.fixture
def live(layerfs: Layerfs) -> Live:
    """A mounted image in use."""
    return Live(layerfs)


def test_a_checkpoint_is_a_step_and_no_image(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(live.layerfs.run))
    images = live.layerfs.ok("images", "-q")
    with Store(live.layerfs.root) as store, store.building() as build:
        mount = store.mount(NAME)
        steps = []
        for name in ("one", "two"):
            (live.mnt / name).write_text(name)
            (live.mnt / "file").write_text(name)
            wanted = Checkpoint(created_by=f"RUN {name}\n" * 5000, build=build.id)
            steps.append(mount_of(store, mount).checkpoint(wanted))
        (live.mnt / "three").touch()
        assert live.layerfs.ok("images", "-q") == images
        assert live.diff() == ["A /three"]
        assert [len(store.steps.layers_of_step(step)) for step in steps] == [2, 3]
        assert len(store.steps.history_of_step(steps[1])[2].created_by) == 40000
        top = store.steps.layers_of_step(steps[1])[-1].path
        assert {path.name: path.read_text() for path in top.iterdir()} == {"two": "two", "file": "two"}
        image = store.steps.make_image(steps[0], {}, references=["first"])
        assert store.history(image)[0].id == image.id
    view = live.view("first")
    assert sorted(os.listdir(view)) == ["etc", "file", "gone", "one"]
    assert (view / "file").read_text() == "one"
    assert sorted(os.listdir(live.mnt)) == ["etc", "file", "gone", "one", "three", "two"]
    live.layerfs.ok("umount", NAME)
    live.layerfs.ok("rm", NAME)
    assert live.layerfs.ok("fsck").endswith(": clean")


def test_what_was_written_is_in_the_image(live: Live) -> None:
    (live.mnt / "new").write_text("new")
    (live.mnt / "etc/passwd").write_text("root\nalice\n")
    (live.mnt / "gone").unlink()
    os.chmod(live.mnt / "file", 0o600)
    live.layerfs.ok("commit", "-m", "by the command", NAME, "one")
    (live.mnt / "new").write_text("later")
    (live.mnt / "after").touch()
    view = live.view("one")
    assert sorted(os.listdir(view)) == ["etc", "file", "new"]
    assert (view / "new").read_text() == "new"
    assert (view / "etc/passwd").read_text() == "root\nalice\n"
    assert (view / "file").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(live.view("base"))) == ["etc", "file", "gone"]
    assert sorted(os.listdir(live.mnt)) == ["after", "etc", "file", "new"]


class TestUnwritten:
    """Data that the kernel still holds when the commit is asked for."""

    def test_of_files_open_for_writing(self, live: Live) -> None:
        fds = []
        for number in range(30):
            fds.append(os.open(live.mnt / f"f{number}", os.O_WRONLY | os.O_CREAT))
            os.write(fds[-1], b"%d" % number * 5000)
        lower = os.open(live.mnt / "file", os.O_RDWR)
        os.pwrite(lower, b"new and longer", 0)
        live.commit("one")
        for fd in [*fds, lower]:
            os.pwrite(fd, b"afterwards", 0)
            os.close(fd)
        view = live.view("one")
        for number in range(30):
            assert (view / f"f{number}").read_bytes() == b"%d" % number * 5000
        assert (view / "file").read_bytes() == b"new and longer"
        assert (live.mnt / "file").read_bytes() == b"afterwardsnger"

    def test_of_dirty_mappings(self, live: Live) -> None:
        with (live.mnt / "file").open("r+b") as file:
            file.truncate(10_000)
            mapped = mmap.mmap(file.fileno(), 0)
        mapped[:6] = b"mapped"
        mapped[9_000:9_004] = b"dirt"
        live.commit("one")
        mapped[:6] = b"MAPPED"
        view = live.view("one")
        assert (view / "file").read_bytes()[:6] == b"mapped"
        assert (view / "file").read_bytes()[9_000:9_004] == b"dirt"
        live.commit("two")
        assert (live.view("two") / "file").read_bytes()[:6] == b"MAPPED"
        mapped.close()

    def test_of_a_file_renamed_while_open(self, live: Live) -> None:
        fd = os.open(live.mnt / "new", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"data" * 5000)
        (live.mnt / "new").rename(live.mnt / "etc/moved")
        (live.mnt / "etc").rename(live.mnt / "conf")
        live.commit("one")
        os.close(fd)
        assert (live.view("one") / "conf/moved").read_bytes() == b"data" * 5000

    def test_times_that_the_kernel_keeps(self, live: Live) -> None:
        fd = os.open(live.mnt / "file", os.O_WRONLY)
        os.write(fd, b"x")
        seen = os.fstat(fd).st_mtime_ns
        live.commit("one")
        assert os.fstat(fd).st_mtime_ns == seen
        os.close(fd)
        assert (live.view("one") / "file").stat().st_mtime_ns == seen


class TestInUse:
    """Who uses the mount does not notice a commit."""

    @pytest.fixture
    def shell(self, live: Live) -> Iterator[subprocess.Popen[str]]:
        """A shell whose current directory is in the mount."""
        (live.mnt / "work").mkdir()
        process = subprocess.Popen(
            ["sh"], cwd=live.mnt / "work", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with process:
            yield process
            process.kill()

    def ask(self, shell: subprocess.Popen[str], command: str) -> str:
        """Have the shell run a command that prints one line."""
        assert shell.stdin
        assert shell.stdout
        shell.stdin.write(command + "\n")
        shell.stdin.flush()
        return shell.stdout.readline().rstrip("\n")

    def test_a_shell_in_it(self, live: Live, shell: subprocess.Popen[str]) -> None:
        assert self.ask(shell, "echo one > kept; exec 3>>log 4<../file; echo begun >&3; cat kept") == "one"
        for number in range(3):
            live.commit(f"c{number}")
            assert self.ask(shell, f"echo {number} >> kept; echo {number} >&3; wc -l < kept") == str(
                number + 2
            )
            assert self.ask(shell, "pwd -P") == str(live.mnt / "work")
        assert self.ask(shell, "cat <&4; echo") == "old"
        assert (live.mnt / "work/log").read_text() == "begun\n0\n1\n2\n"
        view = live.view("c1")
        assert (view / "work/kept").read_text() == "one\n0\n"
        assert (view / "work/log").read_text() == "begun\n0\n"

    def test_a_program_that_runs_from_it(self, live: Live) -> None:
        (live.mnt / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
        (live.mnt / "sleep").chmod(0o755)
        with subprocess.Popen([live.mnt / "sleep", "60"]) as process:
            try:
                live.commit("one")
                live.commit("two")
                assert process.poll() is None
                assert os.readlink(f"/proc/{process.pid}/exe") == str(live.mnt / "sleep")
            finally:
                process.kill()

    def test_open_files_and_directories(self, live: Live) -> None:
        directory = os.open(live.mnt / "etc", os.O_RDONLY)
        reader = os.open(live.mnt / "file", os.O_RDONLY)
        appender = os.open(live.mnt / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        numbers = [os.fstat(fd).st_ino for fd in (directory, reader, appender)]
        for number in range(3):
            os.write(appender, b"%d\n" % number)
            live.commit(f"c{number}")
        fd = os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=directory)
        os.write(fd, b"x")
        os.close(fd)
        (live.mnt / "file").write_bytes(b"changed")
        assert os.pread(reader, 100, 0) == b"changed"
        assert numbers == [os.fstat(fd).st_ino for fd in (directory, reader, appender)]
        assert sorted(os.listdir(directory)) == ["new", "passwd"]
        for fd in (directory, reader, appender):
            os.close(fd)
        assert (live.mnt / "log").read_bytes() == b"0\n1\n2\n"
        assert (live.view("c1") / "log").read_bytes() == b"0\n1\n"


def test_images_committed_while_others_write_are_prefixes(live: Live) -> None:
    """Each writer appends a number after the other, each to its file: an image has an unbroken beginning.

    A line that was complete before the commit is in it; and one image has no less than the one before.
    """
    stop = threading.Event()
    written = [0, 0, 0]

    def write(which: int) -> None:
        with (live.mnt / f"log-{which}").open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"%d\n" % (written[which] + 1))
                written[which] += 1
                if written[which] % 50 == 0:
                    (live.mnt / f"dir-{which}-{written[which]}").mkdir()

    threads = [threading.Thread(target=write, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    at_least: list[list[int]] = []
    try:
        wait_until(lambda: min(written) > 10)
        for number in range(4):
            time.sleep(0.1)
            at_least.append(list(written))
            live.commit(f"c{number}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    before = [0, 0, 0]
    for number in range(4):
        view = live.view(f"c{number}")
        for which in range(3):
            lines = (view / f"log-{which}").read_bytes().split(b"\n")[:-1]
            assert lines == [b"%d" % line for line in range(1, len(lines) + 1)]
            assert len(lines) >= max(at_least[number][which], before[which])
            before[which] = len(lines)
    for which in range(3):
        assert (live.mnt / f"log-{which}").read_bytes().count(b"\n") == written[which]


def test_what_was_synced_first_is_in_the_image_first(live: Live) -> None:
    """As after a power cut: unsynced writes may be missing, but never one that was synced before another."""
    stop = threading.Event()

    def write() -> None:
        journal, table = (
            os.open(live.mnt / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("journal", "table")
        )
        while not stop.is_set():
            os.write(journal, b"entry\n")
            os.fdatasync(journal)
            os.write(table, b"entry\n")
        os.close(journal)
        os.close(table)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until((live.mnt / "table").exists)
        for number in range(4):
            time.sleep(0.1)
            live.commit(f"c{number}")
    finally:
        stop.set()
        thread.join()
    for number in range(4):
        view = live.view(f"c{number}")
        assert (view / "journal").stat().st_size >= (view / "table").stat().st_size


def test_diff(live: Live) -> None:
    assert live.diff() == []
    (live.mnt / "new/inner").mkdir(parents=True)
    (live.mnt / "etc/passwd").write_text("changed")
    (live.mnt / "gone").unlink()
    with (live.mnt / "open").open("wb", buffering=0) as file:
        file.write(b"not closed yet")
        assert live.diff() == ["C /etc", "C /etc/passwd", "D /gone", "A /new", "A /new/inner", "A /open"]
    live.commit("one")
    assert live.diff() == []
    (live.mnt / "new").rename(live.mnt / "moved")
    assert live.diff() == ["A /moved", "A /moved/inner", "D /new"]


def test_many_commits_and_a_resume(live: Live) -> None:
    for number in range(12):
        (live.mnt / f"f{number}").write_text(str(number))
        (live.mnt / "file").write_text(f"version {number}")
        live.commit(f"c{number}")
    (live.mnt / "uncommitted").touch()
    live.layerfs.ok("umount", NAME)
    live.layerfs.ok("mount", "--name", NAME, live.mnt)
    assert (live.mnt / "file").read_text() == "version 11"
    assert live.diff() == ["A /uncommitted"]
    live.commit("last")
    rows = [json.loads(line) for line in live.layerfs.ok("history", "--format", "json", "last").splitlines()]
    assert [row["Comment"] for row in rows] == ["as last", *(f"as c{n}" for n in range(11, -1, -1)), ""]
    view = live.view("c5")
    assert (view / "file").read_text() == "version 5"
    assert (view / "f5").exists()
    assert not (view / "f6").exists()


def test_the_manifest_follows(live: Live) -> None:
    for number in range(50):
        (live.mnt / f"f{number}").write_text(str(number))
    live.commit("one")
    assert live.layerfs.ok("verify", "one") == "one: every file is as its manifest says"
    wait_until(lambda: "Layers to settle: 0" in live.layerfs.ok("status", NAME))


def test_the_manifest_follows_an_unmount_right_after(live: Live) -> None:
    (live.mnt / "file").write_text("new")
    live.commit("one")
    subprocess.run(["umount", live.mnt], check=True)
    layers = live.layerfs.root / "layers"
    wait_until(lambda: len(list(layers.glob("*/manifest"))) == 2)


def directories(live: Live) -> int:
    """Return how many layers the store has directories of."""
    return len(os.listdir(live.layerfs.root / "layers"))


def test_the_next_upper_is_ready_before_it_is_needed(live: Live) -> None:
    wait_until(lambda: directories(live) == 3)  # the image's, the upper, the next one
    live.commit("one")
    wait_until(lambda: directories(live) == 4)
    live.layerfs.ok("umount", NAME)
    assert directories(live) == 3


def test_the_next_upper_of_a_daemon_that_was_killed_is_removed(live: Live) -> None:
    wait_until(lambda: directories(live) == 3)
    live.layerfs.kill(NAME)
    done = live.layerfs("mount", "--name", NAME, live.mnt)
    assert "a layer that nothing uses" not in done.stderr
    live.commit("one")
    live.layerfs.ok("umount", NAME)
    assert directories(live) == 3


def test_the_root_stays_as_it_was_made_since_the_next_upper_is_ready(live: Live) -> None:
    os.setxattr(live.mnt, "user.removed", b"")
    live.commit("one")
    wait_until(lambda: directories(live) == 4)
    os.chmod(live.mnt, 0o700)
    os.setxattr(live.mnt, "user.added", b"here")
    os.removexattr(live.mnt, "user.removed")
    live.commit("two")
    for _ in range(2):
        assert (live.mnt.stat().st_mode & 0o777, os.listxattr(live.mnt)) == (0o700, ["user.added"])
        live.layerfs.ok("umount", NAME)
        live.layerfs.ok("mount", "--name", NAME, live.mnt)


def test_a_commit_takes_milliseconds_whatever_was_written(live: Live) -> None:
    with (live.mnt / "large").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    for number in range(2000):
        (live.mnt / f"f{number}").touch()
    durations = []
    for number in range(5):
        begun = time.monotonic()
        status, answer = live.layerfs.ask(NAME, "POST", f"/commit?container={NAME}&repo=c{number}")
        durations.append(time.monotonic() - begun)
        assert status == 201
        assert json.loads(answer)["Id"].startswith("sha256:")
    assert min(durations) < 0.25, durations  # no copying, no hashing: seconds would tell of either


def test_a_commit_says_that_the_directory_given_as_upper_is_empty(layerfs: Layerfs, stack: Stack) -> None:
    (stack.mount() / "file").write_text("written")
    for running in (True, False):
        done = layerfs("commit", stack.name)
        assert done.returncode == 0
        image = done.stdout.strip()
        assert done.stderr.startswith(
            f"layerfs: warning: {stack.upper} is empty now: what was written to it is"
        )
        assert image.removeprefix("sha256:")[:12] in done.stderr
        assert done.stderr.count("\n") == 1
        assert os.listdir(stack.upper) == []
        if running:
            assert (stack.mnt / "file").read_text() == "written"
            stack.umount()
    layerfs.ok("rm", stack.name)
    lowers = [f"--lower={stack.top}", f"--lower={stack.bottom}"]
    uppers = [f"--upper={stack.upper}", f"--work={stack.work}"]
    done = layerfs("mount", "--name", "again", *lowers, *uppers, stack.mnt)
    assert done.returncode == 0
    assert done.stderr.startswith(
        f"layerfs: warning: what was written to {stack.upper} until its last commit"
    )
    assert done.stderr.count("\n") == 1
    assert os.listdir(stack.mnt) == []
    shown = re.search(r"'layerfs (mount --image [0-9a-f]{12}) MOUNTPOINT'", done.stderr)
    assert shown
    layerfs.ok("umount", "again")
    layerfs.ok(*shown[1].split(), "--name", "shown", stack.mnt)
    assert (stack.mnt / "file").read_text() == "written"
    layerfs.ok("rm", "-f", "shown", "again")
    layerfs.ok("prune", "--all", "--force")
    layerfs.ok("mount", "--name", "new", *lowers, *uppers, stack.mnt)  # there is nothing to speak of any more


def test_a_commit_of_the_stores_own_upper_warns_of_nothing(layerfs: Layerfs, stack: Stack) -> None:
    (stack.top / "file").write_text("below")
    layerfs.ok("import", stack.top, "base:1")
    layerfs.ok("mount", "--image", "base:1", "--name", "own", stack.mnt)
    (stack.mnt / "file").write_text("written")
    layerfs.ok("commit", "own", "made:1")
    status, answer = layerfs.ask("own", "POST", "/commit?container=own")
    assert status == 201
    assert list(json.loads(answer)) == ["Id"]
