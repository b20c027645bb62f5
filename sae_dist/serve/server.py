"""Serving an atlas: a socket, its address with the word that opens it, and an end without noise."""

import errno
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from urllib.parse import quote

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show

MOST_AT_ONCE = 128
"""Requests that are answered at once; more are refused."""
PENDING_S = 3
"""How long the end waits for answers that are being made."""


@dataclass(frozen=True)
class Asked:
    """The wishes of whoever calls `serve`.

    Attributes:
        where: a run with an atlas.
        port: 0: the system chooses one.
        with_token: ask for a word on this machine, too.
        with_model: sentences may be tried.
    """

    where: str
    host: str = "127.0.0.1"
    port: int = 0
    with_token: bool = False
    with_model: bool = True
    trust_remote_code: bool = False


def serve(wanted: Asked) -> None:
    """Serve the atlas of a run until the process gets a signal to end.

    Raises:
        ConfigError: there is no atlas, or the address cannot be had.
    """
    import uvicorn

    from sae_dist.atlas.read.atlas import Atlas
    from sae_dist.serve.app import Pages
    from sae_dist.serve.guard import Door, Guard
    from sae_dist.serve.room import Room
    from sae_dist.serve.site import this_user

    atlas = Atlas.open(wanted.where)
    with listening(wanted.host, wanted.port) as bound:
        port = int(bound.getsockname()[1])
        door = Door.at(wanted.host, port, wanted.with_token)
        closed = None if wanted.with_model else "The model is left out: --no-model."
        room = Room(wanted.where, closed=closed, trust_remote_code=wanted.trust_remote_code)
        pages = Pages(atlas, room, this_user() if door.local else "")
        # uvicorn raises the signal again that ended it, for whoever handled it before; that is nobody.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        settings = uvicorn.Config(
            Guard(pages.routed(), door),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=MOST_AT_ONCE,
            timeout_graceful_shutdown=PENDING_S,
        )
        show(f"{address(wanted.host, port, door.token)}   (Ctrl-C ends it)")
        sys.stdout.flush()
        threading.Thread(target=pages.warm, daemon=True).start()
        try:
            uvicorn.Server(settings).run(sockets=[bound])
        finally:
            room.close()


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        ConfigError: the address is not this machine's, or its port is taken.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)  # type: ignore[arg-type]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port} is in use on {host}; give another, or 0 for any") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigError(f"--port {port} is not this user's to take; give one above 1023") from None
        raise ConfigError(f"--host {host} is no address of this machine: {error.strerror}") from None


def address(host: str, port: int, token: str | None) -> str:
    """Return the address to open; of a server that listens everywhere, by this machine's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"?token={quote(token)}" if token else "")
