"""What the commands do when all is well: data to stdout, the rest to stderr, and the right exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner, Result
from talking_checkpoint import files_in, write_talking_checkpoint
from tiny_checkpoints import CONFIGS, link_like_the_hub, write_checkpoint
from tiny_heads import write_head_checkpoint

import llama_runtime
from llama_export.cli import main

REPO = Path(__file__).parents[3]

PROMPT = "once upon a time"
COMMANDS = [
    *("onnx", "trt", "convert", "verify", "inspect", "run"),
    *("embed", "classify", "tag", "answer", "selftest", "bench"),
]


def succeed(*arguments: object, stdin: str | bytes | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    # click's runner calls an uncaught exception exit code 1 as well.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def quietly(*arguments: object, stdin: str | bytes | None = None, code: int = 0) -> str:
    """Run a command that must say nothing on stderr; returns stdout."""
    result = succeed(*arguments, stdin=stdin, code=code)
    assert result.stderr == ""
    # Not result.stdout: click's runner makes "\r\n", which a random model does say, a "\n" there.
    return result.stdout_bytes.decode()


# Help


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=["main", *COMMANDS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(command, flag):
    text = quietly(*command, flag)
    assert text.startswith("Usage: ")
    assert max(len(line) for line in text.splitlines()) <= 100


def test_every_option_has_a_help_text():
    assert sorted(main.commands) == sorted(COMMANDS)
    for command in main.commands.values():
        assert command.help
        assert command.short_help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.name}"


def test_the_main_help_keeps_its_examples_apart():
    text = quietly("--help")
    assert '\n    llama-export run artifacts/my-llama "Once upon a time"\n' in text
    assert "..." not in text.partition("Commands:")[2]
    names = [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()]
    assert names == COMMANDS


def test_version():
    assert quietly("--version").startswith("llama-export, version ")


def test_a_mistyped_command_line_says_where_help_is():
    result = succeed("onnx", code=2)
    assert "Try 'main onnx --help' for help" in result.stderr
    assert result.stdout == ""


# onnx


@pytest.fixture
def checkpoint(talking, tmp_path):
    return shutil.copytree(talking, tmp_path / "fox")


def test_onnx(quick_graphs, checkpoint, tmp_path):
    text = quietly("onnx", checkpoint, tmp_path / "out")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == ["bundle", "parity", "next", "faster"]
    assert f"{tmp_path / 'out'}: " in lines[0]
    assert "equal to eager PyTorch" in lines[1]
    assert lines[2].endswith(f'llama-export run {tmp_path / "out"} "your prompt"')
    assert "--weights copy --precision float32" in lines[3]


def test_onnx_json(quick_graphs, checkpoint, tmp_path):
    facts = json.loads(quietly("onnx", checkpoint, tmp_path / "out", "--json"))
    assert facts["output"] == str(tmp_path / "out")
    assert facts["parity"]["passed"] is True
    facts = json.loads(quietly("onnx", checkpoint, tmp_path / "out", "--json", "--force", "--no-verify"))
    assert facts["parity"] is None


def test_a_path_with_spaces_can_be_pasted(quick_graphs, checkpoint, tmp_path):
    text = quietly("onnx", checkpoint, tmp_path / "my fox", "--no-verify")
    assert f"llama-export run '{tmp_path / 'my fox'}' " in text
    assert "not verified" in text


def test_the_default_output_is_in_artifacts(quick_graphs, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quietly("onnx", "fox", "--no-verify")
    assert (tmp_path / "artifacts/fox/manifest.json").is_file()


def test_a_hub_snapshot_goes_by_its_name(quick_graphs, talking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = link_like_the_hub(talking, tmp_path / "hub/models--forest--Fox-1B")
    quietly("onnx", snapshot, "--no-verify")
    assert (tmp_path / "artifacts/Fox-1B/manifest.json").is_file()


def test_options_win_over_the_recipe(quick_graphs, checkpoint, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'attention = "sdpa"\nweights = "copy"\nprecision = "float16"\nverify = false\nhidden_states = "last"'
    )
    plan = json.loads(quietly("onnx", checkpoint, "--recipe", recipe, "--dry-run", "--json"))
    assert plan["recipe"] == {
        "attention": "sdpa", "weights": "copy", "precision": "float16", "verify": False,
        "adapters": [], "task": None, "hidden_states": "last", "attentions": False, "inputs_embeds": False,
        "block_size": None, "asymmetric": False, "keep": None, "quantizer": None, "calibration": None,
        "compute": "float32", "cache": "float32",
    }  # fmt: skip
    options = ["--attention", "eager", "--precision", "float32", "--verify"]
    options += ["--hidden-states", "all", "--attentions", "--inputs-embeds"]
    plan = json.loads(quietly("onnx", checkpoint, "--recipe", recipe, "--dry-run", "--json", *options))
    assert plan["recipe"] == {
        "attention": "eager", "weights": "copy", "precision": "float32", "verify": True,
        "adapters": [], "task": None, "hidden_states": "all", "attentions": True, "inputs_embeds": True,
        "block_size": None, "asymmetric": False, "keep": None, "quantizer": None, "calibration": None,
        "compute": "float32", "cache": "float32",
    }  # fmt: skip


def test_beside(quick_graphs, checkpoint):
    quietly("onnx", checkpoint, "--weights", "beside")
    assert succeed("run", checkpoint, PROMPT, "-n", "2").stdout


PLANS = {
    "link": ([], {"onnx/model.onnx_data"}, 0),
    "copy": (["--weights", "copy"], {"onnx/model.onnx_data"}, 1),
    "half": (["--weights", "copy", "--precision", "float16"], {"onnx/model_fp16.onnx_data"}, 1),
    "double": (["--weights", "copy", "--precision", "float32"], {"onnx/model.onnx_data"}, 2),
    "beside": (["--weights", "beside"], {"model.safetensors"}, 0),
}


@pytest.mark.parametrize(("options", "files", "times"), PLANS.values(), ids=PLANS)
def test_dry_run(talking, tmp_path, monkeypatch, options, files, times):
    monkeypatch.chdir(tmp_path)
    before = files_in(talking)
    plan = json.loads(quietly("onnx", talking, "--dry-run", "--json", *options))
    assert set(plan["files"]) == files
    stored = (talking / "model.safetensors").stat().st_size
    assert plan["written_bytes"] == pytest.approx(times * stored, rel=0.1)
    assert plan["peak_memory_bytes"] > 0
    assert plan["seconds"] > 0
    text = quietly("onnx", talking, "--dry-run", *options)
    first = [line.split()[0] for line in text.splitlines()]
    assert first == ["export", "choices", "file", "disk", "memory", "time", "running"]
    assert list(tmp_path.iterdir()) == []
    assert files_in(talking) == before


def test_the_plan_says_what_a_link_costs_when_it_is_run(tmp_path):
    narrow = write_checkpoint(tmp_path / "narrow", CONFIGS["gqa"], "bfloat16")
    assert "converted to float32 whenever a session loads" in quietly("onnx", narrow, "--dry-run")
    wide = write_checkpoint(tmp_path / "wide", CONFIGS["gqa"], "float32")
    assert "are mapped, not copied" in quietly("onnx", wide, "--dry-run")


def test_the_plan_knows_that_file_systems_do_not_share(talking, tmp_path, monkeypatch):
    monkeypatch.setattr("llama_export.plan.can_share", lambda *_: False)
    plan = json.loads(quietly("onnx", talking, tmp_path / "out", "--dry-run", "--json"))
    assert plan["written_bytes"] == (talking / "model.safetensors").stat().st_size


# verify


def test_verify(talking, talking_bundle):
    text = quietly("verify", talking_bundle, "--checkpoint", talking)
    lines = text.splitlines()
    assert all(line.startswith(("ok ", "-   ")) for line in lines[:-1])
    names = [line[4:].partition("  ")[0] for line in lines if line.startswith("ok ")]
    assert len([name for name in names if name != "own kernels"]) == 12  # there where they were built
    assert lines[-1].startswith("equal to the reference; ")


def test_verify_json_with_ones_own_prompts(talking, talking_bundle, tmp_path):
    (tmp_path / "prompts").write_text("the small fox\n\nthe green sea\nand salt\n")
    options = ["--checkpoint", talking, "--prompts", tmp_path / "prompts", "--json"]
    facts = json.loads(quietly("verify", talking_bundle, *options))
    assert facts["passed"] is True
    assert facts["tokens_compared"] == 3 * 64
    assert all(rung["passed"] for rung in facts["rungs"] if rung["needed"])


def test_verify_a_task_head(tmp_path, quick_graphs):
    write_head_checkpoint(tmp_path / "from", "text-classification")
    quietly("onnx", tmp_path / "from", tmp_path / "to")
    text = quietly("verify", tmp_path / "to", "--checkpoint", tmp_path / "from")
    lines = text.splitlines()
    assert [line.split("  ")[1].strip() for line in lines if line.startswith("ok")][4] == "outputs"
    assert lines[-1].startswith("equal to the reference; ")
    assert "greedy" not in text
    (tmp_path / "prompts").write_text("once upon a time\n" * 20)
    options = ["--checkpoint", tmp_path / "from", "--prompts", tmp_path / "prompts"]
    facts = json.loads(quietly("verify", tmp_path / "to", *options, "--json"))
    assert facts["passed"] is True
    assert facts["notes"] == ["of 20 prompts the first 16 were read"]
    replayed = quietly("verify", tmp_path / "to")
    assert replayed.startswith("ok  known answers")
    assert "greedy" not in replayed


def test_verify_says_what_differs(talking, talking_bundle, monkeypatch):
    """A looser bundle than the reference allows: exit code 1, and the lowest red rung is named."""
    from llama_export.parity import tolerances
    from llama_export.parity.tolerances import TOLERANCES, Tolerance

    nothing = {"logits": Tolerance(-1.0, "nothing is good enough", 0.0)}
    table = {key: column | nothing for key, column in TOLERANCES.items()}
    monkeypatch.setattr(tolerances, "TOLERANCES", table)
    text = quietly("verify", talking_bundle, "--checkpoint", talking, code=1)
    assert next(line for line in text.splitlines() if not line.startswith("ok ")).startswith("RED prefill")
    assert "differs: prefill: measured" in text
    assert "blame: fed directly, with every intermediate tensor exposed, the graph computes what" in text
    assert text.count("not measured") >= 4
    facts = json.loads(quietly("verify", talking_bundle, "--checkpoint", talking, "--json", code=1))
    assert facts["passed"] is False
    assert facts["rungs"][-1]["measured"] is None


def test_verify_without_the_checkpoint_says_so(talking_bundle):
    text = quietly("verify", talking_bundle)
    assert text.startswith("ok  known answers")
    assert "note: no checkpoint was named: hashes and known answers alone were checked" in text
    assert "as at export" in text
    facts = json.loads(quietly("verify", talking_bundle, "--json"))
    assert facts["passed"] is True
    assert facts["reference"] is None


def test_verify_quick_leaves_rungs_out_and_says_which(talking, talking_bundle):
    facts = json.loads(quietly("verify", talking_bundle, "--checkpoint", talking, "--quick", "--json"))
    assert facts["passed"] is True
    left_out = [rung["name"] for rung in facts["rungs"] if rung["detail"] == "left out by --quick"]
    assert left_out == ["left-padded batch", "right-padded batch", "whole context"]


def test_verify_another_checkpoint_only_with_force(talking, talking_bundle, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(talking, other)
    file = other / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    result = CliRunner().invoke(main, ["verify", str(talking_bundle), "--checkpoint", str(other)])
    assert result.exit_code == 2
    assert "model.safetensors: is not a file that" in result.stderr
    assert "--force" in result.stderr
    text = quietly("verify", talking_bundle, "--checkpoint", other, "--force", code=1)
    assert text.startswith("RED weights")
    assert "compared because of --force" in text


@pytest.mark.parametrize("name", ["reports", "one.json", "one.html"])
def test_verify_writes_a_report(talking, talking_bundle, tmp_path, name):
    target = tmp_path / name
    quietly("verify", talking_bundle, "--checkpoint", talking, "--report", target)
    files = [target] if target.is_file() else sorted(target.iterdir())
    assert [f.name for f in files] == ([name] if "." in name else ["parity.html", "parity.json"])
    for file in files:
        text = file.read_text()
        if file.suffix == ".json":
            facts = json.loads(text)
            assert facts["version"] == 1
            assert facts["passed"] is True
            assert {"layers", "positions", "tokens", "logits", "tensors"} == set(facts["plots"])
            documented = (REPO / "exporter/llama_export/parity/REPORT.md").read_text()
            fields = {
                *facts,
                *facts["rungs"][0],
                *facts["plots"]["layers"][0],
                *facts["plots"]["tokens"][0][0],
            }
            assert all(f"{field}`" in documented for field in fields)
            assert all(len(facts["plots"][plot]) > 0 for plot in ("layers", "positions", "tokens", "logits"))
        else:
            assert text.count("<svg") == 4
            assert "http" not in text
            assert "src=" not in text


def test_verify_refuses_a_report_of_another_kind(talking, talking_bundle, tmp_path):
    arguments = ["verify", str(talking_bundle), "--report", str(tmp_path / "report.pdf")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "report.pdf: a report ends in .json or .html, or is a folder" in result.stderr
    assert list(tmp_path.iterdir()) == []


# inspect


def test_inspect_a_checkpoint(talking):
    text = quietly("inspect", talking)
    assert "2 layers, hidden 42, 6 heads over 2 kv heads of 16" in text
    assert f"supported   yes: llama-export onnx {talking}" in text
    facts = json.loads(quietly("inspect", talking, "--json"))
    assert facts["kind"] == "checkpoint"
    assert facts["supported"] is True
    assert facts["tensors"]["model.norm.weight"] == ["bfloat16", 42]
    assert facts["config"]["vocab_size"] == 323


def test_inspect_what_is_not_supported(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"sliding_window": 4096}))
    text = quietly("inspect", checkpoint)
    assert "supported   no: config.json: sliding_window is 4096" in text
    facts = json.loads(quietly("inspect", checkpoint, "--json"))
    assert facts["supported"] is False
    assert "sliding_window" in facts["reason"]


def test_inspect_a_bundle(talking_bundle):
    text = quietly("inspect", talking_bundle)
    assert "parity      verified, 2 known answers" in text
    assert "onnx/model.onnx_data" in text
    facts = json.loads(quietly("inspect", talking_bundle, "--json"))
    assert (facts["kind"], facts["attention"], facts["precision"]) == ("bundle", "flash", "bfloat16")


# run


def test_run_continues_the_prompt(talking_bundle):
    expected = llama_runtime.generate(talking_bundle, PROMPT, max_new_tokens=8)
    assert quietly("run", talking_bundle, PROMPT, "-n", "8") == expected + "\n"


@pytest.mark.parametrize("stdin", [PROMPT, PROMPT + "\n"])
def test_run_reads_stdin(talking_bundle, stdin):
    expected = quietly("run", talking_bundle, PROMPT, "-n", "8")
    assert quietly("run", talking_bundle, "-n", "8", stdin=stdin) == expected


def test_only_one_line_break_is_dropped(talking_bundle):
    facts = [
        json.loads(quietly("run", talking_bundle, "-n", "1", "--json", stdin=stdin))
        for stdin in (PROMPT, PROMPT + "\n\n")
    ]
    assert facts[0]["prompt_tokens"] != facts[1]["prompt_tokens"]


def test_run_json(talking_bundle):
    facts = json.loads(quietly("run", talking_bundle, PROMPT, "-n", "8", "--json"))
    assert facts["text"] + "\n" == quietly("run", talking_bundle, PROMPT, "-n", "8")
    assert len(facts["tokens"]) == 8
    assert facts["prompt_tokens"][0] == 1
    assert facts["finish_reason"] == "length"
    assert facts["prefill_ms"] > 0
    assert facts["decode_tokens_per_s"] > 0


def test_a_seed_repeats_a_drawn_text(talking_bundle):
    drawn = ["run", talking_bundle, PROMPT, "-n", "12", "--temperature", "1.5"]
    first = quietly(*drawn, "--seed", "0")
    assert quietly(*drawn, "--seed", "0") == first
    assert quietly(*drawn, "--seed", "8") != first
    # Without one, the seed that was chosen is told, and repeats the text too.
    facts = json.loads(quietly(*drawn, "--json"))
    assert quietly(*drawn, "--seed", facts["seed"]) == facts["text"] + "\n"


def test_stop_strings(talking_bundle):
    whole = quietly("run", talking_bundle, PROMPT, "-n", "16").removesuffix("\n")
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    stopped = quietly("run", talking_bundle, PROMPT, "-n", "16", "--stop", "never there", "--stop", middle)
    assert stopped == whole[: whole.index(middle)] + "\n"


def test_threads_do_not_change_the_text(talking_bundle):
    texts = {quietly("run", talking_bundle, PROMPT, "-n", "8", "--threads", n) for n in (1, 2)}
    assert len(texts) == 1


# selftest


@pytest.fixture
def bundle(talking_bundle, tmp_path):
    return shutil.copytree(talking_bundle, tmp_path / "bundle")


def test_selftest(talking_bundle):
    text = quietly("selftest", talking_bundle)
    assert text.startswith("ok: 2 known answers, 128 tokens, logits within ")
    facts = json.loads(quietly("selftest", talking_bundle, "--json"))
    assert facts["ok"] is True
    assert facts["differences"] == []


def test_selftest_says_what_differs(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    answer = manifest["known_answers"][0]
    answer["near_ties"] = []
    answer["tokens"][3] = (answer["tokens"][3] + 1) % 323
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    result = succeed("selftest", bundle, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: the known answers differ: answer 0 at token 3: token is ")
    facts = json.loads(quietly("selftest", bundle, "--json", code=1))
    assert facts["ok"] is False
    assert facts["differences"][0].startswith("answer 0 at token 3: token is ")


def test_selftest_without_known_answers(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"known_answers": []}))
    result = succeed("selftest", bundle, code=2)
    assert "has no known answers" in result.stderr


# As a process


def process(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "llama_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=300, check=False, **options)


def test_a_whole_export_as_a_process_is_quiet_where_there_is_no_terminal(tmp_path):
    """The one place where graph, libraries and warnings are what a person has: nothing is cached."""
    checkpoint = write_talking_checkpoint(tmp_path / "fox")
    done = process("onnx", checkpoint, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.startswith(b"bundle ")
    assert process("selftest", tmp_path / "out").stderr == b""
    spoken = process("run", tmp_path / "out", "-n", "4", input=PROMPT.encode())
    assert (spoken.returncode, spoken.stderr) == (0, b"")


def wait_for(found, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert child.poll() is None, "the export ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What a killed process had already done: the folder was made, or everything was but the verification.
MOMENTS = {
    "early": lambda parent: any(parent.glob(".out.staging-*")),
    "late": lambda parent: any(parent.glob(".out.staging-*/manifest.json")),
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "late"),
        (signal.SIGKILL, "early"),
        (signal.SIGTERM, "early"),
        (signal.SIGINT, "early"),
    ],
)
def test_a_killed_export_leaves_nothing_that_loads(quick_graphs, talking, tmp_path, number, moment):
    # A new process group, so that an interrupt is the child's alone.
    command = [sys.executable, "-m", "llama_export", "onnx", str(talking), str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, process_group=0) as child:
        wait_for(lambda: MOMENTS[moment](tmp_path), child)
        os.kill(child.pid, number)
        _, stderr = child.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGKILL:
        # Nobody can clean up: a hidden folder stays, under no name that a person would load.
        assert all(path.name.startswith(".out.staging-") for path in tmp_path.iterdir())
    else:
        assert list(tmp_path.iterdir()) == []
        assert stderr == {signal.SIGTERM: b"", signal.SIGINT: b"interrupted\n"}[number]
        assert child.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    # The next export to the same place works, and cleans up after the dead.
    quietly("onnx", talking, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reader_that_goes_away_is_no_error(talking_bundle):
    command = [sys.executable, "-m", "llama_export", "inspect", str(talking_bundle), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        stderr = child.stderr.read()
    assert stderr == b""


def test_progress_is_for_terminals(talking, talking_bundle, tmp_path):
    """With a terminal on stderr there is progress on it, and stdout is the same."""
    import pty

    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "llama_export",
        "verify",
        str(talking_bundle),
        "--checkpoint",
        str(talking),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
        stdout = child.stdout.read()
    os.close(ours)
    assert child.returncode == 0
    assert b"hashes" in shown
    assert stdout.startswith(b"ok ")
    assert b"\x1b" not in stdout


# bench


def test_bench(talking_bundle, tmp_path):
    counts = ["--prompt-tokens", 4, "--new-tokens", 5, "--prefill-tokens", 8, "--repeats", 1, "--threads", 1]
    text = quietly("bench", talking_bundle, *counts, "--profile", "--plot", tmp_path / "tokens.svg")
    assert [line.split()[0] for line in text.splitlines()][:5] == [
        *("bundle", "start", "prefill", "decode", "bandwidth"),
    ]
    assert "GroupQueryAttention" in text
    plot = ElementTree.parse(tmp_path / "tokens.svg").getroot()
    (line,) = plot.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == 5


def test_bench_json(talking_bundle):
    counts = ["--prompt-tokens", 4, "--new-tokens", 5, "--prefill-tokens", 8, "--repeats", 1]
    facts = json.loads(quietly("bench", talking_bundle, *counts, "--json"))
    assert facts["new_tokens"] == 5 and facts["decode_ms"]["median"] > 0
    assert facts["step_bytes"] > 0 and facts["bandwidth_share"] > 0


def test_bench_of_a_plot_that_cannot_be_written(talking_bundle, tmp_path):
    counts = ["--prompt-tokens", 4, "--new-tokens", 5, "--prefill-tokens", 8, "--repeats", 1]
    result = succeed("bench", talking_bundle, *counts, "--plot", tmp_path / "no/such/plot.svg", code=2)
    assert "cannot be written" in result.stderr
