"""A process that works on layers, `python -m layerfs.oci.worker unpack|pack`: jobs in, progress out.

Layers are done side by side, and never in the process of a mount, whose interpreter has other
things to do. It works on descriptors that it was started with, and ends when nobody listens any more.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from layerfs import errors
from layerfs.errors import LayerfsError
from layerfs.oci.pool import Work

_INTERVAL = 0.1


def main(kind: str) -> int:
    """Do the jobs on standard input, one after the other."""
    work: Work[Any, Any]
    if kind == "pack":  # each loads what it needs alone: processes are waited for
        from layerfs.oci.packing import WORK as work
    else:
        from layerfs.oci.unpacking import WORK as work
    for line in sys.stdin:
        job = work.decoded(line)
        last = time.monotonic()

        def report(progress: Any) -> None:
            nonlocal last
            if time.monotonic() - last > _INTERVAL:
                last = time.monotonic()
                _answer({"progress": asdict(progress)})

        try:
            _answer({"done": asdict(work.do(job, report))})
        except BrokenPipeError:
            return 1
        except LayerfsError as error:
            public = next(kind for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
            _answer({"error": public.__name__, "text": str(error)})
    return 0


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
