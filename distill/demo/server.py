"""The served page: the standard library's HTTP server on loopback, a thread for each connection.

A page of another site cannot use it. The Host header must name the address that is served: a foreign name that leads
here is refused (DNS rebinding). A request that another site sends is refused by its Origin header.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from distill.demo.answers import Demo, UnknownPhotoError
from distill.errors import DistillError
from distill.text import say_error

PAGE = Path(__file__).parent / "page"
# Address -> file of the page, and its type
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
    "/backend.js": ("server_backend.js", "text/javascript; charset=utf-8"),
}
PHOTO, START, ADD_PHOTO, PREDICT = "/photo", "/api/start", "/api/photo", "/api/predict"
MOST_PHOTO_BYTES, MOST_PROMPT_BYTES = 64 << 20, 64 << 10  # of a request
SECONDS = 30  # that a client may be silent
LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = ("", "0.0.0.0", "::")
# What the page may load: its own files, and pictures that its script makes
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:"


class DemoServer(ThreadingHTTPServer):
    """The server of a demo, whose port is taken before models are loaded.

    demo: what answers; it is set before `serve_forever`.

    Args:
        host: an address of this machine; others than loopback can be reached from the network.
        port: 0 for a free one.
    Raises:
        DistillError: the port is taken or the address is not this machine's.
    """

    daemon_threads = True
    demo: Demo

    def __init__(self, *, host: str = LOOPBACK, port: int = 0) -> None:
        if host in EVERY_ADDRESS:
            raise DistillError(f"--host {host!r}: give the one address by which others reach this machine")
        try:
            super().__init__((host, port), DemoHandler)
        except (OSError, OverflowError) as error:
            raise DistillError(_why_not(error, host, port)) from error
        self.port = self.server_address[1]
        address = self.server_address[0]
        self.address = address if isinstance(address, str) else address.decode()
        names = {host.lower(), self.address, *(["localhost"] if _is_loopback(host) else [])}
        self.hosts = {f"{name}:{self.port}" for name in names} | (names if self.port == 80 else set())

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{self.address}:{self.port}/"


class DemoHandler(BaseHTTPRequestHandler):
    """The answers to requests: the page's files, and JSON of a `Demo`."""

    server: DemoServer
    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        """Send a file of the page, the packaged photo, or what the page starts with."""
        if not self._is_ours():
            return
        path = self.path.partition("?")[0]
        if path in FILES:
            name, kind = FILES[path]
            self._send(HTTPStatus.OK, (PAGE / name).read_bytes(), kind)
        elif path == PHOTO:
            self._send(HTTPStatus.OK, self.server.demo.first_photo, "application/octet-stream")
        elif path == START:
            self._send_json(HTTPStatus.OK, self.server.demo.start())
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"there is nothing at {path}"})

    def do_POST(self) -> None:
        """Take a photo or a prompt."""
        if not self._is_ours():
            return
        actions = {
            ADD_PHOTO: (self.server.demo.add_photo, MOST_PHOTO_BYTES),
            PREDICT: (self.server.demo.predict, MOST_PROMPT_BYTES),
        }
        if self.path not in actions:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is nothing at {self.path}")
            return
        action, most = actions[self.path]
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request says no length")
        elif len(length) > 12 or int(length) > most:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most:,} bytes are taken: reduce the photo")
        else:
            self._act(action, self.rfile.read(int(length)))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing for each request."""

    def version_string(self) -> str:
        """Return the name of the server, without versions."""
        return "distill"

    def _act(self, action: Any, body: bytes) -> None:
        try:
            self._send_json(HTTPStatus.OK, action(body))
        except UnknownPhotoError as error:
            self._send_json(HTTPStatus.GONE, {"error": str(error)})
        except DistillError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError:  # the reader went away
            self.close_connection = True
        except Exception:  # noqa: BLE001 - the outermost function of this thread: what arrives here is a fault of ours
            say_error(traceback.format_exc().rstrip())
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "a fault of the server; its terminal has more"})

    def _is_ours(self) -> bool:
        """Refuse a request that names another host, or comes from a page of another site."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.lower() not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"this server is {self.server.url}")
            return False
        if origin is not None and origin.lower() not in {f"http://{name}" for name in self.server.hosts}:
            self._refuse(HTTPStatus.FORBIDDEN, "pages of other sites may not use this server")
            return False
        return True

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer without reading what follows, and close."""
        self.close_connection = True
        self._send_json(status, {"error": reason})

    def _send_json(self, status: HTTPStatus, content: object) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why_not(error: Exception, host: str, port: int) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: give another one, as --port {port + 1}, or --port 0 for a free one"
    if code == errno.EACCES:
        return f"port {port} of {host} is not yours to use: give one above 1023, as --port 8000"
    if code == errno.EADDRNOTAVAIL or not isinstance(error, OverflowError):
        return f"{host}: no address of this machine that can be served ({error}); leave --host out for {LOOPBACK}"
    return f"port {port}: a port is a number from 0 to 65535"
