"""What a route is: a method, a path with names in it, and the function that answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.unixhttp.message import Query, Request, Response

if TYPE_CHECKING:
    from layerfs.store import Store


class Call:
    """One request on its way through its route, with the store it concerns.

    A call belongs to one thread from the first use of `store` to `close`.
    """

    def __init__(self, root: Path, request: Request, names: Mapping[str, str]) -> None:
        """Take the store's *root*, the *request*, and the *names* that its route found in its path."""
        self.root = root
        self.request = request
        self.names = names

    @property
    def query(self) -> Query:
        """The request's query."""
        return self.request.query

    @cached_property
    def store(self) -> Store:
        """The store, opened at first use; raises `LayerfsError` when it cannot be."""
        from layerfs.store import Store

        return Store(self.root, create=False)

    @contextmanager
    def of_this_thread(self) -> Iterator[Call]:
        """Yield the same call with a store that belongs to the thread that asks, and close that."""
        own = Call(self.root, self.request, self.names)
        try:
            yield own
        finally:
            own.close()

    def close(self) -> None:
        """Close the store if it was opened."""
        if "store" in self.__dict__:
            self.store.close()


Handler = Callable[[Call], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """Requests with *method* whose path matches *pattern* are answered by *handler*."""

    method: str
    pattern: re.Pattern[str]
    handler: Handler


def route(method: str, path: str, handler: Handler) -> Route:
    """Return a route; `{name}` in *path* stands for one or more characters, slashes among them."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(path))
    return Route(method, re.compile(pattern), handler)
