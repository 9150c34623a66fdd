"""The page's server answers for the page, its libraries and the bundle's listed files, and nothing else."""

from __future__ import annotations

import http.client
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

WEB = Path(__file__).parents[3] / "runtime/web"
spec = importlib.util.spec_from_file_location("serve", WEB / "serve.py")
serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The page with stand-ins for the libraries, which a test machine need not have."""
    folder = tmp_path_factory.mktemp("page") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for name in serve.LIBRARIES:
        (folder / name).mkdir(parents=True)
        (folder / name / "library.mjs").write_text("export {};\n")
        (folder / name / "library.wasm").write_bytes(b"\0asm")
        (folder / name / "README.md").write_text("not needed\n")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "my fox"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx/model.onnx").write_bytes(b"graph")
    (folder / "secret.txt").write_text("not listed")
    files = [{"path": "onnx/model.onnx", "size_bytes": 5, "sha256": "0" * 64}]
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


@pytest.fixture(scope="module")
def get(page, bundle):
    """Ask a running server for an address."""
    server = serve.make_server(bundle, port=0, page=page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        answer = (response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answer

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/index.html", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/node_modules/onnxruntime-web/dist/library.wasm", "application/wasm"),
        ("/node_modules/onnxruntime-web/dist/library.mjs", "text/javascript; charset=utf-8"),
        ("/bundle/my%20fox/manifest.json", "application/json"),
        ("/bundle/my%20fox/onnx/model.onnx", "application/octet-stream"),
    ],
)
def test_what_is_served(get, path, kind):
    status, headers, body = get(path)
    assert (status, headers["Content-Type"]) == (200, kind)
    assert int(headers["Content-Length"]) == len(body) > 0
    # Shared memory, hence threads, and no word to anybody else.
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "connect-src 'self'" in headers["Content-Security-Policy"]


def test_the_root_leads_to_the_page_with_the_bundle(get):
    status, headers, _ = get("/")
    assert (status, headers["Location"]) == (302, "/index.html?bundle=bundle/my%20fox/")


def test_head_sends_no_body(get):
    status, headers, body = get("/bundle/my%20fox/onnx/model.onnx", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "5", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/bundle/my%20fox/secret.txt",
        "/bundle/my%20fox/../../etc/passwd",
        "/bundle/my%20fox/%2e%2e/secret.txt",
        "/serve.py",
        "/package.json",
        "/node_modules/onnxruntime-web/dist/README.md",
        "/../README.md",
        "//etc/passwd",
        "/bundle/",
    ],
)
def test_what_is_not_served(get, path, capfd):
    assert get(path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", ""])
def test_another_name_for_this_machine_is_refused(get, host, capfd):
    """A page elsewhere can point its own name at 127.0.0.1; the browser then sends that name."""
    assert get("/index.html", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:9"])
def test_names_of_this_machine_are_answered(get, host):
    assert get("/index.html", Host=host)[0] == 200


def test_without_libraries(bundle, tmp_path):
    with pytest.raises(serve.ServeError, match="libraries are not installed\nhint: run make web"):
        serve.make_server(bundle, port=0, page=shutil.copytree(WEB, tmp_path / "web", ignore=no_modules))


def no_modules(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "node_modules"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no bundle, manifest.json cannot be read"),
        ("[]", "not a bundle's"),
        ('{"files": [{"path": "../x"}]}', "files leave the folder"),
        ('{"files": [{"path": "/etc/passwd"}]}', "files leave the folder"),
    ],
)
def test_what_is_no_bundle(page, tmp_path, content, said):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(serve.ServeError, match=said):
        serve.make_server(tmp_path, port=0, page=page)


def test_a_taken_port(page, bundle):
    first = serve.make_server(bundle, port=0, page=page)
    with first, pytest.raises(serve.ServeError, match="hint: take another one with --port"):
        serve.make_server(bundle, port=first.server_port, page=page)


def test_the_command_says_it_in_two_lines(tmp_path):
    command = [sys.executable, WEB / "serve.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {tmp_path}: no bundle")
    assert hint.startswith("hint: ")
