"""Quick look at an HTTP endpoint, for checks: no HTTP library, no wait."""

from __future__ import annotations

from typing import Literal

SECONDS = 2.0
"""How long a look waits: a busy machine may take its time, and a look at a healthy server takes
milliseconds all the same."""

Health = Literal["healthy", "unhealthy", "slow", "refused"]


def health(host: str, port: int, timeout: float = SECONDS, path: str = "/health") -> Health:
    """GET a path: `healthy` if the answer is 200, `unhealthy` if it is another, `slow` if there
    is none within `timeout` seconds, `refused` if nobody listens."""
    import socket

    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.sendall(request.encode("ascii"))
            with connection.makefile("rb") as answer:
                status = answer.readline(200).split()[1:2]
    except TimeoutError:
        return "slow"
    except OSError:
        return "refused"
    return "healthy" if status == [b"200"] else "unhealthy"


def reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def url(host: str, port: int) -> str:
    """The root URL of that server, for clients on this machine."""
    address = reachable(host)
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"
