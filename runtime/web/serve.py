"""Serve the page and a bundle on this machine: ``python runtime/web/serve.py BUNDLE``.

Needs Python alone. It shows the page's own files, the libraries that ``make web`` installed, and the
files that the bundle's manifest lists; nothing else, and by default to this machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

HERE = Path(__file__).resolve().parent
LIBRARIES = ("node_modules/onnxruntime-web/dist", "node_modules/@huggingface/tokenizers/dist")
MANIFEST_NAME = "manifest.json"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
HEADERS = {
    # These two give the page shared memory, without which WebAssembly has one thread.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing is loaded from, and nothing sent to, any other place.
    "Content-Security-Policy": "default-src 'self' data:; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # An export in the same place must be seen by the next reload.
    "Cache-Control": "no-cache",
}


class ServeError(Exception):
    """What a person can put right: one sentence, and the remedy."""


def served_files(bundle: Path, page: Path = HERE) -> dict[str, Path]:
    """Every address that is answered, and the file behind it.

    Args:
        bundle: The folder that holds ``manifest.json``.
        page: The folder of the page.

    Raises:
        ServeError: No bundle there, or the libraries are not installed.
    """
    manifest = bundle / MANIFEST_NAME
    try:
        document = json.loads(manifest.read_bytes())
        listed = [str(entry["path"]) for entry in document["files"]]
    except OSError as error:
        raise ServeError(
            f"{bundle}: no bundle, {MANIFEST_NAME} cannot be read ({error.strerror})\n"
            "hint: name the folder that llama-export onnx wrote"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise ServeError(f"{manifest}: not a bundle's\nhint: export again") from None
    if any(".." in path.split("/") or path.startswith("/") or "\\" in path for path in listed):
        raise ServeError(f"{manifest}: files leave the folder\nhint: export again")
    own = [path for path in page.iterdir() if path.suffix in (".html", ".css", ".js")]
    libraries = [path for name in LIBRARIES for path in (page / name).glob("*") if path.suffix in TYPES]
    if len({path.parent for path in libraries}) < len(LIBRARIES):
        raise ServeError(
            f"{page / 'node_modules'}: the page's libraries are not installed\nhint: run make web"
        )
    files = {"/" + path.relative_to(page).as_posix(): path for path in [*own, *libraries]}
    return files | {f"{address(bundle)}{path}": bundle / path for path in [MANIFEST_NAME, *listed]}


def address(bundle: Path) -> str:
    """Where a bundle's files stand on the server; the page takes the bundle's name from it."""
    return f"/bundle/{bundle.resolve().name or 'root'}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for known addresses."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "llama-export", ""

    def __init__(self, files: dict[str, Path], start: str, hosts: frozenset[str], *arguments: object) -> None:
        self.files, self.start, self.hosts = files, start, hosts
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send what would stand in front of a file."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        # Another site's script may reach this port under that site's name; it gets nothing.
        if self.hosts and urlsplit(f"//{self.headers.get('Host', '')}").hostname not in self.hosts:
            self.send_error(HTTPStatus.FORBIDDEN, "unknown host name")
            return
        if self.path == "/":
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", self.start)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = self.files.get(unquote(urlsplit(self.path).path))
        try:
            stream = path.open("rb") if path else None
        except OSError:
            stream = None
        if path is None or stream is None:
            self.send_error(HTTPStatus.NOT_FOUND, "not served")
            return
        with stream:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            if body:
                shutil.copyfileobj(stream, self.wfile, 1 << 20)

    def end_headers(self) -> None:
        """Add what every answer carries."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say failures alone."""

    def log_error(self, format: str, *arguments: object) -> None:
        """Name the address that was not answered."""
        print(f"{self.path}: {format % arguments}", file=sys.stderr)


def make_server(
    bundle: Path, host: str = "127.0.0.1", port: int = 8000, page: Path = HERE
) -> ThreadingHTTPServer:
    """A server that is bound but does not serve yet.

    Args:
        bundle: The folder that holds ``manifest.json``.
        host: Where to listen; names of this machine alone are answered unless it is another address.
        port: 0 takes a free one.
        page: The folder of the page.

    Raises:
        ServeError: No bundle, no libraries, or the port is taken.
    """
    local = frozenset({"127.0.0.1", "localhost", "::1"})
    start = f"/index.html?bundle={quote(address(bundle)[1:])}"
    handler = partial(Handler, served_files(bundle, page), start, local if host in local else frozenset())
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise ServeError(
            f"cannot listen on {host}:{port} ({error.strerror})\nhint: take another one with --port"
        ) from None


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve the page and a bundle on this machine.")
    parser.add_argument("bundle", type=Path, help="the folder that llama-export onnx wrote")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    options = parser.parse_args()
    try:
        server = make_server(options.bundle, options.host, options.port)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    with server:
        print(f"http://{options.host}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
