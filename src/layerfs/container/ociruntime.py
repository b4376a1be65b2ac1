"""The program that makes containers: runc, crun, or another that follows the OCI runtime specification."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerfs.errors import LayerfsError, NotFound
from layerfs.host import rundir

RUNTIMES = ("runc", "crun")
"""Those to try, in this order."""
_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_PATIENCE = 60.0
"""Seconds that a runtime may take for anything."""
_NOT_FOUND = re.compile(r"executable file .*not found|exec.*no such file or directory", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(r"exec.*(permission denied|is a directory|exec format error)", re.IGNORECASE)


class ContainerError(LayerfsError):
    """A container's process could not be started, or nobody knows how it ended."""

    def __init__(self, message: str, exit_code: int = 125) -> None:
        """Say *message*; *exit_code* is Docker's: 126 not executable, 127 not found, 125 anything else."""
        super().__init__(message)
        self.exit_code = exit_code
        if self.is_about_the_command:
            self.http_status = 400

    @property
    def is_about_the_command(self) -> bool:
        """Whether the command is at fault, not the runtime."""
        return self.exit_code != 125


class Runtime:
    """One such program."""

    def __init__(self, path: str) -> None:
        """Use the program *path*."""
        self.path = path
        self.options = ("--root", str(rundir.run_dir() / "runtime" / Path(path).name))
        """What comes before every command: where the runtime keeps its own state."""

    def start(self, mount_id: str) -> None:
        """Start the process of a container that was created; raises `ContainerError`."""
        done = self._run("start", mount_id)
        if done.returncode != 0:
            raise failure(done.stderr)

    def delete(self, mount_id: str) -> None:
        """End what is left of a container and make the runtime forget it; fine when it knows none."""
        self._run("delete", "--force", mount_id)

    def update(self, mount_id: str, resources: Mapping[str, Any]) -> None:
        """Give a container that runs other limits; raises `ContainerError`: it has those of before then."""
        done = self._run("update", "--resources", "-", mount_id, text=json.dumps(resources))
        if done.returncode != 0:
            raise failure(done.stderr)

    def _run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.path, *self.options, *arguments],
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                cwd="/",
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ContainerError(f"{self.path} did not answer within {_PATIENCE:g} seconds") from None


def installed(name: str | None = None) -> list[Runtime]:
    """Return the runtimes that are installed, the preferred one first, or the one called *name*.

    `$LAYERFS_RUNTIME`, a name or a path, is the only one if it is set. Raises `NotFound` for none.
    """
    if name:
        if path := find_program(name):
            return [Runtime(path)]
        raise NotFound(f"the OCI runtime {name} is not installed: install the package {name}")
    wanted = os.environ.get("LAYERFS_RUNTIME")
    paths = [find_program(name) for name in ([wanted] if wanted else RUNTIMES)]
    if found := [Runtime(path) for path in paths if path]:
        return found
    if wanted:
        raise NotFound(f"LAYERFS_RUNTIME is {wanted}, which is no program: name an OCI runtime, or unset it")
    raise NotFound("no OCI runtime is installed: install the package runc or crun")


def find_program(name: str) -> str | None:
    """Return the path of a program, also of one in a directory that only root's PATH has."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM}")


def failure(message: str) -> ContainerError:
    """Return the error for what a runtime said, of which the last line is taken."""
    lines = [line for line in message.splitlines() if line.strip()]
    text = lines[-1].strip() if lines else "the OCI runtime failed without a word"
    if said := re.search(r'\bmsg="((?:[^"\\]|\\.)*)"', text):  # as logrus writes it
        text = re.sub(r"\\(.)", r"\1", said[1])
    if _NOT_FOUND.search(text):
        return ContainerError(text, 127)
    if _NOT_EXECUTABLE.search(text):
        return ContainerError(text, 126)
    return ContainerError(text)
