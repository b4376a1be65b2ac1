"""What follows an instruction's word: its flags, and its arguments as words, pairs or a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layerfs.dockerfile import expansion, words
from layerfs.dockerfile.lines import Line
from layerfs.dockerfile.words import SPACE, Malformed, Word

_COPY_FLAGS = ("chown", "chmod", "link?", "exclude*")
_FLAGS: dict[str, tuple[str, ...]] = {
    "ADD": (*_COPY_FLAGS, "keep-git-dir?", "checksum", "unpack?"),
    "COPY": (*_COPY_FLAGS, "from", "parents?"),
    "FROM": ("platform",),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
    "RUN": ("mount*", "network", "security"),
}
"""The flags of each instruction: `?` needs no value, `*` may be given several times."""
WANTED = {
    "ADD": "a source and a destination, as in ADD app.tar /srv/",
    "ARG": "a name, as in ARG VERSION=1",
    "CMD": 'a command, as in CMD ["nginx"]',
    "COPY": "a source and a destination, as in COPY app /srv/",
    "ENTRYPOINT": 'a command, as in ENTRYPOINT ["nginx"]',
    "ENV": "a variable, as in ENV LANG=C",
    "EXPOSE": "a port, as in EXPOSE 80",
    "FROM": "an image, as in FROM debian:12",
    "HEALTHCHECK": "NONE or a command, as in HEALTHCHECK CMD curl localhost",
    "LABEL": "a label, as in LABEL version=1",
    "MAINTAINER": "a name",
    "ONBUILD": "an instruction, as in ONBUILD RUN make",
    "RUN": "a command, as in RUN make",
    "SHELL": 'a list of strings, as in SHELL ["/bin/bash", "-c"]',
    "STOPSIGNAL": "a signal, as in STOPSIGNAL SIGTERM",
    "USER": "a user, as in USER 1000:1000",
    "VOLUME": "a path, as in VOLUME /data",
    "WORKDIR": "a path, as in WORKDIR /srv",
}


@dataclass(slots=True)
class Arguments:
    """An instruction, with its word and flags read."""

    line: Line
    word: str
    escape: str
    flags: dict[str, list[tuple[str | None, int]]]
    """For each flag its values, with the offset of each."""
    start: int
    """Where in the line's text the arguments begin."""
    rest: str
    """The text from there."""
    common: dict[str, Any]
    """What every instruction has."""

    @classmethod
    def of(cls, line: Line, word: str, begin: int, start: int, escape: str) -> Arguments:
        """Read the flags of the instruction *word* at *begin*, whose arguments begin at *start*.

        Raises `Malformed` for a flag it does not have, and for an instruction without arguments.
        """
        found, rest = words.flags(line.text, start, escape)
        flags: dict[str, list[tuple[str | None, int]]] = {}
        known = {flag.rstrip("?*"): flag for flag in _FLAGS.get(word, ())}
        for name, value, offset in found:
            kind = known.get(name)
            if kind is None:
                expected = ", ".join(f"--{flag}" for flag in known)
                hint = (
                    f"expected {expected}" if known else "expected none; -- before the arguments ends flags"
                )
                raise Malformed(f"{word} has no flag --{name[:40]}: {hint}", offset)
            if name in flags and not kind.endswith("*"):
                raise Malformed(f"expected --{name} only once", offset)
            if (value is None and not kind.endswith("?")) or (value == "" and kind.endswith("?")):
                raise Malformed(f"expected a value: --{name}=VALUE", offset)
            flags.setdefault(name, []).append((value, offset))
        text = line.text.rstrip(SPACE)
        if rest >= len(text):
            raise Malformed(f"{word} needs an argument: expected {WANTED[word]}", len(text))
        common = {"line": line.number, "text": text[begin:], "file": line.file}
        return cls(line, word, escape, flags, rest, text[rest:], common)

    def flag(self, name: str, *, expanded: bool = True) -> str | None:
        """Return the value of a flag; where it will be *expanded*, that is checked."""
        for value, offset in self.flags.get(name, ()):
            if expanded:
                self.check(Word(value or "", offset))
            return value
        return None

    def yes(self, name: str) -> bool | None:
        """Return a flag that is true or false; None where it is not given."""
        for value, offset in self.flags.get(name, ()):
            if (value or "true").lower() not in ("true", "false"):
                raise Malformed(f"expected --{name}=true or --{name}=false", offset)
            return (value or "true").lower() == "true"
        return None

    def check(self, word: Word) -> str:
        """Return the text of a word that variables will be put into, if it is good for that."""
        try:
            expansion.check(word.text, self.escape)
        except Malformed as error:
            as_it_stands = self.line.text.startswith(word.text, word.offset)  # no quotes, no JSON around it
            raise Malformed(str(error), word.offset + error.offset * as_it_stands) from None
        return word.text

    def plain(self) -> list[Word]:
        """Return the arguments split at spaces, or out of a JSON list."""
        listed = words.json_list(self.rest, self.start)
        if listed is None:
            return [Word(text, offset + self.start) for text, offset in words.plain(self.rest)]
        return [Word(text, self.start) for text in listed]

    def command(self) -> tuple[str, ...] | str:
        """Return the words of the exec form, or the text of the shell form."""
        listed = words.json_list(self.rest, self.start)
        return self.rest if listed is None else listed

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Return `NAME=VALUE ...`, or the old `NAME VALUE`, whose value is the rest of the line."""
        found = [Word(text, offset) for text, offset in words.split(self.line.text, self.start, self.escape)]
        name = found[0]
        if "=" not in name.text:
            name = words.plain(self.rest)[0]
            value = self.rest[len(name.text) :].lstrip(SPACE)
            if not value:
                raise Malformed(
                    f"{name.text[:40]!r} has no value: expected {self.word} NAME=VALUE",
                    self.start + len(self.rest),
                )
            at = self.start + len(self.rest) - len(value)
            return ((self.check(Word(name.text, self.start)), self.check(Word(value, at))),)
        pairs = []
        for word in found:
            key, equals, value = word.text.partition("=")
            if not equals:
                raise Malformed(f"cannot understand {word.text[:40]!r}: use NAME=VALUE", word.offset)
            if not key or key in ("''", '""'):
                raise Malformed("a name is missing before =: use NAME=VALUE", word.offset)
            at = word.offset + len(key) + 1
            pairs.append((self.check(Word(key, word.offset)), self.check(Word(value, at))))
        return tuple(pairs)
