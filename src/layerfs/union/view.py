"""The union: lookup, attributes, listings and contents of the merged tree.

Nothing here waits for anything but the filesystem below, and nothing here is safe to call from two
threads at once: one thread owns a `Union`. Failures are `OSError`s with the errno for the caller, and
change nothing.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakSet

import xxhash

from layerfs.union import merge, xattr
from layerfs.union.descriptors import DirectoryCache
from layerfs.union.generation import is_same_directory, refresh, revive
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import Marking
from layerfs.union.node import ROOT, Directory, File, InodeTable, Node, Object, object_of
from layerfs.union.upper import Upper

_NAME_MAX = 255
_LISTINGS = 64
"""How many directory listings are remembered."""


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
        """How often the union went back; nodes of an older one are resolved again when they are touched."""
        self.past: dict[bytes, Layer] = {}
        """Layers that were in the union before it went back, by path: it may go there again."""
        self.root = Directory(ROOT, [layer.root for layer in self.layers], None, b"")
        self.root.references = 1
        self.table.add(self.root)
        self.note_top(self.root)
        self.metacopy = metacopy
        self.on_change: Callable[[File], None] = lambda node: None
        """Called when what was said of a lower file holds no more: it is copied up, or has lost a name."""
        self._descriptors = descriptors
        self._open_files: OrderedDict[File, None] = OrderedDict()
        self._listings: OrderedDict[Directory, None] = OrderedDict()

    def close(self) -> None:
        """Close every descriptor; the union is of no use afterwards."""
        for node in self.table.nodes.values():
            if isinstance(node, File):
                node.close_data()
                node.drop_pin()
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
        self.upper.seal()
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
        if node is None:
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

    def find(self, parent: Directory, name: bytes) -> tuple[Node, os.stat_result] | None:
        """Return what `lookup` does, with the node's `stat`, which a first lookup needs anyway."""
        node = self.known(parent, name)
        if node is not None:
            return node, self.stat(node)
        target = self.resolve(parent, name)
        return None if target is None else self.enter(parent, name, target)

    def resolve(self, parent: Directory, name: bytes) -> list[LayerDir] | LayerDir | None:
        """Return what `merge.resolve` does of a name in *parent* that no node is known for."""
        if parent.removed:
            return None
        if len(name) > _NAME_MAX:  # where a layer's names are known, no call below would say so
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return merge.resolve(parent.dirs, name)

    def enter(
        self, parent: Directory, name: bytes, target: list[LayerDir] | LayerDir
    ) -> tuple[Node, os.stat_result]:
        """Make a node for a name that was resolved to *target*, or find the one that has it as a link."""
        if isinstance(target, list):
            return self._directory(parent, name, target)
        st = os.stat(name, dir_fd=target.fd(), follow_symlinks=False)
        if not target.layer.below:
            return self.enter_file(parent, name, target, st), st
        marks = target.file_marks(name, st)
        ino = None if marks.inode is None else self.table.recorded_number(marks.inode, st.st_ino)
        contents = None
        if marks.metacopy and stat.S_ISREG(st.st_mode):
            below = parent.dirs[parent.dirs.index(target) + 1 :]
            contents = merge.contents(below, target.layer, name, marks.redirect)
        node = self.enter_file(parent, name, target, st, ino)
        node.contents = contents
        return node, st

    def enter_new(self, parent: Directory, name: bytes, home: LayerDir, ino: int, kind: int) -> File:
        """Make a node for the file *name* of *home*, of type *kind*, without private marks.

        Its lasting number *ino* is not taken, and nothing is kept of the object (`is_known_object`).
        """
        node = File(ino, kind, home, name)
        node.generation = self.generation
        self.table.nodes[ino] = parent.children[name] = node
        node.add_name(parent, name)
        return node

    def _directory(
        self, parent: Directory, name: bytes, dirs: list[LayerDir]
    ) -> tuple[Directory, os.stat_result]:
        lowest = os.fstat(dirs[-1].fd())  # it stays the lowest when parts are added on top
        number = self.table.number(lowest.st_dev, lowest.st_ino)
        node = self._known_directory(number, parent, name, dirs)
        if node is None:
            node = self.enter_directory(parent, name, dirs, number)
        return node, lowest if len(dirs) == 1 else os.fstat(dirs[0].fd())

    def enter_directory(self, parent: Directory, name: bytes, dirs: list[LayerDir], number: int) -> Directory:
        """Make a node for the directory *name* with these parts, of that number if it is not taken."""
        self.check_holders(number)
        node = Directory(number, dirs, parent, name)
        node.generation = self.generation
        self.table.add(node)
        parent.children[name] = node
        self.note_top(node)
        return node

    def _known_directory(
        self, number: int, parent: Directory, name: bytes, dirs: list[LayerDir]
    ) -> Directory | None:
        """Return the node of *dirs* if it is one of before the union went back, maybe by another name."""
        if self.generation == 0:
            return None
        self.check_holders(number)
        for node in self.table.holders(number):
            if isinstance(node, Directory) and is_same_directory(node.dirs[-1], dirs[-1]):
                if node.ino in self.table.lapsed and node.ino not in self.table.dead:
                    revive(self, node, parent, name, dirs)
                if parent.children.get(name) is node:
                    return node
        return None

    def check_holders(self, number: int) -> None:
        """Find out of the nodes that have *number* whether they lapsed when the union went back."""
        for node in self.table.holders(number):
            if node.generation != self.generation:
                refresh(self, node)

    def enter_file(
        self, parent: Directory, name: bytes, home: LayerDir, st: os.stat_result, ino: int | None = None
    ) -> File:
        """Return the node for the object *name* of *home*, known by another name already or new.

        A new one gets the number *ino*, or the object's own, or if that is taken one that no other has.
        """
        table = self.table
        if ino is None:
            ino = table.number(st.st_dev, st.st_ino)
        node = self._holder(ino, home.layer, st) or table.aliases.get(object_of(home.layer, st))
        if node is None:
            self.check_holders(ino)
            node = File(ino, stat.S_IFMT(st.st_mode), home, name)
            node.generation = self.generation
            table.add(node)
            table.identify(node, home.layer, st)
        else:
            if node.generation != self.generation:
                refresh(self, node)
                if parent.children.get(name) is node:
                    return node
            if node.ino in table.lapsed:
                table.lapsed.discard(node.ino)
                node.removed = False
            if node.pin >= 0:
                node.place(home, name)
        node.add_name(parent, name)
        parent.children[name] = node
        return node

    def _holder(self, ino: int, layer: Layer, st: os.stat_result) -> File | None:
        """Return the node with number *ino* that stands for the object *st* of *layer*, lapsed or not."""
        for node in self.table.holders(ino):
            if isinstance(node, File) and _is_object(node, layer, st):
                return node
        return None

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
        """Return the names in *directory*, each with its cookie, in the order of the cookies.

        A cookie is a hash of the name, so a name has the same place in every listing, whatever comes
        and goes around it: a reader that continues from a cookie misses no name and meets none twice.
        """
        if directory.listing is None:
            names = [] if directory.removed else merge.names(directory.dirs)
            directory.listing = _with_cookies(names)
            self._listings[directory] = None
            if len(self._listings) > _LISTINGS:
                oldest, _ = self._listings.popitem(last=False)
                oldest.listing = None
        return directory.listing

    def drop_listings(self) -> None:
        """Forget what is remembered of the names in all directories."""
        for directory in self._listings:
            directory.listing = None
        self._listings.clear()

    def drop_listing(self, directory: Directory) -> None:
        """Forget what is remembered of the names in *directory*."""
        if directory.listing is not None:
            directory.listing = None
            self._listings.pop(directory, None)

    def name_added(self, directory: Directory, name: bytes) -> None:
        """Note that *directory* now has *name*; it may have had it before."""
        if directory.listing is not None:
            pair = (_cookie(name), name)
            position = bisect.bisect_left(directory.listing, pair)
            there = directory.listing[position : position + 1]
            if there != [pair]:
                if there and there[0][0] == pair[0]:
                    self.drop_listing(directory)  # two names with one hash: make the listing anew
                else:
                    directory.listing.insert(position, pair)

    def name_removed(self, directory: Directory, name: bytes) -> None:
        """Note that *directory* has no *name* any more."""
        if directory.listing is not None:
            pair = (_cookie(name), name)
            position = bisect.bisect_left(directory.listing, pair)
            if directory.listing[position : position + 1] == [pair]:
                del directory.listing[position]
            else:
                self.drop_listing(directory)

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
                self.drop_listing(node)
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
            return st.st_nlink if len(node.dirs) == 1 else 1
        if node.removed:
            return 0
        if st.st_nlink > 1 and self.hidden and not self.in_upper(node):
            return max(0, st.st_nlink - self.hidden.get(object_of(node.home.layer, st), 0))
        return st.st_nlink

    def blocks(self, node: Node, st: os.stat_result) -> int:
        """Return how many blocks of 512 bytes *node*'s contents take."""
        if isinstance(node, Directory) or node.contents is None:
            return st.st_blocks
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
        try:
            return os.getxattr(path, self.marking.stored_name(name), follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.ENODATA and name == xattr.CAPABILITY and isinstance(node, File):
                node.no_capability = True
            raise

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


def _is_object(node: File, layer: Layer, st: os.stat_result) -> bool:
    """Tell whether *node* stands for the object *st* of *layer*: by looking, not by number."""
    if node.home.layer is not layer:
        return False
    try:
        own = node.stat()
    except OSError:
        return False
    return (own.st_dev, own.st_ino) == (st.st_dev, st.st_ino)


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


def _cookie(name: bytes) -> int:
    """Return the cookie of *name*: positive, below 2**63, and not one of those for "." and ".."."""
    return max(xxhash.xxh3_64_intdigest(name) >> 1, 3)


def _with_cookies(names: list[bytes]) -> list[tuple[int, bytes]]:
    """Return (cookie, name) pairs in the order of the cookies, which are all different."""
    pairs = sorted((_cookie(name), name) for name in names)
    last = 0
    for position, (cookie, name) in enumerate(pairs):
        if cookie <= last:  # two names with one hash: the second moves up by one
            cookie = last + 1
            pairs[position] = (cookie, name)
        last = cookie
    return pairs
