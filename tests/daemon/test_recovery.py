"""What a crash leaves in special circumstances: the ledger lost or damaged too, a retry or a deletion half done.

The sweep over all failpoints and pairs of them is in `test_crash.py`.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections import Counter

import pytest

from lipsyncd.storage.control_files import Request, ask
from lipsyncd.storage.files import write_json
from tests.kits.installation import Installation, put


class Consumer:
    """Takes every file from the outbox the moment that it is visible, as a greedy user would."""

    def __init__(self, installation: Installation) -> None:
        self.taken: Counter[str] = Counter()
        self.content: dict[str, bytes] = {}
        self._outbox = installation.path("outbox")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._take)

    def __enter__(self) -> Consumer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _take(self) -> None:
        while not self._end.is_set():
            for path in [p for p in self._outbox.glob("*") if p.is_file()]:
                self.content[path.name] = path.read_bytes()
                self.taken[path.name] += 1
                path.unlink()
            time.sleep(0.002)


def crash_at(installation: Installation, name: str) -> None:
    """Start a daemon that dies at a failpoint, and wait for its death."""
    daemon = installation.start(LIPSYNCD_FAIL=name, wait=False)
    installation.until(lambda: daemon.poll() is not None, f"the crash at {name}")
    assert daemon.poll() == -signal.SIGKILL
    installation.daemon = None


def check_delivered_once(installation: Installation, consumer: Consumer) -> None:
    job = installation.until_done("anna")
    installation.until(lambda: not list(installation.path("spool").iterdir()), "an empty spool")
    installation.until(lambda: consumer.taken["anna.json"], "the sidecar")
    assert consumer.taken == {"anna.mp4": 1, "anna.json": 1}, consumer.taken
    sidecar = json.loads(consumer.content["anna.json"])
    assert sidecar["sha256"] == hashlib.sha256(consumer.content["anna.mp4"]).hexdigest() == job.out_sha256
    assert [p.name for p in installation.path("inbox").iterdir()] == [".lipsyncd"]
    assert len(installation.view.jobs()) == 1
    assert not list((installation.path("outbox") / ".lipsyncd").glob("*.part"))


@pytest.mark.parametrize("name", ["accept-committed", "rendered", "publish-renamed-mp4", "publish-shown", "cleared"])
def test_a_crash_with_the_ledger_lost_delivers_once_all_the_same(installation: Installation, name: str) -> None:
    installation.start()
    installation.stop()
    installation.drop_pair("anna")
    with Consumer(installation) as consumer:
        crash_at(installation, name)
        for path in installation.path("state").glob("ledger.db*"):
            path.unlink()
        with installation.running():
            check_delivered_once(installation, consumer)


@pytest.mark.parametrize("name", ["end-recorded", "end-moved", "cleared", "removed-name"])
def test_a_crash_while_failing_leaves_one_folder_with_the_reason(installation: Installation, name: str) -> None:
    installation.start()
    installation.stop()
    put(installation.path("inbox"), "anna.json", b'{"image": "../anna.png", "audio": "anna.wav"}')
    crash_at(installation, name)
    with installation.running():
        job = installation.until_failed("anna")
    assert job.reason_code == "unsafe-path"
    [folder] = [p for p in installation.path("failed").iterdir() if not p.name.startswith(".")]
    assert json.loads((folder / "reason.json").read_text())["id"] == job.id
    assert (folder / "anna.json").exists()


def test_a_crash_in_a_retry_loses_nothing(installation: Installation) -> None:
    with installation.running():
        installation.drop_manifest("anna", image="anna.png", audio="anna.wav", renderer="nosuch")
        installation.drop_pair("anna")
        job = installation.until_failed("anna")
    installation.cli("retry", job.id, LIPSYNCD_FAIL="retry-accepted")
    with installation.running():
        again = installation.until(
            lambda: (j := installation.until_failed("anna")).attempt == 1 and j, "the second failure"
        )
    assert again.id == job.id
    assert len([p for p in installation.path("failed").iterdir() if not p.name.startswith(".")]) == 1


def test_a_crash_in_a_deletion_leaves_a_job_that_can_be_deleted_again(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("anna")
        job = installation.until_done("anna")
    request = Request("delete", job.id)
    daemon = installation.start(LIPSYNCD_FAIL="delete-before-row")
    waiting = installation.folders.control / "x.json"
    write_json(waiting, {"action": request.action, "job_id": job.id, "value": 0})
    installation.until(lambda: daemon.poll() is not None, "the crash")
    waiting.unlink(missing_ok=True)  # as a client does that gets no answer
    installation.daemon = None
    assert installation.job("anna") is not None
    with installation.running():
        answer = ask(installation.folders.control, request, timeout_s=10)
    assert answer is not None
    assert answer.ok, answer.message
    assert installation.job("anna") is None


def test_a_job_that_kills_the_daemon_is_given_up_after_its_attempts(installation: Installation) -> None:
    installation.changes["render"] = {"max_attempts": 2}
    installation.start()
    installation.stop()
    installation.drop_pair("anna")
    crash_at(installation, "claimed")
    crash_at(installation, "claimed")
    with installation.running():
        job = installation.until_failed("anna")
    assert (job.reason_code, job.attempt) == ("render-crashed", 2)
    assert installation.renders == 0


def test_a_damaged_ledger_is_put_aside_and_made_again_from_the_spool(installation: Installation) -> None:
    installation.start()
    installation.stop()
    installation.drop_pair("anna")
    crash_at(installation, "accept-committed")
    ledger = installation.path("state") / "ledger.db"
    for path in installation.path("state").glob("ledger.db-*"):
        path.unlink()
    ledger.write_bytes(b"not a database at all" * 500)
    with installation.running():
        installation.until_done("anna")
    assert list(installation.path("state").glob("ledger.db.corrupt-*"))


def test_what_was_about_to_replace_a_file_is_swept_at_the_next_start(installation: Installation) -> None:
    """A client's request that is being written in this moment is no rubbish."""
    installation.start()
    installation.stop()
    state = installation.path("state")
    torn = [state / ".status.json.0123abcd.part", state / "control" / ".x.answer.0123abcd.part"]
    torn.append(state / "results" / ".x.json.0123abcd.part")
    for path in torn:
        path.write_bytes(b"half of")
    request = state / "control" / ".x.json.0123abcd.part"
    request.write_bytes(b"half of")
    with installation.running():
        assert [path for path in torn if path.exists()] == []
        assert request.exists()
