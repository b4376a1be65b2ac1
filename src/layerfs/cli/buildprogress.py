"""How a build is shown: line by line, or, on a terminal, with what goes on at its end."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from layerfs.cli.render import ellipsis, printable

_SILENT = (
    "ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "SHELL",
    "STOPSIGNAL", "USER", "VOLUME",
)  # fmt: skip
"""Instructions that take no time: they are not shown, as with docker."""
_REDRAW = 0.1
_TAIL = 6
_LAST = 20
"""Lines of a command that are shown again when it has failed."""
"""Lines of a command's output that a terminal shows while it runs."""


@dataclass(slots=True)
class Result:
    """How a build has ended."""

    image: str | None = None
    error: str = ""
    failed_image: str = ""
    """An image of the tree that a failed command has left."""


@dataclass(slots=True)
class _Step:
    number: int
    title: str
    shown: bool
    begun: float = field(default_factory=time.monotonic)
    output: list[str] = field(default_factory=list)
    rest: str = ""

    def lines(self, text: str) -> list[str]:
        """Return the whole lines that *text* completes."""
        *lines, self.rest = (self.rest + text).split("\n")
        lines = [line.rpartition("\r")[2] if not line.endswith("\r") else line[:-1] for line in lines]
        self.output += lines
        del self.output[:-_LAST]
        return lines


def shown(events: Iterator[Mapping[str, Any]], kind: str) -> Result:
    """Show *events* on standard error as *kind* says, and return how the build has ended."""
    if kind == "auto":
        kind = "tty" if sys.stderr.isatty() else "plain"
    view = {"plain": Plain, "tty": Terminal, "quiet": Quiet}[kind]()
    result = Result()
    try:
        for event in events:
            if "failed" in event and "step" not in event:
                result.failed_image = event["failed"]["image"]
                result.error = f"{event['failed']['where']}: "
            elif "error" in event:
                result.error += str(event["error"])
            elif "image" in event:
                result.image = event["image"]
                view.end(event)
            else:
                view.show(event)
    finally:
        view.close()
    if result.image is None:
        view.tell_failure()
    return result


class Quiet:
    """Shows nothing; keeps what a failed step has written."""

    def __init__(self) -> None:
        self._steps: dict[int, _Step] = {}
        self._failed: _Step | None = None

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if "warning" in event:
            self.warn(printable(event["warning"]))
        if "step" not in event:
            self.idle()
            return
        number = event["step"]
        if "begin" in event:
            self._steps[number] = step = _Step(number, _title(event), _is_shown(event))
            self.began(step)
            return
        step = self._steps[number]
        if "output" in event:
            self.wrote(step, step.lines(event["output"]), event["seconds"])
        elif "note" in event:
            self.noted(step, event["note"])
        elif "done" in event:
            if step.rest:
                self.wrote(step, step.lines("\n"), event["seconds"])
            del self._steps[number]
            self.done(step, event["seconds"], cached=event["cached"])
        elif "failed" in event:
            if step.rest:
                self.wrote(step, step.lines("\n"), event["seconds"])
            self._failed = step
            self.failed(step, event["seconds"])

    def idle(self) -> None:
        """Do what is to be done now and then."""

    def warn(self, text: str) -> None:
        """Show a warning."""
        click.echo(f"layerfs: warning: {text}", err=True)

    def began(self, step: _Step) -> None:
        """Show that *step* has begun."""

    def wrote(self, step: _Step, lines: list[str], seconds: float) -> None:
        """Show *lines* of output."""

    def noted(self, step: _Step, text: str) -> None:
        """Show a note."""

    def done(self, step: _Step, seconds: float, *, cached: bool) -> None:
        """Show that *step* is done."""

    def failed(self, step: _Step, seconds: float) -> None:
        """Show that *step* has failed."""

    def end(self, event: Mapping[str, Any]) -> None:
        """Show what was made."""

    def close(self) -> None:
        """Stop showing."""

    def tell_failure(self) -> None:
        """Show what the step that has failed has written."""
        if self._failed is None or not self._failed.output:
            return
        lines = self._failed.output[-_LAST:]
        click.echo("\n".join(["------", f" > {self._failed.title}:", *lines, "------"]), err=True)


class Plain(Quiet):
    """Shows line by line, as docker does with `--progress plain`."""

    def began(self, step: _Step) -> None:
        """See `Quiet`."""
        if step.shown:
            click.echo(f"#{step.number} {step.title}", err=True)

    def wrote(self, step: _Step, lines: list[str], seconds: float) -> None:
        """See `Quiet`."""
        if lines:
            click.echo("\n".join(f"#{step.number} {seconds:.3f} {line}" for line in lines), err=True)

    def noted(self, step: _Step, text: str) -> None:
        """See `Quiet`."""
        click.echo(f"#{step.number} {printable(text)}", err=True)

    def done(self, step: _Step, seconds: float, *, cached: bool) -> None:
        """See `Quiet`."""
        if step.shown:
            how = "CACHED" if cached else f"DONE {seconds:.1f}s"
            click.echo(f"#{step.number} {how}\n", err=True)

    def failed(self, step: _Step, seconds: float) -> None:
        """See `Quiet`."""
        click.echo(f"#{step.number} ERROR {seconds:.1f}s\n", err=True)

    def end(self, event: Mapping[str, Any]) -> None:
        """See `Quiet`."""
        lines = [f"image sha256:{event['image']}", *(f"named {name}" for name in event["wanted"])]
        click.echo("\n".join(lines), err=True)


class Terminal(Quiet):
    """Shows what is done, and below that what goes on, with the end of what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0
        self._next = 0.0

    def idle(self) -> None:
        """See `Quiet`."""
        self._draw()

    def warn(self, text: str) -> None:
        """See `Quiet`."""
        self._print(f"layerfs: warning: {text}")

    def began(self, step: _Step) -> None:
        """See `Quiet`."""
        self._draw()

    def wrote(self, step: _Step, lines: list[str], seconds: float) -> None:
        """See `Quiet`."""
        self._draw()

    def done(self, step: _Step, seconds: float, *, cached: bool) -> None:
        """See `Quiet`."""
        if step.shown:
            self._print(_line(f" => {'CACHED ' if cached else ''}{step.title}", seconds))

    def failed(self, step: _Step, seconds: float) -> None:
        """See `Quiet`."""
        self._print(_line(f" => ERROR {step.title}", seconds))

    def end(self, event: Mapping[str, Any]) -> None:
        """See `Quiet`."""
        self._print(f" => image sha256:{event['image']}")
        for name in event["wanted"]:
            self._print(f" => named {name}")

    def close(self) -> None:
        """See `Quiet`."""
        self._erase()

    def _print(self, text: str) -> None:
        self._erase()
        click.echo(text, err=True)
        self._next = 0.0
        self._draw()

    def _erase(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            sys.stderr.flush()
            self._drawn = 0

    def _draw(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REDRAW
        lines: list[str] = []
        for step in list(self._steps.values()):
            if not step.shown or step is self._failed:
                continue
            lines.append(_line(f" => {step.title}", now - step.begun))
            width = _width() - 6
            lines += [f" => # {ellipsis(printable(line), width)}" for line in step.output[-_TAIL:]]
        self._erase()
        if lines:
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
            self._drawn = len(lines)


def _title(event: Mapping[str, Any]) -> str:
    text = printable(" ".join(event["begin"].split()))
    if event["number"] == 0:
        return f"[internal] {text}"
    name = f"{event['stage']} " if event["stage"] else ""
    return f"[{name}{event['number']}/{event['total']}] {text}"


def _is_shown(event: Mapping[str, Any]) -> bool:
    return event["begin"].split(maxsplit=1)[0].upper() not in _SILENT


def _width() -> int:
    return max(40, shutil.get_terminal_size().columns)


def _line(text: str, seconds: float) -> str:
    room = _width() - 10
    return f"{ellipsis(text, room):{room}}{seconds:8.1f}s"
