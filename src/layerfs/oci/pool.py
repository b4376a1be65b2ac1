"""Several layers unpacked at once, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from layerfs import errors
from layerfs.errors import LayerfsError
from layerfs.oci.unpacking import Job, Progress, do

_SMALL = 1 << 19
"""Bytes of layers that are not worth a process."""


class Pool:
    """Does *jobs* in as many processes as there are cores, the largest first; or here, if all are small.

    The processes inherit *descriptors*: what jobs read from, and the locks of the layers that they write.
    *report* is called from several threads, one at a time, with the progress of all jobs so far.
    What it raises ends everything, as does a job that fails.
    """

    def __init__(
        self, jobs: Sequence[Job], descriptors: Sequence[int], report: Callable[[Sequence[Progress]], None]
    ) -> None:
        self._jobs = jobs
        self._descriptors = descriptors
        self._report = report
        self._progress = [Progress() for _ in jobs]
        self._pending = sorted(range(len(jobs)), key=lambda at: jobs[at].region.size)
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._stopped = False

    def run(self) -> list[Progress]:
        """Do the jobs; return what came of each, in their order. Raises what the first one to fail raised."""
        if sum(job.region.size for job in self._jobs) <= _SMALL:
            for at, job in enumerate(self._jobs):
                self._note(at, do(job, partial(self._note, at)))
            return self._progress
        count = min(len(self._jobs), len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(count) as executor:
            try:
                for future in [executor.submit(self._work) for _ in range(count)]:
                    future.result()
            except BaseException:
                self._stop()
                raise
        return self._progress

    def _work(self) -> None:
        try:
            with self._start() as process:
                while (at := self._next()) is not None:
                    self._do(process, at)
                assert process.stdin is not None
                process.stdin.close()
        except BaseException:
            self._stop()  # the others too: what they do is in vain
            raise

    def _start(self) -> subprocess.Popen[str]:
        with self._lock:
            process = subprocess.Popen(
                [sys.executable, "-m", "layerfs.oci.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=self._descriptors,
                start_new_session=True,  # an interrupt is for us to deal with
            )
            self._processes.append(process)
            if self._stopped:
                process.kill()
            return process

    def _next(self) -> int | None:
        with self._lock:
            return self._pending.pop() if self._pending and not self._stopped else None

    def _do(self, process: subprocess.Popen[str], at: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._jobs[at].encoded() + "\n")
        process.stdin.flush()
        for line in process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise _failure(answer)
            self._note(at, Progress(**answer.get("progress") or answer["done"]))
            if "done" in answer:
                return
        if not self._stopped:
            raise LayerfsError(
                "the process that unpacks layers ended without a word: is there enough memory?"
            )

    def _note(self, at: int, progress: Progress) -> None:
        with self._lock:
            self._progress[at] = progress
            self._report(self._progress)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()


def _failure(answer: dict[str, Any]) -> LayerfsError:
    """Return the error that a process has reported."""
    kind = getattr(errors, answer["error"], LayerfsError)
    made: LayerfsError = kind(answer["text"])
    return made
