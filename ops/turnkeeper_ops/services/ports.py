"""Free TCP ports on loopback."""

import random
import socket

LOOPBACK = "127.0.0.1"

# Below the range that Linux (32768 and up) and macOS (49152 and up) give to outgoing connections: while a
# server is being restarted, no client's socket can take its port away.
_CANDIDATES = range(15_000, 32_000)
_TRIES = 100


def free_port() -> int:
    """Return a port that nobody listens on.

    Chosen by chance, so that stacks that start at the same moment do not choose alike.
    """
    for port in random.sample(_CANDIDATES, _TRIES):
        if _is_free(port):
            return port
    raise OSError(f"no free port among {_TRIES} tried on {LOOPBACK}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a closed connection that lingers on the port does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
