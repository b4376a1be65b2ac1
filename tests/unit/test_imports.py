"""The rooms of the source stand on each other: imports point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import layerfs

SOURCE = Path(layerfs.__file__).parent
ROOMS = (
    "cli",
    "engine",
    "client",
    "api",
    "build",
    "container",
    "distribution",
    "oci",
    "mounting",
    "store",
    "dockerfile",
    "archive",
    "fuse",
    "unixhttp",
    "host",
    "union",
)
"""From the top down."""


def test_imports_point_down_only() -> None:
    wrong = [
        f"{file.relative_to(SOURCE)} imports {target}"
        for room in ROOMS
        for file in sorted((SOURCE / room).rglob("*.py"))
        for target in imported_rooms(file)
        if ROOMS.index(target) < ROOMS.index(room)
    ]
    assert wrong == []


def test_every_room_has_its_place() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms <= set(ROOMS)


def imported_rooms(file: Path) -> Iterator[str]:
    """Yield the rooms from which *file* imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "layerfs" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]
