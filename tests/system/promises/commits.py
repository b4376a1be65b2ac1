"""The program that commits, at random moments, and syncs at once what it has just had sealed."""

from __future__ import annotations

import json
import socket
import time
from http.client import HTTPResponse
from pathlib import Path

from tests.system.promises.program import Program
from tests.system.promises.world import Node

MOUNT = "m"
"""The name of the mount."""
_PATIENCE = 30


class Committer(Program):
    """A program with a control socket."""

    control: Path

    def commit(self) -> None:
        """Commit the mount, as `layerfs commit` does."""
        tag = f"c{self.name}-{self._serial}"
        self._call("commit", lambda: commit_mount(self.control, tag), tag=tag)


def commit_mount(control: Path, tag: str) -> str:
    """Commit the mount as `cut:TAG` and return the id of the image; raises `OSError` where there is none."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(_PATIENCE)
        peer.connect(str(control))
        target = f"/commit?container={MOUNT}&repo=cut&tag={tag}"
        peer.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        answer = HTTPResponse(peer, method="POST")
        try:
            answer.begin()
            text = answer.read()
        except Exception as error:  # half an answer
            raise OSError(5, str(error)) from None
        if answer.status != 201:
            raise OSError(5, text.decode())
        return str(json.loads(text)["Id"])


def commit(program: Program) -> None:
    """Write, commit, and sync what has been sealed: at once, later, or not at all."""
    assert isinstance(program, Committer)
    written: list[Node] = []
    for _ in range(program.random.randint(0, 3)):
        node = program.file() if program.random.random() < 0.5 else program.create(program.directory())
        program.write(node, 0, program.size())
        written.append(node)
        if program.random.random() < 0.2:
            program.sync(node)
    program.commit()
    way = program.random.random()
    if way < 0.6:
        for node in written:
            program.sync(node)
    elif way < 0.8:
        program.fsyncdir(program.directory())
    time.sleep(program.random.random() * program.random.choice((0.01, 0.1)))
