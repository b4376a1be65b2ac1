"""Go's text templates, as far as users of `--format` write them, on values as JSON has them.

The language is that of Go's package text/template without `define`, `template` and `block`; the functions are
its own and those that docker adds. What a template may cost is bounded, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from layerfs.cli import templatefuncs
from layerfs.cli.templatefuncs import LONGEST, MISSING, Invalid, Missing, invalid, is_true, text_of
from layerfs.cli.templatetree import Command, Node, Operand, Parser, Pipe
from layerfs.errors import UsageError

_STEPS = 1_000_000
"""Values that one execution may look at."""
_MAPS = frozenset(
    {"Labels", "Annotations", "Sysctls", "Tmpfs", "Options", "DriverOpts", "Volumes", "ExposedPorts", "Ports"}
    | {"Networks", "PortBindings", "Attributes", "StorageOpt", "Config", "Data"}
)
"""Members whose names are a user's: one that is not there has no value, and is no mistake."""


class Template:
    """A template that was found to be one; `execute` may be called any number of times."""

    def __init__(self, text: str) -> None:
        """Parse *text*; raises `UsageError`, one line."""
        try:
            self._nodes = Parser(text).block(("",))[0]
        except Invalid as error:
            raise UsageError(f"template parsing error: {error}") from None

    def execute(self, data: Any, functions: Mapping[str, Callable[..., Any]] | None = None) -> str:
        """Return what the template makes of *data*; *functions* take the place of its own.

        A member of *data* that can be called is a method. Raises `UsageError`, one line.
        """
        run = _Run(data, {**templatefuncs.FUNCTIONS, **(functions or {})})
        try:
            run.block(self._nodes, data)
        except Invalid as error:
            raise UsageError(f"template: {error}") from None
        except (_Break, _Continue):
            raise UsageError("template: break outside range") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise UsageError(f"template: wrong arguments: {' '.join(str(error).split())[:200]}") from None
        return "".join(run.output)


class _Break(Exception):
    """Ends a range."""


class _Continue(Exception):
    """Ends one turn of a range."""


class _Run:
    """One execution."""

    def __init__(self, data: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.output: list[str] = []
        self._length = 0
        self._steps = 0
        self._root = data
        self._functions = functions
        self._variables: list[tuple[str, Any]] = [("$", data)]

    def block(self, nodes: Sequence[Node], dot: Any) -> None:
        """Execute *nodes*."""
        mark = len(self._variables)
        for node in nodes:
            self._step()
            if node.kind == "text":
                self._write(node.text)
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            else:
                assert node.pipe is not None
                self._action(node, node.pipe, dot)
        del self._variables[mark:]

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _STEPS:
            raise invalid("it takes too many steps")

    def _write(self, text: str) -> None:
        self._length += len(text)
        if self._length > LONGEST:
            raise invalid("what it makes is too long")
        self.output.append(text)

    def _action(self, node: Node, pipe: Pipe, dot: Any) -> None:
        mark = len(self._variables)
        if node.kind == "show":
            value = self._pipe(pipe, dot)
            if not pipe.names:
                self._write(text_of(value))
            return
        if node.kind == "range":
            self._range(node, pipe, dot)
        else:
            value = self._pipe(pipe, dot)
            if is_true(value):
                self.block(node.body, value if node.kind == "with" else dot)
            else:
                self.block(node.otherwise, dot)
        del self._variables[mark:]

    def _range(self, node: Node, pipe: Pipe, dot: Any) -> None:
        value = self._value(pipe, dot)
        if isinstance(value, Mapping):
            items: list[tuple[Any, Any]] = sorted(value.items(), key=lambda item: str(item[0]))
        elif isinstance(value, (list, tuple)):
            items = list(enumerate(value))
        elif value is None or isinstance(value, Missing):
            items = []
        else:
            raise invalid(f"range can't iterate over {text_of(value)[:80]}")
        mark = len(self._variables)
        for key, item in items:
            self._step()
            if pipe.names:
                self._variables += zip(
                    pipe.names, (key, item) if len(pipe.names) > 1 else (item,), strict=False
                )
            try:
                self.block(node.body, item)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self._variables[mark:]
        if not items:
            self.block(node.otherwise, dot)

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        value = self._value(pipe, dot)
        for name in pipe.names:
            if pipe.declares:
                self._variables.append((name, value))
            else:
                at = max((n for n, (known, _) in enumerate(self._variables) if known == name), default=None)
                if at is None:
                    raise invalid(f"undefined variable {name}")
                self._variables[at] = (name, value)
        return value

    def _value(self, pipe: Pipe, dot: Any) -> Any:
        last: list[Any] = []
        for command in pipe.commands:
            last = [self._command(command, last, dot)]
        return last[0]

    def _command(self, command: Command, last: list[Any], dot: Any) -> Any:
        self._step()
        first, rest = command[0], command[1:]
        if first.kind == "call":
            return self._call(first.value, rest, last, dot)
        value = self._operand(first, dot)
        if callable(value):
            return value(*(text_of(item) for item in (*self._arguments(rest, dot), *last)))
        if rest or last:
            raise invalid("can't give argument to non-function")
        return value

    def _arguments(self, operands: Command, dot: Any) -> Iterator[Any]:
        """Yield the values of *operands* as they are asked for: `and` and `or` do not look at all of them."""
        for operand in operands:
            value = self._operand(operand, dot)
            yield value() if callable(value) else value

    def _call(self, name: str, operands: Command, last: list[Any], dot: Any) -> Any:
        arguments = chain(self._arguments(operands, dot), last)
        if name not in ("and", "or"):
            value = self._functions[name](*arguments)
            if isinstance(value, str) and len(value) > LONGEST:
                raise invalid("what it makes is too long")
            return value
        value = MISSING
        for value in arguments:
            if is_true(value) is (name == "or"):
                break
        if value is MISSING:
            raise invalid(f"wrong number of args for {name}: want at least 1 got 0")
        return value

    def _operand(self, operand: Operand, dot: Any) -> Any:
        self._step()
        if operand.kind == "value":
            return operand.value
        if operand.kind == "call":
            return self._call(operand.value, [], [], dot)
        if operand.kind == "dot":
            value = dot
        elif operand.kind == "pipe":
            value = self._value(operand.value, dot)
        else:
            value = next((v for name, v in reversed(self._variables) if name == operand.value), MISSING)
            if value is MISSING:
                raise invalid(f"undefined variable {operand.value}")
        before = ""
        for name in operand.fields:
            value, before = self._member(value, name, before), name
        return value

    def _member(self, value: Any, name: str, before: str) -> Any:
        if callable(value):
            value = value()
        if isinstance(value, Mapping):
            if name in value:
                return value[name]
            folded = name.lower()  # Go's own name of the member "Id" is ID
            found = next((key for key in value if str(key).lower() == folded), None)
            if found is not None:
                return value[found]
            if value is self._root:
                raise invalid(f"there is no field {name}: use one of {', '.join(map(str, value))}"[:1000])
            return Missing("" if before in _MAPS else name)
        if value is None or isinstance(value, Missing):
            raise invalid(f"there is no field {name} in {before or 'nothing'}, which has no value")
        raise invalid(f"can't evaluate field {name} in a {type(value).__name__}")
