"""A member of the group and a stranger on the machine of a daemon with REST: what clients send is out of reach."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator

import pytest

from lipsyncd.jobs.job import new_id
from tests.kits.installation import Installation, picture
from tests.kits.long_run_figures import report
from tests.kits.machine.users_kit import DAEMON, MEMBER, STRANGER, User, needs_users, shared_installation
from tests.kits.web_kit import Api, port_of
from tests.web.test_tenants import ANNA, BERT, Theirs, listed, made_by, with_key

pytestmark = needs_users
IMAGE = picture(5)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with shared_installation() as installation:
        keys = installation.root / "keys"
        keys.write_text(f"{ANNA}\n{BERT}\nboss:third-secret admin\n")
        keys.chmod(0o600)
        os.chown(keys, DAEMON.uid, DAEMON.gid)
        installation.changes["web"] = {"enabled": True, "api_key_file": str(keys)}
        installation.run_as = DAEMON.command()
        with installation.running():
            yield Api(installation, port_of(installation))


@pytest.fixture(scope="module")
def annas(api: Api) -> Theirs:
    return made_by(with_key(api, ANNA), 5)


def tried(user: User, code: str) -> str:
    """What a few lines of Python, run by that user, print: the error of each attempt, or "done"."""
    return user.run("python3", "-c", code).stdout.strip()


ATTEMPTS = """
import sys
for path, mode in {cases!r}:
    try:
        open(path, mode).close()
    except OSError as error:
        print(type(error).__name__, end=" ")
    else:
        print("done", end=" ")
"""


def test_uploads_and_secrets_can_be_neither_read_nor_changed(api: Api, annas: Theirs) -> None:
    state = api.installation.path("state")
    uploads = [state / "uploads" / upload["id"] for upload in (annas.image, annas.audio)]
    paths = [*(folder / name for folder in uploads for name in ("content", "facts.json")),
             state / "manifest-secret", state / "link-secret", api.installation.root / "keys"]  # fmt: skip
    assert all(path.exists() for path in paths)
    cases = [(str(path), mode) for path in paths for mode in ("rb", "r+b")]
    for user in (MEMBER, STRANGER):
        assert set(tried(user, ATTEMPTS.format(cases=cases)).split()) == {"PermissionError"}
    assert with_key(api, ANNA).get(annas.image["url"]).body == IMAGE


def dropped_by(user: User, installation: Installation, name: str, fields: dict[str, object]) -> None:
    target = installation.path("inbox") / f"{name}.json"
    code = f"import os; open({str(target)!r} + '.part', 'w').write({json.dumps(fields)!r}); "
    done = user.run("python3", "-c", f"{code}os.rename({str(target)!r} + '.part', {str(target)!r})")
    assert done.returncode == 0, done


def test_a_member_who_knows_an_uploads_id_gets_nothing_of_it(api: Api, annas: Theirs) -> None:
    """The ids stand in links, and in the names of folders that the group may list."""
    installation = api.installation
    mine = listed(with_key(api, ANNA))
    cases: dict[str, dict[str, object]] = {
        "takes the picture": {"image": f"upload:{annas.image['id']}", "text": "hello"},
        "is anna": {"image": "http://192.0.2.1/a.png", "audio": "http://192.0.2.1/a.wav",
                    "id": new_id(), "rest": {"tenant": "anna", "api": "talks", "by": "anna"}},
    }  # fmt: skip
    for name, fields in cases.items():
        dropped_by(MEMBER, installation, name, fields)
        job = installation.until_failed(name)
        assert (job.reason_code, job.tenant) == ("bad-manifest", None)
    assert listed(with_key(api, ANNA)) == mine
    submitted = installation.cli("submit", f"upload:{annas.image['id']}", "http://192.0.2.1/a.wav")
    assert submitted.returncode == 2
    assert "only clients of REST" in submitted.stderr
    found = [path for kind in ("failed", "archive") for path in installation.path(kind).rglob("*") if path.is_file()]
    assert len(found) > 0
    assert not any(path.read_bytes() == IMAGE for path in found)


def test_a_member_cannot_change_what_rest_leaves_in_the_inbox(api: Api) -> None:
    """It would prove nothing any more, and the client's job would be lost. The member tries on each that it sees."""
    installation = api.installation
    done: list[str] = []
    code = """
import glob, sys, time
until = time.time() + 8
tries = changed = 0
while time.time() < until:
    for path in glob.glob(sys.argv[1] + "/rest-*.json"):
        tries += 1
        try:
            with open(path, "r+b") as file:
                file.write(b"x")
            changed += 1
        except OSError:
            pass
print(tries, changed)
"""
    attempts = threading.Thread(
        target=lambda: done.append(MEMBER.run("python3", "-c", code, installation.path("inbox")).stdout)
    )
    attempts.start()
    talks = []
    while attempts.is_alive():
        body = {
            "source_url": "http://192.0.2.1/a.png",
            "script": {"type": "audio", "audio_url": "http://192.0.2.1/a.wav"},
        }
        answer = with_key(api, BERT).post("/talks", body)
        if answer.status == 201:
            talks.append(answer.json["id"])
    attempts.join()
    tries, changed = map(int, done[0].split())
    assert (tries > 0, changed) == (True, 0)
    assert {with_key(api, BERT).talk(talk, "error")["error"]["code"] for talk in talks} == {"fetch-refused"}
    report("a member writes into manifests of REST", f"{tries} tries on {len(talks)} manifests, {changed} changed")
