"""The page that shows what fills a container: complete, harmless, and readable on a phone, by day and by night."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from persistent_dict import PersistentDict, memoize
from persistent_dict.inspection import nothing, open_store
from persistent_dict.maintenance import pack, repair
from persistent_dict.report import write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
LOADING = {"src", "href", "action", "data", "srcset", "poster", "background", "xlink:href"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Attributes(HTMLParser):
    """Collects the attributes of all tags."""

    def __init__(self):
        super().__init__()
        self.named = []

    def handle_starttag(self, tag, attributes):
        self.named += attributes


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    """A dictionary of calls and other entries, packed and loose, one of them damaged."""
    made = PersistentDict(
        f"report {HOSTILE[:20]}", container_dir=tmp_path_factory.mktemp("report"), in_mem_cache_size=0
    )

    @memoize(made)
    def a_function_with_quite_a_long_name_that_has_to_be_broken_somewhere(size, text="x"):
        return text * size

    @memoize(made)
    def short(n):
        return n

    for i in range(60):
        a_function_with_quite_a_long_name_that_has_to_be_broken_somewhere(i * 1000, text="y")
        short(i)
    pack(open_store(made.filename), max_entry=20_000)
    for i in range(150):
        made.store(("plain", i), i, seconds=i / 7)
    made[HOSTILE] = "x" * 100_000
    made["k" * 3000] = 1
    Path(made.entry_path(("plain", 3)), "value").write_bytes(b"")
    return made


@pytest.fixture(scope="module")
def page(d, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(open_store(d.filename), str(path), nothing) == 1
    return path


def test_the_page_tells_what_there_is(page, d):
    text = html.unescape(page.read_text("utf-8"))
    plain = re.sub("<[^>]+>", "", text)
    for what in ("272", " loose", " packed", "short", "has_to_be_broken", "('plain', 149)", "21.3 s"):
        assert what in plain, what
    assert "it is empty, as a power cut leaves a file" in plain
    assert f"repair '{d.filename}'" in plain or f"repair {d.filename}" in plain
    assert d.entry_path(("plain", 3)) in plain
    assert "persistent-dict pack" in plain


def test_what_a_key_says_is_text(page):
    source = page.read_text("utf-8")
    assert "<script" not in source
    assert "<img" not in source
    assert html.escape(HOSTILE[:25]) in source
    assert "default-src 'none'" in html.unescape(source)


def test_the_page_loads_nothing(page):
    source = page.read_text("utf-8")
    found = Attributes()
    found.feed(source)
    assert len(found.named) > 100
    assert [value for name, value in found.named if name in LOADING and not value.startswith("#")] == []
    assert [name for name, _ in found.named if name.startswith("on")] == []
    assert "url(" not in source
    assert "@import" not in source


def test_an_empty_and_a_healthy_container_have_a_page(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    d["k"] = 1
    for _ in range(2):
        assert write_report(open_store(d.filename), str(tmp_path / "r.html"), nothing) == 0
        text = (tmp_path / "r.html").read_text("utf-8")
        assert "<h1" in text
        assert "repair" not in text
        d.clear()


def test_the_page_is_written_whole_or_not_at_all(d, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_report(open_store(d.filename), str(path), nothing)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_the_command_writes_the_page_also_of_a_pack(d, tmp_path):
    for container in (d.filename, str(next(Path(d.filename, "packs").glob("*.pack")))):
        done = subprocess.run(
            [sys.executable, "-m", "persistent_dict", "report", container, "-o", str(tmp_path / "r.html")],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "r.html")), done.stderr
        assert "<h1" in (tmp_path / "r.html").read_text("utf-8")


class Browser:
    """Headless Chromium with one tab, spoken to by its debugging pipe."""

    def __init__(self, profile):
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--remote-debugging-pipe",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *command],
            pass_fds=(read, write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._left, self._count, self.requested = b"", 0, []
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network"):
            self.ask(f"{domain}.enable")

    _session = None

    def ask(self, method, parameters=None):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters or {}}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._left:
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, url, width, height, scheme):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask("Emulation.setDeviceMetricsOverride", size)
        self.ask("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        self.ask("Page.navigate", {"url": url})
        end = time.monotonic() + 20
        while self.value("document.readyState") != "complete" or self.value("location.href") != url:
            assert time.monotonic() < end
            time.sleep(0.02)

    def value(self, expression):
        return self.ask("Runtime.evaluate", {"expression": expression, "returnByValue": True})["result"].get("value")

    def picture(self):
        return base64.b64decode(self.ask("Page.captureScreenshot", {"format": "png"})["data"])

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield opened
    finally:
        opened.close()


def test_the_page_fits_a_phone_and_a_screen_by_day_and_by_night(browser, page):
    pictures = {}
    for width, height in ((360, 800), (768, 1024), (1200, 900)):
        for scheme in ("light", "dark"):
            browser.open(page.as_uri(), width, height, scheme)
            assert browser.value("innerWidth") == width
            assert browser.value("document.documentElement.scrollWidth") <= width
            overflowing = (
                "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
                " && getComputedStyle(e).position != 'absolute').map(e => e.outerHTML.slice(0, 80))"
            )
            assert browser.value(overflowing) == []
            colour = browser.value("getComputedStyle(document.body).backgroundColor")
            light = sum(map(int, re.findall(r"\d+", colour)[:3]))
            assert (light > 600) == (scheme == "light"), colour
            pictures[width, scheme] = browser.picture()
    assert len(set(pictures.values())) == 6
    assert {url for url in browser.requested if url != "about:blank"} == {page.as_uri()}


def test_text_can_be_told_from_its_background(browser, page):
    for scheme in ("light", "dark"):
        browser.open(page.as_uri(), 1200, 900, scheme)
        ratios = browser.value(CONTRAST)
        assert len(ratios) > 50
        assert min(ratios) >= 4.5


# WCAG 2.1, relative luminance and contrast ratio, of every element with text of its own.
CONTRAST = """
(() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3)
      .map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c != 'rgba(0, 0, 0, 0)') return c;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
    .map(e => [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a))
    .map(([a, b]) => (a + 0.05) / (b + 0.05));
})()
"""


def test_after_repair_the_page_says_that_all_is_well(d, tmp_path):
    copy = tmp_path / Path(d.filename).name
    shutil.copytree(d.filename, copy)
    repair(open_store(str(copy)))
    assert write_report(open_store(str(copy)), str(tmp_path / "r.html"), nothing) == 0
