"""What `RUN --mount` asks for: trees, caches, secrets and agents in the container of one command."""

from __future__ import annotations

import os
import posixpath
import re
import secrets as random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.build import cachemounts, contextmounts
from layerfs.build.copystep import stage_of
from layerfs.container.mountpoints import Point, bind
from layerfs.container.rootfs import open_inside
from layerfs.dockerfile import heredocs
from layerfs.errors import BadRequest, LayerfsError, NotFound, from_os_error

if TYPE_CHECKING:
    from layerfs.build.digests import Digest
    from layerfs.build.run import Order
    from layerfs.build.stage import StageBuild
    from layerfs.dockerfile.instructions import Heredoc, Run, RunMount

_MOST_SECRET = 500 << 10
"""Bytes of a secret, as with BuildKit."""
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One mount, with its defaults."""

    mount: RunMount
    target: str

    def text(self, name: str, default: str = "") -> str:
        return self.mount.options.get(name) or default

    def flag(self, name: str) -> bool:
        return self.mount.options.get(name, "").lower() in ("true", "1")

    def number(self, name: str, default: int, base: int = 10) -> int:
        text = self.text(name)
        try:
            return int(text, base) if text else default
        except ValueError:
            raise BadRequest(f"RUN --mount: {name}={text[:40]} is no number") from None


class Mounts:
    """The mounts of one RUN."""

    def __init__(self, stage: StageBuild, run: Run, order: Order) -> None:
        """Prepare those of *run*, whose variables have been put in. Raises `BadRequest`."""
        self._stage = stage
        _, self.script = heredocs.command(run, ())
        """The here-document that the command runs as a file, if it does."""
        self._wanted = [_Wanted(mount, _target(mount, order.directory)) for mount in run.mounts]
        self._seen: list[tuple[str, Digest]] = []

    @property
    def caches(self) -> bool:
        """Whether there is a cache among them."""
        return any(it.mount.type == "cache" for it in self._wanted)

    @property
    def find_files(self) -> bool:
        """Whether the command finds files of the build context, a stage or an image in one of them."""
        return any(it.mount.type == "bind" or it.text("from") for it in self._wanted)

    def described(self) -> list[Any]:
        """Return what of them decides what the command finds: what a cache or a secret has in it does not.

        Raises `LayerfsError`, and what ends the build.
        """
        self._seen.clear()
        found: list[Any] = []
        for wanted in self._wanted:
            what = [wanted.mount.type, wanted.target, sorted(wanted.mount.options.items())]
            if name := wanted.text("from"):
                what.append(stage_of(self._stage, name) or "")
            elif wanted.mount.type == "bind":
                source = wanted.text("source", "/")
                self._seen.append((source, contextmounts.digest(self._stage.building, source)))
                what.append(self._seen[-1][1].text)
            found.append(what)
        return found

    def have_changed(self) -> bool:
        """Return whether files of the build context are no longer what `described` has told of."""
        building = self._stage.building
        with suppress(LayerfsError):
            return any(contextmounts.digest(building, source) != digest for source, digest in self._seen)
        return True

    @contextmanager
    def opened(self) -> Iterator[tuple[list[Point], list[str]]]:
        """Make them ready for the block; yield what to mount, and variables that come with it.

        Raises `LayerfsError`.
        """
        points: list[Point] = []
        variables: list[str] = []
        with ExitStack() as ends:
            if self.script is not None:
                points.append(self._script(self.script, ends))
            for wanted in self._wanted:
                getattr(self, f"_{wanted.mount.type}")(wanted, points, variables, ends)
            yield points, variables

    def _script(self, script: Heredoc, ends: ExitStack) -> Point:
        """Make a file of a script; not on the private tmpfs, from which nothing can be executed."""
        path = self._stage.building.scratch / f"script-{random.token_hex(8)}"
        path.write_bytes(script.content.encode(errors="surrogateescape"))
        ends.callback(path.unlink)
        path.chmod(0o755)
        return bind(str(path), f"{heredocs.PIPES}/{script.name}", writable=False)

    def _tmpfs(self, wanted: _Wanted, points: list[Point], variables: list[str], ends: ExitStack) -> None:
        options = f"size={_bytes(wanted.text('size'))}" if wanted.text("size") else ""
        points.append(
            {
                "Type": "tmpfs", "Source": "", "Destination": wanted.target, "Mode": "", "RW": True,
                "Propagation": "", "Spec": {"Options": options},
            }
        )  # fmt: skip

    def _secret(self, wanted: _Wanted, points: list[Point], variables: list[str], ends: ExitStack) -> None:
        identifier = wanted.text("id") or wanted.text("source") or posixpath.basename(wanted.target)
        value = self._stage.building.options.secrets.get(identifier)
        if value is None:
            if wanted.flag("required"):
                raise NotFound(
                    f"secret {identifier} is required by a RUN: give it with --secret id={identifier}"
                )
            return
        if len(value) > _MOST_SECRET:
            raise BadRequest(f"secret {identifier} has more than {_MOST_SECRET >> 10} KiB")
        name = wanted.text("env")
        if name:
            variables.append(f"{name}={value.decode('utf-8', 'surrogateescape')}")
            if not wanted.text("target"):
                return
        path = self._private() / identifier_of(identifier)
        path.touch(mode=0o600)
        ends.callback(path.unlink, missing_ok=True)
        path.write_bytes(value)
        os.chown(path, wanted.number("uid", 0), wanted.number("gid", 0))
        path.chmod(wanted.number("mode", 0o400, 8))
        points.append(bind(str(path), wanted.target, writable=False))

    def _private(self) -> Path:
        path = self._stage.building.work().private / "secrets" / random.token_hex(8)
        path.mkdir(parents=True, mode=0o711)
        return path

    def _ssh(self, wanted: _Wanted, points: list[Point], variables: list[str], ends: ExitStack) -> None:
        identifier = wanted.text("id", "default")
        socket = self._stage.building.options.ssh.get(identifier)
        if socket is None:
            if wanted.flag("required"):
                raise NotFound(
                    f"the agent {identifier} is required by a RUN: give it with --ssh {identifier}"
                )
            return
        points.append(bind(socket, wanted.target))
        if not any(it.startswith("SSH_AUTH_SOCK=") for it in variables):
            variables.append(f"SSH_AUTH_SOCK={wanted.target}")

    def _cache(self, wanted: _Wanted, points: list[Point], variables: list[str], ends: ExitStack) -> None:
        sharing = wanted.text("sharing", "shared")
        if sharing not in cachemounts.SHARING:
            raise BadRequest(
                f"RUN --mount: sharing={sharing[:40]} must be one of {', '.join(cachemounts.SHARING)}"
            )
        owner = cachemounts.Owner(
            wanted.number("mode", 0o755, 8), wanted.number("uid", 0), wanted.number("gid", 0)
        )
        below = None
        if name := wanted.text("from"):
            below = stage_of(self._stage, name)
        identifier = wanted.text("id", wanted.target)
        directory = ends.enter_context(
            cachemounts.taken(self._stage, identifier, sharing, owner, below, wanted.text("source", "/"))
        )
        points.append(bind(str(directory), wanted.target, writable=not wanted.flag("readonly")))

    def _bind(self, wanted: _Wanted, points: list[Point], variables: list[str], ends: ExitStack) -> None:
        from layerfs.build.live import Live

        stage, building = self._stage, self._stage.building
        writable = not wanted.flag("readonly")
        source = wanted.text("source", "/")
        if name := wanted.text("from"):
            step = stage_of(stage, name)
            if step is None:
                raise NotFound(f"RUN --mount: {name} has no files")
        else:
            step, source = contextmounts.step(stage, source), contextmounts.PLACE
            if not writable:
                layer = stage.store.steps.entry(step).layer
                assert layer is not None
                path = stage.store.layer(layer).path / contextmounts.PLACE  # as it is: it is the only layer
                points.append(bind(str(path), wanted.target, writable=False))
                return
        live = Live(building.work(), building.launch, stage.store, step, writable=writable)
        ends.callback(live.end)
        points.append(bind(_inside(live.tree, source), wanted.target, writable=writable))


def _inside(tree: Path, source: str) -> str:
    """Return the path of *source* in the *tree*, without links, which never lead out of it."""
    try:
        fd = open_inside(tree, source.lstrip("/") or ".", os.O_PATH)
    except FileNotFoundError:
        raise NotFound(f"RUN --mount: there is no {source} to mount") from None
    except OSError as error:
        raise from_os_error(error, f"mount {source} for a RUN") from None
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _target(mount: RunMount, directory: str) -> str:
    options: Mapping[str, str] = mount.options
    given = options.get("target") or ""
    if mount.type == "secret":
        name = posixpath.basename(options.get("id") or options.get("source") or "")
        given = given or f"/run/secrets/{name}"
    elif mount.type == "ssh":
        given = given or "/run/buildkit/ssh_agent.0"
    if not given:
        raise BadRequest(f"RUN --mount: a mount of the type {mount.type} needs target=PATH")
    target = posixpath.normpath(posixpath.join(directory, given))
    if target in ("/", "//"):
        raise BadRequest("RUN --mount: target=/ is the whole tree: give a directory in it")
    return target


def identifier_of(text: str) -> str:
    """Return *text* as a name of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:100].lstrip(".") or "secret"


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s?([kmgtp]?)i?b?", text.strip().lower())
    if found is None:
        raise BadRequest(f"RUN --mount: size={text[:40]} is no size: give one such as 64m")
    return int(float(found[1]) * _UNITS[found[2]])
