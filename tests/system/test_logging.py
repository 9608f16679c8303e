"""The log of whole daemon runs: every line is an event, and none contains a secret that the daemon has handled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.log import printable
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.web_kit import Api, port_of
from tests.kits.webhook_receiver import Answer, receiving

KEY = "client:key-that-is-top-secret"
SIGNED = "X-Signature=query-that-is-top-secret"
SECRETS = ("is-top-secret", b64encode(KEY.encode()).decode()[-12:])  # plain, and the end of the key in base64
ODD = "forged\n<0>2026-01-01 error all is lost\x1b[2J"


class FileServer(BaseHTTPRequestHandler):
    """Serves a picture and a voice to requests with the signature."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = {"/a.png": picture(5), "/a.wav": sound(0.3)}.get(path)
        if path == "/away":
            self.send_response(302)
            self.send_header("Location", f"/nowhere?{SIGNED}")
            self.end_headers()
            return
        self.send_response(200 if body and query == SIGNED else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """No output."""


@contextmanager
def file_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FileServer)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The log of a daemon at level debug, with good and bad jobs and requests."""
    installation = Installation(tmp_path_factory.mktemp("log"))
    installation.changes["log"] = {"format": "json", "level": "debug"}
    installation.changes["fetch"] = {"allow": ["127.0.0.1"]}
    installation.changes["web"] = {"enabled": True, "webhook_allow": ["127.0.0.1"]}
    installation.changes["render"] = {"max_attempts": 1}
    with file_server() as host, receiving(Answer(500), Answer(204)) as receiver:
        hook = f"{receiver.url}?{SIGNED}"
        with installation.running(LIPSYNCD_API_KEY=KEY):
            put(installation.path("inbox"), f"{ODD}.png", picture(1))
            put(installation.path("inbox"), f"{ODD}.wav", sound(0.3, 1))
            put(installation.path("inbox"), b"caf\xe9.txt", b"no picture")
            _drop_addresses(installation, host, hook)
            installation.drop_manifest("crash", **_pair(installation, "crash", 3), renderer="abort")
            _send_requests(Api(installation, port_of(installation)))
            for name in ("good", "gone", "away", "refused", "user", "broken", "crash"):
                installation.until_state(name, JobState.DONE, JobState.FAILED)
            installation.until_state(printable(ODD), JobState.DONE)
            assert installation.cli("retry", str(installation.job("gone").id)).returncode == 0  # type: ignore[union-attr]
            installation.until(lambda: len(receiver.hits) >= 2, "both tries of the webhook")
            installation.until(lambda: "delivered to" in installation.log, "the log line of its delivery")
        assert receiver.hits[0].target.endswith(SIGNED)
    return installation.log


def _pair(installation: Installation, name: str, seed: int) -> dict[str, str]:
    put(installation.path("inbox"), f"{name}-in.png", picture(seed))
    put(installation.path("inbox"), f"{name}-in.wav", sound(0.3, seed))
    return {"image": f"{name}-in.png", "audio": f"{name}-in.wav", "out_name": name}


def _drop_addresses(installation: Installation, host: str, hook: str) -> None:
    """Signed URLs: good, not found, redirected, in a refused network, with a password, and not valid."""
    voice = f"http://{host}/a.wav?{SIGNED}"
    for name, image in {
        "good": f"http://{host}/a.png?{SIGNED}",
        "gone": f"http://{host}/b.png?{SIGNED}",
        "away": f"http://{host}/away?{SIGNED}",
        "refused": f"http://192.0.2.1/a.png?{SIGNED}",
        "user": f"http://me:password-that-is-top-secret@{host}/a.png",
        "broken": f"http://127.1/a.png?{SIGNED}",
    }.items():
        installation.drop_manifest(name, image=image, audio=voice, **({"webhook": hook} if name == "good" else {}))


def _send_requests(api: Api) -> None:
    wrong = "wrong-key-that-is-top-secret"
    assert api.get("/health").status == 200
    assert api.get(f"/talks?{SIGNED}", authorization=f"Basic {wrong}").status == 401
    assert api.get("/talks", authorization=f"Basic {KEY}").status == 200
    assert api.get(f"/no/such/place?{SIGNED}", authorization=f"Basic {KEY}").status == 404
    assert api.call("POST", "/talks", b"{no json", headers={"Authorization": f"Basic {KEY}"}).status == 400


def events(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def test_every_line_is_one_event_with_time_level_and_words(log: str) -> None:
    found = events(log)
    assert len(found) > 30
    for event in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"])
        assert event["level"] in ("debug", "info", "warning", "error")
        assert event["event"].isprintable()
        assert event["event"]
    assert {"info", "warning"} <= {event["level"] for event in found}


def test_events_about_a_job_name_it(log: str) -> None:
    about = [event for event in events(log) if re.match(r"job [0-9a-f]{8}-", event["event"])]
    assert len(about) > 15
    assert all(event["job_id"] == event["event"].split()[1].rstrip(":") for event in about)


def test_a_name_with_a_line_break_stays_one_line(log: str) -> None:
    about = [event["event"] for event in events(log) if "all is lost" in event["event"]]
    accepted, done = [line for line in about if line.startswith("job ")]  # watchdog logs the files too
    assert accepted.endswith(" accepted: forged\\n<0>2026-01-01 error all is lost\\x1b[2J, flat")
    assert " done: forged_<0>2026-01-01 error all is lost_[2J.mp4, " in done


def test_no_key_no_query_and_no_password_is_in_the_log(log: str) -> None:
    assert "/a.png" in log  # URLs are logged
    assert not [line for line in log.splitlines() if any(secret in line for secret in SECRETS)]


def test_no_line_is_a_bug_of_ours(log: str) -> None:
    assert [event for event in events(log) if "traceback" in event] == []


# -- the first and the last line ---------------------------------------------------------------------------------------


def refused(installation: Installation, **environment: str) -> tuple[int, str]:
    """A start that fails: its exit status and its output."""
    done = installation.cli("run", **environment)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_start_that_fails_is_logged_in_the_configured_format(installation: Installation) -> None:
    installation.changes["log"] = {"format": "json"}
    installation.changes["render"] = {"ffmpeg": "/nowhere/ffmpeg"}
    status, output = refused(installation)
    [event] = events(output)
    assert (status, event["level"]) == (78, "error")
    assert "render.ffmpeg" in event["event"]


def test_invalid_settings_are_logged_in_the_format_of_the_journal(installation: Installation, tmp_path: Path) -> None:
    installation.changes["output"] = {"fps": 0}
    with (tmp_path / "journal").open("w+") as stream:
        info = os.fstat(stream.fileno())
        command = [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "run"]
        environment = installation.environment(JOURNAL_STREAM=f"{info.st_dev}:{info.st_ino}")
        done = subprocess.run(command, stderr=stream, env=environment, timeout=60, check=False)
        stream.seek(0)
        [line] = stream.read().splitlines()
    assert done.returncode == 78
    assert line.startswith("<3>output.fps is 0")


def test_a_daemon_under_the_journal_gives_every_line_its_priority(installation: Installation) -> None:
    with (installation.root / "daemon.log").open("ab") as stream:
        info = os.fstat(stream.fileno())
    with installation.running(JOURNAL_STREAM=f"{info.st_dev}:{info.st_ino}"):
        installation.drop_pair("anna")
        installation.until_done("anna")
        installation.drop_manifest("bad", image="nothing.png", audio="nothing.wav", renderer="nosuch")
    lines = installation.log.splitlines()
    assert len(lines) > 5
    assert all(re.match(r"<[3-7]>\S", line) for line in lines), lines
