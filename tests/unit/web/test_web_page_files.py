"""The page needs no build step and no other machine: what its files name is there, under its own address."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[3] / "runtime/web"
OWN = sorted(path for path in WEB.iterdir() if path.suffix in (".js", ".html", ".css"))
IMPORT = re.compile(r"""(?:from|import)\s+["']([^"']+)["']|new URL\(["']([^"']+)["'], import\.meta\.url\)""")
TAG = re.compile(r"""(?:src|href)="([^"]+)\"""")


def named(path: Path) -> str:
    return path.name


def test_the_pages_files_are_there():
    assert {path.name for path in OWN} >= {"index.html", "style.css", "page.js", "worker.js", "session.js"}


@pytest.mark.parametrize("path", OWN, ids=named)
def test_what_a_file_names_is_there(path):
    """Files of ours beside it, packages in package.json; nothing bare, which only a build step could find."""
    packages = json.loads((WEB / "package.json").read_text())["dependencies"]
    text = path.read_text(encoding="utf-8")
    for name in [first or second for first, second in IMPORT.findall(text)] + TAG.findall(text):
        if name.startswith("data:"):
            continue
        package = re.match(r"\./node_modules/((?:@[^/]+/)?[^/]+)/|node_modules/([^/]+)/", name)
        if package:
            assert (package[1] or package[2]) in packages, name
        else:
            assert not name.startswith(("/", "http")), name
            assert (WEB / name).is_file(), name


@pytest.mark.parametrize("path", OWN, ids=named)
def test_nothing_comes_from_elsewhere(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//cdn|\beval\(|innerHTML", text)


@pytest.mark.parametrize("path", OWN, ids=named)
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_every_element_that_the_script_wants_is_in_the_page():
    page = (WEB / "index.html").read_text(encoding="utf-8")
    wanted = set(re.findall(r"""\$\("([\w-]+)"\)|number\("([\w-]+)"\)""", (WEB / "page.js").read_text()))
    ids = {first or second for first, second in wanted}
    assert len(ids) > 15
    assert ids <= set(re.findall(r'id="([\w-]+)"', page))


def test_every_field_has_a_label():
    page = (WEB / "index.html").read_text(encoding="utf-8")
    for field in re.findall(r'<(?:input|textarea)\s+id="([\w-]+)"', page):
        inside = re.search(rf'<label[^>]*>[^<]*<input\s+id="{field}"', page)
        assert inside or f'for="{field}"' in page, field


def test_the_screenshot_is_small():
    picture = (WEB / "screenshot.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


@pytest.mark.parametrize("folder", [WEB, Path(__file__).parents[2] / "other_runtimes"], ids=named)
def test_packages_are_pinned_by_hash_and_by_no_address(folder):
    lock = json.loads((folder / "package-lock.json").read_text())
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert lock["packages"][""]["dependencies"] == wanted
    assert all(version[0].isdigit() for version in wanted.values())
    for name, package in lock["packages"].items():
        assert name == "" or package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
