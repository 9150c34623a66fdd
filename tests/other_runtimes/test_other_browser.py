"""The default export in headless Chromium: with transformers.js, and in our page, which a person can use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from asking import HERE, asked
from serving import page_of, transformers_js_page

import llama_runtime

pytestmark = pytest.mark.long
WORKER = HERE / "workers" / "browser.mjs"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture
def drive(node, chromium, web_page):
    """Run a scenario of ``browser.mjs``."""

    def run(scenario: str, url: str, **question: Any) -> Any:
        return asked([node, WORKER], question | {"scenario": scenario, "url": url, "chromium": chromium})

    return run


def test_transformers_js(drive, ours, bundle: Path):
    with transformers_js_page(bundle) as url:
        answer = drive("transformers", f"{url}/transformers.html", **ours.question, name=bundle.name)
    assert answer["greedy"] == ours.greedy
    assert answer["origins"] == [url]


def sampled(ours, prompt: str, **options: Any) -> str:
    return ours.generator.generate(prompt, llama_runtime.SamplingOptions(**options)).text


@pytest.mark.parametrize("window", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_writes_what_we_write(drive, ours, bundle: Path, window, scheme, tmp_path: Path):
    """Greedy and drawn: the same seed gives the same text as in Python."""
    greedy = {"temperature": 0, "max-new-tokens": 40}
    drawn = {"temperature": 0.8, "top-p": 0.9, "top-k": 50, "max-new-tokens": 60, "seed": str(2**63 + 11)}
    prompts = ["Once", "Grüße 🦙, <s> and <|eot_id|>"]
    requests = [
        {"prompt": prompt, "settings": settings} for prompt in prompts for settings in (greedy, drawn)
    ]
    shot = tmp_path / "page.png"
    with page_of(bundle) as url:
        answer = drive("page", url, requests=requests, scheme=scheme, screenshot=str(shot), **window)
    expected = [
        text
        for prompt in prompts
        for text in (
            sampled(ours, prompt, max_new_tokens=40),
            sampled(ours, prompt, temperature=0.8, top_p=0.9, top_k=50, max_new_tokens=60, seed=2**63 + 11),
        )
    ]
    assert [each["text"] for each in answer["answers"]] == expected
    assert [each["prompt"] for each in answer["answers"]] == [request["prompt"] for request in requests]
    assert answer["errors"] == []
    assert answer["origins"] == [url]
    assert answer["isolated"]
    assert answer["name"] == bundle.name
    # On a phone's width nothing is cut off, and a finger hits every button.
    assert answer["overflow"] <= 0
    assert answer["smallest"] >= 44
    for each in answer["answers"]:
        assert each["alert"] is None
        assert each["states"] > 5, "the text did not come piece by piece"
        speed = re.search(r"(\d+\.\d) tokens/s", each["figures"])
        assert speed is not None and float(speed[1]) > 0
    assert "seed 9223372036854775819" in answer["answers"][1]["figures"]
    assert shot.stat().st_size > 5000


def test_device_check(drive, bundle: Path):
    with page_of(bundle) as url:
        answer = drive("check", url)
    assert answer["alert"] is None
    assert answer["text"].startswith("This device computes what the reference computed: 2 known answers, 128")


def test_a_wrong_answer_is_seen(drive, bundles, tmp_path: Path):
    broken = copy_of(bundles["demo"], tmp_path)
    edit_manifest(broken, lambda manifest: manifest["known_answers"][0]["tokens"].__setitem__(3, 5))
    with page_of(broken) as url:
        message, _hint = drive("check", url)["alert"]
    assert message.startswith("the known answers differ: known answer 0, position 3: token ")


def test_stop(drive, bundles):
    request = {"prompt": "Once", "settings": {"temperature": 1, "max-new-tokens": 500, "seed": 3}}
    with page_of(bundles["demo"]) as url:
        answer = drive("stop", url, requests=[request])
    assert answer["stopped"]["figures"].endswith("; stopped; seed 3")
    assert answer["again"]["text"].startswith(answer["stopped"]["text"])
    assert len(answer["again"]["text"]) > len(answer["stopped"]["text"])


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        ("Once", {"max-new-tokens": 600}, "2 tokens of prompt and 600 new ones are 602, the model has 512"),
        ("Once", {"temperature": -1}, "temperature is -1, needs a number of at least 0"),
        ("Once", {"top-p": 2}, "top-p is 2, needs more than 0 and at most 1"),
        ("Once", {"seed": "1e3"}, "seed is 1e3, needs 0 to 2^64 - 1"),
    ],
)
def test_page_refuses_options(drive, bundles, prompt, settings, said):
    request = {"prompt": prompt, "settings": settings}
    with page_of(bundles["demo"]) as url:
        answer = drive("page", url, requests=[request])["answers"][0]
    assert answer["alert"][0].startswith(said)
    assert answer["text"] == ""


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / bundle.name))


def edit_manifest(bundle: Path, change: Any) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def enlarge(manifest: dict[str, Any]) -> None:
    for entry in manifest["files"]:
        if entry["path"].endswith("_data"):
            entry["size_bytes"] = 2**50


FAULTS = {
    "missing": (
        lambda bundle: (bundle / "onnx/model.onnx_data").unlink(),
        "onnx/model.onnx_data: missing from",
    ),
    "shorter": (
        lambda bundle: (bundle / "onnx/model.onnx").write_bytes(b"abc"),
        "onnx/model.onnx: has 3 bytes",
    ),
    "tampered": (
        lambda bundle: flip(bundle / "onnx/model.onnx_data"),
        "onnx/model.onnx_data: its SHA-256 is",
    ),
    "newer": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(version=7)),
        "manifest.json: the bundle has format version 7, this page reads up to 1",
    ),
    "task": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(task="classify")),
        'manifest.json: the bundle\'s task is "classify"',
    ),
    "field": (
        lambda bundle: edit_manifest(bundle, lambda manifest: manifest["cache"].update(head_dim="32")),
        'manifest.json: cache.head_dim is "32", needs integer',
    ),
    "memory": (lambda bundle: edit_manifest(bundle, enlarge), "not enough memory for this bundle"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_page_says_what_is_wrong_with_a_bundle(drive, bundles, tmp_path: Path, fault, capsys):
    broken = copy_of(bundles["demo"], tmp_path)
    change, said = FAULTS[fault]
    change(broken)
    with page_of(broken) as url:
        answer = drive("failure", url)
    assert answer["message"].startswith(said)
    assert answer["hint"] or fault == "task"
    assert answer["disabled"] and not answer["loading"] and answer["errors"] == []


def test_page_without_webassembly(drive, bundles):
    with page_of(bundles["demo"]) as url:
        answer = drive("failure", url, without="WebAssembly")
    assert answer["message"] == "this browser has no WebAssembly, the model cannot run"
    assert answer["disabled"]


def test_page_without_its_bundle(drive, bundles):
    with page_of(bundles["demo"]) as url:
        answer = drive("failure", f"{url}/index.html?bundle=nowhere")
    assert answer["message"].startswith(f"no bundle at {url}/nowhere/")
    assert "serve.py" in answer["hint"]
