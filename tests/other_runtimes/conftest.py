"""Other people's runtimes in environments of their own, and the bundles that they open."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import environments
import pytest
from asking import HERE, REPO, Ours, environment, npm_install
from llama3_checkpoint import write_llama3_checkpoint

import llama_export


@pytest.fixture(autouse=True)
def _same_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have ONNX Runtime's own operators: ours would round an activation otherwise now and then."""
    monkeypatch.setenv("LLAMA_EXPORT_KERNELS", "off")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo checkpoint and a small random one of Llama 3's kind."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "demo": REPO / "recipes/tiny/checkpoint",
        "llama3": write_llama3_checkpoint(folder / "llama3"),
    }


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> dict[str, Path]:
    """Their default exports, which nobody changes."""
    folder = tmp_path_factory.mktemp("bundles")
    return {name: llama_export.export(source, folder / name).output for name, source in sources.items()}


@pytest.fixture(scope="session", params=["demo", "llama3"])
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Path:
    """One of the bundles."""
    return bundles[request.param]


@pytest.fixture(scope="session")
def ours(bundle: Path) -> Ours:
    """Our runtime on the bundle."""
    return Ours(bundle)


@pytest.fixture(scope="session")
def oracle() -> str:
    """This Python, which has transformers 5."""
    return sys.executable


@pytest.fixture(scope="session")
def optimum() -> Path:
    """Python with optimum-onnx, which needs transformers 4."""
    return environment("optimum-onnx", environments.OPTIMUM, torch=True)


@pytest.fixture(scope="session")
def genai() -> Path:
    """Python with onnxruntime-genai."""
    return environment("genai-runtime", environments.GENAI_RUNTIME)


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js, with transformers.js and Playwright where the workers find them."""
    npm_install(HERE)
    return "node"


@pytest.fixture(scope="session")
def chromium(node: str) -> str:
    """A Chromium for Playwright to drive; Debian's is ``apt-get install chromium``."""
    names = [os.environ.get("LLAMA_EXPORT_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: install it, or set LLAMA_EXPORT_CHROMIUM")
    return found


@pytest.fixture(scope="session")
def web_page() -> Path:
    """The page of runtime/web, its libraries installed."""
    npm_install(REPO / "runtime/web")
    return REPO / "runtime/web"
