"""The processes of a container, as ps(1) shows them: `docker top`."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

from layerfs.container.ociruntime import find_program
from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound
from layerfs.host import cgroups
from layerfs.host.record import settled

if TYPE_CHECKING:
    from collections.abc import Collection

    from layerfs.store.model import Mount

_DEFAULT = "-ef"
_PATIENCE = 10.0
_LONGEST = 1000
_HEADER = re.compile(r"([^\s,=]*)=[^\s,]*PID")
_BLANK = re.compile(r"[ \t\n\f\r]+")


def top(mount: Mount, arguments: str = "") -> dict[str, Any]:
    """Return what `ps ARGUMENTS` says of the processes of the container *mount*: `Titles` and `Processes`.

    The arguments choose columns and their order; other processes of the machine are never among the lines.
    Raises `LayerfsError`.
    """
    record = settled(mount.id)
    groups = cgroups.of_container(record.pid, mount.id) if record and record.alive() else None
    if groups is None:
        raise Conflict(f"container {mount.name} is not running")
    words = words_of(arguments)
    pids = groups.processes()
    chosen = f"-q{','.join(map(str, pids))}"
    done = _ps([*words, chosen])
    if done.returncode != 0:  # some options, such as f, do not go with -q
        done = _ps(words)
    if done.returncode != 0:
        line = done.stderr.strip().partition("\n")[0]
        raise BadRequest(f"ps: {line or 'it does not know these arguments'}")
    return parse(done.stdout, pids)


def words_of(arguments: str) -> list[str]:
    """Return *arguments* as words for ps. Raises `BadRequest` for those that could show other processes.

    The lines of the container are found by the column PID: nothing else may have that title.
    """
    if len(arguments) > _LONGEST or not arguments.isprintable():
        raise BadRequest("the arguments for ps are too long, or have characters that cannot be printed")
    for found in _HEADER.finditer(arguments):
        if found[1].removeprefix("-").removeprefix("o") != "pid":
            raise BadRequest(f'specifying "{found[0]}" is not allowed')
    return (arguments or _DEFAULT).split()


def _ps(words: list[str]) -> subprocess.CompletedProcess[str]:
    program = find_program("ps")
    if program is None:
        raise NotFound("ps is not installed: install the package procps")
    try:
        return subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LayerfsError(f"ps did not answer within {_PATIENCE:g} seconds") from None


def parse(output: str, pids: Collection[int]) -> dict[str, Any]:
    """Return the titles in the *output* of ps, and the lines of the processes *pids*, as lists of words.

    What is beyond the last title belongs to it. Raises `BadRequest` for an output without a column PID.
    """
    first, *lines = output.split("\n")
    titles = _words(first)
    if "PID" not in titles:
        raise BadRequest("Couldn't find PID field in ps output")
    column, last = titles.index("PID"), len(titles) - 1
    found, of_container = [], False
    for line in lines:
        words = _words(line)
        if len(words) <= column:
            continue
        if words[column] != "-":  # else a thread of the process above (ps m)
            of_container = words[column].isdecimal() and int(words[column]) in pids
        if of_container:
            found.append([*words[:last], " ".join(words[last:])])
    return {"Titles": titles, "Processes": found}


def _words(line: str) -> list[str]:
    return [word for word in _BLANK.split(line) if word]
