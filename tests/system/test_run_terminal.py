"""The walkthrough with a terminal, word for word; and what a terminal does besides."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import mounts_below, wait_until
from tests.system.containers import IMAGE, Containers, Terminal, containers

pytestmark = pytest.mark.root
NODE = r"""printf '#!/bin/sh\nshift; echo "$*"\n' >/bin/node && busybox chmod 755 /bin/node"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("terminal")) as made:
        made.layerfs.ok("tag", IMAGE, "ubuntu")
        yield made


def test_the_walkthrough(there: Containers) -> None:
    """What the tutorial does in a terminal, and in a second one, with a program in place of Node.js."""
    layerfs = there.layerfs
    with Terminal(there, ["run", "--name=base-container", "-ti", "ubuntu"]) as terminal:
        terminal.wait_for("# ")
        terminal.type(f"{NODE}\n")
        terminal.wait_for("# ")
        terminal.type("node -e 'Hello'' world!'\n")
        terminal.wait_for("\r\nHello world!\r\n")

        image = layerfs.ok("container", "commit", "-m", "Add node", "base-container", "node-base")
        header, first, second = layerfs.ok("image", "history", "node-base").splitlines()
        assert re.split(r"  +", header) == ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]
        assert re.fullmatch(rf"{image[7:19]}   .* ago +sh +\d+B +Add node", first)
        assert "Imported from" in second
        assert layerfs.ok("run", "node-base", "node", "-e", "Hello again") == "Hello again"

        terminal.type("echo still $((40 + 2))\n")
        terminal.wait_for("still 42\r\n")
        layerfs.ok("rm", "-f", "base-container")
        assert terminal.end() == 137
        assert terminal.is_as_it_was()
    assert "base-container" not in there.names()
    there.remove()
    layerfs.ok("rmi", "node-base")


def test_keys_and_sizes(there: Containers) -> None:
    with Terminal(there, ["run", "-it", "--rm", IMAGE]) as terminal:
        terminal.wait_for("# ")
        terminal.type("stty size; tty; echo $TERM $((40 + 2))\n")
        assert "33 101\r\n/dev/pts/0\r\n" in terminal.wait_for("xterm 42\r\n")
        assert not terminal.is_as_it_was()  # it is raw: Ctrl-C goes into the container
        terminal.resize(44, 120)
        terminal.type("while ! stty size | grep '44 120'; do sleep 0.1; done; echo $((40 + 3))\n")
        terminal.wait_for("\r\n43\r\n")
        terminal.type("sh -c 'echo $((40 + 4)); sleep 60; true'\n")
        terminal.wait_for("\r\n44\r\n")
        terminal.type("\x03")
        terminal.wait_for("^C")
        terminal.type("exit 7\n")
        assert terminal.end() == 7
        assert terminal.is_as_it_was()


def test_leaving_and_coming_back(there: Containers) -> None:
    with Terminal(there, ["run", "-it", "--name", "left", IMAGE]) as terminal:
        terminal.wait_for("# ")
        terminal.type("\x10\x11")
        assert terminal.end() == 0
        assert terminal.is_as_it_was()
    assert there.state("left") == ("running", 0)
    there.layerfs.ok("kill", "left")
    assert there.layerfs.ok("wait", "left") == "137"
    with Terminal(there, ["start", "-a", "-i", "left"]) as terminal:
        terminal.wait_for("# ")
        terminal.type("exit 3\n")
        assert terminal.end() == 3
        assert terminal.is_as_it_was()
    there.remove("left")


def test_the_terminal_goes_away(there: Containers) -> None:
    with Terminal(there, ["run", "-it", "--rm", "--name", "lost", IMAGE]) as terminal:
        terminal.wait_for("# ")
    assert there.state("lost")[0] == "running"
    there.remove()
    wait_until(lambda: mounts_below(there.layerfs.directory) == [])


def test_output_on_a_terminal_without_keys(there: Containers) -> None:
    with Terminal(there, ["run", "-t", "--rm", IMAGE, "sh", "-c", "stty size; exit 2"]) as terminal:
        terminal.wait_for("33 101\r")
        assert terminal.end() == 2
