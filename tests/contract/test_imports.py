"""Who may import whom, as DESIGN.md says, read from the syntax trees: no import is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
EXPORTER, RUNTIME = REPO / "exporter/llama_export", REPO / "runtime/python/llama_runtime"
TESTS_ONLY = {"transformers", "optimum", "onnxruntime_genai", "peft", "flax", "llama_cpp"}

# A room of the exporter: the rooms it may use, itself apart. `errors` is everybody's.
ROOMS = {
    "checkpoint": {"model.config"},
    "model": set(),
    "graph": {"model"},
    # The library of the runtime's kernels rounds weights too.
    "quantize": {"model", "checkpoint.finite", "llama_runtime.kernels"},
    "weights": {"checkpoint", "graph.passes", "model.config", "model.joined", "quantize", "collecting"},
    # What the runtime will open must open here, so the same code tries it.
    "tokenizer": {"checkpoint", "model.config", "llama_runtime.vocabulary", "llama_runtime.errors"},
    "bundle": {
        *("checkpoint", "graph.contract", "model.attention", "model.config", "tokenizer", "weights"),
        *("interruption", "llama_runtime.manifest"),
        # A chat template is reduced to roles by what the runtime makes of it.
        *("llama_runtime.chat_template", "llama_runtime.errors", "llama_runtime.tokenizer"),
    },
    "engine": {
        *("checkpoint", "graph", "model.config", "weights", "bundle", "progress", "quantize"),
        *("parity.stored_weights", "parity.quantized_tensor"),
        *(
            "llama_runtime.engine_file",
            "llama_runtime.extras",
            "llama_runtime.interface",
            "llama_runtime.manifest",
        ),
        "llama_runtime.tensorrt_library",
    },
    # The design calls it verify/, which is the name of the function as well.
    "parity": {
        *("checkpoint", "model", "graph", "quantize", "weights", "tokenizer", "bundle", "progress"),
        "llama_runtime",
    },
}
# What a room may import from elsewhere, where that is limited.
LIBRARIES = {"model": {"torch"}}
# The modules beside the rooms: each may use the rooms and what stands before it.
TOP = {
    "errors": set(),
    "collecting": set(),
    "interruption": set(),
    "progress": set(),
    "recipe": {"graph.contract", "model.attention", "model.config", "weights"},
    "show": set(),
    "plan": {"bundle.place", "checkpoint", "weights", "recipe", "show"},
    "inspection": {
        *("checkpoint", "weights"),
        *("llama_runtime.engine_file", "llama_runtime.extras", "llama_runtime.manifest"),
    },
    "from_text": {*ROOMS, "recipe"},
    "pipeline": {*ROOMS, "progress", "recipe", "plan", "from_text", "llama_runtime"},
    "conversion": {*ROOMS, "progress", "pipeline"},
    "engine_export": {*ROOMS, "recipe", "pipeline", "llama_runtime"},
    "cli": {
        *ROOMS,
        "collecting",
        "interruption",
        "recipe",
        "plan",
        "inspection",
        "pipeline",
        "progress",
        "conversion",
        "engine_export",
        "show",
        "llama_runtime",
    },
    "__init__": {"parity", "pipeline", "conversion", "engine", "engine_export", "inspection", "recipe"},
    "__main__": {"cli"},
}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def named(path: Path) -> str:
    return str(path.relative_to(REPO))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file names, at its top or inside a function, and whether only for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: relative import, the house names modules in full"
            assert node.module is not None
            # `from package import module` names the module; `from module import name` the name: cover both.
            yield from ((f"{node.module}.{alias.name}", id(node) in for_types) for alias in node.names)


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def room_of(path: Path) -> str:
    return path.relative_to(EXPORTER).parts[0].removesuffix(".py")


def test_every_room_has_its_rules():
    assert {room_of(path) for path in sources(EXPORTER)} <= {*ROOMS, *TOP}


@pytest.mark.parametrize("path", sources(EXPORTER), ids=named)
def test_a_room_uses_only_what_it_may(path):
    room = room_of(path)
    allowed = {room, "errors"} | (ROOMS | TOP)[room]
    libraries = LIBRARIES.get(room)
    for module, for_types in imports(path):
        package, _, inner = module.partition(".")
        if package == "llama_export":
            # What the package itself offers is for its top: the command line and its like.
            public = room in TOP and not within(inner, {*ROOMS, *TOP})
            # Names of types carry no dependency.
            assert public or within(inner, allowed) or (for_types and room in TOP), f"{room} imports {module}"
        elif package == "llama_runtime":
            # Runtime errors are turned into ours, or said as they are.
            allowed_here = allowed | ({"llama_runtime.errors"} if room in TOP or room == "parity" else set())
            assert within(module, allowed_here), f"{room} imports {module}"
        elif libraries is not None and package not in ("__future__", *__import__("sys").stdlib_module_names):
            assert package in libraries, f"{room} imports {module}"


@pytest.mark.parametrize("path", sources(RUNTIME), ids=named)
def test_the_runtime_knows_neither_torch_nor_the_exporter(path):
    for module, _ in imports(path):
        assert module.partition(".")[0] not in {"torch", "onnx", "onnx_ir", "onnxscript", "llama_export"}


@pytest.mark.parametrize("path", [*sources(EXPORTER), *sources(RUNTIME)], ids=named)
def test_peers_and_oracles_are_for_tests_and_benchmarks(path):
    for module, _ in imports(path):
        assert module.partition(".")[0] not in TESTS_ONLY


@pytest.mark.parametrize(
    ("library", "file"),
    [
        ("onnxruntime", {"runtime/python/llama_runtime/opening.py"}),
        ("tensorrt", set()),
        ("tensorrt_rtx", set()),
        ("cuda", set()),
    ],
)
def test_an_inference_library_is_imported_in_one_file(library, file):
    found = {
        named(path)
        for path in [*sources(EXPORTER), *sources(RUNTIME)]
        if any(module.partition(".")[0] == library for module, _ in imports(path))
    }
    assert found <= file
    assert library != "onnxruntime" or found == file


def root_name(node: ast.expr) -> str | None:
    """The name that an attribute or item hangs on: ``torch`` of ``torch.onnx.ops["x"].y``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("path", [*sources(EXPORTER), *sources(RUNTIME)], ids=named)
def test_nothing_is_patched(path):
    """No attribute of an imported module or class is set or deleted: change our line, not the world."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            foreign |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            targets = node.args[:1] if node.func.id in ("setattr", "delattr") else []
            targets = [ast.Attribute(value=target, attr="any") for target in targets]
        for target in targets:
            if not isinstance(target, ast.Attribute | ast.Subscript):
                continue
            where = ast.unparse(target)
            # Turning our own output off when its reader has gone is what sys.stdout is for.
            assert root_name(target) not in foreign or where == "sys.stdout", f"{named(path)}: sets {where}"
        assert not (isinstance(node, ast.Attribute) and node.attr == "patch"), f"{named(path)}: patches"
