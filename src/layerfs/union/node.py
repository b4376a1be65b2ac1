"""Inodes of the union, and the table that keeps them while somebody refers to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

import xxhash

from layerfs.union.layer import Layer, LayerDir
from layerfs.union.partial import Partial

ROOT = 1
_TAG_SHIFT = 48
_TAGS = 256
_DYNAMIC = 1 << 60
_TWIN_SHIFT = 56
_TWINS = 64
_RECORD_MAX = 32
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How to open what was a regular file a moment ago: who owns the layer may have put a fifo in its place."""
_KINDS = {
    kind: kind
    for kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
}
"""One object for each kind of file: an integer of its own would take 32 bytes a file."""


Object = tuple[Layer, int, int]
"""An object of a layer: the layer, `st_dev`, `st_ino`. It is what two names of one file have in common."""


def shown_number(ino: int) -> int:
    """Return the `st_ino` that people see of the node *ino*. `_wire.h` has the same (`shown`).

    The two differ for a node that came when another one of the same number had lapsed and was still in use:
    bits between the filesystem's tag and `_DYNAMIC`, and above that, then tell the two apart.
    """
    return ino if ino & _DYNAMIC else ino & ((1 << _TWIN_SHIFT) - 1)


def _twin(ino: int, count: int) -> int:
    """Return the *count*-th other node number that shows *ino*: a counter in the bits around `_DYNAMIC`."""
    low, high = count & 15, count >> 4
    return ino | low << _TWIN_SHIFT | high << (_TWIN_SHIFT + 5)


def object_of(layer: Layer, st: os.stat_result) -> Object:
    """Return which object of *layer* has the stat *st*."""
    return layer, st.st_dev, st.st_ino


class Directory:
    """A merged directory.

    `dirs` are its parts, top-most first. `children` holds the nodes that are known below it, so it
    stays in the table for as long as one of them does. `generation` is that of the union when it was
    resolved: see `layerfs.union.generation`.
    """

    __slots__ = (
        "__weakref__",
        "children",
        "default_acl",
        "dirs",
        "generation",
        "ino",
        "listing",
        "name",
        "parent",
        "references",
        "removed",
    )

    def __init__(self, ino: int, dirs: list[LayerDir], parent: Directory | None, name: bytes) -> None:
        self.ino = ino
        self.dirs = dirs
        self.parent = parent
        self.name = name
        self.children: dict[bytes, Node] = {}
        self.references = 0
        self.generation = 0
        self.removed = False
        self.listing: list[tuple[int, bytes]] | None = None
        self.default_acl: bool | None = None  # not known yet

    def ancestors(self) -> Iterator[Directory]:
        """Yield the directory itself and all above it, the root last."""
        directory: Directory | None = self
        while directory is not None:
            yield directory
            directory = directory.parent

    def path(self) -> tuple[bytes, ...]:
        """Return the names that lead here from the root. Its part in the upper has the same ones."""
        return tuple([directory.name for directory in self.ancestors()][-2::-1])


class File:
    """Anything but a directory: a regular file, symbolic link, fifo, socket or device.

    Its object in the layers is `entry` in `home`, or, once that name is gone while the kernel still
    knows the inode, the O_PATH descriptor `pin`. An *orphan* has no name in any layer any more. A lower file
    is `removed` once its only name has been taken away (`Union.hidden` counts for those with several).
    `contents` says where the contents are of a file whose metadata alone has been copied up; where some of
    them are in the upper already, `partial` knows which.
    `synced` says whether the object and the names that lead to it have been synced to the disk: None for one
    that is as people made it, False for a copy, whose names are ours. `generation` is as in `Directory`.
    """

    __slots__ = (
        "_more",
        "_name",
        "_parent",
        "contents",
        "entry",
        "fd",
        "generation",
        "home",
        "ino",
        "kind",
        "orphan",
        "partial",
        "pin",
        "references",
        "removed",
        "synced",
        "writable",
    )

    def __init__(self, ino: int, kind: int, home: LayerDir, entry: bytes) -> None:
        self.ino = ino
        self.kind = _KINDS[kind]
        self.home = home
        self.entry = entry
        self._parent: Directory | None = None  # most files have one name, which takes no list
        self._name = entry
        self._more: tuple[tuple[Directory, bytes], ...] = ()
        self.contents: tuple[LayerDir, bytes] | None = None
        self.partial: Partial | None = None
        self.pin = -1
        self.orphan = False
        self.fd = -1
        self.writable = False
        self.removed = False
        self.synced: bool | None = None
        self.generation = 0
        self.references = 0

    @property
    def names(self) -> tuple[tuple[Directory, bytes], ...]:
        """The names known in the union, each with its directory."""
        return () if self._parent is None else ((self._parent, self._name), *self._more)

    def set_names(self, names: Sequence[tuple[Directory, bytes]]) -> None:
        """Set what `names` says."""
        if names:
            (self._parent, self._name), *more = names
            self._more = tuple(more)
        else:
            self._parent, self._more = None, ()

    def add_name(self, parent: Directory, name: bytes) -> None:
        """Note one more name."""
        if self._parent is None:
            self._parent, self._name = parent, name
        else:
            self._more += ((parent, name),)

    @property
    def is_regular(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.kind)

    def stat(self) -> os.stat_result:
        """Return the stat of the object in the layers. Raises `OSError`."""
        if self.writable:  # a descriptor to write to is one on the object itself
            return os.fstat(self.fd)
        if self.pin >= 0:
            return os.fstat(self.pin)
        return os.stat(self.entry, dir_fd=self.home.fd(), follow_symlinks=False)

    def path(self) -> tuple[bytes, bool]:
        """Return a path of the object and whether it must be followed.

        For calls that take no directory descriptor. The path is good until the next trim.
        """
        if self.pin >= 0:
            return b"/proc/self/fd/%d" % self.pin, True
        return b"/proc/self/fd/%d/%s" % (self.home.fd(), self.entry), False

    def open(self, flags: int) -> int:
        """Open the object (a regular file) and return the descriptor. Raises `OSError`."""
        if self.pin >= 0:
            return os.open(b"/proc/self/fd/%d" % self.pin, flags | os.O_CLOEXEC)
        return os.open(self.entry, flags | _SAFELY, dir_fd=self.home.fd())

    def open_contents(self, flags: int) -> int:
        """Open what a regular file holds, wherever that is, to read it."""
        if self.contents is None:
            return self.open(flags)
        home, entry = self.contents
        return os.open(entry, flags | _SAFELY, dir_fd=home.fd())

    def pin_object(self) -> None:
        """Keep hold of the object: its name in the layer is about to go."""
        if self.pin < 0 and self.writable:  # as good as a descriptor for nothing else
            self.pin, self.fd, self.writable = self.fd, -1, False
        elif self.pin < 0:
            self.pin = os.open(self.entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.home.fd())

    def place(self, home: LayerDir, entry: bytes) -> None:
        """Note that the object is now *entry* in *home*, under a name again if it had none."""
        self.home = home
        self.entry = entry
        self.orphan = self.removed = False
        self.drop_pin()

    def drop_pin(self) -> None:
        """Close the O_PATH descriptor, if there is one."""
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1

    def drop_partial(self) -> None:
        """Close what belongs to a partial file, if this is one."""
        if self.partial is not None:
            self.partial.close()
            self.partial = None

    def close_data(self) -> None:
        """Close the descriptor on the contents, if there is one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.writable = False


Node = Directory | File


class InodeTable:
    """The nodes that are known, by inode number, and the numbers themselves.

    A number is the object's own in the filesystem below, so it is the same after a remount, with the
    filesystem's place in the stack in the upper bits (as overlayfs' `xino` does). A copied-up file
    keeps the number it had. Where two objects would collide, the later one gets a number of its own,
    which does not outlive the mount.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.aliases: dict[Object, File] = {}
        """Files with several names whose number is not made from their object's own."""
        self.dead: set[int] = set()
        """Those of `lapsed` that are directories which people have removed: for good, to the kernel."""
        self.lapsed: set[int] = set()
        """The nodes that are not in the tree since the union went back, though somebody has them in use."""
        self.twins: dict[int, list[int]] = {}
        """The nodes that came for an object whose number a lapsed one had, by that number."""
        self.bases: dict[int, int] = {}
        """What a number is made of besides the object's own, by `st_dev`, as far as `number` has met them."""
        self._devices: dict[int, int] = {}
        self._filesystems: dict[int, int] = {}
        self._objects: dict[File, Object] = {}
        self._next = _DYNAMIC

    def __len__(self) -> int:
        return len(self.nodes)

    # -- numbers --------------------------------------------------------------------------------

    def add_filesystem(self, fd: int) -> None:
        """Let numbers of the filesystem that *fd* lies on be recorded. For each layer, from the bottom up."""
        device = os.fstat(fd).st_dev
        self._tag(device)
        try:
            identity = os.fstatvfs(fd).f_fsid
        except OSError:
            return  # some FUSE filesystems have no statfs: their numbers are not recorded
        if self._filesystems.setdefault(identity, device) != device:
            self._filesystems[identity] = -1  # two say the same of themselves: neither is recorded

    def _tag(self, device: int) -> int:
        tag = self._devices.get(device)
        if tag is None:
            tag = self._devices[device] = len(self._devices)
            if tag < _TAGS:
                self.bases[device] = tag << _TAG_SHIFT
        return tag

    def lasting_number(self, device: int, inode: int) -> int | None:
        """Return the number of object *inode* (`st_ino`) of filesystem *device* (`st_dev`), if it has one."""
        tag = self._tag(device)
        if inode >> _TAG_SHIFT or tag >= _TAGS or (tag == 0 and inode <= ROOT):
            return None
        return tag << _TAG_SHIFT | inode

    def number(self, device: int, inode: int) -> int:
        """Return what `lasting_number` does, or a fresh number."""
        number = self.lasting_number(device, inode)
        return self.fresh() if number is None else number

    def object_with(self, layer: Layer, number: int) -> Object:
        """Return the object of *layer* that has the lasting *number*."""
        device = list(self._devices)[number >> _TAG_SHIFT]
        return layer, device, number & ((1 << _TAG_SHIFT) - 1)

    def fresh(self) -> int:
        """Return a number that no object has; it does not outlive the mount, and is never written to disk."""
        self._next += 1
        return self._next

    # -- numbers on disk --------------------------------------------------------------------------

    def record(self, number: int, copy: int) -> bytes | None:
        """Return what to write on a copy, the object *copy* (`st_ino`), for it to keep *number*.

        None where the number would mean nothing to another mount. The record holds the number that the
        original has in its filesystem, and a checksum of this, the filesystem's identity (statvfs(3),
        f_fsid) and *copy*: it is true of this one file, whose original can be seen in this one filesystem.
        """
        number = shown_number(number)
        for identity, device in self._filesystems.items():
            inode = number - self.bases.get(device, number)
            if inode >> _TAG_SHIFT == 0 and inode:
                return _recorded(inode, identity, copy)
        return None

    def recorded_number(self, record: bytes, copy: int) -> int | None:
        """Return the number that *record* has the object *copy* keep; None if it cannot be believed.

        That is so if the record was written by hand, or by an older layerfs, was copied from another file,
        or speaks of a filesystem that no layer of this stack is on: its numbers may be other files' here.
        """
        digits, colon, _ = record.partition(b":")
        if not colon or not digits.isdigit() or len(record) > _RECORD_MAX:
            return None
        inode = int(digits)
        for identity, device in self._filesystems.items():
            if device >= 0 and record == _recorded(inode, identity, copy):
                return self.lasting_number(device, inode)
        return None

    # -- nodes ------------------------------------------------------------------------------------

    def add(self, node: Node) -> None:
        """Enter *node* under its number, or under another one if that is taken.

        Where all who have it have lapsed, the other one shows the same to people; else it is a fresh one.
        """
        if node.ino in self.nodes:
            node.ino = self._another(node.ino)
        self.nodes[node.ino] = node

    def _another(self, ino: int) -> int:
        if ino & _DYNAMIC or any(holder.ino not in self.lapsed for holder in self.holders(ino)):
            return self.fresh()
        for count in range(1, _TWINS):
            twin = _twin(ino, count)
            if twin not in self.nodes:
                self.twins.setdefault(ino, []).append(twin)
                return twin
        return self.fresh()  # somebody has kept dozens of the same file's past

    def holders(self, ino: int) -> list[Node]:
        """Return the nodes that show the number *ino* to people, lapsed ones and no more than one other."""
        if not self.twins:
            return [self.nodes[ino]] if ino in self.nodes else []
        return [self.nodes[each] for each in (ino, *self.twins.get(ino, ())) if each in self.nodes]

    def identify(self, node: File, layer: Layer, st: os.stat_result) -> None:
        """Note that *node* stands for the object *st* of *layer*, where its number does not say so."""
        self._forget_object(node)
        if node.ino != self.lasting_number(st.st_dev, st.st_ino) and st.st_nlink > 1:
            self._objects[node] = thing = object_of(layer, st)
            self.aliases[thing] = node

    def _forget_object(self, node: File) -> None:
        thing = self._objects.pop(node, None)
        if thing is not None and self.aliases.get(thing) is node:
            del self.aliases[thing]

    def forget(self, node: Node, count: int) -> None:
        """Take *count* references from *node*; without references it is dropped (FUSE's FORGET)."""
        node.references -= count
        self.release(node)

    def release(self, node: Node) -> None:
        """Drop *node*, and directories above it, where nothing refers to them any more."""
        while node.references <= 0 and node.ino != ROOT:
            if isinstance(node, File):
                parents = [parent for parent, name in node.names if parent.children.pop(name, None)]
                node.set_names(())
                node.close_data()
                node.drop_partial()
                node.drop_pin()
                if self._objects:
                    self._forget_object(node)
            else:
                if node.children:
                    return
                parents = []
                if node.parent is not None and node.parent.children.get(node.name) is node:
                    del node.parent.children[node.name]
                    parents = [node.parent]
                for directory in node.dirs:
                    if directory.pinned:
                        directory.close()
            if self.nodes.get(node.ino) is node:
                del self.nodes[node.ino]
                self._forget_number(node.ino)
            for parent in parents[1:]:
                self.release(parent)
            if not parents:
                return
            node = parents[0]

    def _forget_number(self, ino: int) -> None:
        if self.lapsed:
            self.lapsed.discard(ino)
            self.dead.discard(ino)
        if self.twins and (number := shown_number(ino)) != ino:
            self.twins[number].remove(ino)
            if not self.twins[number]:
                del self.twins[number]


def _recorded(inode: int, identity: int, copy: int) -> bytes:
    checksum = xxhash.xxh32_intdigest(b"%d %d %d" % (inode, identity, copy))
    return b"%d:%08x" % (inode, checksum)
