"""What instructions do to an image's configuration, and which variables a stage has while it is built.

A `Configuration` begins as that of the image below; each metadata instruction changes it, and returns what
the history says of it. The configuration is the `config` object of the OCI image specification.
"""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from layerfs.dockerfile import expansion, history, mounts
from layerfs.dockerfile.instructions import (
    Arg,
    Command,
    Copy,
    Env,
    Healthcheck,
    Instruction,
    Label,
    Onbuild,
    Run,
    Several,
    Single,
)
from layerfs.errors import BadRequest
from layerfs.host.signals import signal_number

Config = dict[str, Any]

DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_MOST_PORTS = 16384
"""Ports that all EXPOSE may name together."""
_MOST_TEXT = 4 << 20
"""Characters that the history of a stage may have, and so the configuration: more than registries take."""
_MOST_TRIGGERS = 1000
_PORT = re.compile(
    r"(?:(?:[0-9a-f.:\[\]]*:)?[0-9-]*:)?(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp)?)?",
    re.IGNORECASE | re.ASCII,
)
"""A port, or several; an address and a port of the host before it are allowed, and mean nothing."""


class Configuration:
    """The configuration of a stage, as far as it has come. Not for several threads at once."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        escape: str = "\\",
        build_args: Mapping[str, str] | None = None,
        global_args: Mapping[str, str] | None = None,
        most: int = expansion.MOST_VALUE,
    ) -> None:
        """Begin with *config*, which stays as it is.

        *build_args* are those of `--build-arg`; *global_args* what an ARG without a value finds, which is
        `Plan.args`; *most* how many characters a value may have.
        """
        self.config: Config = copy.deepcopy(dict(config))
        self.author = ""
        """What MAINTAINER says."""
        self._escape = escape
        self._build_args = dict(build_args or {})
        self._global_args = dict(global_args or {})
        self._most = most
        self._variables = {
            name: value for name, _, value in (item.partition("=") for item in self.config.get("Env") or [])
        }
        self._args: dict[str, str] = {}
        self._places: dict[str, int] = {}
        for index, item in enumerate(self.config.get("Env") or []):
            self._places.setdefault(item.partition("=")[0], index)
        self._command_set = False
        self._ports = 0
        self._said = 0

    def child(self) -> Configuration:
        """Return the configuration that a stage FROM this one begins with: its ARGs hold there, too."""
        result = Configuration(
            self.config,
            escape=self._escape,
            build_args=self._build_args,
            global_args=self._global_args,
            most=self._most,
        )
        result.config.pop("OnBuild", None)
        result.author = self.author
        result._variables = dict(self._variables)
        result._args = dict(self._args)
        result._said = self._said
        return result

    def set_default_path(self) -> None:
        """Set PATH where the image below does not, as BuildKit does when a stage begins."""
        if "PATH" not in self._places:
            self._set_env("PATH", DEFAULT_PATH)

    def lookup(self, name: str) -> str | None:
        """Return the value of a variable here: of ENV and ARG, whichever came last."""
        return self._variables.get(name)

    def environment(self) -> dict[str, str]:
        """Return what a RUN has in its environment: ENV, ARG, and proxies among the build arguments."""
        given = sorted(self._build_args.items())
        proxies = {name.lower(): value for name, value in given if name.lower() in _PROXIES}
        both = {spelt: value for name, value in proxies.items() for spelt in (name, name.upper())}
        return {**both, **self._variables}

    def args(self) -> dict[str, str]:
        """Return the ARGs in force, in order, for a RUN's cache key and history; without proxies."""
        return {name: self._variables.get(name, value) for name, value in self._args.items()}

    def shell(self) -> tuple[str, ...]:
        """Return what commands in shell form are given to."""
        return tuple(self.config.get("Shell") or DEFAULT_SHELL)

    def words(self, command: tuple[str, ...] | str) -> list[str]:
        """Return the words that *command* starts, for either of its forms."""
        return [*self.shell(), command] if isinstance(command, str) else list(command)

    def expand(self, text: str) -> str:
        """Return *text* with variables put in; raises `BadRequest` as `expansion.expand` does."""
        return expansion.expand(text, self.lookup, self._escape, self._most)

    def expand_copy(self, instruction: Copy) -> Copy:
        """Return a COPY or ADD with variables put in, those in its here-documents, too."""
        try:
            documents = tuple(
                replace(document, content=expansion.document(document.content, self.lookup))
                if document.expand
                else document
                for document in instruction.heredocs
            )
        except BadRequest as error:
            raise instruction.error(error) from None
        return replace(
            instruction,
            sources=tuple(self._expanded(instruction, source) for source in instruction.sources),
            destination=self._expanded(instruction, instruction.destination),
            heredocs=documents,
            chown=self._flag(instruction, instruction.chown),
            chmod=self._flag(instruction, instruction.chmod),
            checksum=self._flag(instruction, instruction.checksum),
        )

    def expand_run(self, instruction: Run) -> Run:
        """Return a RUN with variables put into its mounts; what it runs is for the shell to expand."""
        try:
            found = tuple(mounts.expand(mount, self.lookup, self._escape) for mount in instruction.mounts)
        except BadRequest as error:
            raise instruction.error(error) from None
        return replace(instruction, mounts=found)

    def apply(self, instruction: Instruction) -> str | None:
        """Do what a metadata instruction says, WORKDIR's directory aside; return its text for the history.

        None stands for ONBUILD, which has no entry there. Raises `BadRequest` with the instruction's line for
        values that cannot be once variables are put in, or all together are too long: the build ends then.
        """
        method = _METHODS[type(instruction)]
        try:
            said = method(self, instruction)
            self._said += len(said or "")
            if self._said > _MOST_TEXT:
                raise BadRequest(
                    f"the configuration is longer than {_MOST_TEXT >> 20} MiB: expected less of it"
                )
        except BadRequest as error:
            raise instruction.error(error) from None
        return said

    def _flag(self, instruction: Instruction, text: str | None) -> str | None:
        return None if text is None else self._expanded(instruction, text)

    def _expanded(self, instruction: Instruction, text: str) -> str:
        try:
            return self.expand(text)
        except BadRequest as error:
            raise instruction.error(error) from None

    def _set_env(self, name: str, value: str) -> None:
        self._variables[name] = value
        self.config["Env"] = self.config.get("Env") or []
        index = self._places.setdefault(name, len(self.config["Env"]))
        self.config["Env"][index : index + 1] = [f"{name}={value}"]

    def _pairs(self, instruction: Env | Label) -> list[tuple[str, str]]:
        pairs = [(self.expand(name), self.expand(value)) for name, value in instruction.pairs]
        if not all(name for name, _ in pairs):
            raise BadRequest("a name is empty once variables are put in: expected NAME=VALUE")
        return pairs

    def _env(self, instruction: Env) -> str:
        pairs = self._pairs(instruction)
        if any("=" in name for name, _ in pairs):
            raise BadRequest("a variable's name has a = in it: expected NAME=VALUE")
        for name, value in pairs:
            self._set_env(name, value)
        return " ".join(["ENV", *(f"{name}={value}" for name, value in pairs)])

    def _label(self, instruction: Label) -> str:
        pairs = self._pairs(instruction)
        self.config["Labels"] = {**(self.config.get("Labels") or {}), **dict(pairs)}
        return " ".join(["LABEL", *(f"{name}={value}" for name, value in pairs)])

    def _arg(self, instruction: Arg) -> str:
        texts = []
        for name, default in instruction.names:
            value = self._build_args.get(name)
            if value is None:
                value = self._global_args.get(name) if default is None else self.expand(default)
            texts.append(name if value is None else f"{name}={value}")
            self._args[name] = value or ""
            if value is not None:
                self._variables[name] = value
        return " ".join(["ARG", *texts])

    def _command(self, instruction: Command) -> str:
        words = list(instruction.command) if instruction.word == "SHELL" else self.words(instruction.command)
        if instruction.word == "SHELL":
            self.config["Shell"] = words
            return f"SHELL {history.listed(words)}"
        if instruction.word == "CMD":
            self._command_set = True
            self.config["Cmd"] = words
        else:
            self.config["Entrypoint"] = words
            if not self._command_set:
                self.config.pop("Cmd", None)  # it was meant for the entrypoint before
        return f"{instruction.word} {history.quoted(words)}"

    def _single(self, instruction: Single) -> str:
        if instruction.word == "MAINTAINER":
            self.author = instruction.value
            return f"MAINTAINER {instruction.value}"
        value = self.expand(instruction.value)
        if instruction.word == "WORKDIR":
            before = "/" + (self.config.get("WorkingDir") or "")
            value = "/" + posixpath.normpath(posixpath.join(before, value)).lstrip("/")
            self.config["WorkingDir"] = value
        elif instruction.word == "USER":
            if len(value.split()) > 1:
                raise BadRequest(f"USER needs exactly one argument, user[:group], not {value[:40]!r}")
            self.config["User"] = value
        else:
            signal_number(value)
            self.config["StopSignal"] = value
        return f"{instruction.word} {value}"

    def _several(self, instruction: Several) -> str:
        if instruction.word == "EXPOSE":
            return self._expose(instruction)
        paths = [self.expand(value) for value in instruction.values]
        if not all(path.strip() for path in paths):
            raise BadRequest("VOLUME: a path is empty")
        self.config["Volumes"] = {**(self.config.get("Volumes") or {}), **{path: {} for path in paths}}
        return f"VOLUME {history.listed(paths)}"

    def _expose(self, instruction: Several) -> str:
        ports: list[str] = []
        for value in sorted(instruction.values):
            for text in expansion.words(value, self.lookup, self._escape, self._most):
                ports += self._numbers(text, _MOST_PORTS - self._ports - len(ports))
        self._ports += len(ports)
        self.config["ExposedPorts"] = {
            **(self.config.get("ExposedPorts") or {}),
            **{port: {} for port in ports},
        }
        return f"EXPOSE {history.listed(ports)}"

    def _numbers(self, text: str, room: int) -> list[str]:
        """Return the ports that *text* names, of which there may be *room*."""
        match = _PORT.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or not 0 < first <= last <= 65535:
            raise BadRequest(f"EXPOSE: {text[:40]!r} is not a port: use 80, 80/udp or 8000-8010/tcp")
        if last + 1 - first > room:
            raise BadRequest(f"EXPOSE: more than {_MOST_PORTS} ports are named: name fewer of them")
        return [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]

    def _healthcheck(self, instruction: Healthcheck) -> str:
        numbers = {
            "Interval": instruction.interval,
            "Timeout": instruction.timeout,
            "StartPeriod": instruction.start_period,
            "StartInterval": instruction.start_interval,
            "Retries": instruction.retries,
        }
        self.config["Healthcheck"] = {
            "Test": list(instruction.test),
            **{name: number for name, number in numbers.items() if number},
        }
        return history.healthcheck(instruction)

    def _onbuild(self, instruction: Onbuild) -> None:
        if len(self.config.get("OnBuild") or []) >= _MOST_TRIGGERS:
            raise BadRequest(f"expected at most {_MOST_TRIGGERS} ONBUILD")
        self.config["OnBuild"] = [*(self.config.get("OnBuild") or []), instruction.instruction]


_METHODS: dict[type[Instruction], Callable[[Configuration, Any], str | None]] = {
    Arg: Configuration._arg,
    Command: Configuration._command,
    Env: Configuration._env,
    Healthcheck: Configuration._healthcheck,
    Label: Configuration._label,
    Onbuild: Configuration._onbuild,
    Several: Configuration._several,
    Single: Configuration._single,
}
