"""How the program starts and ends: of a command that is done in 50 ms, both take their part."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line for this process, and end it."""
    gc.disable()  # importing leaves nothing to collect; the command line goes on with it once that is done
    from layerfs.cli import main

    status = main()
    with suppress(OSError):  # it is told of where the output is written
        sys.stdout.flush()
    # Python would take every module apart again, which takes a tenth of a short command's time.
    os._exit(status)
