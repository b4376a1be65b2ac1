"""The commands that bring images from registries and to them: pull, push."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli import render
from layerfs.cli.archives import Size

if TYPE_CHECKING:
    from layerfs.distribution.skopeo import Options


def _access(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options that say how the other side is reached."""
    for option in (
        click.option(
            "--skopeo", "extra", metavar="OPTION", multiple=True, help="Give 'skopeo copy' one more option."
        ),
        click.option("--policy", metavar="FILE", help="Trust as this policy says, instead of policy.json."),
        click.option("--cert-dir", metavar="DIR", help="Use the certificates and keys in DIR."),
        click.option("--creds", metavar="USER[:PASSWORD]", help="Log in as this user."),
        click.option("--authfile", metavar="FILE", help="Log in with what 'skopeo login' has written here."),
        click.option(
            "--tls-verify",
            metavar="BOOLEAN",
            type=bool,
            help="Insist on TLS with a valid certificate: true (the default) or false.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
    ):
        command = option(command)
    return command


@click.command("pull")
@click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="Take the image for this platform: linux/arm64."
)
@click.option("--max-size", type=Size(), metavar="SIZE", help="Refuse an image that unpacks to more (256g).")
@click.option("--max-files", type=click.IntRange(1), metavar="N", help="Refuse more files (10000000).")
@_access
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
    from layerfs.archive.limits import Limits
    from layerfs.distribution.pull import pull
    from layerfs.distribution.remotes import parse_remote
    from layerfs.store import Store

    remote = parse_remote(source)
    options = _options(platform=platform, **access)
    default = Limits()
    limits = Limits(max_size or default.size, max_files or default.files)
    with Store(root) as store:
        for line in store.recover():
            render.note(line)
        progress = sys.stderr.isatty() and not quiet
        loaded = pull(store, remote, name, options, limits=limits, progress=progress)
    if loaded.left_out:
        click.echo(
            f"layerfs: {loaded.left_out} device nodes were left out: only root can make them", err=True
        )
    click.echo(f"sha256:{loaded.image.id}")


@click.command("push")
@_access
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
    from layerfs.distribution.push import push
    from layerfs.distribution.remotes import parse_remote
    from layerfs.errors import UsageError
    from layerfs.store import Store

    remote = parse_remote(target if target is not None else image)
    reference = image if target is not None else remote.image_name()
    if reference is None:
        raise UsageError(
            f"{remote} says nothing of a name: give the image, too ('layerfs push IMAGE {image}')"
        )
    with Store(root, create=False) as store:
        progress = sys.stderr.isatty() and not quiet
        click.echo(push(store, reference, remote, _options(**access), progress=progress))


def _options(**given: Any) -> Options:
    from layerfs.distribution.skopeo import Options

    return Options(**given)
