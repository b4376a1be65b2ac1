"""What a client has put into a request's body, member by member, with the types that it must have.

A member that is absent or null counts as the empty value of its type, as in Go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerfs.errors import BadRequest


class Body:
    """A JSON object of a request; every method raises `BadRequest` for a member of another type."""

    def __init__(self, value: Mapping[str, Any], where: str = "") -> None:
        """Take the object *value*, which is the member *where* of another one."""
        self._value = value
        self._where = where

    def text(self, name: str) -> str:
        """Return the text of a member."""
        return str(self._typed(name, str, "a text") or "")

    def flag(self, name: str) -> bool:
        """Return whether a member is true."""
        return bool(self._typed(name, bool, "true or false"))

    def number(self, name: str) -> int:
        """Return the whole number of a member."""
        value = self._typed(name, int, "a whole number")
        if isinstance(value, bool):
            raise self._wrong(name, "a whole number")
        return int(value or 0)

    def given(self, name: str) -> bool:
        """Return whether a member is there and not null."""
        return self._value.get(name) is not None

    def texts(self, name: str) -> list[str]:
        """Return the list of texts of a member."""
        value = self._typed(name, list, "a list of texts") or []
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of texts")
        return list(value)

    def pairs(self, name: str) -> dict[str, str]:
        """Return the object of texts of a member."""
        value = self._typed(name, dict, "an object of texts") or {}
        if not all(isinstance(item, str) for item in value.values()):
            raise self._wrong(name, "an object of texts")
        return dict(value)

    def member(self, name: str) -> Body:
        """Return the object of a member."""
        return Body(self._typed(name, dict, "an object") or {}, self._path(name))

    def each(self, name: str) -> list[Body]:
        """Return the list of objects of a member."""
        value = self._typed(name, list, "a list of objects") or []
        if not all(isinstance(item, dict) for item in value):
            raise self._wrong(name, "a list of objects")
        return [Body(item, f"{self._path(name)}[{number}]") for number, item in enumerate(value)]

    def _typed(self, name: str, kind: type, words: str) -> Any:
        value = self._value.get(name)
        if value is not None and not isinstance(value, kind):
            raise self._wrong(name, words)
        return value

    def _wrong(self, name: str, words: str) -> BadRequest:
        return BadRequest(f"invalid JSON in the request body: {self._path(name)} must be {words}")

    def _path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name
