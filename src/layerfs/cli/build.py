"""The command that builds images: build."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli.archives import Size
from layerfs.errors import LayerfsError, UsageError
from layerfs.host.signals import interrupted_by

if TYPE_CHECKING:
    from layerfs.client.client import Client

_PIECE = 1 << 20
_EPOCH = "SOURCE_DATE_EPOCH"


@click.command("build")
@click.option("-t", "--tag", "tags", multiple=True, metavar="REF", help="Name the image so (repeatable).")
@click.option("-f", "--file", "file", metavar="FILE", help="The Dockerfile (CONTEXT/Dockerfile); - is stdin.")
@click.option("--target", metavar="STAGE", default="", help="Build this stage and what it needs.")
@click.option("--build-arg", "args", multiple=True, metavar="NAME[=VALUE]", help="Set an ARG (repeatable).")
@click.option("--no-cache", is_flag=True, help="Do every step anew.")
@click.option("--pull", is_flag=True, help="Ask the registry for newer images.")
@click.option("--cache-from", multiple=True, metavar="IMAGE", help="Take steps of this image, too.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Add a label (repeatable).")
@click.option("--network", metavar="NETWORK", default="", help="Of the commands: bridge, host, none, a name.")
@click.option("--allow", multiple=True, metavar="network.host", help="Let RUN --network=host have that.")
@click.option("--add-host", "hosts", multiple=True, metavar="NAME:ADDRESS", help="Add to /etc/hosts.")
@click.option("--secret", "secrets", multiple=True, metavar="id=ID[,src=FILE]", help="For RUN --mount.")
@click.option("--ssh", "agents", multiple=True, metavar="default|ID[=SOCKET]", help="For RUN --mount.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", default="", help="Build for this platform.")
@click.option("-m", "--memory", type=Size(), metavar="SIZE", help="Limit the memory of each command.")
@click.option("--shm-size", type=Size(), metavar="SIZE", help="The size of /dev/shm (64m).")
@click.option("--iidfile", metavar="FILE", help="Write the id of the image to FILE.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "tty", "quiet"]),
    default="auto",
    help="How to show what is done.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but the id of the image.")
@click.option("--debug", is_flag=True, help="Open a shell where a command has failed.")
@click.argument("context", metavar="CONTEXT")
@click.pass_obj
def build_command(root: Path, /, context: str, **given: Any) -> int:
    """Build an image from a Dockerfile.

    CONTEXT is a directory, a tar archive, the URL of a git repository or of an archive, or - for an archive
    or a Dockerfile from standard input.

    \b
    layerfs build -t app:1 .
    layerfs build -t app:1 --target test --build-arg VERSION=2 .
    layerfs build - < Dockerfile
    """
    from layerfs.cli.buildprogress import shown

    with ExitStack() as ends:
        fields = _context(context, given["file"], ends)
        fields |= {"secrets": _secrets(given["secrets"]), "ssh": _agents(given["agents"])}
        fields |= {"debug": given["debug"], "allow": list(given["allow"])}
        client = _client(root, ends)
        ends.enter_context(interrupted_by((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), once=True))
        answer = client.stream(
            "POST",
            "/build",
            body=json.dumps(fields).encode(),
            headers={"content-type": "application/json", **_credentials()},
            **_parameters(given),
        )
        ends.callback(answer.chunks.close)
        kind = "quiet" if given["quiet"] else given["progress"]
        result = shown(_events(answer.chunks), kind)
    if result.image is not None:
        if given["iidfile"]:
            Path(given["iidfile"]).write_text(f"sha256:{result.image}")
        if kind == "quiet":
            click.echo(f"sha256:{result.image}")
        return 0
    if result.failed_image:
        _shell(root, result.failed_image)
    raise LayerfsError(result.error or "the build ended without a word: see the engine's log")


def _client(root: Path, ends: ExitStack) -> Client:
    from layerfs.client.client import Client

    def launch() -> Callable[..., str]:
        from layerfs.engine.zygote import Forked

        zygote = Forked(root)
        ends.callback(zygote.close)
        return zygote.launch

    return Client.of(root, launch)


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    args = _pairs(given["args"], "build-arg")
    if _EPOCH in os.environ:
        args.setdefault(_EPOCH, os.environ[_EPOCH])
    labels = {name: value or "" for name, value in _pairs(given["labels"], "label", own=False).items()}
    return {
        "t": given["tags"],
        "target": given["target"],
        "buildargs": json.dumps(args) if args else "",
        "labels": json.dumps(labels) if labels else "",
        "nocache": given["no_cache"],
        "pull": given["pull"],
        "cachefrom": json.dumps(given["cache_from"]) if given["cache_from"] else "",
        "networkmode": given["network"],
        "extrahosts": json.dumps(given["hosts"]) if given["hosts"] else "",
        "platform": given["platform"],
        "memory": str(given["memory"] or ""),
        "shmsize": str(given["shm_size"] or ""),
    }


def _pairs(texts: Sequence[str], what: str, *, own: bool = True) -> dict[str, str | None]:
    """Return `NAME=VALUE` as pairs; a name alone has the value of our environment, if *own* counts."""
    found: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"bad --{what} {text!r}: give NAME=VALUE")
        if equals or not own:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _context(context: str, file: str | None, ends: ExitStack) -> dict[str, Any]:
    """Return what the request says of the context, and of the Dockerfile."""
    from layerfs.build.context import is_url

    if file == "-" and context == "-":
        raise UsageError("standard input cannot be both the context and the Dockerfile")
    fields: dict[str, Any] = {}
    if file == "-":
        fields["dockerfile_text"] = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if context == "-":
        fields["archive"] = _spooled(ends)
    elif is_url(context):
        fields["url"] = context
    elif Path(context).is_dir():
        fields["directory"] = str(Path(context).absolute())
        if file not in (None, "-"):
            fields["dockerfile_path"] = str(Path(file or "").absolute())
        return fields
    elif Path(context).is_file():
        fields["archive"] = str(Path(context).absolute())
    else:
        raise UsageError(f"unable to prepare context: path {context!r} not found: give a directory")
    if file not in (None, "-"):
        fields["dockerfile"] = file
    return fields


def _spooled(ends: ExitStack) -> str:
    """Write standard input to a file, and return its path."""
    if sys.stdin.isatty():
        raise UsageError("no build context on standard input: pass an archive or a Dockerfile to it")
    number, name = tempfile.mkstemp(prefix="layerfs-context-")
    ends.callback(os.unlink, name)
    with os.fdopen(number, "wb") as file:
        while piece := sys.stdin.buffer.read(_PIECE):
            file.write(piece)
    return name


def _secrets(texts: Sequence[str]) -> dict[str, str]:
    """Return what --secret says, by ids: `id=ID,src=FILE` or `id=ID,env=NAME`, contents in base64."""
    import base64

    found = {}
    for text in texts:
        fields = dict(part.partition("=")[::2] for part in text.split(","))
        path = fields.pop("src", fields.pop("source", ""))
        identifier, variable = fields.pop("id", ""), fields.pop("env", "")
        kind = fields.pop("type", "env" if variable else "file")
        if fields or kind not in ("file", "env") or not identifier:
            raise UsageError(f"bad --secret {text!r}: give id=ID,src=FILE or id=ID,env=NAME")
        if kind == "env" or (not path and identifier in os.environ):
            value = os.environ.get(variable or path or identifier)
            if value is None:
                raise UsageError(f"--secret {identifier}: the variable {variable or identifier} is not set")
            data = os.fsencode(value)
        else:
            try:
                data = Path(path or identifier).expanduser().read_bytes()
            except OSError as error:
                raise UsageError(f"--secret {identifier}: {error.strerror}: {path or identifier}") from None
        found[identifier] = base64.b64encode(data).decode()
    return found


def _agents(texts: Sequence[str]) -> dict[str, str]:
    """Return what --ssh says: sockets of agents, by ids."""
    found = {}
    for text in texts:
        identifier, _, path = text.partition("=")
        path = path or os.environ.get("SSH_AUTH_SOCK", "")
        if not path or not Path(path).is_socket():
            raise UsageError(f"--ssh {identifier}: {path or 'SSH_AUTH_SOCK'} is no socket of an agent")
        found[identifier or "default"] = str(Path(path).absolute())
    return found


def _credentials() -> dict[str, str]:
    """Return the header with what `docker login` has written, or given to a program to keep."""
    import base64

    from layerfs.cli import credhelpers

    auths = credhelpers.configuration()[1].get("auths")
    given = {
        host: {"auth": auth["auth"], "serveraddress": host}
        for host, auth in (auths if isinstance(auths, dict) else {}).items()
        if isinstance(auth, dict) and auth.get("auth")
    }
    try:
        given |= credhelpers.of_all()
    except LayerfsError as error:  # as with docker: a build may well need none
        click.echo(f"layerfs: warning: {error}", err=True)
    if not given:
        return {}
    return {"x-registry-config": base64.urlsafe_b64encode(json.dumps(given).encode()).decode()}


def _events(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of an answer; an empty one now and then while there is nothing to say."""
    rest = b""
    for chunk in chunks:
        if not chunk:
            yield {}
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)


def _shell(root: Path, image: str) -> None:
    """Run a shell in the tree that a failed command has left, and remove that after it."""
    from layerfs.cli import cli
    from layerfs.client.client import Client

    click.echo(f"layerfs: a shell where it failed (image {image[:12]}):", err=True)
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    try:
        cli.main(
            ["--root", str(root), "run", "--rm", "-i", *terminal, image],
            prog_name="layerfs",
            standalone_mode=False,
        )
    finally:
        Client.of(root).request("DELETE", f"/images/{image}", force="1")
