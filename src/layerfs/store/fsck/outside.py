"""Whether networks and volumes are what their rows say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from layerfs.store import networks, volumes
from layerfs.store.database import Database
from layerfs.store.fsck.problem import Problem

_BACKUP = "restore layerfs.db from a backup"
_LOOK = "look into it, and remove it; or 'layerfs volume create {}' makes it a volume again"


def check(db: Database) -> Iterator[Problem]:
    """Yield what is wrong with the rows of networks and volumes, and with the directories of volumes."""
    yield from _networks(db)
    yield from _volumes(db)


def _networks(db: Database) -> Iterator[Problem]:
    query = "SELECT id, name, subnets, ipam, labels, options FROM networks"
    for network_id, name, subnets, ipam, labels, options in db.execute(query).fetchall():
        subject = f"network {name if networks.is_name(name) else network_id[:12]}"
        remove = f"'layerfs network rm {network_id[:12]}'"
        if not networks.is_name(name):
            yield Problem(subject, f"{name!r} is no name for a network", remove)
        for what, text in (("labels", labels), ("options", options), ("IPAM options", ipam)):
            if not _are_texts(_parsed(text)):
                yield Problem(subject, f"its {what} are not a JSON object of texts", _BACKUP)
        if not _are_subnets(_parsed(subnets)):
            yield Problem(subject, "its subnets are none", remove)
    for endpoint, names, address, address6 in db.execute(
        "SELECT id, names, address, address6 FROM endpoints"
    ).fetchall():
        if not isinstance(_parsed(names), list) or not all(map(_is_address, (address, address6))):
            yield Problem(f"endpoint {endpoint[:12]}", "its addresses or names are none", _BACKUP)


def _volumes(db: Database) -> Iterator[Problem]:
    for name, labels, options in db.execute("SELECT name, labels, options FROM volumes").fetchall():
        subject = f"volume {name}"
        if not volumes.NAME.fullmatch(name):
            yield Problem(subject, f"{name!r} is no name for a volume", _BACKUP)
            continue
        for what, text in (("labels", labels), ("options", options)):
            if not _are_texts(_parsed(text)):
                yield Problem(subject, f"its {what} are not a JSON object of texts", _BACKUP)
        data = volumes.directory(db.root) / name / "_data"
        still = "SELECT 1 FROM volumes WHERE name = ?"  # not removed meanwhile
        if not data.is_dir() and db.scalar(still, (name,)):
            yield Problem(subject, f"its directory {data} is missing", f"mkdir -p {data}, or restore it")
    for path in volumes.strangers(db):
        if path.exists() and db.scalar("SELECT 1 FROM volumes WHERE name = ?", (path.name,)) is None:
            yield Problem(f"volumes/{path.name}", "no row names it", _LOOK.format(path.name))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(it, str) for it in value.values())


def _are_subnets(value: Any) -> bool:
    try:
        return isinstance(value, list) and all(
            ip_network(item["subnet"]) is not None and _is_address(item["gateway"]) for item in value
        )
    except (ValueError, KeyError, TypeError):
        return False


def _is_address(text: str | None) -> bool:
    try:
        return text is None or bool(ip_address(text))
    except ValueError:
        return False
