"""Hard links within a lower layer: which paths are names of one file.

A copy-up must give every name of a file the same copy, also names that nobody has looked up yet, so
the layer is searched once, when the first file with several names is copied up from it.
"""

from __future__ import annotations

import os
import stat
import threading
from weakref import WeakKeyDictionary

from layerfs.union.layer import Layer

_known: WeakKeyDictionary[Layer, dict[int, list[list[bytes]]]] = WeakKeyDictionary()
_lock = threading.Lock()


def other_names(layer: Layer, inode: int) -> list[list[bytes]]:
    """Return the paths in *layer*, as lists of names, of the file whose `st_ino` is *inode*.

    Reads the whole layer at the first call (some 0.3 s for 100,000 files). Any thread may call it.
    """
    with _lock:
        if layer not in _known:
            _known[layer] = _search(layer)
        return _known[layer].get(inode, [])


def _search(layer: Layer) -> dict[int, list[list[bytes]]]:
    found: dict[int, list[list[bytes]]] = {}
    root = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layer.root.fd())
    try:
        for path, _, files, fd in os.fwalk(b".", dir_fd=root, follow_symlinks=False):
            for name in files:
                try:
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
                    found.setdefault(st.st_ino, []).append([*path.split(b"/")[1:], name])
    finally:
        os.close(root)
    return found
