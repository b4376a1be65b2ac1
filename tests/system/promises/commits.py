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
        """Commit the mount, as `layerfs commit` does, or make a checkpoint."""
        tag = f"c{self.name}-{self._serial}"
        image = self.random.random() < 0.5
        make = commit_mount if image else checkpoint_mount
        self._call("commit", lambda: make(self.control, tag), tag=tag, image=image)


def commit_mount(control: Path, tag: str) -> str:
    """Commit the mount as `cut:TAG` and return the id of the image; raises `OSError` where there is none."""
    return _ask(control, f"/commit?container={MOUNT}&repo=cut&tag={tag}", b"", "Id")


def checkpoint_mount(control: Path, tag: str) -> str:
    """Make a checkpoint with the comment *tag* and return its id; raises as `commit_mount`."""
    body = json.dumps({"Comment": tag}).encode()
    return _ask(control, f"/layerfs/checkpoint?name={MOUNT}", body, "Step")


def _ask(control: Path, target: str, body: bytes, member: str) -> str:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(_PATIENCE)
        peer.connect(str(control))
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sendall(head.encode() + body)
        answer = HTTPResponse(peer, method="POST")
        try:
            answer.begin()
            text = answer.read()
        except Exception as error:  # half an answer
            raise OSError(5, str(error)) from None
        if answer.status != 201:
            raise OSError(5, text.decode())
        return str(json.loads(text)[member])


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
