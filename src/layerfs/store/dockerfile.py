"""Changes to an image's configuration, given as Dockerfile instructions (`commit --change`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from layerfs.errors import BadRequest
from layerfs.store import imageconfig

Config = dict[str, Any]

_MOST_TEXT = 32 << 10
"""Characters that changes may have, and that a value may have once variables are put in."""
_MOST_INSTRUCTIONS = 1000
_WORDS = ("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "USER", "VOLUME", "WORKDIR")
"""The instructions that a change can be: Docker's."""


def apply(config: Config, changes: Sequence[str]) -> Config:
    """Return *config* with the instructions in *changes* applied, each one or several lines.

    Raises `BadRequest` naming the instruction that cannot be understood, and for a *config* that makes no
    sense, or would not with them; *config* stays as it was. The work is bounded, whatever they are.
    """
    imageconfig.check(config)
    if not changes:
        return copy.deepcopy(config)
    # Imported here: it takes 30 ms, which a commit without changes need not wait for.
    from layerfs.dockerfile import parser
    from layerfs.dockerfile.configure import Configuration

    if sum(map(len, changes)) > _MOST_TEXT:
        raise BadRequest(f"the changes are longer than {_MOST_TEXT >> 10} KiB: give fewer of them")
    instructions = parser.parse_changes(changes, _WORDS)
    if len(instructions) > _MOST_INSTRUCTIONS:
        raise BadRequest(f"there are more than {_MOST_INSTRUCTIONS} changes: give fewer of them")
    result = Configuration(config, most=_MOST_TEXT)
    for instruction in instructions:
        result.apply(instruction)
    imageconfig.check(result.config, "the configuration with the changes")
    return result.config
