"""The table of routes: every route is found by what its path begins with."""

from __future__ import annotations

import importlib
import pkgutil

import layerfs.api
from layerfs.api import app


def test_every_route_is_in_the_table() -> None:
    for info in pkgutil.iter_modules(layerfs.api.__path__):
        module = importlib.import_module(f"layerfs.api.{info.name}")
        for route in getattr(module, "ROUTES", ()):
            begins = route.pattern.pattern.replace("\\", "").split("/")[1]
            assert info.name in app.MODULES[begins], route


def test_the_table_has_nothing_else() -> None:
    for begins, modules in app.MODULES.items():
        for name in modules:
            routes = importlib.import_module(f"layerfs.api.{name}").ROUTES
            paths = [route.pattern.pattern.replace("\\", "") for route in routes]
            assert any(path.split("/")[1] == begins for path in paths), (begins, name)
