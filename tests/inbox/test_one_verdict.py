"""One verdict at every entrance: the same bytes get the same answer, notes and length wherever they come from.

Each input goes through the watched folder, `lipsyncd submit`, the upload routes of the original service and of D-ID,
and an address that the daemon fetches. A job's verdict is known once it is prepared, so the renderer here never ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lipsyncd.errors import InputError
from lipsyncd.inbox.submit import drop, manifest_of
from lipsyncd.jobs.job import Job
from lipsyncd.jobs.values import canonical_id
from lipsyncd.media import sniff
from lipsyncd.media.check_input import PictureLimits
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.spool import Spool
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.media.footage_kit import H264, film
from tests.kits.media.verdict_cases import AUDIO, CASES, IMAGE, SHORT, Case
from tests.kits.web_kit import Api, Reply, port_of

CHUNKS = 12
RUN = int(os.environ.get("LIPSYNCD_TEST_VERDICTS", "12"))  # chunks of the slow test's cases

# -- the entrances -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The answer to an input: a code and the words, or what a renderer would get."""

    code: str
    words: str = ""
    frames: int = 0
    duration_ms: int = 0
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Awaited:
    """A job that will give the verdict: its id, or the name of what was dropped. `duration_s`: what REST answered."""

    job_id: str = ""
    name: str = ""
    duration_s: float | None = None


Begun = Mapping[str, Verdict | Awaited]  # by entrance


@dataclass(frozen=True)
class Good:
    """The other half of a case."""

    role: str
    name: str
    make: Callable[[int], bytes]


VOICE = Good(AUDIO, "s.wav", lambda seed: sound(0.24, seed))
STILL = Good(IMAGE, "p.png", picture)
FILM = Good(IMAGE, "f.mp4", lambda _seed: film(".mp4", 2, *H264))  # ffmpeg looks at it in a third of a picture's time


@dataclass
class Entrances:
    """A running daemon with its server, and a server on loopback that it may fetch from.

    uploads  addresses of good halves, by route and name: each is uploaded once
    """

    installation: Installation
    folders: Folders
    limits: PictureLimits
    api: Api
    address: str
    served: dict[str, bytes]
    scratch: Path
    numbers: Iterator[int] = field(default_factory=count)
    uploads: dict[tuple[str, str], str] = field(default_factory=dict)

    def verdicts(self, cases: Iterable[Case]) -> list[tuple[Case, dict[str, Verdict]]]:
        """Bring every input through every entrance, with a good other half, before the first verdict is waited for."""
        begun = [(case, self._begin(case)) for case in cases]
        verdicts = self._verdicts({a for _, ways in begun for a in ways.values() if isinstance(a, Awaited)})
        return [
            (case, {way: a if isinstance(a, Verdict) else verdicts[a] for way, a in ways.items()})
            for case, ways in begun
        ]

    def _begin(self, case: Case) -> Begun:
        content, stem = case.make(), f"case-{next(self.numbers)}"
        name = stem + case.suffix
        kind = sniff(content[:64])
        # In the folder a picture beside a film is a picture, and the film its sound.
        good = VOICE if case.role == IMAGE else STILL if kind is not None and kind.is_image else FILM
        ways = (self._folder, self._submit, self._original, self._did, self._fetched)
        return {way.__name__[1:]: way(name, content, good, seed) for seed, way in enumerate(ways)}

    def _folder(self, name: str, content: bytes, good: Good, seed: int) -> Awaited:
        stem, inbox = name.rpartition(".")[0], self.installation.path("inbox")
        put(inbox, stem + "." + good.name.rpartition(".")[2], good.make(seed))
        put(inbox, name, content)
        return Awaited(name=stem)

    def _submit(self, name: str, content: bytes, good: Good, seed: int) -> Verdict | Awaited:
        sources = {_other(good.role): self._file(name, content), good.role: self._file(good.name, good.make(seed))}
        manifest = manifest_of(**{source: str(path) for source, path in sources.items()}, text=None)
        try:
            made = drop(self.folders, manifest, limits=self.limits)
        except InputError as error:
            return Verdict(error.code, str(error))
        return Awaited(made.job_id)

    def _file(self, name: str, content: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(content)
        return path

    def _original(self, name: str, content: bytes, good: Good, seed: int) -> Verdict | Awaited:
        role = _other(good.role)
        routes = {IMAGE: "/upload-source-image", AUDIO: "/upload-audio"}
        answer = self.api.form(routes[role], file=(name, content))
        if answer.status != 200:
            return _refused(answer)
        urls = {role: answer.json["url"], good.role: self._upload(routes[good.role], "file", good, seed)}
        made = self.api.form("/generate-video", source_url=urls[IMAGE], audio_url=urls[AUDIO])
        assert made.status == 200, made
        return Awaited(made.json["id"], duration_s=answer.json.get("duration"))

    def _did(self, name: str, content: bytes, good: Good, seed: int) -> Verdict | Awaited:
        role = _other(good.role)
        answer = self.api.form(f"/{role}s", **{role: (name, content)})
        if answer.status != 201:
            return _refused(answer)
        urls = {role: answer.json["url"], good.role: self._upload(f"/{good.role}s", good.role, good, seed)}
        script = {"type": "audio", "audio_url": urls[AUDIO]}
        made = self.api.post("/talks", {"source_url": urls[IMAGE], "script": script})
        assert made.status == 201, made
        return Awaited(canonical_id(made.json["id"]), duration_s=answer.json.get("duration"))

    def _upload(self, route: str, part: str, good: Good, seed: int) -> str:
        """The address of a good half."""
        if (route, good.name) not in self.uploads:
            answer = self.api.form(route, **{part: (good.name, good.make(seed))})
            self.uploads[route, good.name] = answer.json["url"]
        return self.uploads[route, good.name]

    def _fetched(self, name: str, content: bytes, good: Good, seed: int) -> Awaited:
        self.served |= {f"/{name}": content, f"/{good.name}": good.make(seed)}
        urls = {_other(good.role): f"{self.address}/{name}?token=secret", good.role: f"{self.address}/{good.name}"}
        order = f"fetched-{name.partition('.')[0]}"
        self.installation.drop_manifest(order, **urls)
        return Awaited(name=order)

    def _verdicts(self, awaited: Set[Awaited]) -> Mapping[Awaited, Verdict]:
        """The verdict on the job of each. It is known once the job is prepared, or has failed."""
        found: dict[Awaited, Verdict] = {}

        def all_known() -> bool:
            time.sleep(0.5)  # a look reads every row
            known = [job for job in self.installation.view.jobs(limit=10_000) if job.prepared or job.state.ended]
            by_id = {job.id: job for job in known}
            dropped = {job.name: job for job in known if job.rest is None}  # REST names its jobs in the same way
            for one in awaited - found.keys():
                job = by_id.get(one.job_id) if one.job_id else dropped.get(one.name)
                if job is not None:
                    found[one] = self._verdict(one, job)
            return len(found) == len(awaited)

        try:
            self.installation.until(all_known, "a verdict on every input", seconds=120 + 2 * len(awaited))
        except AssertionError as late:
            raise AssertionError(f"{late}\nno verdict: {sorted(map(str, awaited - found.keys()))[:20]}") from None
        return found

    def _verdict(self, awaited: Awaited, job: Job) -> Verdict:
        if not job.prepared:
            return Verdict(job.reason_code or "", f"{job.reason}; {job.remedy}")
        prepared = Spool(self.installation.path("spool")).prepared(job.id)
        assert prepared is not None
        if awaited.duration_s is not None:
            assert round(awaited.duration_s * 1000) == job.duration_ms
        seen = prepared.picture
        return Verdict("", "", job.frames or 0, job.duration_ms or 0, (seen.width, seen.height), prepared.all_notes)


def _other(role: str) -> str:
    return AUDIO if role == IMAGE else IMAGE


def _refused(answer: Reply) -> Verdict:
    return Verdict(answer.json["details"]["code"], answer.json["description"])


@contextlib.contextmanager
def serving_files(files: Mapping[str, bytes]) -> Iterator[str]:
    """A web server on loopback that knows these paths; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files[urlsplit(self.path).path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Entrances]:
    """The entrances of a daemon of its own."""
    served, installation = dict[str, bytes](), Installation(root / "installation")
    scratch = root / "files"
    for folder in (installation.root, scratch):
        folder.mkdir(parents=True)
    installation.changes = {
        "watch": {"settle_s": 0.1, "incomplete_timeout_s": 1},
        "intake": {"on_redrop": "render"},
        "render": {"renderer": "hang", "stall_timeout_s": 3600, "job_timeout_s": 3600},
        "web": {"enabled": True, "max_queue": 10_000},
        "fetch": {"allow": ["127.0.0.1"]},
    }
    folders, limits = installation.folders, installation.settings.intake
    with serving_files(served) as address, installation.running():
        api = Api(installation, port_of(installation))
        yield Entrances(installation, folders, limits, api, address, served, scratch)


# -- the verdicts ------------------------------------------------------------------------------------------------------


def check(verdicts: Iterable[tuple[Case, Mapping[str, Verdict]]]) -> None:
    """Every case gets one verdict, which is about the input and no other trouble."""
    wrong = [
        f"{case.role} {case.what!r}:" + "".join(f"\n  {way:10}{verdict}" for way, verdict in found.items())
        for case, found in verdicts
        if len(set(found.values())) != 1 or not _is_about(case.role, next(iter(found.values())))
    ]
    assert not wrong, "\n".join(wrong)


def _is_about(role: str, verdict: Verdict) -> bool:
    return verdict.frames > 0 if not verdict.code else verdict.code.startswith(f"{role}-")


def test_the_same_bytes_get_the_same_verdict_at_every_entrance(tmp_path: Path) -> None:
    short = [case for case in CASES if (case.role, case.what) in SHORT]
    assert len(short) == len(SHORT)
    with opened(tmp_path) as entrances:
        check(entrances.verdicts(short))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_that_people_bring_gets_the_same_verdict_at_every_entrance(tmp_path: Path) -> None:
    """Two daemons share the cases, since each prepares one job at a time; hundreds in an inbox make every scan long."""

    def half(number: int) -> list[tuple[Case, dict[str, Verdict]]]:
        with opened(tmp_path / str(number)) as entrances:
            chunks = [CASES[chunk::CHUNKS][number::2] for chunk in range(RUN)]
            return [found for chunk in chunks for found in entrances.verdicts(chunk)]

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(half, range(2))
    check([*first, *second])
