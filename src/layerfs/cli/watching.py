"""The commands about what containers do just now: top, stats."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli import render
from layerfs.cli.formats import FORMAT, Listing, Row
from layerfs.cli.names import NAME
from layerfs.cli.shared import NO_TRUNC
from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.client.client import Client

_TURN = 0.5
"""Seconds between two looks of `layerfs stats`."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STATS = Listing(
    {
        "Container": "CONTAINER",
        "ID": "CONTAINER ID",
        "Name": "NAME",
        "CPUPerc": "CPU %",
        "MemUsage": "MEM USAGE / LIMIT",
        "MemPerc": "MEM %",
        "NetIO": "NET I/O",
        "BlockIO": "BLOCK I/O",
        "PIDs": "PIDS",
    },
    ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"),
)


@click.command("top", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="CONTAINER", type=NAME)
@click.argument("arguments", metavar="[PS OPTIONS...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def top_command(root: Path, name: str, arguments: tuple[str, ...]) -> None:
    """List the processes of a container, by ps(1) and its options (-ef)."""
    from layerfs.client.client import Client

    found = Client.of(root).request("GET", f"/containers/{name}/top", ps_args=" ".join(arguments))
    rows = [[render.printable(cell) for cell in row] for row in found["Processes"] or ()]
    render.show(render.aligned([found["Titles"], *rows]))


@click.command("stats")
@click.option("-a", "--all", "every", is_flag=True, help="Show containers that do not run too.")
@click.option("--no-stream", is_flag=True, help="Measure once.")
@NO_TRUNC
@FORMAT
@click.argument("names", metavar="[CONTAINER...]", nargs=-1, type=NAME)
@click.pass_obj
def stats_command(
    root: Path, names: tuple[str, ...], every: bool, no_stream: bool, no_trunc: bool, form: str
) -> None:
    """Show what containers use of processors, memory, disks and network.

    Without a name, of all that run. Goes on until it is interrupted, unless it is told --no-stream.
    """
    from layerfs.cli.formats import template
    from layerfs.client.client import Client

    if "{{" in form:
        template(form.removeprefix("table "))  # a mistake in it is told at once
    client = Client.of(root)
    if no_stream:
        _STATS.show(_measured(client, root, _wanted(client, names, every), no_trunc), form)
        return
    while True:
        rows = _measured(client, root, _wanted(client, names, every), no_trunc)
        text = _STATS.text(rows, form)
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and form.startswith("table") else ""
        click.echo(clear + text)
        time.sleep(_TURN)


def _wanted(client: Client, names: tuple[str, ...], every: bool) -> list[str]:
    """Return the ids of the containers *names*, or of all; raises `NotFound`."""
    if names:
        return [client.request("GET", f"/containers/{name}/json")["Id"] for name in names]
    found = client.request("GET", "/containers/json", all=every)
    return [item["Id"] for item in found if item["HostConfig"].get("NetworkMode") and not item["Mountpoint"]]


def _measured(client: Client, root: Path, ids: list[str], no_trunc: bool) -> list[Row]:
    """Return a row for each of the containers *ids*; they are measured at the same time."""
    from layerfs.client.client import Client

    found: dict[str, Row] = {}
    failed: list[LayerfsError] = []

    def measure(name: str) -> None:
        try:
            sample = Client.of(root).request("GET", f"/containers/{name}/stats", stream="0")
            found[name] = row(sample, no_trunc)
        except LayerfsError as error:  # it may have been removed meanwhile
            failed.append(error)

    threads = [threading.Thread(target=measure, args=(name,), daemon=True) for name in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed and not found:
        raise failed[0]
    return [found[name] for name in ids if name in found]


def row(sample: Mapping[str, Any], no_trunc: bool) -> Row:
    """Return what `layerfs stats` shows of a *sample* of the API."""
    identifier = sample["id"] if no_trunc else render.short_id(sample["id"])
    memory = sample["memory_stats"]
    details = memory.get("stats") or {}
    idle = details.get("inactive_file", details.get("total_inactive_file", 0))
    used = max(0, memory.get("usage", 0) - idle)
    limit = memory.get("limit") or 0
    networks = (sample.get("networks") or {}).values()
    received, sent = (sum(net[name] for net in networks) for name in ("rx_bytes", "tx_bytes"))
    blocks = (sample["blkio_stats"] or {}).get("io_service_bytes_recursive") or ()
    read, written = (
        sum(item["value"] for item in blocks if item["op"].lower() == name) for name in ("read", "write")
    )
    return {
        "Container": identifier,
        "ID": identifier,
        "Name": sample["name"].removeprefix("/"),
        "CPUPerc": f"{_load(sample):.2f}%",
        "MemUsage": f"{_binary(used)} / {_binary(limit)}",
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{render.size(received)} / {render.size(sent)}",
        "BlockIO": f"{render.size(read)} / {render.size(written)}",
        "PIDs": str(sample["pids_stats"].get("current") or 0),
    }


def _load(sample: Mapping[str, Any]) -> float:
    """Return the load of processors between two samples in per cent of one."""
    now, before = sample["cpu_stats"], sample["precpu_stats"]
    spent = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    return max(0.0, spent / passed * (now.get("online_cpus") or 1) * 100) if passed > 0 else 0.0


def _binary(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g}{_UNITS[unit]}"
