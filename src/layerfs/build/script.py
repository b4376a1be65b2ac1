"""Here-documents of a RUN: part of what its shell reads, or a script that is run itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerfs.dockerfile.configure import Configuration
    from layerfs.dockerfile.instructions import Run

PLACE = "/dev/pipes"
"""Where BuildKit has a script that says by `#!` what runs it."""
_ALONE = re.compile(r"""\d*<<-?\s*(?:"[^"]+"|'[^']+'|[^\s'"<>|&;]+)""")


def words(run: Run, configuration: Configuration) -> list[str]:
    """Return the words that a RUN starts."""
    if not run.heredocs or not isinstance(run.command, str):
        return configuration.words(run.command)
    if of(run) is not None:
        return [f"{PLACE}/{run.heredocs[0].name}"]
    if _is_alone(run):
        return configuration.words(run.heredocs[0].content)
    documents = "".join(f"\n{document.content}{document.name}" for document in run.heredocs)
    return configuration.words(run.command + documents)


def of(run: Run) -> str | None:
    """Return the script that a RUN is, None if it is none."""
    content = run.heredocs[0].content if _is_alone(run) else ""
    return content if content.startswith("#!") else None


def _is_alone(run: Run) -> bool:
    """Return whether a RUN is nothing but one here-document, which is what is to be run."""
    if len(run.heredocs) != 1 or not isinstance(run.command, str):
        return False
    return _ALONE.fullmatch(run.command.strip()) is not None
