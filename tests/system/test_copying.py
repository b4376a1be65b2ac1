"""`docker cp` by the API, on containers that run, on those that do not, and on mounts that are none."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Layerfs, mounts_below, wait_until
from tests.fuse.oracle import snapshot
from tests.system.apirequests import Answer, Api, engine
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
STATES = ("running", "stopped", "mounted", "unmounted")


class Place:
    """A container or mount called "c", and the API, as the engine serves it."""

    def __init__(self, made: Containers, state: str) -> None:
        self.made = made
        self.layerfs = made.layerfs
        self.state = state
        directory = self.layerfs.directory
        for name in ("volume", "read-only", "mnt"):
            (directory / name).mkdir()
        self.volume = directory / "volume"
        (self.volume / "in-volume").write_text("v")
        self.api = engine(self.layerfs)
        if state in ("mounted", "unmounted"):
            self.layerfs.ok("mount", "--image", IMAGE, "--name", "c", directory / "mnt")
            if state == "unmounted":
                self.layerfs.ok("umount", "c")
        else:
            self.start()
            if state == "stopped":
                self.layerfs.ok("stop", "-t", "0", "c")

    @property
    def is_container(self) -> bool:
        """Whether it has volumes."""
        return self.state in ("running", "stopped")

    def start(self) -> None:
        """Make the container."""
        directory = self.layerfs.directory
        words = ["-v", f"{self.volume}:/volume", "-v", f"{directory / 'read-only'}:/read-only:ro"]
        self.layerfs.ok("run", "-d", "--name", "c", *words, IMAGE, "sleep", "1000")

    def look(self, path: str) -> dict[str, Any]:
        """Return what the API says is at *path*."""
        answer = self.api.ask("HEAD", "/v1.51/containers/c/archive", path=path)
        assert (answer.status, answer.body) == (200, b"")
        found: dict[str, Any] = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        return found

    def get(self, path: str) -> Answer:
        """Return an archive of what is at *path*."""
        return self.api.ask("GET", "/v1.51/containers/c/archive", path=path)

    def names(self, path: str) -> list[str]:
        """Return the names in an archive of what is at *path*."""
        answer = self.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-tar")
        assert "X-Docker-Container-Path-Stat" in answer.headers
        with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
            return tar.getnames()

    def put(self, path: str, archive: bytes, **parameters: str) -> Answer:
        """Write *archive* to the directory *path*."""
        return self.api.ask("PUT", "/v1.51/containers/c/archive", archive, path=path, **parameters)

    def is_as_it_was(self) -> bool:
        """Return whether it runs as before, and nothing is left of a copy."""
        private = self.layerfs.run / "containers"
        left = [path for path in mounts_below(private) if path.name == "rootfs"] if private.exists() else []
        if self.state in ("mounted", "unmounted"):
            mounted = self.layerfs.directory / "mnt" in mounts_below(self.layerfs.directory / "mnt")
            return mounted is (self.state == "mounted") and not left
        status = "running" if self.state == "running" else "exited"
        return self.made.state("c")[0] == status and len(left) == (self.state == "running")


@pytest.fixture
def made(layerfs: Layerfs) -> Iterator[Containers]:
    """Containers, which end with the test."""
    with containers(layerfs.directory, layerfs) as started:
        yield started


@pytest.fixture(params=STATES)
def place(request: pytest.FixtureRequest, made: Containers) -> Place:
    """A container or mount in each of its states."""
    return Place(made, request.param)


@pytest.fixture
def running(made: Containers) -> Place:
    """A container that runs."""
    return Place(made, "running")


@pytest.fixture
def stopped(made: Containers) -> Place:
    """A container that does not."""
    return Place(made, "stopped")


def tar(*members: tuple[str, bytes | str | None]) -> bytes:
    """Return an archive of files (bytes), directories (None), and symbolic links (a text)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mtime = 1234, 5678, 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            made.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return file.getvalue()


def content(archive: bytes, name: str) -> bytes:
    """Return what a file in an archive holds."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def test_there_and_back(place: Place) -> None:
    found = place.look("/etc/passwd")
    assert (found["name"], found["linkTarget"]) == ("passwd", "")
    assert (found["size"], found["mode"]) == (len(content(place.get("/etc/passwd").body, "passwd")), 0o644)
    assert place.look("/tmp")["mode"] == 1 << 31 | 1 << 20 | 0o777
    assert place.names("/etc")[:2] == ["etc", "etc/group"]
    archive = tar(("d", None), ("d/file", b"content"), ("d/link", "/etc"), ("d/link/through", b"in etc"))
    assert place.put("/srv", archive).status == 200
    assert place.put("/srv", archive).status == 200  # the same once more
    assert place.names("/srv/d") == ["d", "d/file", "d/link"]
    assert content(place.get("/etc/through").body, "through") == b"in etc"
    with tarfile.open(fileobj=io.BytesIO(place.get("/srv/d").body)) as back:
        file = back.getmember("d/file")
        assert (file.uid, file.gid, file.mtime, file.mode) == (1234, 5678, 1_600_000_000, 0o644)
        assert back.getmember("d").mode == 0o750
    assert place.look("/srv/d/link")["linkTarget"] == "/etc"
    assert not Path("/etc/through").exists()
    assert place.is_as_it_was()
    if place.state == "unmounted":
        place.layerfs.ok("mount", "--name", "c", place.layerfs.directory / "mnt")
        assert (place.layerfs.directory / "mnt/srv/d/file").read_text() == "content"


def test_volumes_are_seen(place: Place) -> None:
    if not place.is_container:
        pytest.skip("only containers have volumes")
    assert place.names("/volume") == ["volume", "volume/in-volume"]
    assert place.put("/volume", tar(("new", b"new"))).status == 200
    assert (place.volume / "new").read_text() == "new"
    refused = place.put("/read-only", tar(("new", b"new")))
    assert (refused.status, refused.message()) == (403, "mounted volume is marked read-only")
    assert not (place.layerfs.directory / "read-only/new").exists()
    assert place.is_as_it_was()


def test_what_is_refused(place: Place) -> None:
    place.put("/srv", tar(("d", None), ("file", b"x"), ("loop", "loop"), ("nowhere", "none")))
    archive = tar(("x", b"x"))
    over = {"noOverwriteDirNonDir": "true"}
    long = "/" + "x" * 300
    for answer, status, said in (
        (place.get("/nope"), 404, "Could not find the file /nope in container c"),
        (place.get("/srv/nowhere/"), 404, "Could not find the file /srv/nowhere/ in container c"),
        (place.get("/srv/file/"), 400, "Not a directory"),
        (place.get("/srv/file/x"), 400, "Not a directory"),
        (place.get("/srv/loop/"), 400, "Too many levels"),
        (place.get(long), 400, "too long"),
        (place.get(""), 400, "bad parameter: path cannot be empty"),
        (place.get("/a\0b"), 400, "zero byte"),
        (place.api.ask("GET", "/containers/nobody/archive", path="/"), 404, "nobody"),
        (place.put("/nope", archive), 404, "Could not find the file /nope"),
        (place.put("/srv/file", archive), 400, "extraction point is not a directory"),
        (place.put("/srv", tar(("../x", b"x"))), 400, "is outside of"),
        (place.put("/srv", tar(("d", b"x")), **over), 400, 'cannot overwrite directory "/srv/d"'),
        (place.put("/srv", tar(("file", None)), **over), 400, 'cannot overwrite non-directory "/srv/file"'),
        (place.put("/srv", tar(("file/x", b"x"))), 400, "a directory above it is a file"),
        (place.put("/srv", tar(("big", bytes(5000)))[:3000]), 400, "ends too early"),
        (place.put("/srv", b"garbage" * 200), 400, "not a tar archive"),
    ):
        assert (answer.status, said in answer.message()) == (status, True), answer
        assert "\n" not in answer.message()
    assert place.api.ask("HEAD", "/containers/c/archive", path="/nope").status == 404
    assert place.names("/srv") == ["srv", "srv/d", "srv/file", "srv/loop", "srv/nowhere"]
    assert place.put("/srv", b"").status == 200  # an archive of nothing
    assert place.is_as_it_was()


def test_what_runs_sees_what_is_copied(running: Place) -> None:
    running.put("/srv", tar(("file", b"from outside")))
    assert running.layerfs.ok("exec", "c", "cat", "/srv/file") == "from outside"
    running.layerfs.ok("exec", "c", "sh", "-c", "echo inside > /dev/shm/file")  # which is a tmpfs
    assert content(running.get("/dev/shm/file").body, "file") == b"inside\n"
    names = running.names("/")
    assert {"/srv/file", "/dev/shm/file"} <= set(names)
    assert [name for name in names if name.startswith(("/proc/", "/sys/"))] == []


def test_a_read_only_tree(made: Containers) -> None:
    place = Place(made, "mounted")
    host_config = {"ReadonlyRootfs": True, "Binds": [f"{place.volume}:/volume"]}
    body = json.dumps({"Image": IMAGE, "Cmd": ["sleep", "99"], "HostConfig": host_config}).encode()
    made_one = place.api.ask(
        "POST", "/containers/create", body, {"Content-Type": "application/json"}, name="ro"
    )
    assert made_one.status == 201, made_one
    for _ in range(2):
        answer = place.api.ask("PUT", "/containers/ro/archive", tar(("x", b"x")), path="/srv")
        assert (answer.status, answer.message()) == (403, "container rootfs is marked read-only")
        answer = place.api.ask("PUT", "/containers/ro/archive", tar(("x", b"x")), path="/volume")
        assert answer.status == 200
        made.layerfs.ok("start", "ro")


def test_everything_survives_a_round_trip(running: Place) -> None:
    tree = running.layerfs.directory / "everything"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(100_000))
    os.link(tree / "file", tree / "other")
    os.setxattr(tree / "file", "user.note", b"\0\xff")
    os.setxattr(
        tree / "file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    )
    os.chown(tree / "file", 3, 2_000_000)
    (tree / "file").chmod(0o4755)
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    (tree / os.fsdecode(b"odd \xff=name")).mkdir(0o2711)
    with (tree / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    os.utime(tree / "file", ns=(1, 1_600_000_000_123_456_789))
    done = subprocess.run(
        ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--sparse",
         "-C", tree.parent, "-c", tree.name],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert running.put("/srv", done.stdout).status == 200
    back = running.layerfs.directory / "back"
    back.mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-C", back, "-xp"],
        input=running.get("/srv/everything").body, check=True,
    )  # fmt: skip
    before, after = (
        snapshot.take(os.fsencode(path), 1 << 62, kernel=False) for path in (tree, back / "everything")
    )
    assert snapshot.differences(before, after) == []


def test_a_container_that_swaps_directories_for_links_gains_nothing(running: Place) -> None:
    """Whatever it does while files are copied: what is outside stays as it is."""
    outside = running.layerfs.directory / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    depth = "../" * 12
    script = (
        "cd /srv; mkdir -p dir/inner; while :; do mv dir real; "
        f"ln -s {depth}{outside.as_posix().lstrip('/')} dir; rm dir; mv real dir; done"
    )
    running.layerfs.ok("exec", "-d", "c", "sh", "-c", script)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for path in ("/srv/dir/secret", "/srv/dir/"):
                answer = running.get(path)
                assert answer.status == 404 or b"secret" not in answer.body

    reader = threading.Thread(target=read)
    reader.start()
    try:
        archive = tar(("dir/evil", b"evil"))
        for _ in range(100):
            running.put("/srv", archive)
            running.put("/srv/dir", tar(("evil", b"evil")))
    finally:
        stop.set()
        reader.join()
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_copy_uid_gid_gives_all_to_the_user_of_the_container(made: Containers) -> None:
    place = Place(made, "mounted")
    made.layerfs.ok("run", "-d", "--name", "j", "-u", "jane", IMAGE, "sleep", "1000")
    for name, owner in (("j", (1000, 100)), ("c", (1234, 5678))):
        answer = place.api.ask(
            "PUT", f"/containers/{name}/archive", tar(("a/b", b"x")), path="/srv", copyUIDGID="true"
        )
        assert answer.status == 200, answer
        back = place.api.ask("GET", f"/containers/{name}/archive", path="/srv/a/b").body
        with tarfile.open(fileobj=io.BytesIO(back)) as tar_back:
            member = tar_back.getmember("b")
        assert (member.uid, member.gid) == owner


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_client_that_goes_leaves_nothing(stopped: Place, way: str) -> None:
    large = tar(("large", os.urandom(8_000_000)))
    assert stopped.put("/srv", large).status == 200
    if way == "out":
        with stopped.api.asking("GET", "/containers/c/archive", path="/srv/large") as answer:
            assert answer.read(1000)
    else:

        def pieces() -> Iterator[bytes]:
            yield large[:5_000_000]
            raise ConnectionAbortedError

        with pytest.raises(ConnectionAbortedError):
            stopped.api.ask("PUT", "/containers/c/archive", pieces(), path="/tmp")
    wait_until(stopped.is_as_it_was)
    if way == "in":
        assert stopped.names("/tmp") == ["tmp"]
    stopped.layerfs.ok("start", "c")
    assert stopped.made.state("c")[0] == "running"


def test_a_copy_that_is_killed_is_cleared_away(stopped: Place) -> None:
    assert stopped.put("/srv", tar(("large", os.urandom(8_000_000)))).status == 200
    with stopped.api.asking("GET", "/containers/c/archive", path="/srv/large") as answer:
        assert answer.read(1000)
        os.kill(int((stopped.layerfs.run / "engine.lock").read_text().split()[0]), signal.SIGKILL)
    assert stopped.layerfs.ok("start", "c") == "c"
    assert stopped.layerfs.ok("exec", "c", "ls", "/srv") == "large"


def test_by_the_socket_of_the_mount_itself(made: Containers) -> None:
    """Its daemon, which serves the files, has another process copy them."""
    place = Place(made, "mounted")
    own = Api(made.layerfs.socket("c"))
    archive = tar(("large", os.urandom(3_000_000)))
    assert own.ask("PUT", "/containers/c/archive", archive, path="/srv").status == 200
    assert own.ask("HEAD", "/containers/c/archive", path="/srv/large").headers["X-Docker-Container-Path-Stat"]
    back = own.ask("GET", "/containers/c/archive", path="/srv/large").body
    assert content(back, "large") == content(archive, "large")
    assert own.ask("GET", "/containers/c/archive", path="/nope").status == 404
    with own.asking("GET", "/containers/c/archive", path="/srv/large") as answer:
        answer.read(10)
    made.layerfs.ok("run", "-d", "--name", "r", IMAGE, "sleep", "1000")
    made.layerfs.ok("stop", "-t", "0", "r")
    assert own.ask("PUT", "/containers/r/archive", archive, path="/srv").status == 200
    with own.asking("GET", "/containers/r/archive", path="/srv/large") as answer:
        answer.read(10)
    wait_until(lambda: mounts_below(made.layerfs.run) == [])
    assert place.is_as_it_was()


def test_two_copies_at_once(stopped: Place) -> None:
    results: list[int] = []

    def copy(number: int) -> Callable[[], None]:
        return lambda: results.append(stopped.put("/srv", tar((f"file{number}", b"x"))).status)

    threads = [threading.Thread(target=copy(number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 4
    assert stopped.names("/srv") == ["srv", *(f"srv/file{number}" for number in range(4))]
    assert stopped.is_as_it_was()


def test_a_full_disk(small: Path, made: Containers) -> None:
    place = Place(made, "mounted")
    made.layerfs.ok("run", "-d", "--name", "f", "-v", f"{small}:/full", IMAGE, "sleep", "1000")
    answer = place.api.ask(
        "PUT", "/containers/f/archive", tar(("a", b"x"), ("large", os.urandom(20 << 20))), path="/full"
    )
    assert (answer.status, "No space left" in answer.message()) == (507, True)
    assert not (small / "large").exists()
    assert (small / "a").read_text() == "x"
    made.remove("f")


@pytest.mark.docker
def test_the_docker_command(place: Place) -> None:
    directory = place.layerfs.directory

    def docker(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["docker", "-H", f"unix://{place.api.path}", "cp", *words],
            input=stdin, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    (directory / "source/deep").mkdir(parents=True)
    (directory / "source/deep/file").write_text("deep")
    for copied, target in (
        ("source", "c:/srv"),
        ("source", "c:/srv/renamed"),
        ("source/.", "c:/srv/renamed"),
        ("source/deep/file", "c:/srv/alone"),
        ("source/deep/file", "c:/etc/passwd"),
    ):
        done = docker(f"{directory}/{copied}", target)
        assert done.returncode == 0, done.stderr
    assert place.names("/srv") == [
        "srv", "srv/alone", "srv/renamed", "srv/renamed/deep", "srv/renamed/deep/file",
        "srv/source", "srv/source/deep", "srv/source/deep/file",
    ]  # fmt: skip
    assert docker("-", "c:/tmp", stdin=tar(("x", b"x"))).returncode == 0
    assert content(docker("c:/etc/passwd", "-").stdout, "passwd") == b"deep"
    assert docker("c:/srv/source", directory / "out").returncode == 0
    assert (directory / "out/deep/file").read_text() == "deep"
    assert docker("c:/srv/source/.", directory / "out").returncode == 0
    assert docker("c:/tmp/x", f"{directory}/out/y").returncode == 0
    assert (directory / "out/y").read_text() == "x"
    for source, place_for_it, said in (
        ("c:/nope", directory, b"Could not find the file /nope in container c"),
        (directory / "source", "c:/etc/passwd", b"cannot copy directory"),
        (directory / "source/deep/file", "c:/nope/x", b"Could not find the file /nope in container c"),
    ):
        done = docker(source, place_for_it)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr


def test_the_command(place: Place) -> None:
    """`layerfs cp` puts things where cp(1) and docker would."""
    layerfs, directory = place.layerfs, place.layerfs.directory
    (directory / "source/deep").mkdir(parents=True)
    (directory / "source/deep/file").write_text("deep")
    os.link(directory / "source/deep/file", directory / "source/deep/other")
    for copied, target in (
        ("source", "c:/srv"),
        ("source", "c:/srv/renamed"),
        ("source/.", "c:/srv/renamed"),
        ("source/deep/file", "c:/srv/alone"),
        ("source/deep/file", "c:/etc/passwd"),
    ):
        assert layerfs.ok("cp", f"{directory}/{copied}", target) == ""
    inside = ["deep", "deep/file", "deep/other"]
    assert place.names("/srv") == [
        "srv", "srv/alone", "srv/renamed", *(f"srv/renamed/{name}" for name in inside),
        "srv/source", *(f"srv/source/{name}" for name in inside),
    ]  # fmt: skip
    for copied, target, there in (
        ("c:/srv/source", "out", "out/deep/file"),
        ("c:/srv/source", "out", "out/source/deep/file"),
        ("c:/srv/source/.", "dot", "dot/deep/file"),
        ("c:/srv/alone", "out/file", "out/file"),
        ("c:/srv/alone", "out", "out/alone"),
    ):
        layerfs.ok("cp", copied, directory / target)
        assert (directory / there).read_text() == "deep"
    assert (directory / "out/deep/file").stat().st_nlink == 2
    for source, target_here, said in (
        ("c:/nope", directory, "Could not find the file /nope in container c"),
        ("c:/srv", directory / "out/file", "cannot copy a directory over"),
        (directory / "source", "c:/etc/passwd", "cannot copy a directory over"),
        (directory / "source/deep/file", "c:/nope/x", "Could not find the file /nope in container c"),
        (directory / "source/deep/file", "c:/srv/none/", "there is no directory"),
        (directory / "nothing", "c:/srv", "No such file or directory"),
        ("nobody:/x", directory, "nobody"),
    ):
        assert said in layerfs.refused("cp", source, target_here)
    for words in (("a", "b"), ("c:/a", "c:/b"), ("c:", "b")):
        layerfs.refused("cp", *words, status=2)
    whole = subprocess.run(
        [*layerfs.words, "cp", "c:/srv/source", "-"],
        env=layerfs.environment,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    done = subprocess.run(
        [*layerfs.words, "cp", "-", "c:/tmp"], env=layerfs.environment, input=whole, check=True
    )
    assert done.returncode == 0
    assert place.names("/tmp/source") == ["source", *(f"source/{name}" for name in inside)]
    assert place.is_as_it_was()


@pytest.mark.parametrize("with_engine", [True, False])
def test_the_command_needs_no_engine(made: Containers, with_engine: bool) -> None:
    if with_engine:
        engine(made.layerfs)
    made.layerfs.ok("run", "-d", "--name", "c", IMAGE, "sleep", "1000")
    file = made.layerfs.directory / "file"
    file.write_text("content")
    for _ in range(2):
        made.layerfs.ok("cp", file, "c:/srv/there")
        made.layerfs.ok("cp", "c:/srv/there", made.layerfs.directory / "back")
        assert (made.layerfs.directory / "back").read_text() == "content"
        made.layerfs.ok("stop", "-t", "0", "c")
