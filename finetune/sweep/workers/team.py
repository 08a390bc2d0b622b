"""The workers together: what they say, in one stream of events, and the signals that end the sweep."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from finetune.errors import EnvironmentProblem, Interrupted
from finetune.sweep.workers.birth import Newborn
from finetune.sweep.workers.mps import Mps
from finetune.sweep.workers.pool import Machine, Worker, stop_all

MAX_KILLED_EARLY = 10  # workers that somebody kills before they are ready, in a row


@dataclass(frozen=True)
class Event:
    """`kind` is one of worker.py's messages, or "died" with the cause as its content; `guiltless`: for another's sake.
    """

    worker: Worker
    kind: str
    content: Any = None
    guiltless: bool = False


class Team:
    """`count` workers at most, started when they are needed."""

    def __init__(self, machine: Machine, count: int, *, task: str, logs: Path, ask_verdicts: bool,
                 born: Newborn | None = None, mps: Mps | None = None):
        """`born`: the first worker's process, where it is there already. `mps`: by which workers share a GPU."""
        self.machine, self.count, self._mps = machine, count, mps
        self._task, self._logs, self._ask_verdicts = task, logs, ask_verdicts
        self.workers: list[Worker] = []
        self._killed_early = 0
        self._told: dict[str, Any] = {}
        self._put_back: list[Event] = []
        self._born = born
        self._signals = Signals()

    def grow(self, wanted: int) -> None:
        """Have at least min(wanted, count) workers."""
        before = len(self.workers)
        while len(self.workers) < min(wanted, self.count):
            taken = {worker.index for worker in self.workers}
            self._give_birth(min(set(range(1, self.count + 1)) - taken))
        for worker in self.workers[before:]:  # all are on their way before the first one waits for MPS
            worker.begin()
            for kind, content in self._told.items():
                worker.send(kind, content)

    def _give_birth(self, index: int) -> None:
        born, self._born = self._born, None
        self.workers.append(Worker(index, self.count, self.machine, task=self._task, ask_verdicts=self._ask_verdicts,
                                   log=self._logs / f"worker-{index}.log", born=born, mps=self._mps))

    def tell(self, kind: str, content: Any) -> None:
        """A message for every worker, also for those that start later; a later one of its kind replaces it."""
        self._told[kind] = content
        for worker in self.workers:
            worker.send(kind, content)

    def events(self, timeout: float) -> list[Event]:
        """What happened, waiting at most `timeout` seconds. Raises Interrupted after a SIGINT or SIGTERM."""
        if self._put_back:
            kept, self._put_back = self._put_back, []
            return kept
        by_connection = {worker.connection: worker for worker in self.workers}
        ready = wait([*by_connection, self._signals.socket], timeout)
        self._signals.check()
        heard = (by_connection[source] for source in ready if source is not self._signals.socket)
        return [self._receive(worker) for worker in heard if worker in self.workers]  # one's death may end others

    def put_back(self, events: Iterable[Event]) -> None:
        """`events` gives them again: somebody who waited for other news has met them."""
        self._put_back = [*events, *self._put_back]

    def _receive(self, worker: Worker) -> Event:
        try:
            kind, content = worker.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            return self._buried(worker)
        if kind == "ready":
            worker.ready, self._killed_early = True, 0
        return Event(worker, kind, content)

    def _buried(self, worker: Worker) -> Event:
        cause = worker.cause_of_death()
        self.remove(worker)
        if worker.ready and worker.was_killed and worker.mps_card is not None:
            self._end_neighbours(worker)
        if not worker.ready:
            # One that ends by itself cannot import what it needs; the next one could not either.
            self._killed_early += 1
            if not worker.was_killed or self._killed_early >= MAX_KILLED_EARLY:
                raise EnvironmentProblem(f"no worker can be started: {cause} (log: {worker.log})")
        return Event(worker, "died", cause)

    def _end_neighbours(self, killed: Worker) -> None:
        """A client of MPS that dies with kernels under way may leave the others on its card to hang, NVIDIA says: they
        begin anew, and their trials are no worse for it."""
        for worker in [worker for worker in self.workers if worker.mps_card == killed.mps_card]:
            self.remove(worker)
            cause = f"its worker begins anew: worker {killed.index} was killed, with kernels under way on the same GPU"
            self._put_back.append(Event(worker, "died", cause, guiltless=True))

    def remove(self, worker: Worker) -> None:
        """Kill it and its children; another one takes its place when the team grows again."""
        worker.release()
        worker.kill()
        self.workers.remove(worker)

    def close(self, *, interrupt: bool, grace: float = 5.0) -> None:
        self.stop(grace, interrupt=interrupt)
        self._signals.restore()

    def stop(self, grace: float, *, interrupt: bool = True) -> None:
        """End all workers; `interrupt`: also those that are busy, which write a checkpoint within `grace` seconds."""
        stop_all(self.workers, interrupt=interrupt, grace=grace)
        self.workers.clear()

    def on_second_signal(self, farewell: Callable[[], None], *, exits: bool = True) -> None:
        """The second Ctrl-C ends everything at once; `farewell` puts the terminal in order. `exits`: also this process,
        which in a notebook is the kernel with everything in it."""
        def abort(signum: int) -> None:
            for worker in self.workers:
                worker.strike()  # whoever waits for it buries it
            farewell()
            if exits:
                os._exit(128 + signum)

        self._signals.abort = abort


class Signals:
    """SIGINT and SIGTERM as something that can be waited for, and that strikes only where `check` is called.

    Only the main thread is told of signals: in another one there are none to wait for.
    """

    def __init__(self) -> None:
        self.abort: Callable[[int], None] | None = None
        self.socket, self._waker = socket.socketpair()
        self.socket.setblocking(False)
        self._waker.setblocking(False)
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._wakeup_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Not a second SIGTERM: SLURM sends it by several ways, and again when the time is up.
        if self._received is not None and signum == signal.SIGINT and self.abort is not None:
            self.abort(signum)
        self._received = self._received or signum

    def check(self) -> None:
        if self._received is not None:
            raise Interrupted(self._received)

    def restore(self) -> None:
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.socket.close()
        self._waker.close()
