"""A Go template taken apart: text, actions, and what they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from layerfs.cli.templatefuncs import FUNCTIONS, invalid

_LONGEST_TEMPLATE = 1 << 16
_DEEPEST = 60
"""Blocks and parentheses within each other: each takes some of Python's own frames."""
_ACTION = re.compile(
    r"""\{\{(-\s)?
    ((?:[^"`'{}] | "(?:\\.|[^"\\])*" | `[^`]*` | '(?:\\.|[^'\\])*' | \{(?!\{) | \}(?!\}))*?)
    (\s-)?\}\}""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:\\.|[^"\\\n])*"|`[^`]*`) | (?P<rune>'(?:\\.|[^'\\])+')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?))(?![\w.])
    | (?P<field>(?:\.[A-Za-z_]\w*)+) | (?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
    | (?P<word>[A-Za-z_]\w*) | (?P<close>\)(?:\.[A-Za-z_]\w*)*) | (?P<sign>:=|[(.|,=]))""",
    re.VERBOSE,
)  # fmt: skip


@dataclass(slots=True)
class Operand:
    """A value, and the fields that are asked of it."""

    kind: str
    """"value", "dot", "variable", "call" or "pipe"."""
    value: Any = None
    fields: list[str] = field(default_factory=list)


Command = list[Operand]


@dataclass(slots=True)
class Pipe:
    """Commands, each of which gets what the one before it makes as its last argument."""

    names: list[str]
    """Variables that it sets."""
    declares: bool
    commands: list[Command]


@dataclass(slots=True)
class Node:
    """A piece of text, or an action."""

    kind: str
    """"text", "show", "if", "with", "range", "break" or "continue"."""
    text: str = ""
    pipe: Pipe | None = None
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


class Parser:
    """Takes a template apart."""

    def __init__(self, text: str) -> None:
        """Take *text* apart; raises `Invalid`."""
        if len(text) > _LONGEST_TEMPLATE:
            raise invalid(f"it is longer than {_LONGEST_TEMPLATE} characters")
        self._parts = list(_parts(text))
        self._at = 0
        self._depth = 0
        self._tokens: list[tuple[str, str]] = []

    def block(self, ends: tuple[str, ...]) -> tuple[list[Node], str]:
        """Return the nodes up to one of the words *ends*, and that word; "" is the end of the text."""
        self._deeper()
        nodes: list[Node] = []
        while self._at < len(self._parts):
            text, action = self._parts[self._at]
            self._at += 1
            if text:
                nodes.append(Node("text", text))
            if action is None:
                continue
            self._tokens = _tokens(action)
            word = self._tokens[0][1] if self._tokens and self._tokens[0][0] == "word" else ""
            if word in ("end", "else"):
                if word not in ends:
                    raise invalid(f"unexpected {{{{{word}}}}}")
                self._tokens.pop(0)
                if word == "end":
                    self._finish()
                self._depth -= 1
                return nodes, word
            nodes.append(self._node(word))
        if "" not in ends:
            raise invalid("unexpected end of the template: an {{end}} is missing")
        self._depth -= 1
        return nodes, ""

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise invalid(f"it is nested more than {_DEEPEST} deep")

    def _node(self, word: str) -> Node:
        if word in ("define", "template", "block"):
            raise invalid(f"{{{{{word}}}}} is not supported")
        if word in ("break", "continue"):
            self._tokens.pop(0)
            self._finish()
            return Node(word)
        if word not in ("if", "with", "range"):
            node = Node("show", pipe=self._pipe())
            self._finish()
            return node
        self._tokens.pop(0)
        return self._branch(word)

    def _branch(self, kind: str) -> Node:
        node = Node(kind, pipe=self._pipe())
        self._finish()
        node.body, end = self.block(("end", "else"))
        if end == "else":
            if self._tokens and self._tokens[0] in (("word", "if"), ("word", "with")):
                self._deeper()  # a chain of these is nested, too
                node.otherwise = [self._branch(self._tokens.pop(0)[1])]
                self._depth -= 1
            else:
                self._finish()
                node.otherwise, _ = self.block(("end",))
        return node

    def _finish(self) -> None:
        if self._tokens:
            raise invalid(f"unexpected {self._tokens[0][1]!r}")

    def _pipe(self) -> Pipe:
        names: list[str] = []
        declares = False
        signs = [value for kind, value in self._tokens if kind == "sign"]
        if self._tokens and self._tokens[0][0] == "variable" and signs[:1] in ([":="], ["="], [","]):
            while self._tokens and self._tokens[0][0] == "variable":
                names.append(self._tokens.pop(0)[1])
                sign = self._tokens.pop(0)[1] if self._tokens else ""
                if sign in (":=", "="):
                    declares = sign == ":="
                    break
                if sign != ",":
                    raise invalid("unexpected end of a list of variables")
        commands = [self._command()]
        while self._tokens and self._tokens[0][1] == "|":
            self._tokens.pop(0)
            commands.append(self._command())
        return Pipe(names, declares, commands)

    def _command(self) -> Command:
        operands: Command = []
        while self._tokens and self._tokens[0] != ("sign", "|") and self._tokens[0][0] != "close":
            operands.append(self._operand())
        if not operands:
            raise invalid("missing value for command")
        return operands

    def _operand(self) -> Operand:
        kind, value = self._tokens.pop(0)
        if kind == "text":
            return Operand("value", value[1:-1] if value[0] == "`" else _unquoted(value))
        if kind == "rune":
            return Operand("value", ord(_unquoted(f'"{value[1:-1]}"')[:1] or " "))
        if kind == "number":
            return Operand(
                "value", float(value) if "." in value else int(value, 0 if "x" in value.lower() else 10)
            )
        if kind == "field":
            return Operand("dot", fields=value[1:].split("."))
        if value == ".":
            return Operand("dot")
        if kind == "variable":
            name, *fields = value.split(".")
            return Operand("variable", name, fields)
        if kind == "word":
            if value in ("true", "false", "nil"):
                return Operand("value", {"true": True, "false": False, "nil": None}[value])
            if value not in FUNCTIONS:
                raise invalid(f"function {json.dumps(value[:80])} not defined")
            return Operand("call", value)
        if value != "(":
            raise invalid(f"unexpected {value!r}")
        self._deeper()
        pipe = self._pipe()
        self._depth -= 1
        if not self._tokens or self._tokens[0][0] != "close":
            raise invalid("unclosed left paren")
        return Operand("pipe", pipe, self._tokens.pop(0)[1].split(".")[1:])


def _parts(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield pieces of text, each with the action after it, None for none."""
    at, trim = 0, False
    while (start := text.find("{{", at)) >= 0:
        found = _ACTION.match(text, start)
        if found is None:
            raise invalid("unclosed action")
        piece = text[at:start]
        piece = piece.lstrip() if trim else piece
        comment = re.fullmatch(r"\s*/\*.*?\*/\s*", found[2], re.DOTALL)
        yield piece.rstrip() if found[1] else piece, None if comment else found[2]
        at, trim = found.end(), bool(found[3])
    yield text[at:].lstrip() if trim else text[at:], None


def _tokens(action: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at, action = 0, action.rstrip()
    while at < len(action):
        found = _TOKEN.match(action, at)
        if found is None:
            raise invalid(f"unexpected {action[at:].strip()[:20]!r} in an action")
        kind = found.lastgroup or ""
        tokens.append((kind, found[kind]))
        at = found.end()
    if not tokens:
        raise invalid("missing value for command")
    return tokens


def _unquoted(text: str) -> str:
    try:
        value = json.loads(re.sub(r"\\([abfnrtv'0])", _escape, text), strict=False)
    except ValueError:
        raise invalid(f"malformed string {text[:80]}") from None
    return str(value)


def _escape(found: re.Match[str]) -> str:
    return {"a": "\\u0007", "v": "\\u000b", "'": "'", "0": "\\u0000"}.get(found[1], found[0])
