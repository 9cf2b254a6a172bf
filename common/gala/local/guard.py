"""Becomes a worker, having asked the kernel to stop it when the launcher dies: `guard.py LAUNCHER_PID COMMAND...`.

A launcher killed with SIGKILL cannot stop its workers, and they live in process groups of their own, so that the
terminal's Ctrl-C does not reach them. PR_SET_PDEATHSIG closes the gap: it survives exec, and costs the worker nothing
afterwards. It is set here, in the child's own program, and not in a `preexec_fn`, because that runs Python between fork
and exec of a process with threads. SIGTERM and not SIGKILL: the worker writes its checkpoint before it goes.

SIGHUP is ignored: the kernel sends it, and lets a frozen worker go on, when the launcher's death orphans its process
group; the worker shall then end by SIGTERM, with a checkpoint.

Only the standard library, run with `-I -S`: it adds some 15 ms to a worker's start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    launcher, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it died before we asked
        sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)
