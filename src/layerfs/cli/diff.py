"""The command diff: what was written to a mount, and what differs between any two trees there were."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import Listing
from layerfs.cli.names import ANY_NAME, may_be_path, mounted_on
from layerfs.client.client import Client

KINDS = "CAD"
"""What the numbers of a change mean in Docker's API: changed, added, deleted."""
_WIDTH = 80
_GRAPH = 40
CHANGES = Listing({"Kind": "KIND", "Path": "PATH", "Type": "TYPE"}, ("Kind", "Path"))


@click.command("diff")
@click.option("--stat", "lines", flag_value="stat", help="Show how many lines differ, as git does.")
@click.option("--patch", "lines", flag_value="patch", help="Show a unified diff of texts.")
@click.option("--format", "form", metavar="FORMAT", default="", help="A Go template, json, or table.")
@click.argument("a", metavar="A", type=ANY_NAME)
@click.argument("others", metavar="[B] [PATH]", nargs=-1)
@click.pass_obj
def diff_command(root: Path, a: str, others: Sequence[str], lines: str | None, form: str) -> None:
    """List what was written to a mount since its last commit, or what differs between A and B.

    A stands for added, C for changed, D for deleted.

    A and B are mounts, images, checkpoints, or one of these with ~N or @{WHEN} after it: NAME~3,
    NAME@{10 minutes ago}. PATH, which begins with a slash, is all that is compared. Without B, a mount is
    compared with its last checkpoint, and what it was before with what it is now.
    """
    client = Client.of(root)
    b, path = _others(client, others)
    if b is None and path is None and lines is None and re.search(r"~\d*$|@\{[^{}]*\}$", a) is None:
        found = client.request("GET", f"/containers/{a}/changes") or ()
        items = [{"Kind": KINDS[item["Kind"]], "Path": item["Path"]} for item in found]
        _show(items, form)
        return
    if b is None:
        base = re.sub(r"(?:~\d*|@\{[^{}]*\})*$", "", a)
        a, b = (f"{a}~0", a) if base == a else (a, base)
    if lines == "patch":
        answer = client.stream("GET", "/layerfs/diff", a=a, b=b, path=path, form="patch")
        sys.stdout.flush()
        try:
            for piece in answer.chunks:
                sys.stdout.buffer.write(piece)
        finally:
            answer.chunks.close()
        sys.stdout.buffer.flush()
        return
    found = client.request("GET", "/layerfs/diff", a=a, b=b, path=path, form=lines)
    if lines == "stat" and not form:
        render.show(_stat(found))
    else:
        _show(found, form)


def _others(client: Client, others: Sequence[str]) -> tuple[str | None, str | None]:
    """Return B and PATH, each None where it is not given."""
    if len(others) > 2:
        raise click.UsageError("give at most two trees to compare, and a path")
    if len(others) == 2:
        return _second(client, others[0]) or others[0], others[1]
    if not others:
        return None, None
    second = _second(client, others[0])
    return (None, others[0]) if second is None else (second, None)


def _second(client: Client, text: str) -> str | None:
    """Return the reference that *text* is, None for a path in the tree."""
    if text.startswith("/") or (may_be_path(text) and text.startswith(".")):
        return mounted_on(client, text)
    return text


def _show(items: Sequence[dict[str, Any]], form: str) -> None:
    if form:
        rows = [
            {"Kind": item["Kind"], "Path": render.printable(item["Path"]), "Type": item.get("Type", "")}
            for item in items
        ]
        CHANGES.show(rows, form)
    else:
        render.show("\n".join(f"{item['Kind']} {render.printable(item['Path'])}" for item in items))


def _stat(items: Sequence[dict[str, Any]]) -> str:
    """Return the lines of `git diff --stat` for what the API says; directories have none."""
    items = [item for item in items if item["Type"] != "directory"]
    if not items:
        return ""
    names = [render.printable(item["Path"].removeprefix("/")) for item in items]
    numbers = [_number(item) for item in items]
    name_width = min(max(map(len, names)), _WIDTH - _GRAPH)
    number_width = max(
        3 if item["Binary"] else len(number) for number, item in zip(numbers, items, strict=True)
    )
    most = max(sum((item["Lines"] or {}).values()) for item in items)
    lines = []
    for name, number, item in zip(names, numbers, items, strict=True):
        short = name if len(name) <= name_width else "..." + name[3 - name_width :]
        lines.append(f" {short:{name_width}} | {number:>{number_width}} {_bar(item, most)}".rstrip())
    added, deleted = (
        sum((item["Lines"] or {}).get(key, 0) for item in items) for key in ("Added", "Deleted")
    )
    total = f" {len(items)} file{'s' * (len(items) != 1)} changed"
    if added or not deleted:
        total += f", {added} insertion{'s' * (added != 1)}(+)"
    if deleted or not added:
        total += f", {deleted} deletion{'s' * (deleted != 1)}(-)"
    return "\n".join([*lines, total])


def _number(item: dict[str, Any]) -> str:
    if item["Binary"]:
        before, after = item["Sizes"]
        return f"Bin {before} -> {after} bytes"
    return str(sum((item["Lines"] or {"Added": 0}).values()))


def _bar(item: dict[str, Any], most: int) -> str:
    if item["Binary"] or not item["Lines"]:
        return ""
    added, deleted = item["Lines"]["Added"], item["Lines"]["Deleted"]
    if most > _GRAPH:
        added, deleted = (-(-number * _GRAPH // most) for number in (added, deleted))
    return f"{'+' * added}{'-' * deleted}"
