"""The members of a JSON object that a client sent: each is taken out with the type that it must have.

A member that is missing or null has its default, as in Go's decoder, which clients were written for, and
"detachKeys" means DetachKeys, unless that is there too. Members that nobody asks for are ignored. The lines
name a member by its way from the top: "HostConfig.Memory".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from layerfs.errors import BadRequest
from layerfs.store.imageconfig import is_text, shown

T = TypeVar("T")
_LINE = 500
"""Characters of a message: what a client sent stands in it."""
_LONG = 1 << 63
"""The numbers of Go's int64 lie below this."""


class Members:
    """An object whose members are asked for one by one. Every method raises `BadRequest` for a wrong type."""

    def __init__(self, value: object, where: str = "") -> None:
        """Look into *value*, the member *where* of the request; raises `BadRequest` if it is no object."""
        if not isinstance(value, dict):
            raise wrong(where or "the request's body", "an object", value)
        self.where = where
        self._values: dict[str, Any] = value

    def path(self, name: str) -> str:
        """Return how lines name the member *name*."""
        return f"{self.where}.{name}" if self.where else name

    def _value(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        wanted = name.lower()
        return next((value for key, value in self._values.items() if key.lower() == wanted), None)

    def given(self, name: str) -> bool:
        """Return whether the member is there and not null."""
        return self._value(name) is not None

    def text(self, name: str) -> str:
        """Return a string, empty by default."""
        return self._text(self._value(name), self.path(name)) if self.given(name) else ""

    def flag(self, name: str) -> bool:
        """Return a boolean, false by default."""
        return self.optional_flag(name) or False

    def optional_flag(self, name: str) -> bool | None:
        """Return a boolean, None by default."""
        value = self._value(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(self.path(name), "true or false", value)
        return value

    def number(self, name: str) -> int:
        """Return a whole number of 64 bits, 0 by default."""
        return self.optional_number(name) or 0

    def optional_number(self, name: str) -> int | None:
        """Return a whole number of 64 bits, None by default."""
        value = self._value(name)
        return None if value is None else whole(value, self.path(name))

    def texts(self, name: str) -> list[str] | None:
        """Return a list of strings, None by default; a null in the list is an empty string."""
        value = self._value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong(self.path(name), "a list of strings", value)
        return [
            self._text("" if item is None else item, f"{self.path(name)}[{n}]")
            for n, item in enumerate(value)
        ]

    def numbers(self, name: str) -> list[int] | None:
        """Return a list of whole numbers, None by default."""
        value = self._value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong(self.path(name), "a list of numbers", value)
        return [whole(item, f"{self.path(name)}[{number}]") for number, item in enumerate(value)]

    def lists(self, name: str) -> list[list[str]] | None:
        """Return a list of lists of strings, None by default."""
        value = self._value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong(self.path(name), "a list of lists", value)
        found = [Members({name: item}, self.where).texts(name) for item in value]
        return [item or [] for item in found]

    def words(self, name: str) -> list[str] | None:
        """Return a command: a list of strings, or one string as the only word. None by default."""
        value = self._value(name)
        if isinstance(value, str):
            return [self._text(value, self.path(name))]
        return self.texts(name)

    def pairs(self, name: str) -> dict[str, str] | None:
        """Return an object whose values are strings, None by default; a null value is an empty string."""
        value = self._value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise wrong(self.path(name), "an object of strings", value)
        return {
            self._text(key, f"a name in {self.path(name)}"): self._text(
                "" if item is None else item, f"{self.path(name)}.{key}"
            )
            for key, item in value.items()
        }

    def names(self, name: str) -> list[str] | None:
        """Return the names of an object that is used as a set (`{"/data": {}}`), None by default."""
        value = self._value(name)
        if value is None:
            return None
        found = Members(value, self.path(name))
        for key, item in found._values.items():
            if item is not None and not isinstance(item, dict):
                raise wrong(found.path(key), "an empty object", item)
        return [self._text(key, f"a name in {self.path(name)}") for key in found._values]

    def member(self, name: str) -> Members | None:
        """Return an object, None by default."""
        return Members(self._value(name), self.path(name)) if self.given(name) else None

    def each(self, name: str, read: Callable[[Members], T]) -> list[T] | None:
        """Return a list with what *read* returns for each object in it, None by default."""
        value = self._value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong(self.path(name), "a list of objects", value)
        return [read(Members(item, f"{self.path(name)}[{number}]")) for number, item in enumerate(value)]

    def entries(self, name: str) -> list[tuple[str, object]] | None:
        """Return the names and values of an object whose values are looked into later, None by default."""
        found = self.member(name)
        if found is None:
            return None
        return [
            (self._text(key, f"a name in {self.path(name)}"), item) for key, item in found._values.items()
        ]

    @staticmethod
    def _text(value: object, where: str) -> str:
        if not isinstance(value, str) or not is_text(value):
            raise wrong(where, "a string without null bytes", value)
        return value


@contextmanager
def one_line() -> Iterator[None]:
    """Make the line of a `BadRequest` in the block one that can be shown, whatever the client sent."""
    try:
        yield
    except BadRequest as error:
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(error)[:_LINE])
        raise BadRequest(text + "…" * (len(str(error)) > _LINE)) from None


def whole(value: object, where: str) -> int:
    """Return *value* if it is a whole number of 64 bits; raises `BadRequest`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(where, "a whole number", value)
    if not -_LONG <= value < _LONG:
        raise BadRequest(
            f"{where} must fit into 64 bits, and {str(value)[:40]}{'…' * (value > 10**39)} does not"
        )
    return value


def wrong(where: str, wanted: str, value: object) -> BadRequest:
    """Return the error for a member that is not what is *wanted*."""
    return BadRequest(f"{where} must be {wanted}, not {shown(value)}")
