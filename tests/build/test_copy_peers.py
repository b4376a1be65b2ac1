"""COPY and ADD beside buildah's: the same files, modes, owners, times of files and links."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from layerfs.build import context
from tests.build.archives import archive, directory, file
from tests.build.stages import NEVER, Stage
from tests.build.test_copy_options import write
from tests.build.test_copying import CAPABILITY, age
from tests.fuse.oracle import snapshot
from tests.fuse.oracle.snapshot import Item, Snapshot

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("buildah") is None, reason="needs buildah"),
]


class Buildah:
    """Builds of buildah's upon what `fill_below` makes, with a storage of its own."""

    def __init__(self, top: Path) -> None:
        self._words = ["buildah", "--storage-driver", "vfs", "--root", f"{top}/b", "--runroot", f"{top}/r"]
        self.context = top / "context"
        self.context.mkdir()
        fill_context(self.context)
        container = self("from", "scratch")
        fill_below(Path(self("mount", container)))
        self("commit", "-q", container, "below")

    def __call__(self, *words: str | Path) -> str:
        """Run a command of buildah's."""
        done = subprocess.run([*self._words, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def build(self, case: Case) -> Snapshot:
        """Return what one COPY or ADD comes to."""
        flags = [f"--{name}={value}" for name, value in case.options.items()]
        sources = [self.context / source for source in case.sources]
        container = self("from", "localhost/below")
        try:
            self(
                case.word.lower(), "-q", f"--contextdir={self.context}", *flags, container, *sources, case.to
            )
            return snapshot.take(os.fsencode(self("mount", container)), NEVER, kernel=False)
        finally:
            self("rm", container)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    command = Buildah(tmp_path_factory.mktemp("buildah"))
    try:
        yield command
    finally:
        command("rm", "--all")


def fill_below(top: Path) -> None:
    """What lies below in both."""
    write(top, "etc/conf", "usr/bin/tool", "srv/d/old", "srv/d/sub/old")
    (top / "etc/passwd").write_text("root:x:0:0:::\napp:x:20:21:::\n")
    (top / "etc/group").write_text("root:x:0:\nstaff:x:50:\n")
    (top / "bin").symlink_to("usr/bin")
    (top / "abs").symlink_to("/usr/bin")
    (top / "file-link").symlink_to("etc/conf")
    (top / "srv/d/sub").chmod(0o711)
    (top / "srv").chmod(0o2750)
    os.chown(top / "srv", 7, 8)
    os.chown(top / "srv/d/sub", 9, 10)
    age(*top.rglob("*"))


def fill_context(top: Path) -> None:
    """What is copied."""
    (top / "Dockerfile").write_text("FROM scratch\n")
    write(top, "a.txt", "b.txt", "c.md", "d/f", "d/sub/g", "d/sub/deep/h", "empty/x", "odd name/y")
    (top / "empty/x").unlink()
    (top / "d/f").chmod(0o4751)
    (top / "d/sub").chmod(0o700)
    os.link(top / "d/f", top / "d/hard")
    (top / "d/link").symlink_to("f")
    (top / "d/broken").symlink_to("/nowhere/at/all")
    (top / "link-to-file").symlink_to("a.txt")
    (top / "link-to-dir").symlink_to("d")
    os.setxattr(top / "a.txt", "user.note", b"note")
    os.setxattr(top / "d/sub/g", "security.capability", CAPABILITY)
    for path in top.rglob("*"):
        os.chown(path, 1000, 1001, follow_symlinks=False)
    (top / "d/f").chmod(0o751)
    os.setxattr(top / "d/sub/g", "security.capability", CAPABILITY)
    (top / "x.tar").write_bytes(
        archive(
            directory("srv/d", 0o755, uid=5, mtime=1_600_000_000),
            file("srv/d/from-tar", b"tar", uid=6, gid=7, mtime=1_600_000_000),
            directory("fresh", 0o701, mtime=1_600_000_000),
            file("fresh/file", mtime=1_600_000_000),
            file("bare/file", mtime=1_600_000_000),
        )
    )
    for path in sorted(top.rglob("*"), reverse=True):
        age(path)


class Case(NamedTuple):
    sources: tuple[str, ...]
    to: str
    options: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)
    word: str = "COPY"
    but: tuple[str, ...] = ()
    """Paths for which buildah has it otherwise than BuildKit."""


CASES = {
    "a file to a name": Case(("a.txt",), "/new"),
    "a file to a name in a directory that is missing": Case(("a.txt",), "/x/y/new"),
    "a file into a directory": Case(("a.txt",), "/etc/"),
    "a file into a directory without a slash": Case(("a.txt",), "/etc"),
    "a file into a missing directory": Case(("a.txt",), "/x/y/"),
    "a file over a file": Case(("a.txt",), "/etc/conf"),
    "a file through a link to a directory": Case(("a.txt",), "/bin/"),
    "a file through an absolute link": Case(("a.txt",), "/abs/x"),
    "several files": Case(("a.txt", "b.txt", "d/f"), "/x/"),
    "wildcards": Case(("*.txt", "d/?"), "/x/"),
    "a directory to a new name": Case(("d",), "/x"),
    "a directory into the root": Case(("d",), "/"),
    "a directory into one that is there": Case(("d",), "/srv/d"),
    "a directory through a link": Case(("d",), "/bin"),
    "an empty directory": Case(("empty",), "/x/"),
    "everything": Case((".",), "/app/"),
    "a link to a file": Case(("link-to-file",), "/x/"),
    "a link to a directory": Case(("link-to-dir",), "/x/"),
    "owners by name": Case(("d", "a.txt"), "/x/", {"chown": "app:staff"}),
    "owners by number": Case(("d",), "/x/y", {"chown": "3:4"}),
    "modes": Case(("d", "a.txt"), "/x/", {"chmod": "750"}),
    "a name with a space": Case(("odd name",), "/x y/"),
    "an archive": Case(("x.tar",), "/", word="ADD"),
    "an archive into a new directory": Case(("x.tar",), "/un/packed", word="ADD"),
    "an archive that is copied": Case(("x.tar",), "/"),
    "a file by ADD": Case(("a.txt",), "/x/", word="ADD"),
}


@pytest.mark.parametrize("name", CASES)
def test_as_buildah_has_it(stage: Stage, buildah: Buildah, name: str) -> None:
    case = CASES[name]
    fill_below(stage.layer())
    with context.from_directory(buildah.context) as opened:
        stage.copy(*case.sources, to=case.to, source=opened.source, word=case.word, **case.options)
    theirs, ours = buildah.build(case), stage.see()
    assert snapshot.differences(comparable(theirs, case), comparable(ours, case)) == []


def comparable(seen: Snapshot, case: Case) -> dict[bytes, Item]:
    """Return what both ought to have in common: seconds of the times of files, none of directories."""
    return {
        path: item._replace(mtime=0 if stat.S_ISDIR(item.type) else item.mtime // 10**9)
        for path, item in seen.items()
        if path and path not in map(os.fsencode, case.but)
    }
