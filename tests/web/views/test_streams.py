"""Streams of events: over real sockets by a real daemon, and their bounds by hand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import LedgerError
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.files import write_json
from lipsyncd.web.clients import UNLIMITED, Client
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.links import Links
from lipsyncd.web.replies import ApiError
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.changes import Changes
from lipsyncd.web.views.queue import SlotCount
from lipsyncd.web.views.streams import MOST_STREAMS, Stream, Streams
from tests.kits.core_kit import queued, spec_of
from tests.kits.installation import picture, sound
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.web_kit import Api, Reader, serving

ANNA, BERT, BOSS = "anna:first-secret", "bert:second-secret", "boss:third-secret"
CONNECTIONS = 16  # so that 8 of them may be streams
WITHIN_S = 60.0  # on an idle machine nothing takes a tenth of it


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("streams")
    keys = root / "keys"
    keys.write_text(f"{ANNA}\n{BERT}\n{BOSS} admin\n")
    keys.chmod(0o600)
    changes: dict[str, dict[str, Any]] = {"web": {"api_key_file": str(keys), "max_queue": 40}}
    with serving(root, changes=changes) as api:
        yield api


@pytest.fixture(scope="module")
def anna(api: Api) -> Api:
    return replace(api, headers={"Authorization": ANNA})


@pytest.fixture(scope="module")
def bert(api: Api) -> Api:
    return replace(api, headers={"Authorization": BERT})


@pytest.fixture(scope="module")
def boss(api: Api) -> Api:
    return replace(api, headers={"Authorization": BOSS})


def ordered(api: Api, seed: int, *, seconds: float = 0.3, **fields: str) -> str:
    answer = api.form("/jobs", image=("p.png", picture(seed)), audio=("v.wav", sound(seconds, seed)), **fields)
    assert answer.status == 201, answer
    job_id: str = answer.json["id"]
    return job_id


def test_a_job_is_followed_from_its_post_to_its_end(anna: Api) -> None:
    job_id = ordered(anna, 1)
    reader = Reader(anna, f"/jobs/{job_id}/events")
    events = list(reader.events())  # the stream ends with the job
    headers = reader.answer.headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert (headers["X-Accel-Buffering"], headers["Cache-Control"]) == ("no", "no-store")
    assert {event["id"] for event in events} == {job_id}
    states = [event["state"] for event in events]
    assert (states[0], states[-1]) == ("queued", "done")
    assert states == sorted(states, key=["queued", "running", "publishing", "done"].index)
    shown = anna.get(f"/jobs/{job_id}").json
    assert events[-1] == {name: shown[name] for name in events[-1]}
    assert events[-1]["result_url"]
    again = Reader(anna, f"/jobs/{job_id}/events")
    assert [event["state"] for event in again.events()] == ["done"]
    assert Reader(anna, f"/jobs/{job_id}/events", Last_Event_ID=reader.number).answer.status == 204


def test_a_key_sees_its_own_jobs_and_what_it_has_missed(anna: Api, bert: Api, boss: Api) -> None:
    of_anna, of_boss = Reader(anna, "/jobs/events"), Reader(boss, "/jobs/events")
    other, mine = ordered(bert, 2), ordered(anna, 3)
    seen = []
    for event in of_anna.events():
        seen.append(event["id"])
        if event["state"] == "done":
            break
    assert set(seen) == {mine}
    of_boss.until(id=other, state="done")
    assert Reader(bert, f"/jobs/{mine}/events").answer.status == 404
    of_anna.close()
    of_boss.close()
    before = of_anna.number
    while_away = ordered(anna, 4)
    assert anna.get(f"/jobs/{while_away}?wait=50").json["state"] == "done"
    back = Reader(anna, "/jobs/events", Last_Event_ID=before)
    assert back.until(id=while_away)["state"] == "done"
    back.close()


def test_who_sees_a_job_learns_that_it_was_deleted(anna: Api, bert: Api, boss: Api) -> None:
    gone, stays = ordered(anna, 9), ordered(bert, 10)
    assert (anna.done(gone)["status"], bert.done(stays)["status"]) == ("done", "done")
    of_anna, of_bert = Reader(anna, "/jobs/events"), Reader(bert, "/jobs/events")
    last = next(line for line in of_anna.answer if line.startswith(b"id: "))
    assert boss.call("DELETE", f"/jobs/{gone}").status == 204
    lines = [next(line for line in of_anna.answer if line.strip()) for _ in range(2)]
    assert lines[0] == b"event: deleted\n"
    assert json.loads(lines[1].removeprefix(b"data: ")) == {"id": gone, "state": "deleted"}
    assert bert.call("DELETE", f"/jobs/{stays}").status == 204
    assert next(of_bert.events()) == {"id": stays, "state": "deleted"}  # and nothing of the other one
    back = Reader(anna, "/jobs/events", Last_Event_ID=last.decode().removeprefix("id: ").strip())
    assert next(back.events()) == {"id": gone, "state": "deleted"}
    for reader in (of_anna, of_bert, back):
        reader.close()


def test_progress_and_places_come_while_jobs_wait(anna: Api) -> None:
    """The renderer takes 0.05 s and more for a frame."""
    jobs = [ordered(anna, seed, seconds=2.0, renderer="slow") for seed in (5, 6, 7)]
    reader = Reader(anna, "/jobs/events")
    running = reader.until(state="running", stage="rendering")
    assert 0 <= running["fraction"] < 1
    assert running["position"] is None
    assert reader.until(id=jobs[2], position=1)["state"] == "queued"
    assert anna.get(f"/jobs/{jobs[2]}").json["position"] == 1
    for job_id in jobs:
        anna.post(f"/jobs/{job_id}/cancel", {})
    reader.close()


def test_a_wait_ends_with_the_next_change(anna: Api) -> None:
    job_id = ordered(anna, 8, renderer="missing")
    anna.installation.until(lambda: anna.get(f"/jobs/{job_id}").json["waits_for"], "the reason")
    job = anna.get(f"/jobs/{job_id}").json
    assert anna.get(f"/jobs/{job_id}?wait=0.2&since={job['change']}").json == job
    with ThreadPoolExecutor(1) as pool:
        began_s = time.monotonic()
        waiting = pool.submit(anna.get, f"/jobs/{job_id}?wait=50&since={job['change']}")
        time.sleep(0.5)
        assert not waiting.done()
        anna.post(f"/jobs/{job_id}/priority", {"priority": 3})
        changed = waiting.result().json
    assert time.monotonic() - began_s < 20
    assert (changed["priority"], changed["change"] != job["change"]) == (3, True)
    assert anna.get(f"/jobs/{job_id}?wait=50&since={job['change']}").json["priority"] == 3  # at once
    assert "'change'" in anna.get(f"/jobs/{job_id}?wait=1&since=x").refused(400, "BadRequestError")
    anna.post(f"/jobs/{job_id}/cancel", {})


def test_one_too_many_is_refused_and_all_end_with_the_daemon(tmp_path: Path) -> None:
    with serving(tmp_path, changes={"web": {"max_connections": CONNECTIONS}}) as api:
        readers = [Reader(api, "/jobs/events") for _ in range(CONNECTIONS // 2)]
        assert {reader.answer.status for reader in readers} == {200}
        refused = api.get("/jobs/events")
        assert "as many as may be" in refused.refused(503, "ServiceUnavailableError")
        assert refused.headers["Retry-After"] == "10"
        assert [api.get("/health/live").status for _ in range(2 * CONNECTIONS)] == [200] * 2 * CONNECTIONS
        readers.pop().close()
        api.installation.until(lambda: Reader(api, "/jobs/events").answer.status == 200, "a free place")
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(lambda: list(readers[0].events()))
            assert api.installation.stop() == 0
            assert read.result() == []
        assert "Traceback" not in api.installation.log


# -- bounds, by hand ---------------------------------------------------------------------------------------------------


class ByHand:
    """The streams of a ledger without a server."""

    def __init__(self, root: Path) -> None:
        self.by_hand = JobsByHand(root)
        self.slots = SlotCount(1)
        self.jobs = Jobs(CurrentSettings(self.by_hand.settings), self.by_hand.folders, lambda: self.slots)
        self.reads = 0
        read = self.jobs.view.changed_since

        def counted(number: int) -> Any:
            self.reads += 1
            return read(number)

        self.jobs.view.changed_since = counted  # type: ignore[method-assign]
        bodies = JobBodies(self.jobs, Links(self.by_hand.folders.state, signed=False))
        self.streams = Streams(self.jobs, Changes(self.jobs.view, bodies))
        self.by_hand.ledger.commit_listeners.append(self.streams.signal)
        self.by_hand.ledger.deletion_listeners.append(self.streams.signal_deleted)

    def close(self) -> None:
        self.jobs.close()
        self.by_hand.close()


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[ByHand]:
    by_hand = ByHand(tmp_path)
    yield by_hand
    by_hand.close()


def aborted() -> None:
    raise AssertionError("the reader was disconnected")


def test_one_query_serves_all_streams_and_there_is_none_without_one(by_hand: ByHand) -> None:
    async def read() -> None:
        running = asyncio.create_task(by_hand.streams.run())
        queued(by_hand.by_hand.ledger, "before")
        await asyncio.sleep(0.3)
        assert by_hand.reads == 0
        opened = [by_hand.streams.opened(UNLIMITED, "", None, aborted) for _ in range(50)]
        streams = [await one.__aenter__() for one in opened]
        assert by_hand.reads == 1
        for stream in streams:
            assert b'"name": "before"' in (await stream.next(WITHIN_S) or b"")
        by_hand.by_hand.ledger.insert(spec_of("after"), max_attempts=3)
        texts = [await stream.next(WITHIN_S) or b"" for stream in streams]
        assert by_hand.reads == 2
        assert all(b'"name": "after"' in text and b'"name": "before"' not in text for text in texts)
        assert await streams[0].next(0.01) == b""  # where a comment is sent
        for one in opened:
            await one.__aexit__(None, None, None)
        by_hand.by_hand.ledger.insert(spec_of("nobody"), max_attempts=3)
        await asyncio.sleep(0.5)
        assert by_hand.reads == 2
        running.cancel()

    asyncio.run(read())


def progress(by_hand: ByHand, job_id: str, fraction: float, **more: Any) -> None:
    """What the daemon writes while it renders."""
    live = {"progress": {job_id: {"stage": "rendering", "fraction": fraction}}, **more}
    write_json(by_hand.by_hand.folders.state / STATUS_FILE, live, mode=0o600)
    by_hand.streams.signal_progress()


def test_the_progress_of_a_render_reads_no_row(by_hand: ByHand) -> None:
    async def read() -> None:
        running = asyncio.create_task(by_hand.streams.run())
        runs = by_hand.by_hand.running("runs")
        waits = [queued(by_hand.by_hand.ledger, f"waits-{number}") for number in range(3)]
        async with by_hand.streams.opened(UNLIMITED, "", None, aborted) as stream:
            await stream.next(WITHIN_S)
            reads = by_hand.reads
            for fraction in (0.25, 0.5):
                progress(by_hand, runs, fraction)
                event = await stream.next(WITHIN_S) or b""
                assert event.count(b"data: ") == 1
                assert json.loads(event.split(b"\n")[0].removeprefix(b"data: "))["fraction"] == fraction
            assert by_hand.reads == reads
            progress(by_hand, runs, 0.5, paused="3 MB are free")  # now the jobs that wait say why
            event = await stream.next(WITHIN_S) or b""
            assert all(f'"id": "{job_id}"'.encode() in event for job_id in waits)
            assert event.count(b'"code": "disk-low"') == len(waits)
            assert by_hand.reads == reads + 1
        running.cancel()

    asyncio.run(read())


def test_readers_of_all_jobs_learn_of_slots_once_there_are_several(by_hand: ByHand) -> None:
    async def read() -> None:
        running = asyncio.create_task(by_hand.streams.run())
        runs = by_hand.by_hand.running("runs")
        async with (
            by_hand.streams.opened(UNLIMITED, "", None, aborted) as every,
            by_hand.streams.opened(UNLIMITED, runs, None, aborted) as one,
        ):
            for stream in (every, one):
                assert b"event: slots" not in (await stream.next(WITHIN_S) or b"")
            for count in (SlotCount(4, 2), SlotCount(4, 3), SlotCount(0, 0)):
                by_hand.slots = count
                by_hand.streams.signal_progress()
                name, data = (await every.next(WITHIN_S) or b"").split(b"\n")[:2]
                assert name == b"event: slots"
                assert json.loads(data.removeprefix(b"data: ")) == {"slots": count.every, "busy": count.busy}
                async with by_hand.streams.opened(UNLIMITED, "", None, aborted) as late:
                    assert data in (await late.next(WITHIN_S) or b"")
            progress(by_hand, runs, 0.5)
            assert b"event: slots" not in (await every.next(WITHIN_S) or b"")
            assert b"event: slots" not in (await one.next(WITHIN_S) or b"")
        running.cancel()

    asyncio.run(read())


def test_a_change_that_could_not_be_read_is_sent_after_the_next_signal(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> None:
        running = asyncio.create_task(by_hand.streams.run())
        runs = by_hand.by_hand.running("runs")
        refused = asyncio.Event()
        loop = asyncio.get_running_loop()

        def refuse(_number: int) -> Any:
            loop.call_soon_threadsafe(refused.set)
            raise LedgerError("the disk is full")

        async with by_hand.streams.opened(UNLIMITED, "", None, aborted) as stream:
            await stream.next(WITHIN_S)
            with monkeypatch.context() as patch:
                patch.setattr(by_hand.jobs.view, "changed_since", refuse)
                by_hand.by_hand.ledger.insert(spec_of("after"), max_attempts=3)
                await asyncio.wait_for(refused.wait(), WITHIN_S)
            progress(by_hand, runs, 0.25)
            assert b'"name": "after"' in (await stream.next(WITHIN_S) or b"")
        running.cancel()

    asyncio.run(read())


def test_an_end_is_sent_although_its_number_was_given_away_again(by_hand: ByHand) -> None:
    """The rows of a deleted job's events go, and SQLite numbers the next event like the last one of these."""
    ledger = by_hand.by_hand.ledger

    async def read() -> None:
        running = asyncio.create_task(by_hand.streams.run())
        first, second = queued(ledger, "first"), queued(ledger, "second")
        ledger.to_cancelled(first)
        async with by_hand.streams.opened(UNLIMITED, "", None, aborted) as stream:
            begun = await stream.next(WITHIN_S) or b""
            with by_hand.by_hand.ledger._lock:  # the streams read both changes at once
                assert ledger.delete(first)
                ledger.to_cancelled(second)
            event = await stream.next(WITHIN_S) or b""
            assert f'event: deleted\ndata: {{"id": "{first}"'.encode() in event
            assert f'data: {{"id": "{second}", "name": "second", "state": "cancelled"'.encode() in event
            assert event.splitlines()[-2] <= begun.splitlines()[-2]  # no new number
        running.cancel()

    asyncio.run(read())


def test_there_are_256_streams_and_no_more_and_no_tenant_has_all(by_hand: ByHand) -> None:
    async def fill(client: Client) -> int:
        number = 0
        try:
            while number <= MOST_STREAMS:
                await by_hand.streams.opened(client, "", None, aborted).__aenter__()
                number += 1
        except ApiError as error:
            assert (error.status, error.headers["Retry-After"]) == (503, "10")
        return number

    async def both() -> tuple[int, int]:
        anna = await fill(Client("anna", tenants=2, has_key=True))
        return anna, await fill(Client("bert", tenants=2, has_key=True))

    assert asyncio.run(both()) == (MOST_STREAMS // 2, MOST_STREAMS // 2)
    assert MOST_STREAMS == 256


def test_a_slow_reader_is_disconnected_and_no_other(by_hand: ByHand) -> None:
    gone: list[str] = []

    async def send() -> None:
        slow = Stream(UNLIMITED, "", lambda: gone.append("slow"))
        quick = Stream(UNLIMITED, "", lambda: gone.append("quick"))
        slow.send(b"x" * 10_000_000)  # a beginning may be long
        assert gone == []
        for _ in range(100):
            slow.send(b"x" * 10_000)
            quick.send(b"x" * 10_000)
            assert len(await quick.next(WITHIN_S) or b"") == 10_000
        assert set(gone) == {"slow"}
        assert await slow.next(WITHIN_S) is None

    asyncio.run(send())
