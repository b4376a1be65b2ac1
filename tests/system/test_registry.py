"""Pull and push through skopeo, with a real registry on the loopback and with skopeo's other transports."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Layerfs, wait_until
from tests.fuse.oracle import snapshot
from tests.system.registries import Line, Registry, registry, short_lived

__all__ = ["registry", "short_lived"]

pytestmark = pytest.mark.root
PLAIN = "--tls-verify=false"


class Here:
    """A store with an image of two layers, "made", mounted as "m", and a second store to pull into."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        (layerfs.directory / "there").mkdir()
        self.there = Layerfs(layerfs.directory / "there")
        self.mnt = self._directory("mnt")
        tree = self._directory("tree")
        fill(tree)
        layerfs.ok("import", tree, "base", "-c", 'CMD ["/bin/x"]', "-c", "ENV A=1")
        layerfs.ok("mount", "--image", "base", "--name", "m", self.mnt)
        change(self.mnt)
        layerfs.ok("commit", "-m", "Change it", "m", "made")

    def _directory(self, name: str) -> Path:
        path = self.layerfs.directory / name
        path.mkdir()
        return path

    def pulled_tree(self, image: str) -> snapshot.Snapshot:
        """Mount *image* of the second store; return what it looks like."""
        place = self.there.directory / "mnt"
        place.mkdir(exist_ok=True)
        self.there.ok("mount", "--image", image, place)
        try:
            return seen(place)
        finally:
            self.there.ok("umount", place)

    def nothing_is_left(self) -> None:
        """Check that the second store has no image, no layer and nothing half there."""
        assert self.there.ok("prune", "--force").splitlines()[-1] == "Total reclaimed space: 0B"
        assert self.there.ok("images", "-q") == ""
        assert list((self.there.root / "layers").iterdir()) == []
        assert list((self.there.root / "tmp").iterdir()) == []


def seen(place: Path) -> snapshot.Snapshot:
    return snapshot.take(os.fsencode(place), sys.maxsize, kernel=False)


def fill(tree: Path) -> None:
    """Make one of everything."""
    for name in ("etc", "old", "moved", "opaque"):
        (tree / name).mkdir()
        (tree / name / "file").write_text(name * 100)
    (tree / "etc/shadow").write_text("secret")
    os.chown(tree / "etc/shadow", 7, 2_500_000)
    (tree / "etc/shadow").chmod(0o640)
    (tree / "su").write_bytes(os.urandom(5000))
    (tree / "su").chmod(0o4755)
    os.setxattr(tree / "su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(tree / "etc", "user.note", b"\x00\xff=\n")
    os.setxattr(tree / "etc", "trusted.note", b"root's")
    subprocess.run(["setfacl", "-m", "u:33:rwx,d:g:44:r-x", tree / "etc"], check=True)
    os.link(tree / "su", tree / "old/link")
    (tree / "symlink").symlink_to("/nowhere/at/all")
    os.chown(tree / "symlink", 3, 4, follow_symlinks=False)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    os.mkfifo(tree / "fifo", 0o604)
    (tree / os.fsdecode(b"odd \xff\n=name")).write_text("odd")
    (tree / ("long" * 60)).write_text("long")
    with (tree / "sparse").open("wb") as file:
        file.seek(20 << 20)
        file.write(b"end")
    os.utime(tree / "su", ns=(1, 1_600_000_000_123_456_789))
    os.utime(tree / "etc", ns=(1, 1_500_000_000_987_654_321))
    tree.chmod(0o751)


def change(mnt: Path) -> None:
    """Change the tree in every way that a layer has a form of its own for."""
    (mnt / "old/file").unlink()
    (mnt / "moved").rename(mnt / "elsewhere")
    (mnt / "opaque/file").unlink()
    (mnt / "opaque").rmdir()
    (mnt / "opaque").mkdir()
    (mnt / "opaque/new").write_text("new")
    (mnt / "etc/shadow").write_text("other")
    (mnt / "fifo").unlink()
    (mnt / "fifo").mkdir()
    (mnt / "new").write_bytes(os.urandom(100_000))


@pytest.fixture
def here(layerfs: Layerfs) -> Iterator[Here]:
    """Two stores."""
    made = Here(layerfs)
    yield made
    made.there.end()


def test_there_and_back(here: Here, registry: Registry) -> None:
    """What was pushed from one store and pulled into another is the same, to the last attribute."""
    target = f"docker://{registry.host}/round/trip:1"
    digest = here.layerfs.ok("push", PLAIN, "made", target)
    assert here.layerfs.ok("push", PLAIN, "made", target) == digest
    image = here.there.ok("pull", PLAIN, target)
    assert here.there.ok("images", "-q", "--no-trunc") == image
    name = f"{registry.host}/round/trip:1"
    assert snapshot.differences(seen(here.mnt), here.pulled_tree(name)) == []
    (inspected,) = json.loads(here.there.ok("inspect", name))
    assert (inspected["Config"]["Cmd"], inspected["Config"]["Env"]) == (["/bin/x"], ["A=1"])
    rows = [json.loads(line) for line in here.there.ok("history", "--format", "json", name).splitlines()]
    assert [row["Comment"] for row in rows] == ["Change it", ""]
    # From there it goes on under the same digest, and by its name alone.
    here.there.ok("tag", name, f"{registry.host}/again")
    assert here.there.ok("push", PLAIN, f"{registry.host}/again") == digest
    assert here.there.ok("prune", "-f") == "Total reclaimed space: 0B"


def test_layers_that_are_there_are_not_fetched_again(here: Here, registry: Registry) -> None:
    base, made = (f"docker://{registry.host}/shared/{name}" for name in ("base", "made"))
    here.layerfs.ok("push", PLAIN, "base", base)
    here.layerfs.ok("push", PLAIN, "made", made)
    here.there.ok("pull", PLAIN, base, "base")
    lower, upper = (registry.blob(digest) for digest in layer_digests(made))
    lower.unlink()
    here.there.ok("pull", PLAIN, made, "made")
    assert snapshot.differences(seen(here.mnt), here.pulled_tree("made")) == []
    upper.unlink()
    here.there.ok("pull", PLAIN, made, "again")  # all of it is there
    here.there.ok("rmi", "made", "again")
    assert "blob" in here.there.refused("pull", PLAIN, made)
    assert here.there.ok("images", "--format", "json").count("\n") == 0


def test_layers_that_are_there_are_not_sent_again(here: Here, registry: Registry) -> None:
    """What was pulled goes back as the blob that it was, even where only the registry has that blob."""
    base, made = (f"docker://{registry.host}/sent/{name}" for name in ("base", "made"))
    subprocess.run(
        ["skopeo", "copy", "-q", "--dest-tls-verify=false", gzipped_elsewhere(here), base], check=True
    )
    here.there.ok("pull", PLAIN, base, "base")
    place = here.there.directory / "mnt"
    place.mkdir()
    here.there.ok("mount", "--image", "base", "--name", "m", place)
    (place / "new").write_text("new")
    here.there.ok("commit", "m", "made")
    here.there.ok("push", PLAIN, "made", made)
    lower, upper = layer_digests(made)
    assert [lower] == layer_digests(base)
    assert list((here.there.root / "layers").glob("*/origin.*")) == []
    # When the registry has lost it, it is made and sent after all.
    for digest in (lower, upper):
        registry.blob(digest).unlink()
    for link in registry.blobs.glob(f"**/_layers/sha256/{lower.removeprefix('sha256:')}/link"):
        link.unlink()
    here.there.ok("push", PLAIN, "made", made)
    assert layer_digests(made)[0] != lower
    here.there.ok("umount", "m")
    here.there.ok("prune", "--all", "--mounts", "--force")
    here.there.ok("pull", PLAIN, made, "made")


def gzipped_elsewhere(here: Here) -> str:
    """Return an image of one layer that was compressed by another program than layerfs."""
    plain, layout = here.layerfs.directory / "plain.tar", here.layerfs.directory / "layout"
    here.layerfs.ok("save", "base", "-o", plain)
    subprocess.run(["skopeo", "copy", "-q", f"docker-archive:{plain}", f"oci:{layout}:base"], check=True)
    return f"oci:{layout}:base"


def layer_digests(image: str) -> list[str]:
    """Return the digests of the layers of *image*, as the registry has them."""
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", PLAIN, image], stdout=subprocess.PIPE, check=True, timeout=20
    )
    return [layer["digest"] for layer in json.loads(done.stdout)["layers"]]


def test_what_is_pulled_while_others_prune(here: Here, registry: Registry) -> None:
    base, made = (f"docker://{registry.host}/pruned/{name}" for name in ("base", "made"))
    here.layerfs.ok("push", PLAIN, "base", base)
    here.layerfs.ok("push", PLAIN, "made", made)
    with subprocess.Popen(
        ["sh", "-c", 'while :; do "$@" prune --all --force; done', "sh", *here.there.words],
        env=here.there.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as others:  # fmt: skip
        try:
            for _ in range(2):
                for source in (base, made):
                    done = here.there("pull", PLAIN, source)
                    assert done.returncode == 0, done.stderr
        finally:
            os.killpg(others.pid, signal.SIGKILL)
    here.there.ok("prune", "--all", "--force")
    here.nothing_is_left()


@pytest.mark.parametrize("end", ["layerfs killed", "skopeo killed", "interrupted", "registry gone"])
def test_interrupted_in_the_middle(here: Here, short_lived: Registry, end: str) -> None:
    (here.mnt / "large").write_bytes(os.urandom(8_000_000))
    here.layerfs.ok("commit", "m", "large")
    here.layerfs.ok("push", PLAIN, "large", f"docker://{short_lived.host}/large")
    line = Line(short_lived, 3_000_000)
    words = [*here.there.words, "pull", PLAIN, f"docker://{line.host}/large"]
    with subprocess.Popen(
        words, env=here.there.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as pull:
        assert line.stalled.wait(20)
        skopeo = [pid for pid in here.there.processes() if pid != pull.pid]
        assert len(skopeo) == 1
        assert list((here.there.root / "tmp").iterdir()) != []
        if end == "layerfs killed":
            pull.kill()
        elif end == "interrupted":
            pull.send_signal(signal.SIGINT)
        elif end == "skopeo killed":
            os.kill(skopeo[0], signal.SIGKILL)
        else:
            short_lived.kill()
            line.cut()
        output, errors = pull.communicate(timeout=30)
    line.cut()
    wait_until(lambda: not here.there.processes())
    assert output == ""
    if end == "layerfs killed":
        assert pull.returncode == -signal.SIGKILL
    else:
        assert (pull.returncode, errors.strip().count("\n")) == (1, 0), errors
        said = {"skopeo killed": "skopeo was killed", "interrupted": "interrupted"}.get(
            end, "cannot pull docker://"
        )
        assert said in errors
        assert list((here.there.root / "tmp").iterdir()) == []
    here.nothing_is_left()
    if end != "registry gone":
        here.there.ok("pull", PLAIN, f"docker://{short_lived.host}/large", "large")
        assert snapshot.differences(seen(here.mnt), here.pulled_tree("large")) == []


def test_a_push_that_is_killed_leaves_nothing(here: Here, short_lived: Registry) -> None:
    line = Line(short_lived, 100)
    words = [*here.layerfs.words, "push", PLAIN, "made", f"docker://{line.host}/made"]
    before = set(here.layerfs.processes())  # the worker that settles a layer may be among them, and end
    with subprocess.Popen(words, env=here.layerfs.environment, stderr=subprocess.DEVNULL) as push:
        assert line.stalled.wait(20)
        assert list((here.layerfs.root / "tmp").iterdir()) != []
        push.kill()
    line.cut()
    wait_until(lambda: before.issuperset(here.layerfs.processes()))
    here.layerfs("prune", "--force")
    assert list((here.layerfs.root / "tmp").iterdir()) == []
    here.layerfs.ok("push", PLAIN, "made", f"docker://{short_lived.host}/made")


def test_other_transports(here: Here) -> None:
    place = here.layerfs.directory / "place"
    place.mkdir()
    for target, name in (
        (f"oci:{place}/made:1", ()),
        (f"oci-archive:{place}/oci.tar:made:1", ()),
        (f"docker-archive:{place}/made.tar:made:1", ()),
        (f"containers-storage:[vfs@{place}/root+{place}/run]made:1", ()),
        (f"dir:{place}/dir", ("made:1",)),
    ):
        here.layerfs.ok("push", "made", target)
        here.there.ok("pull", target, *name)
        assert snapshot.differences(seen(here.mnt), here.pulled_tree("made:1")) == [], target
        here.there.ok("rmi", "made:1")


def test_errors_are_one_line(here: Here, registry: Registry) -> None:
    host = registry.host
    here.layerfs.ok("push", PLAIN, "made", f"docker://{host}/errors:1")
    for words, said in (
        (("pull", PLAIN, f"docker://{host}/nothing"), "manifest unknown"),
        (("pull", f"docker://{host}/errors:1"), "give --tls-verify=false"),
        (("pull", PLAIN, "docker://127.0.0.1:1/x"), "connection refused"),
        (("pull", PLAIN, f"docker://{host}/UPPER"), "invalid reference format"),
        (("pull", PLAIN, f"docker://{host}/errors:1", "BAD"), "invalid reference format"),
        (
            ("pull", PLAIN, "--platform", "linux/s390x", f"docker://{host}/errors:1"),
            "(linux/s390x)",
        ),
        (("pull", "oci:/nowhere:x"), "no such file or directory"),
        (("pull", PLAIN, "--policy", "/nowhere", f"docker://{host}/errors:1"), "/nowhere"),
        (("pull", PLAIN, "--skopeo=--no-such-option", f"docker://{host}/errors:1"), "no-such-option"),
    ):
        assert said in here.there.refused(*words), words
    here.nothing_is_left()
    assert "no such image" in here.layerfs.refused("push", PLAIN, "nothing", f"docker://{host}/x")
    assert "connection refused" in here.layerfs.refused("push", PLAIN, "made", "docker://127.0.0.1:1/x")
    assert "unknown transport" in here.layerfs.refused("push", "made", "ftp://x", status=2)
    assert "give the image, too" in here.layerfs.refused("push", "dir:/nowhere", status=2)
    assert list((here.layerfs.root / "tmp").iterdir()) == []
    without = Layerfs(here.there.directory)
    without.environment["PATH"] = str(here.there.directory)
    assert "skopeo is not installed" in without.refused("pull", "debian:12")
