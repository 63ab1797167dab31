"""The live report: the same page on 127.0.0.1, which its browser refreshes when something happens."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from autocl_sweeper.errors import AutoCLError, ConfigurationError
from autocl_sweeper.journal import NAME
from autocl_sweeper.overview import look
from autocl_sweeper.page.document import news, page, refuse_without_packages

LOOK_S = 1.0  # between looks at the journal
BEAT_S = 15.0  # between signs of life on a quiet stream


class ReportServer(ThreadingHTTPServer):
    """Serves one sweep. An address other than loopback takes a token with every request."""

    daemon_threads = True

    def __init__(self, folder: Path, others: Sequence[Path], address: str, port: int) -> None:
        """Raises ConfigurationError for a port in use, an address that is none, missing packages."""
        refuse_without_packages("autocl serve")
        self.folder, self.others = folder, others
        self.journal = folder / NAME
        look(folder)  # what is no sweep is refused here, not in a browser
        self.token = "" if _is_loopback(address) else secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        self._made: dict[str, tuple[int, bytes]] = {}
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"The report cannot be served on {address}:{port}: {error.strerror or error}.\n"
                "  Name another port with --port (0: any free one)."
            ) from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        token = f"?token={self.token}" if self.token else ""
        return f"http://{host!s}:{port}/{token}"

    def size(self) -> int:
        """Bytes of the journal: it only grows, so another size means news."""
        return self.journal.stat().st_size

    def body(self, kind: str) -> bytes:
        """The page or its news as of now; made once for each state of the journal."""
        with self._lock:
            size = self.size()
            known = self._made.get(kind)
            if known is None or known[0] != size:
                sweep = look(self.folder)
                make = page if kind == "page" else news
                text = make(sweep, self.others, size)
                known = self._made[kind] = (size, text.encode("utf-8", "replace"))
            return known[1]

    def allows(self, host: str, token: str) -> bool:
        """Whether a request may be answered: a page of another site that guesses the port may not."""
        if self.token:
            return hmac.compare_digest(token.encode(), self.token.encode())
        name = host.rsplit(":", 1)[0].strip("[]")
        return name == "localhost" or _is_loopback(name)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        token = parse_qs(asked.query).get("token", [""])[0]
        if not self.server.allows(self.headers.get("Host", ""), token):
            self._send(
                403,
                "text/plain",
                b"This report is not for this address: open the URL that was printed.\n",
            )
        elif asked.path in ("/", "/report.html"):
            self._answer("page", "text/html")
        elif asked.path == "/data.json":
            self._answer("news", "application/json")
        elif asked.path == "/events":
            self._events()
        else:
            self._send(404, "text/plain", b"There is nothing here; the report is at /.\n")

    def _answer(self, kind: str, mime: str) -> None:
        try:
            body = self.server.body(kind)
        except (AutoCLError, OSError) as error:
            self._send(500, "text/plain", f"{error}\n".encode())
        else:
            self._send(200, mime, body)

    def _send(self, status: int, mime: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{mime}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def _events(self) -> None:
        """One event each time the journal has grown, as long as the browser listens."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        seen, beat = -1, time.monotonic()  # the first one says where the journal is now
        try:
            while True:
                size = self.server.size()
                if size != seen:
                    seen, beat = size, time.monotonic()
                    self.wfile.write(f"data: {size}\n\n".encode())
                elif time.monotonic() - beat > BEAT_S:
                    beat = time.monotonic()
                    self.wfile.write(b": still there\n\n")
                self.wfile.flush()
                time.sleep(LOOK_S)
        except OSError:  # the browser went away, or the folder did
            return

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not worth a line."""


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
