"""Images that come and go as files while an engine runs: the command has the files, the engine the store."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Layerfs, wait_until
from tests.system.apirequests import Api, engine
from tests.system.oci_support import another
from tests.system.registries import PASSWORD, USER, Registry, guarded

__all__ = ["guarded"]

pytestmark = pytest.mark.root


@pytest.fixture
def api(layerfs: Layerfs) -> Api:
    """The engine of a store with the image a:1, of a file of three megabytes and some oddities."""
    tree = layerfs.directory / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    (tree / "sub/file").write_text("text")
    (tree / "sub/file").chmod(0o4711)
    os.chown(tree / "sub/file", 1234, 4321)
    os.link(tree / "sub/file", tree / "link")
    os.setxattr(tree / "sub/file", "user.note", b"note")
    (tree / "lead").symlink_to("sub/file")
    os.mkfifo(tree / "fifo")
    found = engine(layerfs)
    assert layerfs.ok("import", tree, "a:1", "-m", "made", "-c", "CMD x").startswith("sha256:")
    return found


def seen(tree: Path) -> dict[str, tuple[object, ...]]:
    """Return what is in a tree."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, _, files in os.walk(tree):
        for name in [".", *files]:
            path = Path(directory, name)
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            names = os.listxattr(path, follow_symlinks=False)
            note = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
            found[str(path.relative_to(tree))] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, note,
                status.st_nlink if files and not path.is_dir() else 0,
            )  # fmt: skip
    return found


def nothing_is_left(layerfs: Layerfs, layers: int) -> None:
    wait_until(lambda: len(os.listdir(layerfs.root / "layers")) == layers)
    names = {"layerfs.db", "layerfs.db-wal", "layerfs.db-shm", "layerfs.lock"}
    names |= {"layers", "reserve", "tmp", "volumes"}
    assert {path.name for path in layerfs.root.iterdir()} <= names
    assert not (layerfs.root / "tmp").exists() or list((layerfs.root / "tmp").iterdir()) == []
    layerfs.ok("fsck")


@pytest.fixture
def fresh(layerfs: Layerfs, tmp_path: Path) -> Layerfs:
    """The command line on an empty store without an engine."""
    return another(layerfs, tmp_path.name)


def test_a_directory_is_imported_with_all_that_is_in_it(api: Api, layerfs: Layerfs) -> None:
    mnt = layerfs.directory / "mnt"
    mnt.mkdir()
    layerfs.ok("mount", "--name", "m", "--image", "a:1", mnt)
    try:
        assert seen(mnt) == seen(layerfs.directory / "tree")
    finally:
        layerfs.ok("umount", "m")
    row = json.loads(layerfs.ok("history", "a:1", "--format", "json", "--no-trunc"))
    assert row["CreatedBy"] == f"Imported from {layerfs.directory / 'tree'}"
    assert row["Comment"] == "made"
    assert json.loads(layerfs.ok("inspect", "a:1"))[0]["Config"]["Cmd"] == ["/bin/sh", "-c", "x"]


def test_what_an_archive_cannot_say_is_refused(api: Api, layerfs: Layerfs) -> None:
    (layerfs.directory / "tree/sub/.wh.x").touch()
    assert "means a deleted file" in layerfs.refused("import", layerfs.directory / "tree", "b:1")
    nothing_is_left(layerfs, 1)


def test_archives_come_and_go(api: Api, layerfs: Layerfs, fresh: Layerfs) -> None:
    at = layerfs.directory
    both = ["Loaded image: b:2", "Loaded image: c:3"]
    layerfs.ok("save", "a:1", "-o", at / "a.tar")
    assert fresh.ok("load", "-i", at / "a.tar") == "Loaded image: a:1"
    layerfs.ok("rmi", "a:1")
    assert layerfs.ok("load", at / "a.tar", "-t", "b:2") == "Loaded image: b:2"
    layerfs.ok("tag", "b:2", "c:3")
    layerfs.ok("save", "b:2", "-o", at / "layout", "--format", "oci-dir")
    layerfs.ok("save", "c:3", "-o", at / "layout", "--format", "oci-dir")  # beside the one that is there
    fresh.ok("save", "a:1", "-o", at / "in-place", "--format", "oci-dir")
    assert sorted(os.listdir(at / "layout/blobs/sha256")) == sorted(os.listdir(at / "in-place/blobs/sha256"))
    fresh.ok("rmi", "a:1")
    assert fresh.ok("load", at / "layout").splitlines() == both
    layerfs.ok("rmi", "b:2", "c:3")
    assert layerfs.ok("load", at / "layout").splitlines() == both
    with (at / "a.tar").open("rb") as file:
        done = subprocess.run(
            [*layerfs.words, "load"], env=layerfs.environment, stdin=file, capture_output=True, check=True
        )
    assert done.stdout == b"Loaded image: a:1\n"
    assert layerfs.ok("verify", "a:1").endswith("as its manifest says")


def test_a_tree_is_exported(api: Api, layerfs: Layerfs) -> None:
    mnt = layerfs.directory / "mnt"
    mnt.mkdir()
    layerfs.ok("mount", "--name", "m", "--image", "a:1", mnt)
    try:
        (mnt / "new").write_text("new")
        layerfs.ok("export", mnt, "-o", layerfs.directory / "m.tar")
        with tarfile.open(layerfs.directory / "m.tar") as archive:
            assert {"./new", "./large"} <= {f"./{name.removeprefix('./')}" for name in archive.getnames()}
    finally:
        layerfs.ok("umount", "m")


def test_errors_are_those_of_the_command_alone(api: Api, layerfs: Layerfs) -> None:
    at = layerfs.directory
    (at / "bad").write_bytes(b"x" * 5000)
    assert "no such image" in layerfs.refused("save", "none", "-o", at / "x")
    assert not (at / "x").exists()
    assert "no such file" in layerfs.refused("load", at / "none")
    assert "not a tar archive" in layerfs.refused("load", at / "bad")
    assert "archive" in layerfs.refused("import", at / "bad")
    assert "--max-files" in layerfs.refused("load", "--max-files", "1", saved(layerfs))
    assert "BAD" in layerfs.refused("import", at / "tree", "BAD")
    assert "no such" in layerfs.refused("export", "none", "-o", at / "x")
    assert not (at / "x").exists()
    nothing_is_left(layerfs, 1)


def saved(layerfs: Layerfs) -> Path:
    """Return an archive of an image that the store does not have any more, but for a:1."""
    path = layerfs.directory / "saved.tar"
    with tarfile.open(layerfs.directory / "more.tar", "w") as archive:
        for name in ("one", "two", "three"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    layerfs.ok("import", layerfs.directory / "more.tar", "more:1")
    layerfs.ok("save", "more:1", "-o", path)
    layerfs.ok("rmi", "more:1")
    return path


def test_files_are_the_command_s_own(api: Api, layerfs: Layerfs) -> None:
    """A path that means something to the command alone is not one that the engine opens."""
    layerfs.ok("save", "a:1", "-o", layerfs.directory / "a.tar")
    fd = os.open(layerfs.directory / "a.tar", os.O_RDONLY)
    try:
        done = subprocess.run(
            [*layerfs.words, "load", f"/proc/self/fd/{fd}", "-t", "by-descriptor"],
            env=layerfs.environment, pass_fds=[fd], capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(fd)
    assert (done.stdout, done.stderr) == ("Loaded image: by-descriptor:latest\n", "")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_upload_that_is_cut_off_leaves_nothing(api: Api, layerfs: Layerfs, end: signal.Signals) -> None:
    layerfs.ok("save", "a:1", "-o", layerfs.directory / "a.tar")
    layerfs.ok("rmi", "a:1")
    data = (layerfs.directory / "a.tar").read_bytes()
    for words in (["load"], ["import", "-", "cut:1"]):
        process = subprocess.Popen(
            [*layerfs.words, *words], env=layerfs.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(data[: len(data) // 2])
        process.stdin.flush()
        time.sleep(0.7)
        process.send_signal(end)
        assert process.wait(PATIENCE) == (1 if end == signal.SIGINT else -signal.SIGKILL)
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read().lstrip() == (b"layerfs: interrupted\n" if end == signal.SIGINT else b"")
        process.stderr.close()
    nothing_is_left(layerfs, 0)
    assert layerfs.ok("images", "-q") == ""


def test_an_output_that_is_cut_off_leaves_nothing(api: Api, layerfs: Layerfs, small: Path) -> None:
    place = small / "out"
    place.mkdir()
    free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
    (place / "fill").write_bytes(bytes(free - 1_000_000))
    for words in (("-o", place / "a.tar"), ("--format", "oci-dir", "-o", place / "layout")):
        assert "No space left" in layerfs.refused("save", "a:1", *words)
        assert [path for path in place.rglob("*") if path.is_file()] == [place / "fill"]
    nothing_is_left(layerfs, 1)


@pytest.fixture
def small(layerfs: Layerfs) -> Iterator[Path]:
    """A filesystem of eight megabytes."""
    path = layerfs.directory / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_another_store_s_engine_takes_nothing_of_what_is_sent(
    api: Api, layerfs: Layerfs, fresh: Layerfs
) -> None:
    """It refuses before anything is read from standard input, which is then read in place."""
    layerfs.ok("save", "a:1", "-o", layerfs.directory / "a.tar")
    environment = {**fresh.environment, "LAYERFS_ENGINE": str(api.path)}
    done = subprocess.run(
        [*fresh.words, "load"], env=environment, input=(layerfs.directory / "a.tar").read_bytes(),
        capture_output=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"Loaded image: a:1\n", b"")


def test_dockers_clients_are_told_how_far_a_load_is(api: Api, layerfs: Layerfs) -> None:
    layerfs.ok("save", "a:1", "-o", layerfs.directory / "a.tar")
    layerfs.ok("rmi", "a:1")
    answer = api.ask("POST", "/images/load", (layerfs.directory / "a.tar").read_bytes(), quiet="0")
    assert answer.status == 200
    told = answer.lines()
    assert {"stream": "Loaded image: a:1\n"} in told
    layers = [line for line in told if line.get("status") == "Loading layer"]
    assert layers
    assert all(line["progressDetail"]["total"] > 3_000_000 for line in layers)


def test_registries_are_reached_as_the_command_says(api: Api, layerfs: Layerfs, guarded: Registry) -> None:
    """Who it is says the command, by an option, a file or what its user has logged in with."""
    at, name = layerfs.directory, f"{guarded.host}/by/command:1"
    plain, creds = "--tls-verify=false", f"--creds={USER}:{PASSWORD}"
    layerfs.ok("tag", "a:1", name)
    for words in (("push", plain, name), ("pull", plain, name)):
        assert "authentication required" in layerfs.refused(*words)
    digest = layerfs.ok("push", plain, creds, name)
    assert digest.startswith("sha256:")
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (at / "auth.json").write_text(json.dumps({"auths": {guarded.host: {"auth": auth}}}))
    layerfs.ok("rmi", name)
    image = layerfs.ok("pull", plain, "--authfile", at / "auth.json", name)
    assert json.loads(layerfs.ok("inspect", name))[0]["Id"] == image
    assert json.loads(layerfs.ok("inspect", name))[0]["RepoDigests"] == [
        f"{guarded.host}/by/command@{digest}"
    ]
    layerfs.ok("rmi", name)
    layerfs.environment["REGISTRY_AUTH_FILE"] = str(at / "auth.json")
    assert layerfs.ok("pull", plain, f"{guarded.host}/by/command@{digest}") == image
    assert layerfs.ok("pull", plain, f"docker://{name}", "other:2") == image
    layerfs.ok("rmi", "-f", image)
    assert (
        len(layerfs.ok("create", "--pull=always", "--name=c", f"{guarded.host}/by/command@{digest}", "true"))
        == 64
    )
    layerfs.ok("rm", "c")
    layerfs.ok("tag", f"{guarded.host}/by/command@{digest}", name)
    assert "/nowhere" in layerfs.refused("pull", plain, "--policy", "/nowhere", name)
    (at / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    layerfs.ok("rmi", "-f", name)
    assert "policy" in layerfs.refused("pull", plain, "--policy", at / "policy.json", name)
    assert "no-such-option" in layerfs.refused("pull", plain, "--skopeo=--no-such-option", name)
    nothing_is_left(layerfs, 0)


def test_images_in_files_are_brought_by_the_command(
    api: Api, layerfs: Layerfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = layerfs.directory
    (at / "scratch").mkdir()
    layerfs.environment["TMPDIR"] = str(at / "scratch")
    image = json.loads(layerfs.ok("inspect", "a:1"))[0]["Id"]
    for remote in (f"oci:{at}/oci:a:1", f"docker-archive:{at}/a.tar:a:1", f"dir:{at}/dir"):
        assert layerfs.ok("push", "a:1", remote).startswith("sha256:")
        layerfs.ok("rmi", "-f", "a:1")
        made = layerfs.ok("pull", remote, "b:1")
        assert made.startswith("sha256:")
        assert layerfs.ok("images", "--format", "{{.Repository}}:{{.Tag}}") == "b:1"
        layerfs.ok("tag", "b:1", "a:1")
        layerfs.ok("rmi", "b:1")
        assert os.listdir(at / "scratch") == []
    assert image
    assert "no such file" in layerfs.refused("pull", "oci:/nowhere:x")
    nothing_is_left(layerfs, 1)


def test_what_was_cleared_away_is_told_and_the_upload_read(api: Api, layerfs: Layerfs) -> None:
    layerfs.ok("save", "a:1", "-o", layerfs.directory / "a.tar")
    layerfs.ok("rmi", "a:1")
    for words, said in (
        (("load", layerfs.directory / "a.tar"), "Loaded image: a:1\n"),
        (("import", layerfs.directory / "tree", "b:1"), "sha256:"),
    ):
        (layerfs.root / "tmp/left").mkdir(parents=True)
        done = layerfs(*words)
        assert (done.returncode, done.stdout.startswith(said)) == (0, True), done.stderr
        assert done.stderr.count("\n") == 1
        assert "tmp/left: what was put together there was not finished" in done.stderr
    nothing_is_left(layerfs, 2)


def helpers(layerfs: Layerfs) -> list[int]:
    """Return the processes that answer for the engine of *layerfs*."""
    found = []
    for pid in layerfs.processes():
        with suppress(OSError):
            if b"layerfs.api.apart" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize("words", [["save", "a:1"], ["export", "c"]])
def test_an_archive_whose_maker_is_killed_is_not_whole(api: Api, layerfs: Layerfs, words: list[str]) -> None:
    layerfs.expect_log(r"ERROR .* has ended too early \(signal 9\)")
    layerfs.ok("create", "--name", "c", "a:1", "x")
    place = layerfs.directory / "out.tar"
    os.mkfifo(layerfs.directory / "out")
    process = subprocess.Popen(
        [*layerfs.words, *words, "-o", layerfs.directory / "out"],
        env=layerfs.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with (layerfs.directory / "out").open("rb") as reader, place.open("wb") as file:
        file.write(reader.read(100_000))
        [helper] = helpers(layerfs)
        os.kill(helper, signal.SIGKILL)
        while data := reader.read(100_000):
            file.write(data)
    said = process.communicate(timeout=PATIENCE)[1]
    assert place.stat().st_size < 3_000_000
    assert process.returncode == 1
    assert said.startswith("layerfs: the engine ended the connection")
    layerfs.ok("rm", "c")


@pytest.mark.parametrize("words", [["load"], ["import", "-", "b:1"]])
def test_a_load_whose_maker_is_killed_has_failed(api: Api, layerfs: Layerfs, words: list[str]) -> None:
    process = subprocess.Popen(
        [*layerfs.words, *words], env=layerfs.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(bytes(100))
    process.stdin.flush()
    wait_until(lambda: helpers(layerfs))
    os.kill(helpers(layerfs)[0], signal.SIGKILL)
    time.sleep(0.2)
    out, said = process.communicate(bytes(1_000_000), timeout=PATIENCE)
    assert (process.returncode, out) == (1, b"")
    assert said.startswith(b"layerfs: the process that was to answer has ended"), said
    nothing_is_left(layerfs, 1)


@pytest.mark.parametrize("words", [["load"], ["import", "-", "b:1"]])
def test_a_note_that_comes_before_the_upload_is_read_does_not_end_it(
    api: Api, layerfs: Layerfs, words: list[str]
) -> None:
    """What an import that was killed has left is removed by the next one, which says so first of all."""
    layerfs.ok("save", "a:1", "-o", layerfs.directory / "a.tar")
    data = (layerfs.directory / "a.tar").read_bytes()
    process = subprocess.Popen(
        [*layerfs.words, "import", "-", "half:1"], env=layerfs.environment | {"LAYERFS_ENGINE": "none"},
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    wait_until(lambda: len(os.listdir(layerfs.root / "layers")) > 1)
    process.kill()
    process.wait(PATIENCE)
    process.stdin.close()
    done = subprocess.run(
        [*layerfs.words, *words], env=layerfs.environment, check=False, timeout=PATIENCE,
        input=data, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"remov" in done.stderr
