"""Whether anything is mounted within a filesystem, in any mount namespace that can be seen."""

from __future__ import annotations

import os


def has_submounts(device: int) -> bool:
    """Tell whether something is mounted in a directory of the filesystem with `st_dev` *device*.

    Cheap: one link a process, and a file a mount namespace. What others' processes do is seen by root alone.
    """
    ours = b" %d:%d " % (os.major(device), os.minor(device))
    seen = set()
    for pid in ["self", *os.listdir("/proc")]:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                if _in_namespace(pid, ours):
                    return True
        except OSError:  # no process, one that has ended, or somebody else's
            continue
    return False


def _in_namespace(pid: str, ours: bytes) -> bool:
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        text = file.read()
    if ours not in text:
        return False
    lines = [line.split(b" ", 3) for line in text.splitlines()]  # its id, that of the mount it is in, device
    there = {line[0] for line in lines if line[2] == ours.strip()}
    return any(line[1] in there for line in lines)
