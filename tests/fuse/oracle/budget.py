"""How long the random test goes on: a number of steps, or of seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


class Enough(BaseException):
    """The budget is spent. No `Exception`, which Hypothesis would take for a failure and try to repeat."""


@dataclass
class Budget:
    """Says when to stop. A failing example is repeated whatever it takes: it has to be reproducible."""

    steps: int | None
    seconds: float | None
    done: int = 0
    failed: bool = False
    _began: float = field(default_factory=time.monotonic)

    def count(self) -> None:
        """Count a step."""
        self.done += 1

    @property
    def spent(self) -> bool:
        """Whether no more examples are to be run."""
        late = self.seconds is not None and time.monotonic() - self._began >= self.seconds
        return not self.failed and (late or (self.steps is not None and self.done >= self.steps))

    def check(self) -> None:
        """Raise `Enough` when the budget is spent."""
        if self.spent:
            raise Enough
