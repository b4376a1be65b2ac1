"""Contents for a file of which the upper has the metadata alone: the other half of its copy-up."""

from __future__ import annotations

import os

from layerfs.union import syscalls
from layerfs.union.below import mark_contents
from layerfs.union.copying import copy_data
from layerfs.union.node import File
from layerfs.union.partial import Partial, mark, unmark
from layerfs.union.ranges import shorter
from layerfs.union.thin import TOO_LONG, has_room, may_be_thin
from layerfs.union.view import Union


class FillIn:
    """The contents for a file whose metadata is in the upper already; three steps, as in `CopyUp`.

    Until the last one the file counts as having none, so an end at any moment does no harm. With *thin*,
    where it is large enough and the upper's filesystem can, the file gets none: it is partial then.
    """

    def __init__(self, union: Union, node: File, *, durable: bool = True, thin: bool = False) -> None:
        self._union = union
        self._node = node
        self._durable = durable
        assert union.upper is not None
        self._upper = union.upper
        self._st = node.stat()
        self.length = self._st.st_size
        self.settling = 0.0
        self.is_thin = thin and bool(node.names) and may_be_thin(union, self._upper, self.length)
        """Whether the file becomes partial."""
        if self.is_thin:
            try:
                mark_contents(union, self._upper, node)
            except OSError as error:
                if error.errno not in TOO_LONG:
                    raise
                self.is_thin = False
        self._contents = os.dup(union.data(node))
        try:
            self._target = node.open(os.O_RDWR)
        except OSError:
            os.close(self._contents)
            raise

    def copy(self) -> None:
        """Copy the contents; any thread may do it."""
        self.is_thin = self.is_thin and self._make_thin()
        if not self.is_thin:
            self.fill()

    def _make_thin(self) -> bool:
        """Mark the file as partial; tell whether it is. It is not where blocks are shared."""
        if not has_room(self._union, self._target, self.length):
            return False
        if syscalls.clone_file(self._contents, self._target):
            return False
        if os.fstat(self._contents).st_size < self.length:
            raise shorter()
        self._upper.will_have_partial()
        mark(self._target, self._upper.marking.prefix, self.length)
        if self._durable and not self._upper.keeps_order:
            os.fsync(self._target)
        return True

    def fill(self) -> None:
        """Copy the contents, thin or not; any thread may do it."""
        self.is_thin = False
        copy_data(self._contents, self._target, self._st.st_size)
        self._settle()

    def _settle(self) -> None:
        if self._durable:
            self.settling = self._upper.settle(self._target)

    def finish(self) -> None:
        """Make the file whole, or partial."""
        if self.is_thin:
            self._union.drop_data(self._node)
            self._union.add_partial(self._node, Partial(self._target, self._contents, self.length))
            self._target = self._contents = -1
            return
        os.utime(self._target, ns=(self._st.st_atime_ns, self._st.st_mtime_ns))
        unmark(self._target, self._union.marking.prefix)
        self._node.contents = None
        self._node.synced = False
        self._union.drop_data(self._node)

    def close(self) -> None:
        """Close what was open."""
        for fd in (self._contents, self._target):
            if fd >= 0:
                os.close(fd)
