"""The workbench as a server on this machine: a port, an address to open, and an end that lets the model go."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from tangentune.errors import InputError, cannot_import
from tangentune.estimators.classifier import TangentClassifier
from tangentune.networks.backbone import Backbone

try:
    import starlette  # noqa: F401
    import uvicorn
except ImportError as error:  # before what stands on them
    raise cannot_import(error.name or "uvicorn", error, 'pip install "tangentune[serve]"') from error

from tangentune.workbench.app import create_app
from tangentune.workbench.desk import Desk
from tangentune.workbench.security import LOCAL, Gate, host_names


@final
@dataclass(frozen=True, eq=False)
class Serving:
    """A server that is ready to run on a socket of its own: `run` it, or `start` it beside other work."""

    address: str  # what a person opens; it holds the secret token
    server: uvicorn.Server
    listener: socket.socket
    desk: Desk

    def run(self) -> None:
        """Serve until interrupted; the model is let go at the end."""
        try:
            self.server.run([self.listener])
        finally:
            self.close()

    def close(self) -> None:
        """Let port and model go, of a server that does not run."""
        self.listener.close()
        self.desk.close()

    def start(self) -> Callable[[], None]:
        """Serve on a thread of its own; gives what stops it, and waits until it answers."""
        thread = threading.Thread(target=self.run, name="tangentune-workbench", daemon=True)
        thread.start()

        def stop() -> None:
            self.server.should_exit = True
            thread.join(10)

        while not self.server.started and thread.is_alive():
            thread.join(0.01)
        return stop


def prepare(
    model: str | os.PathLike[str] | TangentClassifier,
    *,
    originals: str | os.PathLike[str] | None = None,
    unlabelled: str | os.PathLike[str] | None = None,
    host: str = LOCAL,
    port: int = 0,
    exposed: bool = False,
    framed: bool = False,
    backbone: Backbone | None = None,
) -> Serving:
    """A workbench on a saved model, bound to a port and not yet running.

    Args:
        model: directory of a saved classifier, which is locked against other workbenches; or a classifier that was read
            or saved and not changed since, which is then edited in place.
        originals: folder of the pictures at their own resolution.
        unlabelled: folder of pictures without labels, to choose from which are worth one.
        host: 127.0.0.1, unless `exposed`, which also puts the token into every address.
        port: 0 takes a free one.
        exposed: whoever can reach the address and has the token may see the pictures and change the model.
        framed: pages of this machine may show it in a frame, as notebooks do.
        backbone: the network of a saved model that no name loads.

    Raises:
        InputError: the address cannot be used, or is another one than 127.0.0.1 without `exposed`.
        StoreError: there is no such model, or another workbench is open on it.
    """
    if host != LOCAL and not exposed:
        raise InputError(
            f"{host} lets other machines see these pictures and change this model, without encryption; leave --host "
            "out to serve this machine only, or add --i-know-what-this-means"
        )
    listener = _bound(host, port)
    try:
        desk = Desk.open(model, originals, unlabelled, backbone)
    except BaseException:
        listener.close()
        raise
    port = listener.getsockname()[1]
    gate = Gate(host_names(host, port), token_in_path=exposed or framed, framed=framed)
    config = uvicorn.Config(
        create_app(desk, gate), log_level="error", access_log=False, server_header=False, date_header=False,
        timeout_graceful_shutdown=3, proxy_headers=False, ws="none", lifespan="off",
    )  # fmt: skip
    named = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        named = socket.gethostname().lower()
    return Serving(gate.opening(f"{named}:{port}"), uvicorn.Server(config), listener, desk)


def show(address: str) -> bool:
    """Open the address in the person's browser; False where there is none."""
    with contextlib.suppress(webbrowser.Error):
        return webbrowser.open(address)
    return False


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "it is taken; --port 0 finds a free one" if taken else getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot serve on {host}, port {port}: {why}") from error
    return listener
