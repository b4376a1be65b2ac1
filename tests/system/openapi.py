"""An OpenAPI document as this project writes it, and values held against its schemas.

Of YAML it takes what the document uses: block mappings and sequences, plain texts, and JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {
    "$ref", "type", "properties", "required", "additionalProperties", "items", "enum", "pattern", "minimum",
    "description", "format",
}  # fmt: skip
METHODS = ("get", "post", "put", "delete", "head")


class Document:
    """A document that was read."""

    def __init__(self, path: Path) -> None:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert not any("\t" in line or line.lstrip().startswith("#") for line in lines)
        self.content: dict[str, Any] = _block(lines, 0)

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield method, path and description of each operation."""
        for path, item in self.content["paths"].items():
            for method, operation in item.items():
                assert method in METHODS, (path, method)
                yield method.upper(), path, operation

    def resolved(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return what *value* refers to, or itself."""
        while "$ref" in value:
            assert set(value) == {"$ref"}, value
            target: Any = self.content
            for name in value["$ref"].removeprefix("#/").split("/"):
                target = target[name]
            value = target
        return value

    def problems(self, schema: dict[str, Any], value: Any, place: str = "") -> Iterator[str]:
        """Yield what is wrong with *value* by a schema."""
        schema = self.resolved(schema)
        assert set(schema) <= _KNOWN, schema
        kinds = schema.get("type", list(_KINDS))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        fits = [kind for kind in kinds if isinstance(value, _KINDS[kind])]
        if not fits or (isinstance(value, bool) and "boolean" not in kinds):
            yield f"{place}: {value!r} is no {' or '.join(kinds)}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{place}: {value!r} is none of {schema['enum']}"
        if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{place}: {value!r} does not match {schema['pattern']}"
        if isinstance(value, int | float) and value < schema.get("minimum", value):
            yield f"{place}: {value} is below {schema['minimum']}"
        if isinstance(value, list) and "items" in schema:
            for number, item in enumerate(value):
                yield from self.problems(schema["items"], item, f"{place}/{number}")
        if isinstance(value, dict):
            yield from self._of_object(schema, value, place)

    def _of_object(self, schema: dict[str, Any], value: dict[str, Any], place: str) -> Iterator[str]:
        known = schema.get("properties", {})
        for name in set(schema.get("required", ())) - value.keys():
            yield f"{place}: {name} is missing"
        for name, member in value.items():
            others = schema.get("additionalProperties", True)
            if name in known:
                yield from self.problems(known[name], member, f"{place}/{name}")
            elif others is False:
                yield f"{place}: {name} is not in the document"
            elif others is not True:
                yield from self.problems(others, member, f"{place}/{name}")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block(lines: list[str], indent: int) -> Any:
    """Take a mapping or a sequence of that indentation from *lines*."""
    assert _indent(lines[0]) == indent, lines[0]
    if lines[0].lstrip().startswith("- "):
        found = []
        while lines and _indent(lines[0]) == indent:
            line = lines.pop(0).lstrip()
            assert line.startswith("- "), line
            if line[2] in "{[":
                found.append(json.loads(line[2:]))
            else:
                lines.insert(0, " " * (indent + 2) + line[2:])
                found.append(_block(lines, indent + 2))
        return found
    mapping: dict[str, Any] = {}
    while lines and _indent(lines[0]) == indent:
        line = lines.pop(0).lstrip()
        match = re.fullmatch(r'("[^"]*"|[^":\s]+):(?: (.+))?', line)
        assert match is not None, line
        key = match[1].strip('"')
        assert key not in mapping, key
        mapping[key] = _scalar(match[2]) if match[2] else _block(lines, _indent(lines[0]))
        assert not lines or _indent(lines[0]) <= indent, lines[0]
    return mapping


def _scalar(text: str) -> Any:
    if text[0] in '{["' or text in ("true", "false", "null"):
        return json.loads(text)
    assert ": " not in text, text
    assert " #" not in text, text
    assert text[0] not in "&*!|>%@`'#", text
    return text
