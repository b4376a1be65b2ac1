"""Several layers unpacked or packed at once, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from layerfs import errors
from layerfs.errors import LayerfsError
from layerfs.host.interpreter import command


class _Job(Protocol):
    def encoded(self) -> str:
        """Return the job as a line of text."""


_AnyJob = TypeVar("_AnyJob", bound=_Job)
_State = TypeVar("_State")


@dataclass(frozen=True, slots=True)
class Work(Generic[_AnyJob, _State]):
    """What is done with jobs of one kind."""

    name: str
    decoded: Callable[[str], _AnyJob]
    do: Callable[[_AnyJob, Callable[[_State], None]], _State]
    state: Callable[..., _State]
    """Makes, of the names and values in a report, how far a job is; of none, that it has not begun."""
    size: Callable[[_AnyJob], int]


class Pool(Generic[_AnyJob, _State]):
    """Does *jobs* in so many processes, the largest first; with 0, it does them here.

    The processes inherit *descriptors*: what jobs read from and write to, and the locks of layers.
    *report* is called from several threads, one at a time, with the progress of all jobs so far.
    What it raises ends everything, as does a job that fails.
    """

    def __init__(
        self,
        work: Work[_AnyJob, _State],
        jobs: Sequence[_AnyJob],
        processes: int,
        descriptors: Sequence[int],
        report: Callable[[Sequence[_State]], None],
    ) -> None:
        self._work_kind = work
        self._jobs = jobs
        self._count = processes
        self._descriptors = descriptors
        self._report = report
        self._progress = [work.state() for _ in jobs]
        self._pending = sorted(range(len(jobs)), key=lambda at: work.size(jobs[at]))
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._stopped = False

    def run(self) -> list[_State]:
        """Do the jobs; return what came of each, in their order. Raises what the first one to fail raised."""
        if not self._count:
            for at, job in enumerate(self._jobs):
                self._note(at, self._work_kind.do(job, partial(self._note, at)))
            return self._progress
        with ThreadPoolExecutor(self._count) as executor:
            try:
                for future in [executor.submit(self._work) for _ in range(self._count)]:
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
                command("layerfs.oci.worker", self._work_kind.name),
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
            self._note(at, self._work_kind.state(**answer.get("progress") or answer["done"]))
            if "done" in answer:
                return
        if not self._stopped:
            what = self._work_kind.name
            raise LayerfsError(
                f"the process that {what}s layers ended without a word: is there enough memory?"
            )

    def _note(self, at: int, progress: _State) -> None:
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
