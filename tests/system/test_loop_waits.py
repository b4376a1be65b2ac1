"""The thread that serves a mount waits for no disk, whatever is committed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from layerfs.store import Store
from tests.conftest import Layerfs, Stack, wait_until

pytestmark = pytest.mark.root

_SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Adds a line to the file $SPY for each call that waits for a disk: its name, the process, the thread. */
static void note(const char *name)
{
	FILE *file = fopen(getenv("SPY"), "a");

	if (file) {
		fprintf(file, "%s %d %d\n", name, getpid(), gettid());
		fclose(file);
	}
}

#define SPY_ON(name)                                                    \
	int name(int fd)                                                \
	{                                                               \
		note(#name);                                            \
		return ((int (*)(int))dlsym(RTLD_NEXT, #name))(fd);     \
	}

SPY_ON(fsync)
SPY_ON(fdatasync)
SPY_ON(syncfs)
"""


@pytest.fixture
def syncs(layerfs: Layerfs) -> Path:
    """A file that gets a line for each sync that a process of *layerfs* does."""
    source, spy, log = (layerfs.directory / name for name in ("spy.c", "spy.so", "syncs"))
    source.write_text(_SPY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", spy, source, "-ldl"], check=True, timeout=60)
    log.touch()
    layerfs.environment.update(LD_PRELOAD=str(spy), SPY=str(log))
    return log


def test_no_commit_syncs_in_the_loop(layerfs: Layerfs, syncs: Path, stack: Stack) -> None:
    mnt = stack.mount()
    pid = layerfs.pid(stack.name)
    syncs.write_text("")  # what the daemon did before anybody could use the mount
    with Store(layerfs.root) as store:
        for number in range(5):
            (mnt / f"{number}").write_bytes(b"x")
            # Now a COMMIT would restart the journal, and sync it:
            wait_until(lambda: store.database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0)
            stack.commit()
    calls = [line.split() for line in syncs.read_text().splitlines()]
    in_daemon = [(name, thread) for name, process, thread in calls if process == f"{pid}"]
    assert in_daemon  # the threads do it
    assert [name for name, thread in in_daemon if thread == f"{pid}"] == []
