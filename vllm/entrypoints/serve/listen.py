"""Sockets: bound before anything is loaded, so that a port that is taken costs nobody a minute."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
from typing import Any

import uvicorn

from vllm.entrypoints.serve.connection import Connection, Connections
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import ConfigError

_BACKLOG = 2048


def bind(args: ServerArgs) -> socket.socket:
    """Return a listening socket.  Raises ConfigError for an address that can't be had."""
    return _bind_path(args.uds) if args.uds else _bind_port(args.host, args.port)


def _bind_port(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"host {host!r} is no address of a machine ({error.strerror})") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is taken{_taker(port)}; choose another with --port") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"port {port} may not be used by this user; choose one above 1023 with --port") from None
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}") from None
    return listener


def _taker(port: int) -> str:
    """Return " by pid 12 (name)" if the process that listens on a port can be seen."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""


def _bind_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            _remove_stale(path)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"can't listen on {path}: {error.strerror}; choose another path with --uds") from None
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ConfigError(f"{path} is there and no socket; choose another path with --uds")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise ConfigError(f"another server listens on {path}; choose another path with --uds")


def url_of(listener: socket.socket, args: ServerArgs) -> str:
    """Return how a client on this machine calls the server."""
    if args.uds:
        return f"unix:{args.uds}"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if args.ssl_certfile else 'http'}://{host}:{port}{args.root_path}"


class Listener:
    """Accepts connections on a socket, and sees them off."""

    def __init__(self, app: Any, listener: socket.socket, args: ServerArgs) -> None:
        """Raises ConfigError for certificates that can't be read."""
        self.args = args
        self.socket = listener
        self.connections = Connections()
        try:
            self._config = uvicorn.Config(
                app,
                log_config=None,
                log_level="error",
                access_log=False,
                http=Connection,
                ws="none",
                proxy_headers=False,  # nothing asks for the client's address
                lifespan="off",
                timeout_keep_alive=args.keep_alive_timeout,  # type: ignore[arg-type]
                ssl_keyfile=args.ssl_keyfile,
                ssl_certfile=args.ssl_certfile,
                ssl_keyfile_password=args.ssl_keyfile_password,
                ssl_ca_certs=args.ssl_ca_certs,
                ssl_cert_reqs=args.ssl_cert_reqs,
                ssl_ciphers=args.ssl_ciphers or "TLSv1",
            )
            self._config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS: {args.ssl_certfile}, {args.ssl_keyfile}: {error}") from None
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to accept connections."""
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(self._config, self.connections, self.args, loop)

        self._server = await loop.create_server(connection, sock=self.socket, ssl=self._config.ssl, backlog=_BACKLOG)

    def close(self) -> None:
        """Accept no more connections, and no more requests on those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.socket.close()
        if self.args.uds and os.path.exists(self.args.uds):
            os.unlink(self.args.uds)
        for connection in tuple(self.connections.connections):
            connection.shutdown()

    async def finish(self, timeout: float) -> bool:
        """Wait until every request is answered; return whether that took at most `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.connections.tasks:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await asyncio.wait(tuple(self.connections.tasks), timeout=left)
        return True

    async def hang_up(self, timeout: float) -> None:
        """Close all connections; those that take nothing for `timeout` seconds are cut off."""
        open_ones = [connection.transport for connection in tuple(self.connections.connections)]
        for transport in open_ones:
            transport.close()
        deadline = asyncio.get_running_loop().time() + timeout
        while self.connections.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for transport in open_ones:
            transport.abort()
