"""Routes of `docker exec`: one more process in a container that runs."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import suppress

from layerfs.api.attaching import form
from layerfs.api.routes import Call, route
from layerfs.api.running import size, the_container
from layerfs.container import lifecycle
from layerfs.container.attachment import STDERR, STDOUT, Detach, detach_keys, frame, is_closed
from layerfs.container.execs import KNOWN, Exec, Execution
from layerfs.container.members import Members, one_line
from layerfs.container.ociruntime import ContainerError
from layerfs.errors import BadRequest, LayerfsError
from layerfs.host.polling import readable
from layerfs.host.signals import signal_number
from layerfs.unixhttp.message import Answer, Response, Takeover, json_response

_PIECE = 65536


def create(call: Call) -> Response:
    """Make a process in a container that runs; it does not begin yet."""
    row = the_container(call)
    lifecycle.bundle_of(row)
    with one_line():
        body = Members(call.request.json())
        wanted = Execution(
            command=tuple(body.words("Cmd") or ()),
            environment=tuple(body.texts("Env") or ()),
            workdir=body.text("WorkingDir"),
            user=body.text("User"),
            terminal=body.flag("Tty"),
            stdin=body.flag("AttachStdin"),
            stdout=body.flag("AttachStdout"),
            stderr=body.flag("AttachStderr"),
            privileged=body.flag("Privileged"),
            keys=body.text("DetachKeys"),
        )
    if not wanted.command:
        raise BadRequest("No exec command specified")
    detach_keys(wanted.keys)
    new = Exec(row.id, wanted)
    KNOWN.add(new)
    return json_response({"Id": new.id}, 201)


def start(call: Call) -> Answer:
    """Start a process that was made; its output comes over the connection, unless it is detached.

    As from dockerd it comes as it is if this request says `Tty`, whatever the process has, else in frames.
    """
    found = KNOWN.get(call.names["id"])
    with one_line():
        body = Members(call.request.json())
        detached, raw = body.flag("Detach"), body.flag("Tty")
        console = body.numbers("ConsoleSize")
    if console and len(console) != 2:
        raise BadRequest("invalid ConsoleSize: give the height and the width")
    row = call.store.mount(found.container)
    if detached:
        found.start(row, detached=True)
        return Response(200)
    found.start(row, detached=False)
    if found.wanted.terminal and console:
        found.resize(*console)

    def run(client: socket.socket, early: bytes) -> None:
        with suppress(OSError):
            _pass_on(found, client, early, raw=raw)

    return Takeover(run, form(call, terminal=raw))


def _pass_on(found: Exec, client: socket.socket, early: bytes, *, raw: bool) -> None:
    """Pass on between *client* and the process until it ends, or the client leaves; say what went wrong.

    *raw* is output as it is, without frames.
    """
    process, wanted = found.process, found.wanted
    assert process is not None
    if wanted.terminal:
        outputs, stdin = {os.dup(found.master): STDOUT}, os.dup(found.master)
    else:
        assert process.stdout is not None
        assert process.stderr is not None
        outputs = {os.dup(process.stdout.fileno()): STDOUT, os.dup(process.stderr.fileno()): STDERR}
        stdin = os.dup(process.stdin.fileno()) if process.stdin is not None else -1
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    pump = _Pump(found, client, outputs, stdin, early, raw=raw)
    left = True
    try:
        with suppress(OSError):
            left = not pump.run()
    finally:
        if left:
            threading.Thread(
                target=_let_run, args=(found, pump), name=f"exec {found.id[:12]}", daemon=True
            ).start()
        else:
            pump.close()
    if left:
        return
    try:
        found.wait()
    except ContainerError as error:
        if str(error).encode() in pump.said:
            return  # runc has told the client itself; crun leaves it to us
        text = f"OCI runtime exec failed: {error}\r\n".encode()
        client.sendall(text if raw else frame(STDERR, text))


def _let_run(found: Exec, pump: _Pump) -> None:
    """Let a process that nobody looks at any more go on to its end, and clear away after it."""
    try:
        pump.drain()
    finally:
        pump.close()
    with suppress(LayerfsError, OSError):
        found.wait()


class _Pump:
    """Copies input one way and output the other, so that neither waits for the other."""

    def __init__(
        self,
        found: Exec,
        client: socket.socket,
        outputs: dict[int, int],
        stdin: int,
        early: bytes,
        *,
        raw: bool,
    ) -> None:
        self._raw = raw
        self._found = found
        self._client = client
        self._outputs = outputs
        self._all = [*outputs, *([stdin] if stdin >= 0 else [])]
        self._stdin = stdin if found.wanted.stdin else -1
        self._detach = Detach(detach_keys(found.wanted.keys) if found.wanted.terminal else b"")
        self._pending, self._left = self._detach.feed(early)
        self._reads_client = True
        self.said = b""
        """The end of what came of the process."""
        for fd in self._all:
            os.set_blocking(fd, False)

    def close(self) -> None:
        for fd in self._all:
            os.close(fd)

    def run(self) -> bool:
        """Return when the process has closed its output, False if the client has left before."""
        while self._outputs:
            if self._left:
                return False
            poll = select.poll()
            for fd in self._outputs:
                poll.register(fd, select.POLLIN)
            if self._pending and self._stdin >= 0:
                poll.register(
                    self._stdin, select.POLLOUT | (select.POLLIN if self._stdin in self._outputs else 0)
                )
            if self._reads_client and not self._pending:
                poll.register(self._client.fileno(), select.POLLIN)
            for fd, events in poll.poll():
                if fd == self._client.fileno():
                    self._receive()
                elif fd == self._stdin and events & (select.POLLOUT | select.POLLERR):
                    self._feed()
                elif fd in self._outputs and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._show(fd)
        return True

    def drain(self) -> None:
        """End the input, and drop what the process writes until it has closed its output."""
        self._pending = b""
        self._end_input()
        while self._outputs:
            for fd in readable(list(self._outputs)):
                try:
                    if os.read(fd, _PIECE):
                        continue
                except BlockingIOError:
                    continue
                except OSError:  # EIO: the other side of a terminal was closed
                    pass
                del self._outputs[fd]

    def _receive(self) -> None:
        data = self._client.recv(_PIECE)
        if data:
            more, self._left = self._detach.feed(data)
            if self._stdin >= 0:
                self._pending += more
            return
        self._reads_client = False
        if not self._found.wanted.terminal:
            self._end_input()
        if is_closed(self._client):
            self._left = True

    def _feed(self) -> None:
        try:
            self._pending = self._pending[os.write(self._stdin, self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""
            self._end_input()
        if not self._pending and not self._reads_client and not self._found.wanted.terminal:
            self._end_input()

    def _end_input(self) -> None:
        if self._stdin >= 0 and not self._pending and not self._found.wanted.terminal:
            self._all.remove(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _show(self, fd: int) -> None:
        try:
            data = os.read(fd, _PIECE)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other side of a terminal was closed
            data = b""
        stream = self._outputs[fd]
        self.said = (self.said + data)[-_PIECE:]
        if not data:
            del self._outputs[fd]
        elif self._is_wanted(stream):
            self._client.sendall(data if self._raw else frame(stream, data))

    def _is_wanted(self, stream: int) -> bool:
        wanted = self._found.wanted
        if wanted.terminal:
            return True
        # Without frames nobody could tell the two apart: dockerd leaves the errors out.
        return wanted.stdout if stream == STDOUT else wanted.stderr and not self._raw


def inspect(call: Call) -> Response:
    """Return what is known of a process."""
    found = KNOWN.get(call.names["id"])
    wanted = found.wanted
    return json_response(
        {
            "ID": found.id,
            "ContainerID": found.container,
            "Running": found.running,
            "ExitCode": found.exit_code,
            "Pid": found.find_pid(),
            "OpenStdin": wanted.stdin,
            "OpenStdout": wanted.stdout,
            "OpenStderr": wanted.stderr,
            "CanRemove": False,
            "DetachKeys": wanted.keys,
            "ProcessConfig": {
                "tty": wanted.terminal,
                "entrypoint": wanted.command[0],
                "arguments": list(wanted.command[1:]),
                "privileged": wanted.privileged,
                "user": wanted.user,
            },
        }
    )


def resize(call: Call) -> Response:
    """Give the terminal of a process a size."""
    KNOWN.get(call.names["id"]).resize(*size(call))
    return Response(200)


def kill(call: Call) -> Response:
    """Send a signal to a process."""
    KNOWN.get(call.names["id"]).signal(signal_number(call.query.get("signal") or "KILL"))
    return Response(204)


ROUTES = (
    route("POST", "/containers/{name}/exec", create),
    route("POST", "/exec/{id}/start", start, waits=True),
    route("POST", "/exec/{id}/resize", resize),
    route("GET", "/exec/{id}/json", inspect),
    route("POST", "/layerfs/exec/{id}/kill", kill),
)
