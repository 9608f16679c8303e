"""Webhooks with real receivers on loopback: messages, signatures, repetitions, and refused addresses."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import stat
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from lipsyncd.errors import ConfigError, NoFaceFound
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.webhook_delivery import Delivery, DeliveryState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from lipsyncd.network.webhooks import SCHEDULE_S, Webhooks, load_keys
from lipsyncd.settings.rules import UNSET
from tests.kits.core_kit import claimed, queued
from tests.kits.installation import Installation
from tests.kits.webhook_receiver import Answer, Receiver, receiving, until

KEY = b"k" * 32
LOOPBACK = ["127.0.0.0/8", "::1"]
AT_ONCE = (0.0, 0.0, 0.0, 0.0)
FAILURE = NoFaceFound("no face in the picture").reason()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


@contextmanager
def delivering(ledger: Ledger, *, keys: list[bytes] | None = None, **how: Any) -> Iterator[Webhooks]:
    """Run the webhooks of that ledger in a thread of their own."""
    given: dict[str, Any] = {"allow": LOOPBACK, "schedule_s": AT_ONCE, **how}
    webhooks = Webhooks(ledger.deliveries, keys=keys or [KEY], **given)
    ledger.listeners.append(lambda _step, _job: webhooks.wake())
    thread = threading.Thread(target=webhooks.run)
    thread.start()
    try:
        yield webhooks
    finally:
        webhooks.stop()
        thread.join(10)
        assert not thread.is_alive()


def ended(ledger: Ledger, url: str, **changes: Any) -> str:
    """A failed job with a webhook; returns its id."""
    job_id = queued(ledger, webhook=url, **changes)
    ledger.to_failed(job_id, FAILURE)
    return job_id


def published(ledger: Ledger, url: str, **changes: Any) -> str:
    """A finished job with a webhook; returns its id."""
    job_id = claimed(ledger, webhook=url, **changes)
    ledger.to_publishing(job_id, token="t", sha256="0" * 64, size=1, frames=25, render_ms=40)
    ledger.to_done(job_id, note="published")
    return job_id


def delivery_of(ledger: Ledger, job_id: str) -> Delivery:
    return LedgerView(ledger.path).deliveries(job_id)[-1]


def until_ended(ledger: Ledger, job_id: str) -> Delivery:
    def over() -> Delivery | None:
        found = delivery_of(ledger, job_id)
        return None if found.state is DeliveryState.WAITING else found

    delivery: Delivery = until(over, "the end of the delivery")
    return delivery


# -- a message ---------------------------------------------------------------------------------------------------------


def test_a_done_job_is_sent_as_a_talk_with_a_signature_that_other_libraries_verify(ledger: Ledger) -> None:
    with receiving() as receiver, delivering(ledger, result_url=lambda job_id: f"http://box/{job_id}.mp4"):
        job_id = published(ledger, receiver.url, user_data='{"scene": 7}')
        assert until_ended(ledger, job_id).state is DeliveryState.DELIVERED
    [hit] = receiver.hits
    talk = Webhook("whsec_" + "a2tr" * 10 + "a2s=").verify(hit.body, dict(hit.headers))  # the base64 of KEY
    assert talk == json.loads(hit.body)
    assert talk["id"] == "tlk_" + job_id.replace("-", "")
    assert (talk["object"], talk["status"], talk["user_data"]) == ("talk", "done", '{"scene": 7}')
    assert talk["result_url"] == f"http://box/{job_id}.mp4"
    assert (hit.method, hit.headers["content-type"]) == ("POST", "application/json")
    assert hit.headers["user-agent"].startswith("lipsyncd/")
    assert hit.headers["webhook-id"] == delivery_of(ledger, job_id).webhook_id


def test_a_failed_or_cancelled_job_is_sent_as_an_error_without_a_video(ledger: Ledger) -> None:
    with receiving() as receiver, delivering(ledger, result_url=lambda _: "http://box/none.mp4"):
        until_ended(ledger, ended(ledger, receiver.url))
        cancelled = queued(ledger, "bert", webhook=receiver.url)
        ledger.to_cancelled(cancelled)
        until_ended(ledger, cancelled)
    failed, stopped = (json.loads(hit.body) for hit in receiver.hits)
    assert (failed["status"], failed["error"]["kind"]) == ("error", "FaceError")
    assert failed["error"]["description"].startswith("no face in the picture")
    assert (stopped["status"], stopped["error"]["description"]) == ("error", "cancelled on request")
    assert "result_url" not in failed
    assert "result_url" not in stopped


def test_a_job_without_a_webhook_is_sent_nowhere(ledger: Ledger) -> None:
    with delivering(ledger):
        job_id = queued(ledger)
        ledger.to_failed(job_id, FAILURE)
    assert LedgerView(ledger.path).deliveries(job_id) == []


def test_the_address_is_used_byte_for_byte(ledger: Ledger) -> None:
    query = "?secret=a%2Bb+c&x=%7e~!$'()*,;:@/?&empty=&%C3%A9"
    with receiving() as receiver, delivering(ledger):
        until_ended(ledger, ended(ledger, receiver.url + query + "#fragment"))
    assert [hit.target for hit in receiver.hits] == ["/hook" + query]


def test_while_keys_change_both_signatures_are_sent(ledger: Ledger) -> None:
    with receiving() as receiver, delivering(ledger, keys=[b"n" * 32, KEY]):
        until_ended(ledger, ended(ledger, receiver.url))
    [hit] = receiver.hits
    for key in (b"n" * 32, KEY):
        Webhook(key).verify(hit.body, dict(hit.headers))
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(b"o" * 32).verify(hit.body, dict(hit.headers))


# -- failed tries ------------------------------------------------------------------------------------------------------


def test_a_message_is_repeated_under_one_id_until_the_receiver_accepts_it(ledger: Ledger) -> None:
    with receiving(Answer(500), Answer(429), Answer(200)) as receiver, delivering(ledger) as webhooks:
        delivery = until_ended(ledger, ended(ledger, receiver.url))
    assert (delivery.state, delivery.attempt, delivery.last_status) == (DeliveryState.DELIVERED, 3, 200)
    assert len(receiver.hits) == 3
    assert {hit.headers["webhook-id"] for hit in receiver.hits} == {delivery.webhook_id}
    assert len({hit.body for hit in receiver.hits}) == 1
    for hit in receiver.hits:
        Webhook(KEY).verify(hit.body, dict(hit.headers))
    assert webhooks.tries == {DeliveryState.WAITING: 2, DeliveryState.DELIVERED: 1}


def test_the_schedule_is_the_standards(ledger: Ledger) -> None:
    assert SCHEDULE_S == (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600)
    with receiving(Answer(503)) as receiver, delivering(ledger, schedule_s=SCHEDULE_S):
        job_id = ended(ledger, receiver.url)
        for number, wait_s in enumerate(SCHEDULE_S[1:], start=1):
            until(lambda n=number: delivery_of(ledger, job_id).attempt == n, f"try {number}")
            delivery = delivery_of(ledger, job_id)
            assert delivery.next_at_ms / 1000 - time.time() == pytest.approx(wait_s, abs=2)
            make_due(ledger.path)
            ledger.listeners[-1]("time goes by", ledger.get(job_id))
        assert until_ended(ledger, job_id).state is DeliveryState.EXHAUSTED
    assert len(receiver.hits) == len(SCHEDULE_S)
    assert delivery_of(ledger, job_id).last_error == "the receiver answered 503"


def test_410_ends_the_repetitions(ledger: Ledger) -> None:
    with receiving(Answer(410)) as receiver, delivering(ledger):
        delivery = until_ended(ledger, ended(ledger, receiver.url))
        time.sleep(0.1)
    assert (delivery.state, delivery.attempt, delivery.last_status) == (DeliveryState.GONE, 1, 410)
    assert len(receiver.hits) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(ledger: Ledger, status: int) -> None:
    with (
        receiving() as canary,
        receiving(Answer(status, headers={"Location": canary.url})) as receiver,
        delivering(ledger, schedule_s=(0, 0)),
    ):
        delivery = until_ended(ledger, ended(ledger, receiver.url))
    assert delivery.state is DeliveryState.EXHAUSTED
    assert delivery.last_error == f"the receiver answered {status}, and redirects are not followed"
    assert (len(receiver.hits), canary.hits) == (2, [])


def test_a_slow_receiver_delays_no_other_and_no_stop(ledger: Ledger) -> None:
    with (
        receiving(Answer(200, after_s=30)) as slow,
        receiving() as quick,
        delivering(ledger, answer_within_s=2.0, schedule_s=(0, 60)),
    ):
        late = ended(ledger, slow.url)
        until(lambda: slow.hits, "the slow one's request")
        until_ended(ledger, ended(ledger, quick.url, name="bert"))
        assert delivery_of(ledger, late).attempt == 0
        until(lambda: delivery_of(ledger, late).attempt, "the end of the slow try")
    assert delivery_of(ledger, late).last_error == "no answer within 2 s"
    with receiving(Answer(200, after_s=30)) as slow:
        with delivering(ledger):
            unfinished = ended(ledger, slow.url, name="carl")
            until(lambda: slow.hits, "the slow one's request")
            began = time.monotonic()
        assert time.monotonic() - began < 10
    assert delivery_of(ledger, unfinished).attempt == 0  # it is tried again at the next start


@contextmanager
def locked(ledger: Ledger) -> Iterator[None]:
    """Hold the write lock of the ledger for longer than a write waits for it."""
    with ledger._plain() as connection:
        connection.execute("PRAGMA busy_timeout=50")
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_locked_ledger_is_waited_for(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """The ledger is locked when the answer comes: the same message is sent again."""
    with receiving(Answer(after_s=0.3), Answer()) as receiver, delivering(ledger):
        job_id = ended(ledger, receiver.url)
        until(lambda: receiver.hits, "the request")
        with locked(ledger):
            until(lambda: f"webhook of job {job_id} is sent again: " in caplog.text, "the answer")
        assert until_ended(ledger, job_id).state is DeliveryState.DELIVERED
    first, second = (hit.headers["webhook-id"] for hit in receiver.hits)
    assert first == second
    warnings = [record for record in caplog.records if "database is locked" in record.getMessage()]
    assert warnings
    assert not any(record.exc_info or record.levelname != "WARNING" for record in warnings)


def test_a_port_without_a_receiver_is_tried_again(ledger: Ledger) -> None:
    with receiving() as gone:
        pass
    with delivering(ledger, schedule_s=(0, 0)):
        delivery = until_ended(ledger, ended(ledger, gone.url))
    assert (delivery.state, delivery.last_error) == (DeliveryState.EXHAUSTED, "Connection refused")


def test_a_retried_job_supersedes_its_old_messages(ledger: Ledger) -> None:
    with receiving(Answer(500), Answer(200)) as receiver, delivering(ledger, schedule_s=(0, 60)):
        job_id = ended(ledger, receiver.url)
        until(lambda: delivery_of(ledger, job_id).attempt == 1, "the first try")
        ledger.retry(job_id, "anna")
        ledger.set_prepared(job_id, frames=25, duration_ms=1000)
        assert ledger.claim("cpu", "t") is not None
        ledger.to_publishing(job_id, token="t", sha256="0" * 64, size=1, frames=25, render_ms=40)
        ledger.to_done(job_id, note="published")
        until_ended(ledger, job_id)
    first, second = LedgerView(ledger.path).deliveries(job_id)
    assert (first.state, second.state) == (DeliveryState.SUPERSEDED, DeliveryState.DELIVERED)
    assert first.webhook_id != second.webhook_id
    assert [json.loads(hit.body)["status"] for hit in receiver.hits] == ["error", "done"]


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://127.0.0.1:{port}/", []),
        ("https://127.0.0.1:{port}/", []),
        ("http://localhost:{port}/", []),
        ("http://[::ffff:127.0.0.1]:{port}/", []),
        ("http://127.0.0.1:{port}/", ["10.0.0.0/8", "other.lan"]),
        ("http://user:secret@127.0.0.1:{port}/", LOOPBACK),
        ("http://127.1:{port}/", []),
    ],
)
def test_an_address_that_is_not_listed_is_never_connected_to(ledger: Ledger, url: str, allow: list[str]) -> None:
    with receiving() as canary, delivering(ledger, allow=allow):
        delivery = until_ended(ledger, ended(ledger, url.format(port=canary.port)))
    assert (delivery.state, delivery.attempt) == (DeliveryState.REFUSED, 1)
    assert "secret" not in (delivery.last_error or "")
    assert canary.hits == []


def test_http_is_for_listed_hosts_only_and_https_for_the_public(ledger: Ledger) -> None:
    webhooks = Webhooks(ledger.deliveries, keys=[KEY], allow=["192.168.1.0/24"])
    http, https = (webhooks._guards[scheme] for scheme in ("http", "https"))
    assert http.fault("93.184.216.34", 80) == "has no TLS and is not listed"
    assert (
        https.fault("93.184.216.34", 443) == http.fault("192.168.1.7", 8080) == https.fault("192.168.1.7", 8443) == ""
    )
    assert https.fault("93.184.216.34", 8443)


def test_a_wrong_entry_is_a_configuration_error(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match=r"web\.webhook_allow holds '10\.0\.0\.999'"):
        Webhooks(ledger.deliveries, keys=[KEY], allow=["10.0.0.999"])


# -- keys --------------------------------------------------------------------------------------------------------------


def test_without_a_key_one_is_made_once_and_only_we_can_read_it(tmp_path: Path) -> None:
    [key] = load_keys(tmp_path, UNSET, {})
    made = tmp_path / "webhook-secret"
    assert load_keys(tmp_path, UNSET, {}) == [key]
    assert len(key) == 32
    assert made.read_text().startswith("whsec_")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert Webhook(made.read_text().strip())._whsecret == key


def test_a_credential_of_the_unit_wins_over_the_made_key_and_a_named_file_over_both(tmp_path: Path) -> None:
    credentials, named = tmp_path / "credentials", tmp_path / "named"
    credentials.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    [made] = load_keys(tmp_path, UNSET, environ)
    (credentials / "webhook-secret").write_text("whsec_" + "Y2Nj" * 8)
    named.write_text("whsec_" + "bm5u" * 8 + "\nwhsec_" + "b29v" * 8 + "\n")
    assert load_keys(tmp_path, UNSET, environ) == [b"c" * 24] != [made]
    assert load_keys(tmp_path, named, environ) == [b"n" * 24, b"o" * 24]


@pytest.mark.parametrize("content", ["", "\n", "hunter2", "whsec_short", "whsec_" + "====", "Y2Nj" * 8, "whsec_\xff"])
def test_a_file_without_a_key_stops_the_start_and_no_message_quotes_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "secret"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        load_keys(tmp_path, file, {})
    assert caught.value.exit_status == 78
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_keys(tmp_path, tmp_path / "missing", {})


# -- the daemon --------------------------------------------------------------------------------------------------------


def make_due(ledger: Path) -> None:
    """Make the next try due."""
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE webhook_delivery SET next_at_ms=0 WHERE state='waiting'")


def with_webhook(installation: Installation, name: str, url: str, **fields: Any) -> None:
    installation.drop_manifest(name, image=f"{name}.png", audio=f"{name}.wav", webhook=url, **fields)
    installation.drop_pair(name)


def until_delivery(installation: Installation, name: str, done: Callable[[Delivery], bool]) -> Delivery:
    def there() -> Delivery | None:
        job = installation.job(name)
        found = [] if job is None else installation.view.deliveries(job.id)
        return found[-1] if found and done(found[-1]) else None

    delivery: Delivery = installation.until(there, f"the webhook of {name}")
    return delivery


def secret_of(installation: Installation) -> str:
    return (installation.path("state") / "webhook-secret").read_text().strip()


def verified(installation: Installation, receiver: Receiver) -> list[dict[str, Any]]:
    return [Webhook(secret_of(installation)).verify(hit.body, dict(hit.headers)) for hit in receiver.hits]


@pytest.fixture
def allowing(installation: Installation) -> Installation:
    """An installation that allows webhooks to loopback."""
    installation.changes["web"] = {**installation.changes.get("web", {}), "webhook_allow": LOOPBACK}
    return installation


def test_a_receiver_that_fails_twice_gets_the_message_after_a_stop_and_a_power_cut(allowing: Installation) -> None:
    with receiving(Answer(500), Answer(500), Answer(204)) as receiver:
        allowing.start()
        with_webhook(allowing, "anna", receiver.url, user_data="scene 7")
        until_delivery(allowing, "anna", lambda d: d.attempt == 1)
        assert allowing.stop() == 0
        make_due(allowing.path("state") / "ledger.db")
        allowing.start()
        until_delivery(allowing, "anna", lambda d: d.attempt == 2)
        allowing.kill()
        make_due(allowing.path("state") / "ledger.db")
        with allowing.running():
            delivery = until_delivery(allowing, "anna", lambda d: d.state is DeliveryState.DELIVERED)
            job = allowing.until_done("anna")
            shown = allowing.cli("status", job.id).stdout
            webhooks = json.loads(allowing.cli("status", job.id, "--json").stdout)["webhooks"]
    assert {hit.headers["webhook-id"] for hit in receiver.hits} == {delivery.webhook_id}
    assert {(talk["status"], talk["user_data"]) for talk in verified(allowing, receiver)} == {("done", "scene 7")}
    assert len(receiver.hits) == 3
    assert f"delivered, 3 attempts ({delivery.webhook_id})" in shown
    assert "webhook waiting, attempt 1: the receiver answered 500" in shown
    assert [(w["state"], w["attempt"], w["last_status"]) for w in webhooks] == [("delivered", 3, 204)]
    assert receiver.url not in shown


@pytest.mark.parametrize(("failpoint", "hits"), [("end-moved", 1), ("webhook-due", 1), ("webhook-answered", 2)])
def test_a_crash_after_the_end_of_a_job_still_sends_under_one_id(
    allowing: Installation, failpoint: str, hits: int
) -> None:
    with receiving() as receiver:
        allowing.start(LIPSYNCD_FAIL=failpoint)
        with_webhook(allowing, "anna", receiver.url, renderer="nosuch")
        assert allowing.daemon is not None
        allowing.daemon.wait(30)
        allowing.daemon = None
        before = len(receiver.hits)
        with allowing.running():
            delivery = until_delivery(allowing, "anna", lambda d: d.state is DeliveryState.DELIVERED)
            allowing.until_failed("anna")
    if failpoint != "end-moved":  # there the first delivery may run before the crash
        assert before == hits - 1
        assert len(receiver.hits) == hits
    assert {hit.headers["webhook-id"] for hit in receiver.hits} == {delivery.webhook_id}
    assert {talk["status"] for talk in verified(allowing, receiver)} == {"error"}


def test_a_cancel_without_a_daemon_is_sent_at_the_next_start(allowing: Installation) -> None:
    allowing.changes["render"] = {"renderer": "hang"}
    with receiving() as receiver:
        allowing.start()
        with_webhook(allowing, "anna", receiver.url)
        allowing.until_state("anna", JobState.RUNNING)
        allowing.kill()
        job = allowing.job("anna")
        assert job is not None
        allowing.cli("cancel", job.id)
        allowing.changes["render"] = {"renderer": "flat"}
        assert receiver.hits == []
        with allowing.running():
            until_delivery(allowing, "anna", lambda d: d.state is DeliveryState.DELIVERED)
    assert [talk["error"]["description"] for talk in verified(allowing, receiver)] == ["cancelled on request"]


def test_a_silent_receiver_delays_no_job_and_the_stop_little(allowing: Installation) -> None:
    with receiving(Answer(200, after_s=60)) as receiver, allowing.running():
        with_webhook(allowing, "anna", receiver.url)
        allowing.until_done("anna")
        allowing.until(lambda: receiver.hits, "the request that hangs")
        with_webhook(allowing, "bert", receiver.url)
        allowing.until_done("bert")
        began = time.monotonic()
        assert allowing.stop() == 0
        assert time.monotonic() - began < 20


def test_a_webhook_into_our_own_network_is_refused_and_shown(installation: Installation) -> None:
    with receiving() as canary, installation.running():
        with_webhook(installation, "anna", canary.url)
        delivery = until_delivery(installation, "anna", lambda d: d.state is not DeliveryState.WAITING)
        job = installation.until_done("anna")
        assert "refused" in installation.cli("status", job.id).stdout
    assert delivery.state is DeliveryState.REFUSED
    assert canary.hits == []


def test_with_the_web_server_the_message_has_the_address_of_the_video(allowing: Installation) -> None:
    allowing.changes["web"] = {**allowing.changes["web"], "enabled": True, "port": 0}
    with receiving() as receiver, allowing.running(LIPSYNCD_API_KEY="user:password"):
        with_webhook(allowing, "anna", receiver.url)
        until_delivery(allowing, "anna", lambda d: d.state is DeliveryState.DELIVERED)
        [talk] = verified(allowing, receiver)
        with urllib.request.urlopen(talk["result_url"], timeout=10) as response:
            video = response.read()
    assert hashlib.sha256(video).hexdigest() == allowing.until_done("anna").out_sha256


def test_a_bad_key_file_stops_the_start_with_78(installation: Installation) -> None:
    installation.changes["web"] = {
        **installation.changes.get("web", {}),
        "webhook_secret_file": str(installation.root / "none"),
    }
    daemon = installation.start(wait=False)
    assert daemon.wait(20) == 78
    assert "web.webhook_secret_file" in installation.log
    installation.daemon = None
