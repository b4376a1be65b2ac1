"""What an image's history says of each instruction, in BuildKit's words: Go's ways to print values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from layerfs.dockerfile import durations
from layerfs.dockerfile.instructions import Copy, Healthcheck

COMMENT = "buildkit.dockerfile.v0"
"""The comment of each entry; tools know by it that `created_by` is in these words."""


def run(words: Sequence[str], args: Mapping[str, str]) -> str:
    """Return the entry of a RUN that starts *words* with the ARGs *args* in force."""
    given = [f"|{len(args)}", *(f"{name}={value}" for name, value in args.items())] if args else []
    return " ".join(["RUN", *given, *words, "# buildkit"])


def copy(instruction: Copy) -> str:
    """Return the entry of a COPY or ADD with its variables put in."""
    flags = ["--parents"] if instruction.parents else []
    flags += [f"--chown={instruction.chown}"] if instruction.chown else []
    flags += [f"--chmod={instruction.chmod}"] if instruction.chmod else []
    documents = [f"<<{document.name}" for document in instruction.heredocs]
    return " ".join(
        [instruction.word, *flags, *instruction.sources, *documents, instruction.destination, "# buildkit"]
    )


def quoted(words: Iterable[str]) -> str:
    """Return a list as Go's `%q` prints it: `["nginx" "-g"]`."""
    return f"[{' '.join(map(_quoted, words))}]"


def listed(words: Iterable[str]) -> str:
    """Return a list as Go's `%v` prints it: `[/bin/sh -c]`."""
    return f"[{' '.join(words)}]"


def healthcheck(instruction: Healthcheck) -> str:
    """Return the entry of a HEALTHCHECK."""
    times = (
        ("Interval", instruction.interval),
        ("Timeout", instruction.timeout),
        ("StartPeriod", instruction.start_period),
        ("StartInterval", instruction.start_interval),
    )
    fields = [f"{name}:{durations.text(value)}" for name, value in times]
    inside = " ".join([f"Test:{listed(instruction.test)}", *fields, f"Retries:{instruction.retries}"])
    return f"HEALTHCHECK {{{inside}}}"


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r"}
_ESCAPES |= {"\t": "\\t", "\v": "\\v"}


def _quoted(text: str) -> str:
    return '"' + "".join(_letter(letter) for letter in text) + '"'


def _letter(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
