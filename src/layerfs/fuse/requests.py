"""The table of requests: what the kernel may ask (linux/fuse.h), and the handler that answers.

The extension reads requests from /dev/fuse, calls handlers as their `Row` says, and writes the answers
(`_direct.c`), without a turn of the event loop in between. Without it pyfuse3's operations call the same
handlers (`operations`).
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import NamedTuple

from layerfs.fuse import wire


class Row(NamedTuple):
    """How a request comes to the method `name` of `Handlers`: it is given the inode, and what `form` says.

    Of what follows the header `s` is a name, `I` and `Q` are numbers of 4 and 8 bytes, `d` is a device's, `b`
    is all that is left, and a dot leaves out 4 bytes; `c` is the `Caller`. `descriptor`, called with the
    inode and a flag, returns the descriptor by which the extension can do it without the handler, or None.
    """

    name: str
    form: str = ""
    descriptor: str | None = None


TABLE = {
    1: Row("lookup", "s"),
    2: Row("forget"),  # called by the extension with a count
    3: Row("getattr"),
    4: Row("setattr", "bc"),
    5: Row("readlink"),
    6: Row("symlink", "ssc"),
    8: Row("mknod", "IdI.sc"),
    9: Row("mkdir", "IIsc"),
    10: Row("unlink", "s"),
    11: Row("rmdir", "s"),
    12: Row("rename", "Qss"),
    13: Row("link", "Qs"),
    15: Row("read", "..QI", "to_read"),
    16: Row("write", "..Q.I....b", "to_write"),
    17: Row("statfs"),
    20: Row("fsync", "..I", "to_sync"),
    21: Row("setxattr", ".Isbc"),
    22: Row("getxattr", "..s"),
    23: Row("listxattr"),
    24: Row("removexattr", "s"),
    30: Row("fsyncdir", "..I", "to_sync"),
    42: Row("forget"),
    43: Row("fallocate", "..QQI", "to_write"),
    44: Row("readdirplus", "..QI"),
    45: Row("rename2", "QI.ss"),
}
"""By opcode: enum fuse_opcode."""

REFUSED = {
    14: errno.ENOSYS,  # OPEN: handles have no state, so nothing is to be opened or released
    25: errno.ENOSYS,  # FLUSH: has nothing to do
    27: errno.ENOSYS,  # OPENDIR
    35: errno.ENOSYS,  # CREATE: MKNOD does it without making a handle
    36: errno.ENOSYS,  # INTERRUPT: nothing here can be interrupted
    39: errno.ENOTTY,  # IOCTL: no file here has one, but many are asked whether they are a terminal
}
"""The answers of the extension to other requests. With ENOSYS the kernel stops asking."""


def counts() -> dict[str, int]:
    """Return how many requests the extension has answered from the table, by name."""
    found: dict[str, int] = Counter()
    if wire.extension is not None:
        for opcode, count in enumerate(wire.extension.counts()):
            if count and opcode in TABLE:
                found[TABLE[opcode].name] += count
    return found
