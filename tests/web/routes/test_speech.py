"""`POST /speech` with a program that takes its time: one at a time, and never longer than somebody listens."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from tests.kits.installation import sound
from tests.kits.machine.processes import is_alive
from tests.kits.web_kit import Api, serving

PROGRAM = """#!/bin/sh
read text
case "$text" in slow*) echo $$ > {folder}/speaking; exec sleep 60;; esac
cat {folder}/sound.wav
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("speech")
    (root / "speak").write_text(PROGRAM.format(folder=root))
    (root / "speak").chmod(0o755)
    (root / "sound.wav").write_bytes(sound(0.5))
    with serving(root, changes={"speech": {"command": [str(root / "speak")]}}) as api:
        yield api


def test_one_text_at_a_time_and_a_client_that_leaves_ends_it(api: Api) -> None:
    assert api.post("/speech", {"text": "Quick."}).body == sound(0.5)
    noted, body = api.installation.root / "speaking", json.dumps({"text": "slow speech"}).encode()
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as line:
        line.sendall(b"POST /speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        pid = int(api.installation.until(lambda: noted.exists() and noted.read_text().strip(), "the program"))
        busy = api.post("/speech", {"text": "Quick."})
        busy.refused(429, "TooManyRequestsError")
        assert busy.headers["Retry-After"] == "2"
        assert is_alive(pid)
    api.installation.until(lambda: not is_alive(pid), "the end of the program")
    api.installation.until(lambda: api.post("/speech", {"text": "Quick."}).status == 200, "the next turn")
    assert list((api.installation.path("state") / "uploads").glob(".tmp-*")) == []
    assert os.listdir(api.installation.path("inbox")) == [".lipsyncd"]  # no job is made of it


def test_a_sound_that_is_too_long_to_listen_to_is_refused(api: Api) -> None:
    (api.installation.root / "sound.wav").write_bytes(sound(0.1) + bytes(17_000_000))
    refused = api.post("/speech", {"text": "Long."}).refused(400, "BadRequestError")
    assert "17.0 MB; at most 16 MB" in refused
