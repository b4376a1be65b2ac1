"""Modules of layerfs as programs of their own."""

from __future__ import annotations

import sys


def command(module: str, *arguments: str) -> list[str]:
    """Return the words that run *module* by this process' interpreter.

    Modules are never taken from the working directory (`-P`), where Python would look first: a command may be
    called in a directory of somebody who has put a package called layerfs there.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
