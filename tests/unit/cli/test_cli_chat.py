"""`llama-export run` as a chat, line by line and as a batch: through pipes, and in a terminal of its own."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time

import pytest
from chat_templates import LLAMA2
from click.testing import CliRunner

import llama_runtime
from llama_export.cli import batch_file, main
from llama_export.cli.generation import shown
from llama_runtime import Conversation, SamplingOptions

CHAT = ["--chat", "-n", "6", "--ignore-eos"]
OPTIONS = SamplingOptions(max_new_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def bundle(talking_bundle, tmp_path_factory):
    """The talking bundle with a template that has turns, and one that refuses."""
    folder = shutil.copytree(talking_bundle, tmp_path_factory.mktemp("chat") / "fox")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["chat_template"]["sources"] = {"default": LLAMA2, "stern": "{{ raise_exception('never') }}"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def model(bundle):
    return llama_runtime.load(bundle)


def invoke(*arguments, stdin=None, code=0):
    result = CliRunner().invoke(main, ["run", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def refused(*arguments, stdin=None):
    result = invoke(*arguments, stdin=stdin, code=2)
    assert result.stdout == ""
    error, *hint = result.stderr.splitlines()
    assert error.startswith("error: ") and len(hint) <= 1 and all(line.startswith("hint: ") for line in hint)
    return error


# One answer


def test_one_message_gets_one_answer(bundle, model):
    expected = model.chat(
        [{"role": "system", "content": "hm"}, {"role": "user", "content": "the sea"}], OPTIONS
    )
    assert invoke(bundle, "the sea", *CHAT, "--system", "hm").stdout == expected.text + "\n"
    facts = json.loads(invoke(bundle, *CHAT, "--system", "hm", "--json", stdin="the sea\n").stdout)
    assert facts["prompt_tokens"] == list(expected.prompt_tokens)


def test_a_session_goes_on(bundle, model, tmp_path):
    file = tmp_path / "chat"
    first = invoke(bundle, "the sea", *CHAT, "--session", file).stdout
    facts = json.loads(invoke(bundle, "and salt", *CHAT, "--session", file, "--json").stdout)
    chat = Conversation(model)
    assert chat.send("the sea", OPTIONS).text + "\n" == first
    assert facts["prompt_tokens"] == list(chat.send("and salt", OPTIONS).prompt_tokens)
    chat.restore(file)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_tools_and_named_templates(bundle, tmp_path):
    (tmp_path / "tools").write_text('[{"name": "f"}]')
    assert invoke(bundle, "the sea", *CHAT, "--tools", tmp_path / "tools").stdout
    assert "refuses the messages: never" in refused(bundle, "x", *CHAT, "--template", "stern")
    assert "no chat template 'rag'" in refused(bundle, "x", *CHAT, "--template", "rag")
    (tmp_path / "tools").write_text("[")
    assert "tools: not JSON" in refused(bundle, "x", *CHAT, "--tools", tmp_path / "tools")


def test_overflow(bundle):
    lines = "the small red fox by the sea\n" * 8
    result = invoke(bundle, *CHAT, stdin=lines)
    assert "error: the chat is " in result.stderr and "the model has 160 positions" in result.stderr
    assert invoke(bundle, *CHAT, "--overflow", "drop-oldest", stdin=lines).stderr == ""


# Turn by turn through a pipe


def test_turns_and_commands_through_a_pipe(bundle, model, tmp_path):
    file = tmp_path / "a file"
    stdin = f"the sea\n/save '{file}'\nand\\\nsalt\n/load '{file}'\n/retry\n/nope\n\n"
    stdin += "/system hm\nfox\n/exit\nnever\n"
    result = invoke(bundle, *CHAT, stdin=stdin)
    chat, answers = Conversation(model), []
    answers.append(chat.send("the sea", OPTIONS).text)
    answers.append(chat.send("and\nsalt", OPTIONS).text)
    answers.append(answers[0])
    chat.messages = [{"role": "system", "content": "hm"}]
    answers.append(chat.send("fox", OPTIONS).text)
    assert result.stdout == "".join(f"{answer}\n" for answer in answers)
    assert result.stderr == "no such command: /nope; /help lists them\n"


def test_errors_do_not_end_the_chat(bundle, tmp_path):
    stdin = f"\udcff\n/load {tmp_path}/absent\n/save\n/retry\nfox\n/reset\n/help\n".encode(
        errors="surrogateescape"
    )
    result = invoke(bundle, *CHAT, stdin=stdin)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "not valid UTF-8" in errors[0] and "cannot be read" in errors[1] and "/save has ''" in errors[2]
    assert len(errors) == 3 and "nothing has been said yet" in result.stderr and "/exit" in result.stderr
    assert result.stdout.count("\n") >= 1


# Lines


def test_lines_in_lines_out(bundle, model):
    options = ["--stdin", "-n", "6", "--ignore-eos"]
    prompts = ["the sea", "the fox", ""]
    texts = [model.generate(prompt, OPTIONS).text for prompt in prompts]
    assert invoke(bundle, *options, stdin="\n".join(prompts) + "\n").stdout == "".join(
        f"{t}\n" for t in texts
    )
    lines = invoke(bundle, *options, "--json", stdin="the sea\r\nthe fox").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts[:2]


def test_lines_are_turns_of_a_chat(bundle, model):
    chat = Conversation(model)
    answers = [chat.send(text, OPTIONS).text for text in ("the sea", "and salt")]
    assert invoke(bundle, *CHAT, "--stdin", stdin="the sea\nand salt\n").stdout.splitlines() == answers


def test_a_bad_line_is_reported_and_the_rest_goes_on(bundle):
    long = "the sea " * 200
    stdin = f"the sea\n\udcff\n{long}\nthe fox\n".encode(errors="surrogateescape")
    result = invoke(bundle, "--stdin", "-n", "4", stdin=stdin, code=2)
    assert [bool(line) for line in result.stdout.split("\n")[:-1]] == [True, False, False, True]
    assert re.findall(r"error: line (\d): ", result.stderr) == ["2", "3"]
    result = invoke(bundle, "--stdin", "-n", "4", "--json", stdin=stdin, code=2)
    assert ["error" in json.loads(line) for line in result.stdout.splitlines()] == [False, True, True, False]


# Batches


BATCH = [
    {"prompt": "the sea"},
    {"messages": [{"role": "user", "content": "the fox"}], "id": "b"},
    {"prompt": "the sea", "options": {"max_new_tokens": 3, "stop": ["never"]}, "id": 7},
    {"prompt": [1, 5, 9]},
]


@pytest.fixture
def batch(tmp_path):
    (tmp_path / "in").write_text("\n".join(json.dumps(record) for record in BATCH) + "\n\n")
    return [*CHAT[1:], "--batch", tmp_path / "in", "--output", tmp_path / "out"]


TIMES = {"prefill_ms": 0, "decode_tokens_per_s": 0, "seed": 0}


def answers(folder):
    return [json.loads(line) for line in (folder / "out").read_text(encoding="utf-8").splitlines()]


def test_a_batch(bundle, model, batch, tmp_path):
    result = invoke(bundle, *batch, "--json")
    assert json.loads(result.stdout)["answered"] == 4
    found = answers(tmp_path)
    assert [record["line"] for record in found] == [1, 2, 3, 4]
    assert [record.get("id") for record in found] == [None, "b", 7, None]
    assert found[0]["text"] == model.generate("the sea", OPTIONS).text
    assert found[1]["text"] == model.chat(BATCH[1]["messages"], OPTIONS).text
    assert found[2]["tokens"] == found[0]["tokens"][:3]
    assert found[3]["prompt_tokens"] == [1, 5, 9]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_side_by_side_answer_as_one_by_one(bundle, model, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(batch_file, "LOT", 5)
    prompts = ["the sea", "the", "the fox and the sea", "once", "a", "the moon", "and then"]
    options = [{"max_new_tokens": 1 + 5 * i % 17, "num_beams": 1 + (i == 3)} for i in range(len(prompts))]
    records = [{"prompt": p, "options": o} for p, o in zip(prompts, options, strict=True)]
    (tmp_path / "in").write_text("\n".join(map(json.dumps, records)))
    invoke(bundle, "--batch", tmp_path / "in", "--output", tmp_path / "out", "--rows", str(rows))
    for found, prompt, option in zip(answers(tmp_path), prompts, options, strict=True):
        alone = model.generate(prompt, SamplingOptions(**option))
        assert (found["tokens"], found["text"]) == (list(alone.tokens), alone.text)


@pytest.mark.parametrize("kept", range(4))
def test_a_batch_goes_on_where_it_broke_off(bundle, batch, tmp_path, kept):
    invoke(bundle, *batch)
    whole = (tmp_path / "out").read_bytes()
    timeless = [
        record | {"prefill_ms": 0, "decode_tokens_per_s": 0, "seed": 0} for record in answers(tmp_path)
    ]
    lines = whole.splitlines(keepends=True)
    (tmp_path / "out").write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    result = invoke(bundle, *batch)
    assert f"{4 - kept} lines answered" in result.stderr
    assert [record | TIMES for record in answers(tmp_path)] == timeless
    assert (tmp_path / "out").read_bytes().startswith(b"".join(lines[:kept]))
    assert "0 lines answered" in invoke(bundle, *batch).stderr


BAD_LINES = {
    b"{": "not JSON",
    b"\xff": "not UTF-8",
    b"[]": 'needs an object with "prompt" or "messages"',
    b"{}": 'needs an object with "prompt" or "messages"',
    b'{"prompt": "x", "messages": []}': 'needs an object with "prompt" or "messages"',
    b'{"prompt": 3}': "needs text or token ids",
    b'{"prompt": "x", "colour": 1}': "the line has colour",
    b'{"prompt": "x", "options": {"top_z": 1}}': "top_z",
    b'{"prompt": "x", "options": {"top_p": 7}}': "top_p is 7",
    b'{"prompt": "x", "options": {"top_p": "a"}}': "options",
    b'{"messages": "x"}': "needs a list of objects",
    b'{"prompt": [1, 99999]}': "the prompt has token 99999",
    b'{"prompt": "\\ud800"}': "not valid UTF-8",
}


def test_a_bad_line_is_reported_in_its_place(bundle, tmp_path):
    lines = [b'{"prompt": "the sea"}', *BAD_LINES, b'{"prompt": "the fox"}']
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    result = invoke(bundle, "-n", "3", "--batch", tmp_path / "in", "--output", tmp_path / "out", code=2)
    assert f"{len(lines)} lines answered, {len(BAD_LINES)} of them refused" in result.stderr
    first, *bad, last = answers(tmp_path)
    assert "text" in first and "text" in last
    for record, message in zip(bad, BAD_LINES.values(), strict=True):
        assert message in record["error"] and record["error"].isprintable()


def test_a_batch_of_another_input_is_refused(bundle, batch, tmp_path):
    invoke(bundle, *batch)
    before = (tmp_path / "out").read_bytes()
    (tmp_path / "in").write_text('{"prompt": "other"}\n')
    assert "answers another input" in refused(bundle, *batch)
    assert (tmp_path / "out").read_bytes() == before
    (tmp_path / "out").write_text("my diary\n")
    assert "is no answer of a batch" in refused(bundle, *batch)
    assert (tmp_path / "out").read_text() == "my diary\n"
    assert "cannot be read" in refused(bundle, "--batch", tmp_path / "absent", "--output", tmp_path / "new")
    assert "cannot be written" in refused(bundle, "--batch", tmp_path / "in", "--output", tmp_path / "no/out")


# What does not go together, and every option


MODES = {
    "batch alone": (["--batch", "x"], "--batch and --output"),
    "two sources": (["prompt", "--stdin"], "PROMPT and --stdin are given"),
    "chat batch": (["--chat", "--batch", "x", "--output", "y"], "--batch with --chat"),
    "no chat": (["prompt", "--system", "x"], "are for --chat"),
    "bias": (["prompt", "--logit-bias", "x"], "--logit-bias is 'x', needs TOKEN=BIAS"),
    "schema": (["prompt", "--json-schema", "absent.json"], "absent.json: cannot be read"),
    "beams": (["prompt", "--chat", "--num-beams", "2"], "a chat has one answer"),
    "range": (["prompt", "--min-p", "2"], "min_p is 2"),
}


@pytest.mark.parametrize(("arguments", "message"), MODES.values(), ids=MODES)
def test_what_does_not_go_together_is_refused(bundle, arguments, message):
    assert message in refused(bundle, *arguments)


def test_every_sampling_option_is_an_option():
    flags = {parameter.name for parameter in main.commands["run"].params}
    assert set(SamplingOptions.__dataclass_fields__) <= flags


def test_options_reach_the_sampler(bundle, model):
    arguments = ["--temperature", "0.9", "--top-k", "9", "--top-p", "0.9", "--min-p", "0.01", "--seed", "5"]
    arguments += ["--repetition-penalty", "1.3", "--presence-penalty", "0.2", "--frequency-penalty", "0.1"]
    arguments += [
        "--no-repeat-ngram-size",
        "2",
        "--min-new-tokens",
        "3",
        "--logit-bias",
        "9=-inf",
        "--logprobs",
        "2",
    ]
    options = SamplingOptions(
        temperature=0.9, top_k=9, top_p=0.9, min_p=0.01, seed=5, repetition_penalty=1.3,
        presence_penalty=0.2, frequency_penalty=0.1, no_repeat_ngram_size=2, min_new_tokens=3,
        logit_bias={9: -float("inf")}, logprobs=2, max_new_tokens=9,
    )  # fmt: skip
    facts = json.loads(invoke(bundle, "the sea", "-n", "9", *arguments, "--json").stdout)
    done = model.generate("the sea", options)
    assert facts["tokens"] == list(done.tokens)
    assert [step["logprob"] for step in facts["logprobs"]] == [step.logprob for step in done.logprobs]
    beams = [
        "--num-beams",
        "3",
        "--num-return-sequences",
        "2",
        "--length-penalty",
        "0.5",
        "--early-stopping",
        "never",
    ]
    options = SamplingOptions(
        num_beams=3, num_return_sequences=2, length_penalty=0.5, early_stopping="never", max_new_tokens=6
    )
    found = json.loads(invoke(bundle, "the sea", "-n", "6", *beams, "--json").stdout)
    expected = model.generate_sequences("the sea", options)
    assert [sequence["tokens"] for sequence in found] == [list(done.tokens) for done in expected]
    assert invoke(bundle, "the sea", "-n", "6", *beams).stdout == "\n\n".join(d.text for d in expected) + "\n"
    full = invoke(bundle, "the sea", "-n", "4", "--return-full-text").stdout
    assert full.startswith("the sea")


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMA = {"type": "object", "properties": {"n": DIGIT}, "required": ["n"], "additionalProperties": False}


def test_what_is_said_conforms_to_a_schema_a_regex_or_a_grammar(bundle, tmp_path):
    (tmp_path / "schema").write_text(json.dumps(SCHEMA))
    (tmp_path / "grammar").write_text('start: ("ab" | "cd") "!"')
    found = json.loads(invoke(bundle, "the sea", "--json-schema", tmp_path / "schema").stdout)
    assert set(found) == {"n"} and 0 <= found["n"] <= 9
    assert re.fullmatch(r"[xyz]{3}\n", invoke(bundle, "the sea", "--regex", "[xyz]{3}").stdout)
    assert invoke(bundle, "the sea", "--grammar", tmp_path / "grammar").stdout in ("ab!\n", "cd!\n")


@pytest.mark.parametrize(
    ("flag", "content"),
    [("--json-schema", '{"type": "colour"}'), ("--json-schema", "{"), ("--grammar", "start: nothing")],
)
def test_what_cannot_be_conformed_to_is_refused(bundle, tmp_path, flag, content):
    (tmp_path / "rules").write_text(content)
    assert "error: " in refused(bundle, "the sea", flag, tmp_path / "rules")
    assert "error: regex" in refused(bundle, "the sea", "--regex", "[")


# In a terminal


class Terminal:
    """A child with a terminal of its own."""

    def __init__(self, folder, *arguments):
        import pty

        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "llama_export", "run", *map(str, arguments)]
        environment = os.environ | {"XDG_STATE_HOME": str(folder), "TERM": "dumb"}
        # A session whose terminal this is, so that Ctrl-C is a signal to the child.
        self.child = subprocess.Popen(
            [sys.executable, "-c", SESSION, *command],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def until(self, text, again=""):
        """Read up to a text; where nothing comes for a while, ``again`` is typed once more."""
        deadline = time.monotonic() + 120
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if not select.select([self._ours], [], [], 5)[0]:
                self.type(again)
            else:
                try:
                    self.shown += os.read(self._ours, 4096).decode(errors="replace")
                except OSError:
                    assert text in self.shown, self.shown
        seen, _, self.shown = self.shown.partition(text)
        return seen

    def type(self, keys):
        os.write(self._ours, keys.encode())

    def close(self):
        assert self.child.wait(60) == 0
        os.close(self._ours)


SESSION = """
import fcntl, os, signal, sys, termios
# What runs the tests in the background of a shell has interrupts ignored, and a child inherits that.
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_terminal(bundle, tmp_path):
    """Ctrl-C ends an answer, not the program; at the prompt it clears the line; the history stays."""
    # As long as the model allows: it has to be interrupted.
    terminal = Terminal(tmp_path, bundle, "--chat", "-n", "100", "--ignore-eos", "--overflow", "drop-oldest")
    terminal.until("/help says what else there is")
    terminal.until("> ")
    terminal.type("not this\x03")
    # Python may sleep over an interrupt that comes just before it waits for a key; the next one wakes it.
    terminal.until("> ", again="\x03")
    terminal.type("fox\r")
    terminal.until("cut off after 100 tokens")
    terminal.until("> ")
    terminal.type("\x1b[A\x01red \r" if has_readline() else "red fox\r")
    terminal.until("cut off after 100 tokens")
    terminal.until("> ")
    terminal.type("/exit\r")
    terminal.close()
    if has_readline():
        history = (tmp_path / "llama-export/chat_history").read_text()
        assert "fox\nred fox\n/exit\n" in history and "not this" not in history


def has_readline() -> bool:
    try:
        import readline  # noqa: F401
    except ImportError:
        return False
    return True


def test_an_interrupt_ends_the_answer_and_not_the_chat(bundle, model, monkeypatch, capsys):
    from llama_export.cli import chat as terminal

    chat = Conversation(model)
    talk = terminal.Terminal(chat, OPTIONS)
    calls, decode = 0, model.session.decode

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(model.session, "decode", interrupted)
    talk.answer("the sea")
    said = capsys.readouterr().out
    assert said == chat.messages[-1]["content"] + "\n"
    assert chat.messages[-1]["role"] == "assistant"
    talk.answer("and salt")
    assert len(chat.messages) == 4


def test_a_terminal_is_shown_no_control_characters(monkeypatch):
    assert shown("a\x1b[2J\x07é\n") == "a\x1b[2J\x07é\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert shown("a\x1b[2J\x07\x9b\té\n") == "a␛[2J␇\ufffd\té\n"
