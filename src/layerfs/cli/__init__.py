"""The command line: `layerfs COMMAND ...`, a client of the control API.

Commands are imported when they are called: a commit is a matter of milliseconds, and so is its command.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

import click

from layerfs import __version__
from layerfs.errors import LayerfsError
from layerfs.host.rundir import store_root

COMMANDS = {
    "attach": "attach",
    "build": "build",
    "builder": "groups",
    "cat": "past",
    "checkpoint": "timetravel",
    "commit": "mounts",
    "container": "groups",
    "cp": "copying",
    "create": "run",
    "df": "prune",
    "diff": "diff",
    "engine": "engine",
    "events": "logs",
    "exec": "attach",
    "export": "export",
    "fork": "timetravel",
    "fsck": "system",
    "history": "images",
    "image": "groups",
    "images": "images",
    "import": "importing",
    "info": "about",
    "inspect": "system",
    "keep": "timetravel",
    "kill": "containers",
    "load": "archives",
    "log": "past",
    "logs": "logs",
    "ls": "past",
    "mount": "mount",
    "network": "network",
    "pause": "containers",
    "port": "containers",
    "prune": "prune",
    "ps": "ps",
    "pull": "distribution",
    "push": "distribution",
    "rename": "containers",
    "restart": "containers",
    "restore": "timetravel",
    "rm": "mounts",
    "rmi": "images",
    "rollback": "timetravel",
    "run": "run",
    "save": "archives",
    "squash": "timetravel",
    "start": "containers",
    "stats": "watching",
    "status": "system",
    "stop": "containers",
    "system": "groups",
    "tag": "images",
    "top": "watching",
    "umount": "mounts",
    "unpause": "containers",
    "update": "containers",
    "verify": "images",
    "version": "about",
    "volume": "volume",
    "wait": "containers",
}
"""Every command, and the module that has it as `NAME_command`."""

FOOTER = """\
As a mount helper: layerfs SOURCE MOUNTPOINT -o lowerdir=A:B,upperdir=U,workdir=W

Environment: LAYERFS_ROOT is the store's directory where --root is not given, LAYERFS_RUN the directory
of sockets, locks and logs, LAYERFS_ENGINE the socket of the engine to ask (none for none), LAYERFS_RUNTIME
the OCI runtime (runc or crun where it is not set).

Exit status: 0 done, 1 failed, 2 wrong usage; of run and exec, that of the command."""


class Suggesting(click.Group):
    """Commands, one of which may be what somebody meant by a name that there is not."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that *args* begin with; raises `UsageError`."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is not None:
            return name, command, args[1:]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        import difflib

        from layerfs.errors import UsageError

        close = difflib.get_close_matches(name, self.list_commands(ctx), 1)
        path = ctx.command_path
        words = f"{path.partition(' ')[2]} {close[0]}".strip() if close else ""
        hint = f". Did you mean {words}?" if close else f"; see '{path} --help'"
        raise UsageError(f"no such command: {path.partition(' ')[2]} {name}".replace(":  ", ": ") + hint)

    @staticmethod
    def prepared(command: click.Command) -> click.Command:
        """Return *command*, which refuses empty names from now on, and takes flags with a value."""
        from layerfs.cli.booleans import without_values
        from layerfs.cli.shared import refuse_empty

        if "parse_args" not in vars(command) and not isinstance(command, click.Group):
            parse = command.parse_args
            vars(command)["parse_args"] = lambda ctx, args: parse(ctx, without_values(command, args))
        return refuse_empty(command)


class _Commands(Suggesting):
    """The commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"layerfs.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return self.prepared(command)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write(FOOTER + "\n")


@click.group(cls=_Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", metavar="DIR", type=click.Path(), help="Keep layers and images in DIR.")
@click.version_option(__version__, prog_name="layerfs", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, root: str | None) -> None:
    """Mount layers as one live filesystem, and commit what is written to it as a new layer."""
    gc.freeze()  # by now the command is imported
    gc.enable()
    if root == "":
        raise click.UsageError("--root is empty: give a directory, or leave it out")
    ctx.obj = store_root(root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with *arguments* (those of the process by default); return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result: object = None
        if not given:
            cli.main(["--help"], prog_name="layerfs", standalone_mode=False)
            result = 2
        elif _is_mount_helper(given):
            from layerfs.cli.helper import mount_helper

            mount_helper(given)
        else:
            result = cli.main(given, prog_name="layerfs", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "layerfs"
        return _fail(f"{error.format_message().rstrip('.')}; see '{command} --help'", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except LayerfsError as error:
        return _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 1)
    except BrokenPipeError:
        # Whoever read the output has enough; Python must not try to flush the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{name}", 1)
    return result if isinstance(result, int) else 0


def _is_mount_helper(arguments: Sequence[str]) -> bool:
    """Return whether *arguments* are those of a mount helper, `SOURCE MOUNTPOINT -o OPTIONS`.

    See mount(8), EXTERNAL HELPERS. A source that has the name of a command is taken for the command.
    """
    if not arguments or arguments[0].startswith("-") or arguments[0] in COMMANDS:
        return False
    return any(argument.startswith("-o") for argument in arguments)


def _fail(message: str, status: int) -> int:
    """Print *message* as one line, and return *status*."""
    from layerfs.cli import render

    render.note(message)
    return status
