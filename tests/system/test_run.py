"""`layerfs run`: what a container's process sees, and what comes back from it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import mounts_below, wait_until
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("run")) as made:
        yield made


def sh(there: Containers, script: str, *options: str) -> str:
    """Run a shell script in a container that goes at its end; it must work. Returns its output."""
    return there.layerfs.ok("run", "--rm", *options, IMAGE, "sh", "-euc", script)


def test_what_the_process_sees(there: Containers) -> None:
    lines = sh(
        there, "id; pwd; hostname; echo $GREETING $HOME $$; cat /etc/hostname; ls /dev/pts"
    ).splitlines()
    assert lines[:2] == ["uid=0(root) gid=0(root) groups=0(root)", "/"]
    assert re.fullmatch("[0-9a-f]{12}", lines[2])
    assert lines[3:] == ["hello /root 1", lines[2], "ptmx"]


def test_what_the_process_may_not(there: Containers) -> None:
    script = """
        test -z "$(head -c1 /proc/keys)"
        test -z "$(ls /sys/firmware)"
        ! echo 1 2>/dev/null >/proc/sys/kernel/panic || exit 1
        ! mount -t tmpfs tmpfs /srv 2>/dev/null || exit 1
        ! touch /sys/x 2>/dev/null || exit 1
        grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status
    """
    found = dict(line.split(":\t") for line in sh(there, script).splitlines())
    assert found == {
        "CapEff": "00000000a80425fb",  # Docker's default set
        "CapBnd": "00000000a80425fb",
        "NoNewPrivs": "0",
        "Seccomp": "2",
    }


def test_an_ordinary_user(there: Containers) -> None:
    script = """
        id; pwd; echo $A $B $HOME; grep CapEff /proc/self/status
        ! touch /new 2>/dev/null || exit 1; touch /tmp/new
    """
    lines = sh(there, script, "-u", "jane", "-w", "/srv/deep", "-e", "A=1 2", "-e", "B=").splitlines()
    assert lines == [
        "uid=1000(jane) gid=100(users) groups=10(wheel),100(users)",
        "/srv/deep",
        "1 2 /home/jane",
        "CapEff:\t0000000000000000",
    ]


def test_volumes(there: Containers, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("content\n")
    (tmp_path / "single").write_text("single\n")
    script = "cat /in/file /one; ! touch /in/new 2>/dev/null || exit 1; echo out >/out/file"
    volumes = (f"{tmp_path}/in:/in:ro", f"{tmp_path}/made:/out", f"{tmp_path}/single:/one")
    assert sh(there, script, *(f"--volume={text}" for text in volumes)) == "content\nsingle"
    assert (tmp_path / "made/file").read_text() == "out\n"
    assert not (tmp_path / "in/new").exists()


def test_volumes_of_the_image(there: Containers) -> None:
    there.layerfs.ok("run", "--name", "maker", IMAGE, "sh", "-c", "mkdir /data && echo first >/data/file")
    there.layerfs.ok("commit", "-c", 'VOLUME ["/data", "/missing"]', "maker", "with-volume")
    there.layerfs.ok(
        "run", "--name", "user", "with-volume", "sh", "-c", "cat /data/file; echo more >>/data/file"
    )
    assert there.layerfs.ok("start", "-a", "user") == "first\nmore"
    there.layerfs.ok("commit", "user", "after")
    assert there.layerfs.ok("run", "--rm", "after", "sh", "-c", "cat /data/file; ls /missing") == "first"
    kept = there.layerfs.root / "volumes"
    listed = there.layerfs.ok("volume", "ls", "-q", "--filter", "label=com.docker.volume.anonymous").split()
    (file,) = kept.glob("*/_data/file")
    assert file.parent.parent.name in listed
    there.remove("maker", "user")
    assert len(os.listdir(kept)) == 2  # the one of "user" without a file in it, too
    there.layerfs.ok("volume", "prune", "-f")
    assert os.listdir(kept) == []
    there.layerfs.ok("rmi", "after", "with-volume")


def test_networks(there: Containers) -> None:
    here = os.readlink("/proc/self/ns/net")
    assert sh(there, "ls -l /proc/self/ns/net").endswith(here)
    alone = sh(
        there, "ls -l /proc/self/ns/net; hostname; cat /etc/hosts; ip link", "--network=none", "-h", "box"
    )
    assert here not in alone
    assert "\nbox\n" in alone
    assert "127.0.1.1\tbox" in alone
    assert re.findall(r"^\d+: (\w+): <(.*)>", alone, re.M) == [("lo", "LOOPBACK,UP,LOWER_UP")]


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (("sh", "-c", "exit 42"), 42, None),
        (("no-such-command",), 127, "no-such-command.*not found"),
        (("/no/such/command",), 127, "no such file or directory"),
        (("/etc/passwd",), 126, "permission denied"),
        (("/etc",), 126, "permission denied|is a directory"),
    ],
)
def test_exit_codes(there: Containers, command: tuple[str, ...], status: int, words: str | None) -> None:
    done = there.layerfs("run", "--rm", IMAGE, *command)
    assert done.returncode == status
    if words is None:
        assert done.stderr == ""
    else:
        assert done.stderr.count("\n") == 1
        assert re.search(words, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--pull=never", "no-such-image", "true"), "No such image: no-such-image"),
        (("UPPER", "true"), "invalid reference"),
        (("-u", "nobody", IMAGE, "true"), "unable to find user nobody"),
        (("-v", "a b:/x", IMAGE, "true"), "includes invalid characters for a local volume name"),
        (("-v", ":/x", IMAGE, "true"), "invalid volume ':/x'"),
        (("-v", "/etc/passwd/x:/x", IMAGE, "true"), "directory of a volume"),
        (("-w", "srv", IMAGE, "true"), "absolute path"),
        (("-e", "=x", IMAGE, "true"), "invalid environment variable"),
        (("--network", "missing", IMAGE, "true"), "network missing not found"),
        (("--name", "a/b", IMAGE, "true"), "invalid name 'a/b'"),
        (("--entrypoint", "", IMAGE), "no command specified"),
        (("--no-such-option", IMAGE), "(?i)no such option.*layerfs run --help"),
        ((), "(?i)missing argument.*layerfs run --help"),
        (("-it", IMAGE), "the input device is not a TTY"),
    ],
)
def test_bad_input(there: Containers, arguments: tuple[str, ...], words: str) -> None:
    line = there.layerfs.refused("run", "--rm", *arguments, status=125)
    assert re.search(words, line)
    assert there.names() == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_an_image_that_is_not_here_is_pulled(there: Containers) -> None:
    done = there.layerfs("run", "--rm", "localhost:1/no-such-image", "true")
    assert done.returncode == 125
    told, failed = done.stderr.splitlines()
    assert told == "Unable to find image 'localhost:1/no-such-image' locally"
    assert re.search("cannot pull docker://localhost:1/no-such-image:latest: .*refused", failed)


def test_what_could_not_start_stays(there: Containers) -> None:
    assert there.layerfs("run", "--name", "wrong", IMAGE, "no-such-command").returncode == 127
    assert there.state("wrong") == ("created", 127)
    assert "is taken" in there.layerfs.refused("run", "--name", "wrong", IMAGE, "true", status=125)
    assert there.layerfs("start", "wrong").returncode == 1
    assert mounts_below(there.layerfs.directory) == []
    wait_until(lambda: os.listdir(there.layerfs.run / "containers") == [])
    there.remove("wrong")


def test_input_and_output(there: Containers) -> None:
    data = b"line\n" * 100_000
    done = there.run("run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo error >&2", stdin=data)
    assert (done.stdout.encode() == data, done.stderr, done.returncode) == (True, "error\n", 0)
    done = there.run("run", "--rm", IMAGE, "cat", stdin=data)
    assert (done.stdout, done.returncode) == ("", 0)


def test_all_output_arrives_however_slowly_it_is_read(there: Containers) -> None:
    wanted = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    with there.popen("run", "--rm", IMAGE, "seq", "200000", stdout=subprocess.PIPE) as process:
        assert process.stdout
        found = hashlib.sha256()
        found.update(process.stdout.read(1000))
        wait_until(lambda: there.names() != [])
        found.update(process.stdout.read())
        assert process.wait(30) == 0
    assert found.digest() == hashlib.sha256(wanted).digest()


def test_signals_are_passed_on(there: Containers) -> None:
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with there.popen("run", "--rm", IMAGE, "sh", "-c", script, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got it\n"
        assert process.wait(20) == 9


def test_who_ignores_signals_is_left_alone_after_the_third(there: Containers) -> None:
    script = "trap '' INT; echo ready; while :; do sleep 0.1; done"
    with there.popen(
        "run",
        "--rm",
        "--name=deaf",
        IMAGE,
        "sh",
        "-c",
        script,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"ready\n"
        for _ in range(3):
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            signal.sigtimedwait([], 0.2)
        assert process.wait(20) == 125
        assert b"left running" in process.stderr.read()
    assert there.state("deaf")[0] == "running"
    there.layerfs.ok("kill", "deaf")
    wait_until(lambda: there.gone("deaf"))


def test_nothing_is_left(there: Containers) -> None:
    sh(there, "echo x >/root/x")
    there.layerfs.ok("run", "--rm", "-d", "--name", "short", IMAGE, "true")
    wait_until(lambda: there.gone("short"))
    wait_until(lambda: not there.layerfs.processes())
    assert mounts_below(there.layerfs.directory) == []
    # The runtime leaves the directory in which it had its containers.
    left = [path for path in there.layerfs.run.rglob("*") if not path.is_dir() or path.parent.name == "runc"]
    assert left == []
    wait_until(lambda: os.listdir(there.layerfs.run / "containers") == [])
    assert os.listdir(there.layerfs.root / "containers") == []
    assert len(os.listdir(there.layerfs.root / "layers")) == 1
