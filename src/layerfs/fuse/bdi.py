"""How much the kernel reads ahead of, and keeps of the writes to, this mount (sysfs-class-bdi).

For a FUSE filesystem the kernel reads little ahead, and allows it one percent of the memory there is for
writes on their way, so that a slow daemon holds up nobody but those who write to it. This daemon is as fast
as the filesystem below it, and may have more; there is still a limit of its own that holds others harmless.
"""

from __future__ import annotations

import os
from contextlib import suppress

_SETTINGS = {
    "read_ahead_kb": "1024",  # as much as one request reads
    "max_ratio": "40",  # percent
}


def tune(device: int) -> None:
    """Set it for the mount with `st_dev` *device*, as far as this process may: root outside of containers."""
    for name, value in _SETTINGS.items():
        path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/{name}"
        with suppress(OSError), open(path, "w") as setting:
            setting.write(value)
