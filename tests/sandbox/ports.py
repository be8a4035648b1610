"""The fixed ports of a sandbox: in a row, the board's first."""

import os
import socket

# The board, the HTTP API, the API of callback events, the simulator, AWS.
PORTS = 5
FIRST_PORT, LAST_PORT = 8700, 65536 - PORTS


def first_port(wanted: str) -> int:
    """The first port of the sandbox; 0 if one of its ports is taken, which it says."""
    if wanted and not (wanted.isdecimal() and 0 < int(wanted) <= LAST_PORT):
        raise SystemExit(f"PORT must be a number from 1 to {LAST_PORT}, and is {wanted!r}.")
    first = int(wanted or FIRST_PORT)
    for port in range(first, first + PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                print(
                    f"Port {port} cannot be used ({os.strerror(error.errno or 0)}): other ports are. PORT=... chooses."
                )
                return 0
    return first
