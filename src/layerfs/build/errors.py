"""The errors of builds that are more than a line."""

from __future__ import annotations

from collections.abc import Sequence

from layerfs.errors import LayerfsError


class StepFailed(LayerfsError):
    """The command of a RUN ended with another code than 0."""

    def __init__(self, words: Sequence[str], code: int, tail: bytes = b"") -> None:
        """*tail* is the end of what the command wrote."""
        self.words = tuple(words)
        self.code = code
        self.tail = tail
        self.where = ""
        """The file and the line of the instruction."""
        self.image = ""
        """The id of an image of the tree that it has left, where one was wanted."""
        super().__init__(f"The command '{' '.join(words)}' returned a non-zero code: {code}")
