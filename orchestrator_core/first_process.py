"""Being process 1, as in a container that is started without an init.

Orphans become children of process 1, such as what a plugin or a worker that was killed had started, and stay in the
table of processes when they end until it has asked how. Nor does a signal end it that it has no handler for.
"""

from __future__ import annotations

import os
import signal

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
SI_KERNEL = 0x80


def leave_the_first_process() -> None:
    """Go on in a child, if this is process 1: what stays passes signals on, and ends as the child does."""
    if os.getpid() != 1:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
    child = os.fork()
    if child:
        _wait_for(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(child: int) -> None:
    while True:
        told = signal.sigwaitinfo((*PASSED_ON, signal.SIGCHLD))
        if told.si_signo == signal.SIGCHLD:
            _ask_who_has_ended(child)
        elif not (told.si_signo in OF_THE_TERMINAL and told.si_code == SI_KERNEL):  # which every process got
            os.kill(child, told.si_signo)


def _ask_who_has_ended(child: int) -> None:
    """Have the table of processes forget them, and end if it is the child."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if not pid:
            return


__all__ = ["leave_the_first_process"]
