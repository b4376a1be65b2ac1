"""The union: lookup, attributes, listings and contents of the merged tree.

Nothing here waits for anything but the filesystem below, and nothing here is safe to call from two
threads at once: one thread owns a `Union`. Failures are `OSError`s with the errno for the caller, and
change nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import overload
from weakref import WeakSet

from layerfs.union import merge, xattr
from layerfs.union.descriptors import DirectoryCache
from layerfs.union.entering import enter, enter_new
from layerfs.union.generation import refresh
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.listings import Listings
from layerfs.union.marking import Marking
from layerfs.union.node import ROOT, Directory, File, InodeTable, Node, Object, object_of
from layerfs.union.partial import Partial
from layerfs.union.upper import Upper

_NAME_MAX = 255
Plain = Callable[[LayerDir, bytes], tuple[int, int, bytes] | None]
"""Returns, for a name of a layer's directory, lasting number and type of a file whose stat says everything,
and what is to be told of it; None where there is more to it. Raises `OSError`."""


class Union:
    """A stack of layers as one tree."""

    def __init__(
        self,
        lowers: Sequence[Layer],
        upper: Upper | None = None,
        *,
        descriptors: int = 128,
        directories: DirectoryCache | None = None,
        metacopy: bool = False,
    ) -> None:
        """Merge *lowers* (bottom to top) under *upper*; without an upper the union is read-only.

        At most about *descriptors* descriptors on files are kept open, and as many on directories, unless the
        layers bring along *directories* that they share. With *metacopy* a change of a file's
        metadata copies nothing but metadata up; such trees are for readers that know that form. The union
        owns the layers: `close` closes them.
        """
        if not lowers and upper is None:
            raise ValueError("a union needs a layer")
        self.upper = upper
        self.layers: list[Layer] = [*([upper] if upper else []), *reversed(lowers)]
        self.marking = self.layers[0].marking
        """Which attributes are the overlay's own: in all layers the same."""
        if any(layer.marking != self.marking for layer in self.layers):
            raise ValueError("the layers of a union are marked in one way")
        self.directories = directories if directories is not None else DirectoryCache(descriptors)
        for depth, layer in enumerate(self.layers):
            layer.share(self.directories)
            layer.below = tuple(self.layers[depth + 1 :])
        self.table = InodeTable()
        for layer in reversed(self.layers):  # the filesystems get their tags from the bottom up
            if layer.identity[0] not in self.table.bases:
                self.table.add_filesystem(layer.root.fd())
        self.hidden: dict[Object, int] = {}
        """How many names of a lower file with several have been taken away since the union was made."""
        self.generation = 0
        """How often the layers were exchanged; nodes of an older one are resolved again when touched."""
        self.went_back = 0
        """The generation since which the layers have been the same, whichever runs they are read by."""
        self.hiding: list[Layer] = []
        """The layers, sealed here, that have taken away names of files with several."""
        self.past: dict[bytes, Layer] = {}
        """Layers that were in the union before it went back, by path: it may go there again."""
        self.root = Directory(ROOT, [layer.root for layer in self.layers], None, b"")
        self.root.references = 1
        self.table.add(self.root)
        self.note_top(self.root)
        self.metacopy = metacopy
        self.thin_from: int | None = None
        """From how many bytes on a file that is copied up is partial at first; None: none is."""
        self.most_partial = 32
        """How many may be at a time: each has two descriptors open. More are copied whole."""
        self.partials: set[File] = set()
        """The partial files of the upper that have a name. They are known for as long as they are partial."""
        self.on_change: Callable[[File], None] = lambda node: None
        """Called when what was said of a lower file holds no more: it is copied up, or has lost a name."""
        self._descriptors = descriptors
        self._open_files: OrderedDict[File, None] = OrderedDict()
        self.listings = Listings()

    def close(self) -> None:
        """Close every descriptor; the union is of no use afterwards."""
        for node in self.table.nodes.values():
            if isinstance(node, File):
                node.close_data()
                node.drop_partial()
                node.drop_pin()
        if self.upper is not None and not self.partials:
            self.upper.has_no_partial()
        for layer in (*self.layers, *self.past.values()):
            layer.close()

    # -- layers ---------------------------------------------------------------------------------

    def match_root(self, new: Upper) -> bool:
        """Give the root of *new* what the upper's root has: the last that can fail before `switch_upper`.

        Returns whether more than its times was different. Raises `OSError`, EROFS without an upper.
        """
        if self.upper is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return copy_attributes(self.upper.root.fd(), new.root.fd(), self.marking)

    def switch_upper(self, new: Upper) -> None:
        """Seal the upper where it stands and take the writes in *new* (empty) from here on.

        This is all that a commit does to a live tree: no node is visited, no file touched. What was
        "in the upper" is from now on in a lower layer, because that is decided by comparing layers.
        """
        assert self.upper is not None
        assert not self.partials  # whoever reads a sealed layer finds overlayfs' own form
        self.upper.has_no_partial()
        self.upper.seal()
        if self.upper.hides:
            self.hiding.append(self.upper)
        new.share(self.directories)
        new.below = tuple(self.layers)
        self.layers.insert(0, new)
        self.root.dirs.insert(0, new.root)
        self.upper = new
        self.note_top(self.root)

    def note_top(self, directory: Directory) -> None:
        """Note which layer has the topmost part of *directory*, if the union may go back to before that."""
        layer = directory.dirs[0].layer
        if layer is self.upper and layer.tops is None:
            layer.tops = WeakSet()
        if layer.tops is not None:
            layer.tops.add(directory)

    def in_upper(self, node: Node) -> bool:
        """Tell whether *node* can be changed without a copy-up."""
        if isinstance(node, Directory):
            return node.dirs[0].layer is self.upper
        return node.home.layer is self.upper or node.orphan

    def is_whole(self, node: File) -> bool:
        """Tell whether a file's contents can be changed without a copy: they are in the upper, too."""
        return node.contents is None and self.in_upper(node)

    def is_writable(self, node: File) -> bool:
        """Tell whether a file's contents can be written to, in whole or by way of what makes it partial."""
        return self.in_upper(node) and (node.contents is None or node.partial is not None)

    def add_partial(self, node: File, partial: Partial) -> None:
        """Note that *node*, with its metadata in the upper, is partial from now on, until `made_whole`."""
        node.partial = partial
        if node.names:
            node.references += 1
            self.partials.add(node)

    def end_partial(self, node: File) -> None:
        """Note that nobody needs *node* to become whole: it is so now, or has no name any more."""
        if node in self.partials:
            self.partials.remove(node)
            self.forget(node, 1)

    def made_whole(self, node: File) -> None:
        """Note that all of the contents of *node*, which was partial, are in the upper."""
        node.drop_partial()
        node.contents = None
        node.synced = False
        self.end_partial(node)

    def upper_part(self, directory: Directory) -> LayerDir | None:
        """Return the part of *directory* that lies in the upper, if it has one."""
        first = directory.dirs[0]
        return first if first.layer is self.upper else None

    def lower_parts(self, directory: Directory) -> list[LayerDir]:
        """Return the parts of *directory* below the upper, top-most first."""
        return directory.dirs[1:] if directory.dirs[0].layer is self.upper else directory.dirs

    def trim(self) -> None:
        """Close descriptors beyond the bound. For moments when no operation is under way."""
        self.directories.trim()
        while len(self._open_files) > self._descriptors:
            file, _ = self._open_files.popitem(last=False)
            file.close_data()

    # -- names ----------------------------------------------------------------------------------

    def lookup(self, parent: Directory, name: bytes) -> Node | None:
        """Return the node called *name* in *parent*, or None where there is no such name."""
        node = self.known(parent, name)
        if node is None and self.listings.missed != (parent, name):
            found = self.find(parent, name)
            node = found[0] if found else None
        return node

    def known(self, parent: Directory, name: bytes) -> Node | None:
        """Return the node called *name* in *parent*, None where there is no name or no node for it yet."""
        node = parent.children.get(name)
        if node is not None and node.generation != self.generation:
            refresh(self, node)
            node = parent.children.get(name)
        return node

    @overload
    def find(self, parent: Directory, name: bytes) -> tuple[Node, os.stat_result] | None: ...

    @overload
    def find(
        self, parent: Directory, name: bytes, plain: Plain
    ) -> tuple[Node, os.stat_result | bytes] | None: ...

    def find(
        self, parent: Directory, name: bytes, plain: Plain | None = None
    ) -> tuple[Node, os.stat_result | bytes] | None:
        """Return what `lookup` does, with the node's `stat`, which a first lookup needs anyway.

        *plain* may look first at a file that no node is known for, and say something else than its stat.
        """
        node = self.known(parent, name)
        if node is not None:
            return node, self.stat(node)
        target = self.resolve(parent, name)
        if target is None:
            self.listings.missed = parent, name
            return None
        if plain is not None and isinstance(target, LayerDir):
            new = plain(target, name)
            if new is not None and not self.is_known_object(target.layer, new[0]):
                return enter_new(self, parent, name, target, new[0], new[1]), new[2]
        return enter(self, parent, name, target)

    def resolve(self, parent: Directory, name: bytes) -> list[LayerDir] | LayerDir | None:
        """Return what `merge.resolve` does of a name in *parent* that no node is known for."""
        if parent.removed:
            return None
        if len(name) > _NAME_MAX:  # where a layer's names are known, no call below would say so
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return merge.resolve(parent.dirs, name)

    def is_known_object(self, layer: Layer, number: int) -> bool:
        """Tell whether more is known of the object of *layer* with that lasting *number* than a stat says."""
        table = self.table
        if not (self.hidden or table.aliases or table.twins):
            return False
        if number in table.twins:
            return True
        thing = self.table.object_with(layer, number)
        return thing in self.hidden or thing in self.table.aliases

    def hide_name(self, node: File) -> None:
        """Note that a name of the lower file *node* has been taken away: the object itself keeps it."""
        st = node.stat()
        if st.st_nlink == 1:
            node.removed = True
        else:
            thing = object_of(node.home.layer, st)
            self.hidden[thing] = self.hidden.get(thing, 0) + 1
            if self.upper is not None:
                self.upper.hides[thing] = self.upper.hides.get(thing, 0) + 1

    def listing(self, directory: Directory) -> list[tuple[int, bytes]]:
        """Return the names in *directory*, each with its cookie, in the order of those: see `Listings`."""
        return self.listings.of(directory)

    def is_empty(self, directory: Directory) -> bool:
        """Tell whether *directory* has no names."""
        return not self.listing(directory)

    def release(self, node: Node) -> None:
        """Forget what is remembered about *node* where nothing refers to it."""
        self.forget(node, 0)

    def forget(self, node: Node, count: int) -> None:
        """Take back *count* references from *node*."""
        if node.references <= count:
            if isinstance(node, File):
                self._open_files.pop(node, None)
            else:
                self.listings.drop(node)
        self.table.forget(node, count)

    # -- attributes -----------------------------------------------------------------------------

    def stat(self, node: Node) -> os.stat_result:
        """Return the stat of *node*'s object; inode number and link count are `node.ino` and `links`."""
        if isinstance(node, Directory):
            return os.fstat(node.dirs[0].fd())
        return node.stat()

    def links(self, node: Node, st: os.stat_result) -> int:
        """Return the link count of *node*; 1 for a merged directory, as overlayfs has it."""
        if isinstance(node, Directory):
            if node.removed:
                return 0
            return 1 if len(node.dirs) > 1 or node.dirs[0].is_merged else st.st_nlink
        if node.removed:
            return 0
        if st.st_nlink > 1 and self.hidden and not self.in_upper(node):
            return max(0, st.st_nlink - self.hidden.get(object_of(node.home.layer, st), 0))
        return st.st_nlink

    def blocks(self, node: Node, st: os.stat_result) -> int:
        """Return how many blocks of 512 bytes *node*'s contents take."""
        if isinstance(node, Directory) or node.contents is None:
            return st.st_blocks
        if node.partial is not None:
            return max(st.st_blocks, os.fstat(node.partial.source).st_blocks)
        home, entry = node.contents
        return os.stat(entry, dir_fd=home.fd(), follow_symlinks=False).st_blocks

    def readlink(self, node: File) -> bytes:
        """Return the target of a symbolic link."""
        if node.pin >= 0:
            return os.readlink(b"", dir_fd=node.pin)
        return os.readlink(node.entry, dir_fd=node.home.fd())

    def path_of(self, node: Node) -> bytes | None:
        """Return a path of *node* from the union's root, b"" for the root; None if it has no name."""
        parts: list[bytes] = []
        if isinstance(node, File):
            if not node.names:
                return None
            node, name = node.names[0]
            parts.append(name)
        for directory in node.ancestors():
            if directory.removed:
                return None
            parts.append(directory.name)
        return b"/".join(reversed(parts))[1:]

    # -- contents -------------------------------------------------------------------------------

    def data(self, node: File, *, write: bool = False) -> int:
        """Return a descriptor on the contents of a regular file, good until the next `trim`.

        To *write*, the file must have been copied up. Reading a lower file leaves its access time
        alone, as overlayfs does.
        """
        assert node.partial is None  # one descriptor does not have all of it
        if node.fd >= 0 and (node.writable or not write):
            self._open_files.move_to_end(node)
            return node.fd
        if write:
            if not self.is_whole(node):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            fd = node.open(os.O_RDWR)
        elif self.is_whole(node):
            fd = node.open(os.O_RDONLY)
        else:
            try:
                fd = node.open_contents(os.O_RDONLY | os.O_NOATIME)
            except PermissionError:
                fd = node.open_contents(os.O_RDONLY)
        self.adopt_data(node, fd, writable=write)
        return fd

    def adopt_data(self, node: File, fd: int, *, writable: bool) -> None:
        """Keep *fd* as the descriptor on *node*'s contents, in place of the one before."""
        node.close_data()
        node.fd = fd
        node.writable = writable
        self._open_files[node] = None

    def drop_data(self, node: File) -> None:
        """Close the descriptor on *node*'s contents: they are elsewhere now."""
        node.close_data()
        self._open_files.pop(node, None)

    # -- extended attributes --------------------------------------------------------------------

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """Return the value of the attribute that people call *name*. Raises `OSError` (ENODATA, ...)."""
        path, follow = self.path_for_xattr(node)
        return os.getxattr(path, self.marking.stored_name(name), follow_symlinks=follow)

    def listxattr(self, node: Node) -> list[bytes]:
        """Return the names of the attributes that people may see."""
        path, follow = self.path_for_xattr(node)
        stored = os.listxattr(path, follow_symlinks=follow)
        shown = (self.marking.shown_name(os.fsencode(text)) for text in stored)
        return [name for name in shown if name is not None]

    def path_for_xattr(self, node: Node) -> tuple[bytes, bool]:
        """Return a path of *node* for a call that has no form with a directory descriptor."""
        if isinstance(node, Directory):
            return b"/proc/self/fd/%d" % node.dirs[0].fd(), True
        return node.path()

    def has_default_acl(self, directory: Directory) -> bool:
        """Tell whether new objects in *directory* inherit an access control list (acl(5))."""
        if directory.default_acl is None:
            directory.default_acl = xattr.default_acl(directory.dirs[0].fd()) is not None
        return directory.default_acl

    def statvfs(self) -> os.statvfs_result:
        """Return the figures of the filesystem that takes the writes, or of the top layer's."""
        return os.fstatvfs(self.layers[0].root.fd())


def copy_attributes(source: int, target: int, marking: Marking) -> bool:
    """Give directory *target* owner, mode, attributes (not private ones) and times of directory *source*.

    Returns whether more than the times was different.
    """
    st, before = os.fstat(source), os.fstat(target)
    differs = (st.st_uid, st.st_gid, st.st_mode) != (before.st_uid, before.st_gid, before.st_mode)
    if differs:
        os.chown(target, st.st_uid, st.st_gid)
        os.chmod(target, stat.S_IMODE(st.st_mode))
    differs |= marking.match(source, target)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
    return differs
