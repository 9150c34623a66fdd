"""Other exporters and runtimes, each in an environment of its own that is made when absent."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import environments
from environments import ONNXRUNTIME, python

WORKERS = Path(__file__).parent / "workers"

LLAMA_CPP = "llama-cpp-python==0.3.36"
# The checkpoints are local: nobody has a reason to ask a hub, and a time-out would be measured.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
LLAMA_CPP_FILES = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")


@dataclass(frozen=True)
class Peer:
    """One tool we stand beside.

    Attributes:
        name: As the tables show it.
        requirements: What its environment holds besides torch.
        packages: Whose versions the results name.
        convert: From (environment, checkpoint, output folder) to the command of its float32 export.
        generate: The script in ``workers`` that runs its export; None where we time the export alone.
        batch: The script that runs several rows at once; None where there is none.
    """

    name: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]
    convert: Callable[[Path, Path, Path], list[str | Path]]
    generate: str | None = None
    batch: str | None = None


def _genai(env: Path, checkpoint: Path, output: Path) -> list[str | Path]:
    module = "onnxruntime_genai.models.builder"
    options: list[str | Path] = ["-p", "fp32", "-e", "cpu", "-c", output.with_suffix(".cache")]
    return [python(env), "-m", module, "-i", checkpoint, "-o", output, *options]


def _optimum(env: Path, checkpoint: Path, output: Path) -> list[str | Path]:
    task = "text-generation-with-past"
    return [env / "bin" / "optimum-cli", "export", "onnx", "--model", checkpoint, "--task", task, output]


def _transformers(env: Path, checkpoint: Path, output: Path) -> list[str | Path]:
    return [python(env), WORKERS / "export_transformers.py", checkpoint, output]


def _llama_cpp(env: Path, checkpoint: Path, output: Path) -> list[str | Path]:
    script = env / "llama.cpp" / "convert_hf_to_gguf.py"
    return [python(env), script, checkpoint, "--outtype", "f32", "--outfile", output / "model.gguf"]


GENAI = Peer(
    "onnxruntime-genai",
    ("onnxruntime-genai==0.18.0", ONNXRUNTIME, "transformers==5.23.0", "onnx==1.23.2", "onnx-ir==1.1.0"),
    ("onnxruntime-genai", "onnxruntime", "transformers", "torch"),
    _genai,
    "generate_genai.py",
    "batch_genai.py",
)
OPTIMUM = Peer(
    "optimum-onnx",
    environments.OPTIMUM,
    ("optimum-onnx", "onnxruntime", "transformers", "torch"),
    _optimum,
    "generate_optimum.py",
    "batch_optimum.py",
)
TRANSFORMERS = Peer(
    "transformers",
    (
        "transformers==5.23.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "onnxscript==0.7.2",
        "accelerate",
        ONNXRUNTIME,
    ),
    ("transformers", "onnxscript", "torch"),
    _transformers,
)
# Its converter is no package: it travels in the source archive of the Python bindings.
LLAMACPP = Peer(
    "llama.cpp",
    ("transformers==5.23.0", "sentencepiece", "protobuf", "pyyaml", "tqdm", "requests"),
    ("transformers", "torch"),
    _llama_cpp,
)
PEERS = (GENAI, OPTIMUM, TRANSFORMERS, LLAMACPP)


def install(peer: Peer, cache: Path) -> Path:
    """Make a peer's environment, unless it is there with the same requirements.

    Args:
        peer: Which.
        cache: Holds one folder a peer.

    Returns:
        The environment's folder.

    Raises:
        InstallError: With the line of pip that says why.
    """
    extra = (LLAMA_CPP, _fetch_llama_cpp) if peer is LLAMACPP else None
    return environments.make(peer.name, peer.requirements, cache, extra=extra)


def versions(peer: Peer, env: Path) -> dict[str, str]:
    """Versions of the packages that matter, as installed."""
    code = "import sys, importlib.metadata as m; print(*[m.version(p) for p in sys.argv[1:]])"
    done = subprocess.run([python(env), "-c", code, *peer.packages], capture_output=True, text=True)
    found = dict(zip(peer.packages, done.stdout.split(), strict=False))
    return found | ({"llama-cpp-python": LLAMA_CPP.partition("==")[2]} if peer is LLAMACPP else {})


def _fetch_llama_cpp(env: Path) -> None:
    environments.pip(
        env, ["download", LLAMA_CPP, "--no-deps", "--no-binary", ":all:", "--dest", env / "download"]
    )
    archive = next((env / "download").glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = member.name.partition("/vendor/llama.cpp/")[2]
            if inner.startswith(LLAMA_CPP_FILES):
                member.name = inner
                tar.extract(member, env / "llama.cpp", filter="data")
