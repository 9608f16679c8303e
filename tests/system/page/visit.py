"""Chromium on the page of a real daemon: what a visitor does, and what the browser has to say about it."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or ""
REMOTE = "gpubox"  # over plain HTTP a browser trusts a server of this name less than one of this machine
NAMES = f"--host-resolver-rules=MAP {REMOTE} 127.0.0.1"
WAIT_MS = 60_000  # on an idle machine nothing takes a tenth of it
_DROP = """files => {
  const transfer = new DataTransfer();
  for (const [name, type, content] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, { type }));
  }
  return transfer;
}"""
_TYPES = {"png": "image/png", "jpg": "image/jpeg", "heic": "", "wav": "audio/wav", "txt": "text/plain"}


@dataclass
class Visit:
    """One open page, and every word that the browser has written about it into its console.

    foreign  requests that went to another server than the page's
    """

    page: Any
    url: str
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", self._look_at)
        self.page.set_default_timeout(WAIT_MS)

    def _look_at(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.foreign.append(request.url)

    def open(self) -> Visit:
        self.page.goto(self.url)
        return self

    def drop(self, files: Mapping[str, bytes], onto: str = "body") -> None:
        """Drop files, as from a file manager, onto the element with that selector."""
        sent = [
            [name, _TYPES[name.rpartition(".")[2]], base64.b64encode(body).decode()] for name, body in files.items()
        ]
        transfer = self.page.evaluate_handle(_DROP, sent)
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event(onto, event, {"dataTransfer": transfer})

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    def job(self, name: str) -> Any:
        """The card of the newest job of that name."""
        return self.page.locator("li.job").filter(has=self.page.get_by_role("heading", name=name, exact=True)).first

    def make(self) -> None:
        """Make the video of the only order, once the server has looked at its files."""
        self.page.locator("button.primary[aria-disabled=false]", has_text="Make the video").click()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where Playwright or Debian's chromium is missing."""
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no chromium; the package chromium is one")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", NAMES])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Any, url: str, **context: Any) -> Iterator[Visit]:
    """A page of a visitor with a browser profile of its own. It ends with a look at console and requests."""
    profile = browser.new_context(**context)
    try:
        visit = Visit(profile.new_page(), url)
        yield visit.open()
        assert (visit.console, visit.foreign) == ([], [])
    finally:
        profile.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with the page as it is; its source was added to the page before."""
    result = page.evaluate("async () => await axe.run()")
    assert len(result["passes"]) > 15
    return [
        f"{one['impact']} {one['id']}: {json.dumps([node['html'][:150] for node in one['nodes']])}"
        for one in result["violations"]
    ]
