"""The instructions of a Dockerfile, parsed but with variables not yet put in.

The types follow the Dockerfile reference (docs.docker.com/reference/dockerfile). Text that variables are put
into later is a `str` as it stands in the file, quotes and backslashes included: see `expansion`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from layerfs.errors import BadRequest

_LONGEST = 300
"""Characters of a message: it may quote a name that somebody made very long."""


def one_line(message: str) -> str:
    """Return *message* as an error can have it: what it quotes may be long, or have line ends in it."""
    text = message.replace("\n", " ")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document, as `RUN <<EOF` and `COPY <<EOF FILE` take it."""

    name: str
    """The delimiter, without quotes."""
    content: str
    """Its lines, each ending with a newline, without leading tabs where `<<-` said so."""
    expand: bool
    """Whether variables are put into it: not if the delimiter was quoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has."""

    line: int
    """The line it begins on, from 1."""
    text: str
    """The instruction as people read it in progress and errors: its lines joined, heredocs left out."""
    file: str = "Dockerfile"
    """What messages call the file."""

    def error(self, message: object) -> BadRequest:
        """Return the error that *message* makes of this instruction, found only when it is done."""
        return BadRequest(f"{self.file}:{self.line}: {one_line(str(message))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """FROM: begins a stage."""

    image: str
    """A reference, the name of a stage before, or `scratch`."""
    name: str | None = None
    """AS NAME, in lower case."""
    platform: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """ARG NAME[=DEFAULT] ...; a default of None is none."""

    names: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    """ENV, in both its forms."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    """LABEL."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RunMount:
    """One `--mount` of a RUN; values have no variables put in yet."""

    type: str
    """`bind`, `cache`, `tmpfs`, `secret` or `ssh`; a variable until it is put in."""
    options: dict[str, str] = field(default_factory=dict)
    """The others, by docker's names (`target`, `source`, `from`, `id`, `sharing`, `mode`, `uid`, `gid`,
    `size`, `required`, `env`, `readwrite`, `readonly`). One without a value has `true`. `dst` and
    `destination` become `target`, `src` becomes `source`, `rw` and `ro` the long words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """RUN."""

    command: tuple[str, ...] | str
    """The exec form's words, or the shell form's text."""
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[RunMount, ...] = ()
    network: str = "default"
    """`default`, `none` or `host`."""
    security: str = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Instruction):
    """CMD, ENTRYPOINT or SHELL."""

    word: str
    command: tuple[str, ...] | str
    """The exec form's words, or the shell form's text; SHELL has only the former."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    """COPY or ADD."""

    word: str
    """`COPY` or `ADD`."""
    sources: tuple[str, ...]
    heredocs: tuple[Heredoc, ...] = ()
    """Sources that stand in the Dockerfile; each is copied as a file of its name."""
    destination: str
    from_: str | None = None
    """`--from`: the name or number of a stage, or an image."""
    chown: str | None = None
    chmod: str | None = None
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    checksum: str | None = None
    keep_git_dir: bool = False
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Single(Instruction):
    """WORKDIR, USER, STOPSIGNAL or MAINTAINER: one value."""

    word: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Several(Instruction):
    """EXPOSE or VOLUME: a list of values."""

    word: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """HEALTHCHECK; times in nanoseconds, as the image's configuration has them, 0 for the default."""

    test: tuple[str, ...]
    """`("NONE",)`, `("CMD", ...)` or `("CMD-SHELL", TEXT)`."""
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    """ONBUILD: *instruction* is text that is parsed when an image is built from this one."""

    instruction: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and what follows it."""

    begin: From
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A Dockerfile, parsed."""

    args: tuple[Arg, ...]
    """The ARGs before the first FROM."""
    stages: tuple[Stage, ...]
    escape: str = "\\"
    warnings: tuple[str, ...] = ()
    directives: dict[str, str] = field(default_factory=dict)
    """`syntax`, `escape` and `check`, as far as they stand in the first lines."""
