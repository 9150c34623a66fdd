"""The page's own server, in this process, for as long as a test needs it."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from asking import HERE, REPO


def serve_module() -> ModuleType:
    """``runtime/web/serve.py``, a script and in no package."""
    spec = importlib.util.spec_from_file_location("serve", REPO / "runtime/web/serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def page_of(bundle: Path) -> Iterator[str]:
    """The address of the page on a bundle."""
    with _running(serve_module().make_server(bundle, port=0)) as address:
        yield address


@contextmanager
def transformers_js_page(bundle: Path) -> Iterator[str]:
    """The address of a page that loads transformers.js and the bundle from this machine alone."""
    serve = serve_module()
    del serve.HEADERS["Content-Security-Policy"]  # transformers.js imports scripts that it makes itself
    libraries = ("@huggingface/transformers/dist", "onnxruntime-web/dist")
    files = {
        f"/{path.relative_to(HERE).as_posix()}": path
        for name in libraries
        for path in (HERE / "node_modules" / name).glob("*")
    }
    start = "/transformers.html"
    files |= {f"/{name}": HERE / "workers" / name for name in ("transformers.html", "transformers_page.js")}
    files |= {
        f"/bundle/{quote(path.relative_to(bundle.parent).as_posix())}": path for path in bundle.rglob("*")
    }
    handler = partial(serve.Handler, files, start, frozenset())
    with _running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield address


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
