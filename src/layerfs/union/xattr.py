"""Extended attributes that have a meaning of their own, and setting one on a directory of a layer."""

from __future__ import annotations

import errno
import os
import stat

ACCESS_ACL = b"system.posix_acl_access"
CAPABILITY = b"security.capability"
DEFAULT_ACL = b"system.posix_acl_default"


def set_mark(fd: int, name: bytes, value: bytes) -> None:
    """Set the private attribute *name* on the directory *fd*, also where its owner may not write to it."""
    try:
        os.setxattr(fd, name, value)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, mode | stat.S_IWUSR)
        try:
            os.setxattr(fd, name, value)
        finally:
            os.fchmod(fd, mode)


def default_acl(fd: int) -> bytes | None:
    """Return the default ACL of the directory *fd*, as the attribute that holds it; None without one."""
    try:
        return os.getxattr(fd, DEFAULT_ACL)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
