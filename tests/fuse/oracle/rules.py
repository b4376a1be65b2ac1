"""The rules: what may be done next, and with which arguments."""

from __future__ import annotations

import os
import stat
import struct

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from layerfs.union import syscalls
from tests.fuse.oracle import actions as do
from tests.fuse.oracle.machine import TwoMounts
from tests.fuse.oracle.stacks import DIRECTORY_MODES, FILE_MODES, NO_DEVICE, OWNERS, TARGETS, TIMES

NOBODY = 0xFFFFFFFF
USERS = st.sampled_from((0, 0, 0, 0, 1000))
DATA = st.sampled_from((b"x", b"written", b"\xff" * 5000))
OFFSETS = st.sampled_from((0, 3, 4095, 4096, 10_000))
MODES = st.sampled_from(FILE_MODES + DIRECTORY_MODES)
ATTRIBUTE_NAMES = st.sampled_from(
    (
        "user.one",
        "user.new",
        "trusted.three",
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.layerfs.ino",
        "user.overlay.opaque",
        "user.overlay.redirect",
        "user.overlay.metacopy",
        "user.fuseoverlayfs.opaque",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
    )
)
NODES = st.sampled_from(
    (
        (stat.S_IFIFO | 0o640, (0, 0)),
        (stat.S_IFSOCK | 0o755, (0, 0)),
        (stat.S_IFREG | 0o4711, (0, 0)),
        (stat.S_IFBLK | 0o600, NO_DEVICE),
        (stat.S_IFCHR | 0o666, (1, 3)),
        (stat.S_IFCHR | 0o600, (0, 0)),  # a whiteout: the kernel's overlayfs refuses to make it
    )
)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""cap_net_raw=ep, as in linux/capability.h (struct vfs_cap_data, revision 2)."""
_USER, _NAMED, _GROUP, _MASK, _OTHER = 1, 2, 4, 16, 32
ACLS = tuple(
    struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    for entries in (
        ((_USER, 6, NOBODY), (_GROUP, 5, NOBODY), (_OTHER, 1, NOBODY)),  # as much as a mode says
        ((_USER, 7, NOBODY), (_NAMED, 6, 1000), (_GROUP, 4, NOBODY), (_MASK, 5, NOBODY), (_OTHER, 0, NOBODY)),
        ((_USER, 7, NOBODY), (_NAMED, 3, 1000), (_GROUP, 7, NOBODY), (_MASK, 7, NOBODY), (_OTHER, 6, NOBODY)),
    )
)
"""Access control lists as `acl(5)` has them in an attribute (linux/posix_acl_xattr.h)."""
WRITES = st.sampled_from(
    (
        os.O_WRONLY,
        os.O_WRONLY | os.O_APPEND,
        os.O_WRONLY | os.O_TRUNC,
        os.O_WRONLY | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    )
)
RENAMES = st.sampled_from((0, 0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE))
INSTANTS = st.sampled_from((*TIMES, do.Utime.NOW, do.Utime.KEEP))
USES = st.sampled_from(
    ("look", "write", "append", "map", "truncate", "chmod", "chown", "setxattr", "sync", "create")
)


class Oracle(TwoMounts):
    """Everything that people do to a filesystem, in any order."""

    @rule(data=st.data(), flags=WRITES, text=DATA, offset=st.none() | OFFSETS, mode=MODES, uid=USERS)
    def write(
        self, data: st.DataObject, flags: int, text: bytes, offset: int | None, mode: int, uid: int
    ) -> None:
        path = self.anywhere(data) if flags & os.O_CREAT else self.existing(data)
        self.step(do.Write(path, flags, text, None if flags & os.O_APPEND else offset, mode), uid)

    @rule(data=st.data(), length=OFFSETS, uid=USERS)
    def truncate(self, data: st.DataObject, length: int, uid: int) -> None:
        self.step(do.Truncate(self.existing(data), length), uid)

    @rule(data=st.data(), flags=RENAMES, uid=USERS)
    def rename(self, data: st.DataObject, flags: int, uid: int) -> None:
        self.step(do.Rename(self.existing(data), self.anywhere(data), flags), uid)

    @rule(data=st.data(), flags=RENAMES)
    def rename_directory(self, data: st.DataObject, flags: int) -> None:
        self.step(do.Rename(self.directory_of(data), self.anywhere(data), flags))

    @rule(data=st.data(), swap=st.booleans())
    def rename_twice(self, data: st.DataObject, swap: bool) -> None:
        """Rename a directory in its parent and then to another, perhaps by the other filesystem."""
        path = self.directory_of(data)
        near = path[: path.rfind(b"/") + 1] + b"new"
        if self.step(do.Rename(path, near)):
            if swap:
                self.swap()
            self.step(do.Rename(near, self.place(data)))

    @rule(data=st.data())
    def replace_directory(self, data: st.DataObject) -> None:
        """Rename a directory over one that has been emptied: its layers still hold what was in it."""
        source, target = self.directory_of(data), self.directory_of(data)
        if source.startswith(target) or self.step(do.Clear(target)):
            self.step(do.Rename(source, target))

    @rule(data=st.data(), uid=USERS)
    def link(self, data: st.DataObject, uid: int) -> None:
        self.step(do.Link(self.existing(data), self.place(data)), uid)

    @rule(data=st.data(), content=st.sampled_from(TARGETS), uid=USERS)
    def symlink(self, data: st.DataObject, content: bytes, uid: int) -> None:
        self.step(do.Symlink(content, self.place(data)), uid)

    @rule(data=st.data(), uid=USERS)
    def unlink(self, data: st.DataObject, uid: int) -> None:
        self.step(do.Unlink(self.existing(data)), uid)

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        self.step(do.Rmdir(self.existing(data)))

    @rule(data=st.data(), again=st.booleans(), mode=st.sampled_from(DIRECTORY_MODES))
    def remove_tree(self, data: st.DataObject, again: bool, mode: int) -> None:
        """Empty a directory, remove it, and perhaps make it again: over a whiteout, if it was a lower one."""
        path = self.directory_of(data)
        if self.step(do.Clear(path)) and self.step(do.Rmdir(path)) and again:
            self.step(do.Mkdir(path, mode))

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """Make a directory with something in it, so that there is always enough to remove."""
        path = self.place(data)
        if self.step(do.Mkdir(path, 0o755)):
            self.step(do.Write(path + b"/a", os.O_WRONLY | os.O_CREAT, b"grown", mode=0o666))
            self.step(do.Mkdir(path + b"/b", 0o711))

    @rule(data=st.data(), mode=st.sampled_from(DIRECTORY_MODES), uid=USERS)
    def mkdir(self, data: st.DataObject, mode: int, uid: int) -> None:
        self.step(do.Mkdir(self.place(data), mode), uid)

    @rule(data=st.data(), node=NODES)
    def mknod(self, data: st.DataObject, node: tuple[int, tuple[int, int]]) -> None:
        self.step(do.Mknod(self.place(data), *node))

    @rule(data=st.data(), mode=MODES, uid=USERS)
    def chmod(self, data: st.DataObject, mode: int, uid: int) -> None:
        self.step(do.Chmod(self.existing(data), mode), uid)

    @rule(data=st.data(), uid=st.sampled_from((*OWNERS, -1)), gid=st.sampled_from((*OWNERS, -1)), by=USERS)
    def chown(self, data: st.DataObject, uid: int, gid: int, by: int) -> None:
        self.step(do.Chown(self.existing(data), uid, gid), by)

    @rule(data=st.data(), times=st.tuples(INSTANTS, INSTANTS), uid=USERS)
    def utime(self, data: st.DataObject, times: tuple[int, int], uid: int) -> None:
        self.step(do.Utime(self.existing(data), times), uid)

    @rule(
        data=st.data(),
        name=ATTRIBUTE_NAMES,
        value=DATA,
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
        uid=USERS,
    )
    def set_attribute(self, data: st.DataObject, name: str, value: bytes, flags: int, uid: int) -> None:
        self.step(do.SetAttribute(self.existing(data), name, value[:1000], flags), uid)

    @rule(data=st.data(), kind=st.sampled_from(("access", "default")), acl=st.sampled_from(ACLS), uid=USERS)
    def set_acl(self, data: st.DataObject, kind: str, acl: bytes, uid: int) -> None:
        self.step(do.SetAttribute(self.existing(data), f"system.posix_acl_{kind}", acl), uid)

    @rule(data=st.data())
    def set_capability(self, data: st.DataObject) -> None:
        """Give a program a capability: a write or a change of owner takes it away again."""
        self.step(do.SetAttribute(self.existing(data), "security.capability", CAPABILITY))

    @rule(data=st.data(), name=ATTRIBUTE_NAMES)
    def remove_attribute(self, data: st.DataObject, name: str) -> None:
        self.step(do.RemoveAttribute(self.existing(data), name))

    @rule(data=st.data(), flags=st.sampled_from((os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC)))
    def open(self, data: st.DataObject, flags: int) -> None:
        self.step(do.Open(next(self.serial), self.existing(data), flags))

    @rule(data=st.data(), flags=st.sampled_from((os.O_RDONLY, os.O_RDWR)), what=USES, text=DATA)
    def use_removed(self, data: st.DataObject, flags: int, what: str, text: bytes) -> None:
        """Open something, take its name away, and use it."""
        path = self.existing(data)
        handle = next(self.serial)
        if self.step(do.Open(handle, path, flags)):
            self.step(data.draw(st.sampled_from((do.Unlink(path), do.Rmdir(path)))))
            self.step(do.Use(handle, self.possible(handle, what), 0o640, text[:1000]))

    @precondition(lambda self: self.sides and self.sides[0].handles)
    @rule(data=st.data(), what=USES, text=DATA, offset=OFFSETS, mode=st.sampled_from(FILE_MODES))
    def use(self, data: st.DataObject, what: str, text: bytes, offset: int, mode: int) -> None:
        """Use what is open, also after it has lost its name."""
        number = {"chmod": mode, "chown": 1000}.get(what, offset)
        handle = self.handle(data)
        self.step(do.Use(handle, self.possible(handle, what), number, text[:1000]))

    @precondition(lambda self: self.sides and self.sides[0].handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.step(do.Close(self.handle(data)))

    @rule(data=st.data(), what=USES, text=DATA, mode=st.sampled_from(FILE_MODES))
    def use_over_commit(self, data: st.DataObject, what: str, text: bytes, mode: int) -> None:
        """Open something, commit, and use it: what it changes then is in the new upper, and seen by all."""
        handle = next(self.serial)
        if self.can_commit() and self.step(do.Open(handle, self.existing(data), os.O_RDWR)):
            self.commit()
            self.step(do.Use(handle, self.possible(handle, what), mode, text[:1000]))

    @rule(chance=st.integers(0, 5))
    def start_afresh(self, chance: int) -> None:
        """Now and then have caches dropped, or mount again: that takes as long as many other steps."""
        if chance in (1, 2):
            self.step(do.Forget())
        elif chance == 3:
            self.step(do.Remount())
        elif chance == 5:
            self.swap()
        elif chance == 4 and self.can_commit():
            self.commit()

    def commit(self) -> None:
        """Commit with everything open that the kernel, which needs a new mount, can open again."""
        if self.sides:
            for handle in sorted(self.sides[0].handles):
                if self.sides[0].is_removed(handle):
                    self.step(do.Close(handle))
            self.step(do.Commit())

    def can_commit(self) -> bool:
        """Tell whether the two sides may be expected to agree with the upper as a lower layer.

        In a lower layer the kernel's overlayfs breaks hard links; layerfs keeps them. The kernel does not
        rename a lower directory (EXDEV) where the redirect is longer than 256 bytes (the overlay module's
        `redirect_max`); for layerfs the longest attribute is the limit.
        """
        links = any(len(item.names) > 1 for item in self.tree.values())
        return not (links or self.index) and all(len(path) < 256 for path in self.tree)

    def possible(self, handle: int, what: str) -> str:
        """Return what can be done on both sides with an open file instead of *what*.

        A change of the metadata of a lower object that has been removed copies it up on the kernel's
        overlayfs, under the name that it had: it comes back. It does not on layerfs. The kernel gives
        such an object the link count of the lower one still, layerfs none.
        """
        kernel, layerfs = self.sides
        if what == "map" and "security.capability" in os.listxattr(self.sides[0].handles[handle]):
            return "look"  # layerfs takes capabilities away for that too: to it a write is a write
        removed_lower = (
            kernel.is_removed(handle)
            and os.fstat(kernel.handles[handle]).st_nlink > 0
            and not layerfs.shows(handle)
        )
        return "look" if removed_lower and what in ("chmod", "chown", "setxattr") else what

    def handle(self, data: st.DataObject) -> int:
        """Draw the number of something that is open."""
        return data.draw(st.sampled_from(sorted(self.sides[0].handles)))

    def directory_of(self, data: st.DataObject) -> bytes:
        """Draw the path of a directory, if there is one."""
        paths = [path for path, item in self.tree.items() if path and stat.S_ISDIR(item.type)]
        return data.draw(st.sampled_from(sorted(paths) or [b"a"]))
