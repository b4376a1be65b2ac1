"""probe.c: operations too quick to time from Python, done by a small program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .peers import command

SOURCE = Path(__file__).with_name("probe.c")


@dataclass(frozen=True)
class Running:
    """A probe that has been started, and waits for its names to end."""

    process: subprocess.Popen[str]

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin
        self.process.stdin.close()

    def finish(self) -> list[float]:
        """Wait for it; return the seconds of each pass. Raises `RuntimeError` with what it complains of."""
        assert self.process.stdout
        assert self.process.stderr
        with self.process:
            printed, complaint = self.process.stdout.read(), self.process.stderr.read()
        if self.process.returncode:
            raise RuntimeError(complaint.strip() or f"the probe ended with {self.process.returncode}")
        return [float(line) for line in printed.split()]


@dataclass(frozen=True)
class Probe:
    """The compiled program."""

    program: Path

    @classmethod
    def build(cls, directory: Path) -> Probe:
        """Compile it in *directory*."""
        program = directory / "probe"
        command("gcc", "-O2", "-o", program, SOURCE)
        return cls(program)

    def start(
        self,
        directory: str | Path,
        operation: str,
        names: Sequence[str],
        *,
        passes: int = 1,
        argument: int | str = "",
    ) -> Running:
        """Start it, to do *operation* on *names*, which are relative to *directory*."""
        process = subprocess.Popen(
            [self.program, str(passes), operation, str(argument)],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        process.stdin.write("".join(f"{name}\n" for name in names))
        process.stdin.flush()
        return Running(process)

    def run(
        self,
        directory: str | Path,
        operation: str,
        names: Sequence[str],
        *,
        passes: int = 1,
        argument: int | str = "",
    ) -> list[float]:
        """Do *operation* on *names* below *directory*; return the seconds of each of the *passes*."""
        running = self.start(directory, operation, names, passes=passes, argument=argument)
        running.go()
        return running.finish()
