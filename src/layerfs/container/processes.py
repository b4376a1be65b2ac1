"""One more process in a container that runs: `runc exec` and its like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container.lifecycle import bundle_of
from layerfs.container.ociruntime import ContainerError, Runtime, failure
from layerfs.container.settings import absolute, environment
from layerfs.container.spec import given_rights, identity

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_PROXIED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Execution:
    """What the options of `layerfs exec` say."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    terminal: bool = False
    stdin: bool = False
    detached: bool = False


def execute(mount: Mount, wanted: Execution) -> int:
    """Run *wanted* in the container *mount* with our input and output; return its exit code, 0 if detached.

    Raises `Conflict` when the container does not run, `BadRequest`, and `ContainerError`.
    """
    record, bundle = bundle_of(mount)
    if wanted.terminal and not wanted.detached and not any(os.isatty(fd) for fd in (0, 1, 2)):
        raise ContainerError("there is no terminal to use: leave out -t, or run it from one", 1)
    process = _process(mount, bundle, wanted)
    runtime = Runtime(record.runtime)
    with tempfile.TemporaryDirectory(prefix="exec-", dir=bundle.parent) as directory:
        description, messages = Path(directory, "process.json"), Path(directory, "log")
        description.write_text(json.dumps(process), errors="surrogateescape")
        child = subprocess.Popen(
            [
                runtime.path,
                *runtime.options,
                f"--log={messages}",
                "exec",
                f"--process={description}",
                *(["--detach"] if wanted.detached else []),
                mount.id,
            ],
            cwd="/",
            stdin=None if wanted.stdin and not wanted.detached else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if wanted.detached else None,
            stderr=subprocess.DEVNULL if wanted.detached else None,
        )
        code = _wait(child)
        said = messages.read_text(errors="replace") if code and messages.exists() else ""
    if "level=error" not in said:
        return code
    if wanted.detached:
        raise failure(said)
    return failure(said).exit_code  # the runtime has told what is wrong


def _process(mount: Mount, bundle: Path, wanted: Execution) -> dict[str, Any]:
    """Return the container's own process with what *wanted* has otherwise. Raises `LayerfsError`."""
    process: dict[str, Any] = json.loads((bundle / "config.json").read_bytes())["process"]
    variables = [text for text in process["env"] if wanted.terminal or not text.startswith("TERM=")]
    if wanted.terminal:
        variables = environment(["TERM=xterm"], variables)
    if wanted.user:
        from layerfs.container.users import find_user

        user = find_user(bundle / "rootfs", wanted.user)
        process["user"] = identity(user)
        variables = environment(variables, [f"HOME={user.home}"])
        process["capabilities"] = given_rights(user, process["capabilities"]["bounding"])
    process["args"] = list(wanted.command)
    process["env"] = environment(variables, wanted.environment)
    process["terminal"] = wanted.terminal and not wanted.detached
    if wanted.workdir:
        process["cwd"] = absolute(wanted.workdir)
    return process


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for *child*, passing on signals, and return its exit code, 128+n for a signal."""

    def pass_on(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)

    before = [signal.signal(number, pass_on) for number in _PROXIED]
    try:
        code = child.wait()
    finally:
        for number, handler in zip(_PROXIED, before, strict=True):
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
