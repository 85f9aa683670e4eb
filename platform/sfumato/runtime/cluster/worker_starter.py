"""The program that Ray starts for each worker: has the worker forked, or else starts it as Ray does.

It imports next to nothing, because every worker waits for it. Its arguments are those of Ray's own
setup_worker.py, in whose place `fork_server.py` puts it.
"""

import array
import json
import os
import runpy
import signal
import socket
import sys

ADDRESS = "SFUMATO_FORK_SERVER"
"""The variable that holds the path of the fork server's socket."""
GO, FORKED = b"go", b"forked"


def forked() -> bool:
    """Whether the fork server has started the worker; waits for the answer as long as the server lives."""
    order = json.dumps(
        {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    ).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.connect(os.environ[ADDRESS])
            if server.recv(len(GO)) != GO:
                return False
            streams = array.array("i", [0, 1, 2])
            size = len(order).to_bytes(8, "big")
            server.sendmsg([size], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
            server.sendall(order)
            return server.recv(len(FORKED)) == FORKED
    except (KeyError, OSError):
        return False


if __name__ == "__main__" and not forked():
    # A worker hears what the raylet that started this does not (`daemons.py`).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
    from ray._private.workers import __path__ as workers

    sys.argv[0] = os.path.join(next(iter(workers)), "setup_worker.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
