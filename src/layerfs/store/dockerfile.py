"""Changes to an image's configuration, given as Dockerfile instructions (`commit --change`).

The grammar is that of the Dockerfile reference for CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER,
VOLUME and WORKDIR; the result is the `config` object of the OCI image specification.
"""

from __future__ import annotations

import copy
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from layerfs.errors import BadRequest
from layerfs.store import imageconfig

Config = dict[str, Any]

_MOST_TEXT = 32 << 10
"""Characters that changes may have, and that a value may have once variables are put in."""
_MOST_INSTRUCTIONS = 1000
_MOST_PORTS = 16384
"""Ports that all EXPOSE may name together."""
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?:(:[-+])([^}]*))?\})", re.DOTALL)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def apply(config: Config, changes: Sequence[str]) -> Config:
    """Return *config* with the instructions in *changes* applied, each one or several lines.

    Raises `BadRequest` naming the instruction that cannot be understood, and for a *config* that makes no
    sense, or would not with them; *config* stays as it was. The work is bounded, whatever they are.
    """
    imageconfig.check(config)
    if sum(map(len, changes)) > _MOST_TEXT:
        raise BadRequest(f"the changes are longer than {_MOST_TEXT >> 10} KiB: give fewer of them")
    result: Config = copy.deepcopy(config)
    commands_set = False
    ports = 0
    for number, line in enumerate(_lines(changes)):
        if number >= _MOST_INSTRUCTIONS:
            raise BadRequest(f"there are more than {_MOST_INSTRUCTIONS} changes: give fewer of them")
        word, _, rest = line.partition(" ")
        word, rest = word.upper(), rest.strip()
        instruction = _INSTRUCTIONS.get(word)
        if instruction is None:
            raise BadRequest(
                f"{word} is not an instruction that a change can be: use {', '.join(_INSTRUCTIONS)}"
            )
        if not rest:
            raise BadRequest(f"{word} needs an argument")
        ports += instruction(result, rest) or 0
        if ports > _MOST_PORTS:
            raise BadRequest(f"EXPOSE: more than {_MOST_PORTS} ports are named: name fewer of them")
        commands_set |= word == "CMD"
        if word == "ENTRYPOINT" and not commands_set:
            result.pop("Cmd", None)  # it was meant for the entrypoint before
    if changes:
        imageconfig.check(result, "the configuration with the changes")
    return result


def _lines(changes: Sequence[str]) -> Iterator[str]:
    for change in changes:
        for line in re.sub(r"\\[ \t]*\n", " ", change).splitlines():
            text = line.strip().replace("\t", " ")
            if text and not text.startswith("#"):
                yield text


def _command(rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            words = json.loads(rest)
        except (ValueError, RecursionError):
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return ["/bin/sh", "-c", rest]


def _cmd(config: Config, rest: str) -> None:
    config["Cmd"] = _command(rest)


def _entrypoint(config: Config, rest: str) -> None:
    config["Entrypoint"] = _command(rest)


def _env(config: Config, rest: str) -> None:
    texts = {item.partition("=")[0]: item for item in config.get("Env") or []}
    before = _environment(config)
    for name, value in _pairs("ENV", rest):
        texts[name] = f"{name}={_expand(value, before)}"
    config["Env"] = list(texts.values())


def _label(config: Config, rest: str) -> None:
    labels = dict(config.get("Labels") or {})
    for name, value in _pairs("LABEL", rest):
        labels[_expand(name, _environment(config))] = _expand(value, _environment(config))
    config["Labels"] = labels


def _expose(config: Config, rest: str) -> int:
    """Add ports; return how many were named, known ones among them."""
    ports = dict(config.get("ExposedPorts") or {})
    named = 0
    for word in _words("EXPOSE", rest):
        text = _expand(word, _environment(config))
        match = _PORT.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or not 0 < first <= last <= 65535:
            raise BadRequest(f"EXPOSE: {text!r} is not a port: use 80, 80/udp or 8000-8010/tcp")
        named += last + 1 - first
        if named > _MOST_PORTS:
            break  # too many already: `apply` says so
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config["ExposedPorts"] = ports
    return named


def _volume(config: Config, rest: str) -> None:
    paths = _command(rest) if rest.startswith("[") else list(_words("VOLUME", rest))
    volumes = dict(config.get("Volumes") or {})
    for path in paths:
        text = _expand(path, _environment(config))
        if not text.strip():
            raise BadRequest("VOLUME: a path is empty")
        volumes[text] = {}
    config["Volumes"] = volumes


def _user(config: Config, rest: str) -> None:
    words = list(_words("USER", rest))
    if len(words) != 1:
        raise BadRequest("USER needs exactly one argument: user[:group]")
    config["User"] = _expand(words[0], _environment(config))


def _workdir(config: Config, rest: str) -> None:
    path = _expand(_unquoted(rest), _environment(config))
    before = config.get("WorkingDir") or "/"
    config["WorkingDir"] = "/" + posixpath.normpath(posixpath.join(before, path)).lstrip("/")


def _onbuild(config: Config, rest: str) -> None:
    word = rest.partition(" ")[0].upper()
    if word in ("ONBUILD", "FROM", "MAINTAINER"):
        raise BadRequest(f"ONBUILD cannot be followed by {word}")
    config["OnBuild"] = [*(config.get("OnBuild") or []), rest]


_INSTRUCTIONS: dict[str, Callable[[Config, str], int | None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _environment(config: Config) -> dict[str, str]:
    """Return the variables that *config* sets; a name alone, which unsets one, is none of them."""
    return dict(item.split("=", 1) for item in config.get("Env") or [] if "=" in item)


def _words(instruction: str, text: str) -> Iterator[str]:
    """Split at spaces outside quotes; quotes and backslashes stay for `_expand` to take away."""
    word = ""
    quote = ""
    position = 0
    while position < len(text):
        letter = text[position]
        if letter == "\\" and quote != "'":
            word += text[position : position + 2]
            position += 2
            continue
        if letter == " " and not quote:
            if word:
                yield word
            word = ""
        else:
            word += letter
            if quote:
                quote = "" if letter == quote else quote
            elif letter in "'\"":
                quote = letter
        position += 1
    if quote:
        raise BadRequest(f"{instruction}: a {quote} is never closed in {text!r}")
    if word:
        yield word


def _pairs(instruction: str, rest: str) -> list[tuple[str, str]]:
    words = list(_words(instruction, rest))
    if "=" not in words[0]:  # the old form, whose value is the rest of the line
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise BadRequest(f"{instruction}: {name!r} has no value: use {instruction} {name}=VALUE")
        return [(_unquoted(name), value.strip())]
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not _unquoted(name):
            raise BadRequest(f"{instruction}: cannot understand {word!r}: use NAME=VALUE")
        pairs.append((_unquoted(name), value))
    return pairs


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _expand(text: str, variables: dict[str, str]) -> str:
    """Take quotes and backslashes away and put variables in, except between single quotes."""
    result = ""
    for part in re.findall(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|(?:\\.|[^'\"\\])+|\\", text, re.DOTALL):
        if part[0] == "'":
            result += part[1:-1]
        else:
            quoted = part[0] == '"'
            substitute = partial(_substitute, variables, quoted)
            result += _VARIABLE.sub(substitute, part[1:-1] if quoted else part)
        if len(result) > _MOST_TEXT:  # as ENV A=$A$A makes it after a few lines
            raise BadRequest(f"a value is longer than {_MOST_TEXT >> 10} KiB once variables are put in")
    return result


def _substitute(variables: dict[str, str], quoted: bool, found: re.Match[str]) -> str:
    if found[1] is not None:
        return found[1] if not quoted or found[1] in '"\\$' else "\\" + found[1]
    value = variables.get(found[2] or found[3], "")
    if found[4] == ":-":
        return value or found[5]
    if found[4] == ":+":
        return found[5] if value else ""
    return value
