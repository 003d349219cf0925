"""Several processes that serve as one: forked by a parent that holds their sockets, replaces those that die, and hands signals on.

The parent serves nothing. SIGINT and SIGTERM stop the workers, each as it would stop alone, and a second one stops them at once; SIGHUP has
each read its secrets again. uvicorn's own supervisor is not used: on SIGHUP it restarts its workers, it has them start over and over when
the settings are refused, and it does not say why they ended.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SIGNALS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1))
_WATCHED_SECONDS = 60.0  # more deaths than workers within it: the next ones are replaced more slowly
MAX_PAUSE_SECONDS = 5.0  # connections wait for whoever is replaced
_PR_SET_PDEATHSIG = 1  # man 2 prctl

log = logging.getLogger("proxy.workers")


@dataclass(frozen=True)
class Worker:
    """A worker's share: the socket to serve on, which a successor inherits, and a callback for when it serves.

    `is_first`: no other worker serves yet; the others are started once this one is ready.
    """

    listener: socket.socket
    ready: Callable[[], None]
    is_first: bool


def become_worker(listeners: Sequence[socket.socket], on_ready: Callable[[], None]) -> Worker:
    """Starts a worker for each socket and returns in each of them. In the process that calls it, it does not return: it ends by `SystemExit`.

    Only when the first worker is ready are the others started, and `on_ready` is called; if it ends before, so does everything, with its
    exit code.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    return _Parent(listeners, on_ready, mask).run()


class _Parent:
    def __init__(
        self, listeners: Sequence[socket.socket], on_ready: Callable[[], None], mask: set[signal.Signals | int]
    ) -> None:
        self._listeners = listeners
        self._on_ready = on_ready
        self._mask = mask
        self._running: dict[int, int] = {}  # number by process id
        self._due = {0: 0.0}  # when a worker is to be started, by number (monotonic seconds)
        self._deaths: list[float] = []
        self._ready = False
        self._stops = 0  # how often the workers were told to stop
        self._exit_code = 0

    def run(self) -> Worker:
        while self._due or self._running:
            for number, at in list(self._due.items()):
                if at <= time.monotonic():
                    del self._due[number]
                    if (worker := self._fork(number)) is not None:
                        return worker
            self._wait()
        sys.exit(self._exit_code)

    def _fork(self, number: int) -> Worker | None:
        """None in the parent."""
        parent = os.getpid()
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            self._running[pid] = number
            return None
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # nobody is left behind by a parent that was killed
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # A terminal sends Ctrl-C to all of them: it is for the parent alone, because a second signal would end a worker at once.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask | {signal.SIGINT})
        for other, listener in enumerate(self._listeners):
            if other != number:
                listener.close()
        return Worker(self._listeners[number], lambda: os.kill(parent, signal.SIGUSR1), not self._ready)

    def _wait(self) -> None:
        """For a signal, or for the time to start somebody."""
        pause = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else 3_600.0
        received = signal.sigtimedwait(_SIGNALS, pause)
        if received is None:
            return
        if received.si_signo == signal.SIGCHLD:
            self._reap()
        elif received.si_signo == signal.SIGUSR1:
            self._first_is_ready()
        elif received.si_signo == signal.SIGHUP:
            self._send(signal.SIGHUP)
        else:
            self._stops += 1
            self._due.clear()
            for listener in self._listeners:  # or new connections would wait for nobody
                listener.close()
            self._send(signal.SIGTERM if self._stops == 1 else signal.SIGKILL)

    def _first_is_ready(self) -> None:
        if not self._ready and not self._stops:
            self._ready = True
            self._due |= dict.fromkeys(range(1, len(self._listeners)), 0.0)
            self._on_ready()

    def _send(self, number: signal.Signals) -> None:
        for pid in self._running:
            os.kill(pid, number)  # none is gone before it was waited for

    def _reap(self) -> None:
        """Several that ended may have made one signal."""
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._ended(pid, self._running.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, number: int, code: int) -> None:
        if code == -signal.SIGTERM and self._stops == 1:
            code = 0  # it was still starting: whoever serves ends by itself
        if self._stops or not self._ready:
            self._exit_code = max(self._exit_code, code if code >= 0 else 128 - code)
            return
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if at > now - _WATCHED_SECONDS] + [now]
        excess = len(self._deaths) - len(self._listeners)
        pause = min(MAX_PAUSE_SECONDS, 0.25 * 2.0**excess) if excess > 0 else 0.0
        self._due[number] = now + pause
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        log.error("Worker %d ended (%s) and is replaced", pid, how)
