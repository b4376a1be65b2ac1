"""The commands that bring images from registries and to them: pull, push."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli.access import access_body, access_options
from layerfs.cli.archives import Size, note_left_out, save_to
from layerfs.cli.progress import Progress
from layerfs.errors import UsageError

if TYPE_CHECKING:
    from layerfs.client.client import Client
    from layerfs.distribution.remotes import Remote
    from layerfs.distribution.skopeo import Options
    from layerfs.store.scratch import Scratch

_UNPACKED = ("containers-storage", "docker-archive", "docker-daemon")
"""Where layers are kept without compression."""


@click.command("pull")
@click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="Take the image for this platform: linux/arm64."
)
@click.option("--max-size", type=Size(), metavar="SIZE", help="Refuse an image that unpacks to more (256g).")
@click.option("--max-files", type=click.IntRange(1), metavar="N", help="Refuse more files (10000000).")
@access_options
@click.argument("source")
@click.argument("name", required=False)
@click.pass_obj
def pull_command(
    root: Path,
    /,
    source: str,
    name: str | None,
    platform: str | None,
    max_size: int | None,
    max_files: int | None,
    quiet: bool,
    **access: Any,
) -> None:
    """Bring an image from a registry, or from wherever skopeo can.

    SOURCE is TRANSPORT:DETAILS (docker://, oci:, docker-archive:, containers-storage:, dir:, ...);
    debian:12 alone means docker://debian:12. The image is called NAME, or as it is there.
    Prints its id.

    \b
    layerfs pull debian:12
    layerfs pull --tls-verify=false docker://localhost:5000/base:1 base:1
    layerfs pull containers-storage:localhost/built
    """
    from layerfs.client.client import Client
    from layerfs.distribution.remotes import parse_remote

    remote = parse_remote(source)
    client = Client.of(root)
    limits = {"MaxSize": max_size, "MaxFiles": max_files}
    with Progress(f"pulling {source}", wanted=not quiet) as progress:
        if remote.transport == "docker":
            host = remote.registry() or "docker.io"
            body = {"Name": name, "Platform": platform, **limits, **access_body(host=host, **access)}
            made = pull_named(client, remote.details.removeprefix("//"), body, progress)
        else:
            names = [name] if name is not None else [found] if (found := remote.image_name()) else []
            options = _options(platform=platform, **access)
            made = _pull_elsewhere(client, remote, names, options, limits, progress)
    note_left_out(made["LeftOut"])
    click.echo(made["ID"])


def pull_named(client: Client, name: str, body: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Bring the image *name* of a registry into the store; return what is told of it at the end."""
    from layerfs.client.lines import lines

    answer = client.stream("POST", "/layerfs/pull", body=json.dumps({"Source": name, **body}).encode())
    return _last(progress, lines(answer))


def _pull_elsewhere(
    client: Client,
    remote: Remote,
    names: list[str],
    options: Options,
    limits: dict[str, int | None],
    progress: Progress,
) -> dict[str, Any]:
    """Copy an image that is in no registry into a layout of the command's own, and load that."""
    from layerfs.cli.uploads import opened
    from layerfs.client.lines import lines
    from layerfs.distribution import skopeo
    from layerfs.store.references import normalize

    doing = f"pull {remote}"
    skopeo.check(doing)
    tags = [normalize(name) for name in names]
    with _scratch() as scratch:
        layout = scratch.path / "layout"
        target = skopeo.layout(scratch, layout.name)
        skopeo.copy(
            remote, target, options, side="src", scratch=scratch, doing=doing, progress=progress.wanted
        )
        with opened(str(layout), progress, doing) as (upload, what):
            answer = client.stream(
                "POST",
                "/images/load",
                upload=upload,
                source=what,
                tag=tags,
                untagged=not tags,
                platform=options.platform,
                maxsize=str(limits["MaxSize"] or ""),
                maxfiles=str(limits["MaxFiles"] or ""),
                quiet=not progress.wanted,
            )
            return _last(progress, lines(answer))


@click.command("push")
@access_options
@click.argument("image")
@click.argument("target", required=False)
@click.pass_obj
def push_command(root: Path, /, image: str, target: str | None, quiet: bool, **access: Any) -> None:
    """Bring an image to a registry, or to wherever skopeo can.

    TARGET is TRANSPORT:DETAILS, as for 'layerfs pull'. Where the image has the same name here and there, the
    target alone will do. Prints the digest that it has there.

    \b
    layerfs push node-base docker://registry.example/node-base:1
    layerfs push registry.example/node-base:1
    layerfs push node-base oci:./layout:latest
    """
    from layerfs.client.client import Client
    from layerfs.client.lines import lines
    from layerfs.distribution.remotes import parse_remote

    remote = parse_remote(target if target is not None else image)
    reference = image if target is not None else remote.image_name()
    if reference is None:
        raise UsageError(
            f"{remote} says nothing of a name: give the image, too ('layerfs push IMAGE {image}')"
        )
    client = Client.of(root)
    with Progress(f"pushing {reference}", wanted=not quiet) as progress:
        if remote.transport != "docker":
            digest = _push_elsewhere(client, reference, remote, _options(**access), progress)
        else:
            more = access_body(host=remote.registry() or "docker.io", **access)
            body = {"Image": reference, "Target": remote.details.removeprefix("//"), **more}
            answer = client.stream("POST", "/layerfs/push", body=json.dumps(body).encode())
            digest = _last(progress, lines(answer))["Digest"]
    click.echo(digest)


def _push_elsewhere(
    client: Client, reference: str, remote: Remote, options: Options, progress: Progress
) -> str:
    """Save an image into a layout of the command's own, and copy that to where no registry is."""
    from layerfs.distribution import skopeo

    doing = f"push {reference} to {remote}"
    skopeo.check(doing)
    with _scratch() as scratch:
        layout, digest = scratch.path / "layout", scratch.path / "digest"
        compression = "none" if remote.transport in _UNPACKED else "gzip"
        save_to(client, [reference], layout, "oci-dir", compression)
        told = replace(options, extra=("--digestfile", str(digest), *options.extra))
        source = skopeo.layout(scratch, layout.name)
        skopeo.copy(source, remote, told, side="dest", scratch=scratch, doing=doing, progress=progress.wanted)
        return digest.read_text().strip()


@contextmanager
def _scratch() -> Iterator[Scratch]:
    """Make a directory for large things that are on their way, and remove it when the block ends."""
    from layerfs.store.scratch import Scratch

    place = os.environ.get("TMPDIR") or "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="layerfs-", dir=place) as path:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Scratch(Path(path), lock)
        finally:
            os.close(lock)


def _last(progress: Progress, told: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Return what is told at the end, having shown the rest."""
    found: dict[str, Any] = {}
    for fields in progress.following(told):
        found = fields.get("aux") or found
    return found


def _options(**given: Any) -> Options:
    from layerfs.distribution.skopeo import Options

    return Options(**given)
