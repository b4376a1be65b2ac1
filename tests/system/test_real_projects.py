"""Real projects are built by layerfs and by buildah: the same files, modes, owners and configuration.

LAYERFS_REAL_PROJECTS=1 has the three projects of `projects.py` built on Debian, with packages from its
mirror. That takes minutes; without it a small build on busybox stands for them.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.fuse.oracle.snapshot import Item
from tests.system import projects
from tests.system.builds import builds
from tests.system.peer_builds import PATIENCE, Image, Peers, Project, assert_same, peers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("buildah") is None, reason="needs buildah"),
]
WANTED = "LAYERFS_REAL_PROJECTS" in os.environ
wanted = pytest.mark.skipif(not WANTED, reason="takes minutes: set LAYERFS_REAL_PROJECTS=1")
slow = pytest.mark.timeout(1200)  # the first one makes the Debian tree
SCRIPTS = Path(__file__).parents[2] / "scripts"
PACKAGES = (
    "gcc", "libc6-dev", "make", "nodejs", "npm", "python3", "python3-pip", "python3-setuptools",
    "python3-venv", "python3-wheel",
)  # fmt: skip
INSTALL = """\
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && cd / && export DEBIAN_FRONTEND=noninteractive
tree=$1 && shift
chroot "$tree" apt-get -q -y update &&
chroot "$tree" apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io install "$@" &&
chroot "$tree" apt-get clean && rm -rf "$tree"/var/lib/apt/lists/*
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Peers]:
    """Both builders, with an image of busybox."""
    with builds(tmp_path) as (made, _):
        with peers(made) as both:
            both.share("busybox:1")
            yield both
        made.layerfs.check_store()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Both builders, with an image of Debian that has compilers and runtimes, and one of busybox."""
    directory = tmp_path_factory.mktemp("projects")
    try:
        yield from large_below(directory)
    finally:  # not kept as the directories of other tests are: it is too large
        subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True, timeout=PATIENCE)


def large_below(directory: Path) -> Iterator[Peers]:
    """Have all that is below *directory*."""
    tree = workshop(directory / "workshop")
    with builds(directory) as (made, _):
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        imported = made.layerfs(
            "import", "-c", 'CMD ["bash"]', "-c", path, tree, "workshop:1", timeout=PATIENCE
        )
        assert imported.returncode == 0, imported.stderr
        shutil.rmtree(tree)
        with peers(made, "overlay") as both:
            both.share("busybox:1")
            both.share("workshop:1")
            yield both
        made.layerfs.check_store()


def workshop(tree: Path) -> Path:
    """Make a Debian tree with what the projects are built and run with."""
    command: list[str | Path] = ["timeout", "200", SCRIPTS / "debian-tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no Debian tree: {done.stderr.strip()[-200:]}")
    subprocess.run(["cp", "-a", done.stdout.strip(), tree], check=True, timeout=PATIENCE)
    # The mounts are in a namespace that ends with the command.
    inside: list[str | Path] = [
        "timeout",
        str(PATIENCE),
        "unshare",
        "-m",
        "bash",
        "-c",
        INSTALL,
        "install",
        tree,
        *PACKAGES,
    ]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the packages cannot be installed: {done.stderr.strip()[-200:]}")
    return tree


def build_and_compare(both: Peers, name: str, project: Project) -> None:
    """Build *project* by both; the two images must be alike."""
    ours, theirs = both.build(name, project)
    assert len(ours.tree) > len(project.files)
    assert_same(project, ours, theirs)


def test_a_small_project_is_built_as_buildah_does(small: Peers) -> None:
    build_and_compare(small, "small:1", projects.SMALL)
    assert small.builds.output("localhost/small:1") == "small 2.1: one two three\n"
    assert small.builds.output("localhost/small:1", "again") == "small 2.1: one two three again\n"


@wanted
@slow
def test_a_python_application_is_built_as_buildah_does(large: Peers) -> None:
    build_and_compare(large, "web:1", projects.PYTHON)
    assert answer(large, "web:1", "python3", "-c", projects.ASK_PYTHON) == "hello from greeter 3.4 as web"


@wanted
@slow
def test_a_node_application_is_built_as_buildah_does(large: Peers) -> None:
    build_and_compare(large, "node:1", projects.NODE)
    assert answer(large, "node:1", "node", "-e", projects.ASK_NODE) == "3 parts by node, production"


@wanted
@slow
def test_a_c_program_is_built_in_stages_as_buildah_does(large: Peers) -> None:
    build_and_compare(large, "tally:1", projects.C)
    builds = large.builds
    counted = builds.containers.run(
        "run", "--rm", "-i", "--network", "none", "localhost/tally:1", stdin=b"1 2 3\n40"
    )
    assert (counted.stdout, counted.returncode) == ("tally 1.5: 46\n", 0), counted.stderr
    # What it was compiled with stayed in its stage.
    assert "gcc" not in builds.output("localhost/tally:1", "--help")
    assert b"usr/bin/gcc" not in large.look("localhost/tally:1").tree


def answer(both: Peers, image: str, *ask: str) -> str:
    """Run *image* until it is healthy; return what *ask* is told in it."""
    both.builds.layerfs.ok("run", "-d", "--name", "asked", "--network", "none", f"localhost/{image}")
    try:
        wait_until(lambda: health(both, "asked") == "healthy", patience=60)
        return both.builds.layerfs.ok("exec", "asked", *ask)
    finally:
        both.builds.containers.remove("asked")


def health(both: Peers, name: str) -> str:
    """Return the health of a container, as its HEALTHCHECK has found it."""
    found: str = both.builds.containers.inspect(name)["State"]["Health"]["Status"]
    return found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mode": 0o600}, "mode"),
        ({"uid": 5}, "uid"),
        ({"content": b"other"}, "content"),
        ({"type": stat.S_IFLNK}, "type"),
        ({"names": (b"a", b"b")}, "names"),
        ({"attributes": (("user.a", b""),)}, "attributes"),
        ({"mtime": 7}, "mtime"),
    ],
)
def test_the_comparison_sees_a_file_that_differs(change: dict[str, Any], named: str) -> None:
    item = Item(stat.S_IFREG, 0o644, content=b"one")
    one, other = (Image({b"srv/file": each}, {}) for each in (item, item._replace(**change)))
    assert_same(projects.SMALL, one, one)
    with pytest.raises(AssertionError, match=f"b'srv/file' {named}: "):
        assert_same(projects.SMALL, one, other)


def test_the_comparison_sees_names_and_settings_that_differ() -> None:
    item = Item(stat.S_IFREG, 0o644, content=b"not empty")
    plain = Image({b"file": item}, {"User": "jane"})
    for other in (
        Image({b"file": item, b"etc/hosts": item}, {"User": "jane"}),
        Image({}, {"User": "jane"}),
        Image({b"file": item}, {"User": ""}),
        Image({b"file": item}, {"User": "jane", "Labels": {"a": "b"}}),
    ):
        for pair in ((plain, other), (other, plain)):
            with pytest.raises(AssertionError, match="1 differences"):
                assert_same(projects.SMALL, *pair)
