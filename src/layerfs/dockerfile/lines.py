"""The lines of a Dockerfile: which physical lines make one instruction, and where each character of it stood.

Continued lines are joined, comments between them left out, here-documents attached, parser directives read.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field

from layerfs.dockerfile import heredocs
from layerfs.dockerfile.instructions import Heredoc, one_line
from layerfs.dockerfile.words import SPACE
from layerfs.errors import BadRequest

MOST_BYTES = 4 << 20
"""How long a Dockerfile may be; the longest known has some 100 KiB."""
_MOST_LINE = 1 << 20
"""Characters that one instruction may have without its here-documents."""
_NO_TEXT = re.compile("[\0\udc80-\udcff]")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*?)\s*", re.DOTALL)
_DIRECTIVES = ("syntax", "escape", "check")


@dataclass(slots=True)
class Line:
    """A logical line: one instruction."""

    file: str
    number: int
    """The physical line it begins on, from 1."""
    text: str = ""
    """Without line ends, continuation characters and comments; begins with the instruction's word."""
    heredocs: tuple[Heredoc, ...] = ()
    _offsets: list[int] = field(default_factory=list)
    """Where in `text` each physical line begins, and in `_places` its number and its first column."""
    _places: list[tuple[int, int]] = field(default_factory=list)

    def error(self, offset: int, message: str) -> BadRequest:
        """Return the error that *message* makes of the character at *offset* of `text`."""
        at = max(0, bisect_right(self._offsets, offset) - 1)
        number, column = self._places[at]
        return failure(self.file, number, column + offset - self._offsets[at], message)


@dataclass(slots=True)
class Lines:
    """A file's logical lines, and what its directives say."""

    lines: list[Line] = field(default_factory=list)
    directives: dict[str, str] = field(default_factory=dict)
    escape: str = "\\"
    warnings: list[str] = field(default_factory=list)


def failure(file: str, number: int, column: int, message: str) -> BadRequest:
    """Return an error about a place in *file*; lines and columns count from 1."""
    return BadRequest(f"{file}:{number}:{column}: {one_line(message)}")


def read(data: bytes, file: str) -> Lines:
    """Return the logical lines of *data*, which messages call *file*.

    Raises `BadRequest` with file, line and column for text that is too long or no UTF-8 (comments may be
    anything), a here-document that does not end, a directive given twice or an escape that cannot be one.
    The work is proportional to the length.
    """
    if len(data) > MOST_BYTES:
        raise failure(file, 1, 1, f"expected at most {MOST_BYTES >> 20} MiB, not {len(data)} bytes")
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    return _Reader(file, text).read()


class _Reader:
    """Reads the physical lines of a file, one after the other."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._all = text.split("\n")
        self._ended = bool(self._all[-1])  # whether the last one lacks its line end
        if not self._ended:
            self._all.pop()
        self._next = 0  # counts from 0; so it is the number, from 1, of the line read last
        self._suspect = bool(_NO_TEXT.search(text))
        self._result = Lines()

    def read(self) -> Lines:
        result = self._result
        self._directives()
        continued = _continued(result.escape)
        while self._next < len(self._all):
            start = self._next
            line = self._logical(continued)
            if not line.text.strip(SPACE):
                continue
            if len(line.text) > _MOST_LINE:
                raise failure(
                    self._file, start + 1, 1, f"expected an instruction of at most {_MOST_LINE} characters"
                )
            if "<<" in line.text:
                found = heredocs.find(line.text, result.escape)
                line.heredocs = tuple(self._heredoc(line, offset, head) for offset, head in found)
            result.lines.append(line)
        return result

    def _directives(self) -> None:
        """Read `# name=value` at the very top; the first line that is none, a comment or empty, ends them."""
        for index, line in enumerate(self._all):
            stripped = line.strip(SPACE)
            found = _DIRECTIVE.fullmatch(stripped)
            name = found[1].lower() if found else ""
            if not found or name not in _DIRECTIVES:
                return
            self._next = index + 1
            column = line.index("#") + 1
            if name in self._result.directives:
                raise failure(
                    self._file, index + 1, column, f"expected only one {name} directive: remove this one"
                )
            self._check(index, line)
            value = found[2]
            self._result.directives[name] = value
            if name == "escape":
                if value not in ("\\", "`"):
                    raise failure(
                        self._file,
                        index + 1,
                        column + found.start(2),
                        f"expected \\ or ` as escape, not {value[:20]!r}",
                    )
                self._result.escape = value

    def _logical(self, continued: re.Pattern[str]) -> Line:
        start = self._next
        line = Line(self._file, start + 1)
        parts: list[str] = []
        length = 0
        empty = False
        first = True
        while self._next < len(self._all):
            index = self._next
            raw = self._all[index].rstrip("\r")
            self._next += 1
            bare = raw.lstrip(SPACE)
            if bare.startswith("#"):
                if first:
                    return line
                continue
            if first:
                column, raw = len(raw) - len(bare) + 1, bare
            else:
                column = 1
                if not bare:
                    empty = True
                    continue
            self._check(index, raw, column)
            found = continued.search(raw)
            part = raw[: found.start()] if found else raw
            line._offsets.append(length)
            line._places.append((index + 1, column))
            parts.append(part)
            length += len(part)
            if not found:
                break
            first = False
        line.text = "".join(parts)
        if empty and line.text:
            self._result.warnings.append(
                f"{self._file}:{line.number}: an empty line continues {line.text[:40]!r}: remove it"
            )
        return line

    def _heredoc(self, line: Line, offset: int, head: heredocs.Head) -> Heredoc:
        taken: list[str] = []
        while self._next < len(self._all):
            index = self._next
            raw = self._all[index]
            self._next += 1
            self._check(index, raw)
            end = raw.rstrip("\r")
            if (end.lstrip("\t") if head.chomp else end) == head.name:
                return Heredoc(head.name, "".join(taken), head.expand)
            body = raw.lstrip("\t") if head.chomp else raw
            last = self._next == len(self._all) and self._ended
            taken.append(body if last else body + "\n")
        raise line.error(offset, f"expected a line {head.name!r} further down that ends this here-document")

    def _check(self, index: int, raw: str, column: int = 1) -> None:
        if self._suspect and (found := _NO_TEXT.search(raw)):
            what = "a null byte" if found[0] == "\0" else f"the byte 0x{ord(found[0]) - 0xDC00:02x}"
            raise failure(self._file, index + 1, column + found.start(), f"expected UTF-8 text, not {what}")


def _continued(escape: str) -> re.Pattern[str]:
    """Return what finds the escape character that continues a line: it is last, and not escaped itself."""
    token = re.escape(escape)
    return re.compile(rf"(?<!{token}){token}[ \t]*\Z")
