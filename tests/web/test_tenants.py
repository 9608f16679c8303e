"""Keys are tenants: each has its own jobs and uploads, an administrator's key has all, no file in the inbox lies."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import BadManifest
from lipsyncd.jobs import manifest_mac
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.jobs.manifest import build, parse, to_json
from lipsyncd.settings import Web
from lipsyncd.storage.secret_file import secret_in
from lipsyncd.web.access import Access
from lipsyncd.web.keys import digest_of, key_of, read_keys, without_admin
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.web_kit import Api, serving

ANNA, BERT, WORD, BOSS = "anna:first-secret", "bert:second-secret", "one-long-word", "boss:third-secret"


def with_key(api: Api, key: str) -> Api:
    return replace(api, headers={"Authorization": key} if key else {})


def keys_file(folder: Path, *lines: str) -> dict[str, dict[str, Any]]:
    """The settings for a file with these keys."""
    path = folder / "keys"
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)
    return {"web": {"api_key_file": str(path)}}


@dataclass(frozen=True)
class Theirs:
    """What one client has made: a finished talk of two uploads."""

    image: dict[str, Any]
    audio: dict[str, Any]
    talk: dict[str, Any]

    @property
    def job_id(self) -> str:
        digits = self.talk["id"].removeprefix("tlk_")
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def made_by(client: Api, seed: int = 0, **headers: str) -> Theirs:
    image = client.form("/images", image=("a.png", picture(seed))).json
    audio = client.form("/audios", audio=("a.wav", sound(seed=seed))).json
    body = {"source_url": image["url"], "script": {"type": "audio", "audio_url": audio["url"]}, "name": f"of {seed}"}
    answer = client.post("/talks", body, **headers)
    assert answer.status == 201, answer
    return Theirs(image, audio, client.talk(answer.json["id"]))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("tenants")
    with serving(root, changes=keys_file(root, ANNA, BERT, WORD, f"{BOSS} admin")) as api:
        yield api


@pytest.fixture(scope="module")
def anna(api: Api) -> Api:
    return with_key(api, ANNA)


@pytest.fixture(scope="module")
def bert(api: Api) -> Api:
    return with_key(api, BERT)


@pytest.fixture(scope="module")
def boss(api: Api) -> Api:
    return with_key(api, BOSS)


@pytest.fixture(scope="module")
def annas(anna: Api) -> Theirs:
    return made_by(anna, 1)


@pytest.fixture(scope="module")
def dropped(api: Api) -> str:
    """The id of a finished job of the folder."""
    api.installation.drop_pair("dropped", seed=9)
    return api.installation.until_done("dropped").id


def unsigned(url: str) -> str:
    return url.partition("?")[0]


def listed(client: Api) -> set[str]:
    """The ids of all talks that a client sees, page by page."""
    found, token = set[str](), ""
    while True:
        page = client.get(f"/talks?limit=2&token={token}").json
        found |= {talk["id"] for talk in page["talks"]}
        token = page.get("token", "")
        if not token:
            return found


# -- what is another's -------------------------------------------------------------------------------------------------


def test_each_key_lists_its_own_jobs_and_the_administrator_all(
    api: Api, anna: Api, bert: Api, boss: Api, annas: Theirs, dropped: str
) -> None:
    berts, words = made_by(bert, 2), made_by(with_key(api, WORD), 3)
    folders = f"tlk_{dropped.replace('-', '')}"
    assert listed(anna) == {annas.talk["id"]}
    assert listed(bert) == {berts.talk["id"]}
    assert listed(with_key(api, WORD)) == {words.talk["id"]}
    assert listed(boss) >= {annas.talk["id"], berts.talk["id"], words.talk["id"], folders}


def test_another_keys_job_is_not_found_and_stays(bert: Api, anna: Api, annas: Theirs) -> None:
    for path in (f"/talks/{annas.talk['id']}", f"/talk-status/{annas.job_id}", f"/talks/{annas.job_id}?wait=60"):
        began_s = time.monotonic()
        theirs, none = bert.get(path), bert.get(path.replace(annas.talk["id"], f"tlk_{0:032x}"))
        assert theirs.status == 404
        if none.status == 404:
            assert theirs.body == none.body  # nothing shows that there is such a job
        assert time.monotonic() - began_s < 10
    assert bert.call("DELETE", f"/talks/{annas.talk['id']}").status == 404
    assert anna.talk(annas.talk["id"])["id"] == annas.talk["id"]


@pytest.mark.slow
def test_waiting_for_another_keys_job_ends_at_once(api: Api, bert: Api, anna: Api) -> None:
    files = {"source_image": ("a.png", picture(4)), "audio_data": ("a.wav", sound(2.0, seed=4))}
    job_id = anna.form("/generate-video", renderer="slow", **files).json["id"]
    began_s = time.monotonic()
    assert bert.get(f"/talk-status/{job_id}?wait=60").status == 404
    assert bert.call("DELETE", f"/talks/{job_id}").status == 404  # and not 409, as for a job under way
    assert time.monotonic() - began_s < 10
    assert anna.get(f"/talk-status/{job_id}?wait=50").json["status"] == "done"


def test_downloads_need_the_signature_or_the_right_key(
    api: Api, anna: Api, bert: Api, boss: Api, annas: Theirs
) -> None:
    status = anna.get(f"/talk-status/{annas.job_id}").json
    for url in (annas.talk["result_url"], status["result_url"], annas.image["url"], annas.audio["url"]):
        assert bert.get(unsigned(url)).status == 404
        assert api.get(unsigned(url)).status == 401
        for client in (anna, boss):
            assert client.get(unsigned(url)).status == 200
        for client in (api, bert):  # a signed link opens for all
            assert client.get(url).status == 200


def test_another_keys_upload_is_no_source_and_cannot_be_deleted(anna: Api, bert: Api, annas: Theirs) -> None:
    image, audio = annas.image["url"], annas.audio["url"]
    jobs = listed(bert)
    for link in (image, unsigned(image), image.replace("127.0.0.1", "other.example")):
        body = {"source_url": link, "script": {"type": "audio", "audio_url": "http://192.0.2.1/a.wav"}}
        assert bert.post("/talks", body).refused(404, "NotFoundError")
        assert bert.form("/images", source_url=link).refused(404, "NotFoundError")
        form = {"source_url": link, "audio_data": ("a.wav", sound())}
        assert bert.form("/generate-video", **form).refused(404, "NotFoundError")
    body = {"source_url": "http://192.0.2.1/a.png", "script": {"type": "audio", "audio_url": audio}}
    bert.post("/talks", body).refused(404, "NotFoundError")
    assert bert.call("DELETE", f"/images/{annas.image['id']}").status == 404
    assert bert.call("DELETE", f"/audios/{annas.audio['id']}").status == 404
    assert listed(bert) == jobs
    assert anna.get(unsigned(image)).status == 200
    gone = image.replace(annas.image["id"], "0" * 8 + annas.image["id"][8:])
    body = {"source_url": gone, "script": {"type": "audio", "audio_url": audio}}
    assert anna.post("/talks", body).status == bert.post("/talks", {**body, "source_url": image}).status  # as unknown


def test_an_administrator_may_use_and_delete_what_others_uploaded(anna: Api, boss: Api) -> None:
    image = anna.form("/images", image=("a.png", picture(5))).json
    made = boss.form("/generate-video", source_url=image["url"], audio_data=("a.wav", sound())).json
    assert boss.done(made["id"])
    assert anna.get(f"/talk-status/{made['id']}").status == 404  # the administrator's own job
    assert boss.call("DELETE", f"/images/{image['id']}").status == 204


def test_the_same_idempotency_key_of_two_tenants_makes_two_jobs(anna: Api, bert: Api) -> None:
    first, other = made_by(anna, 6, Idempotency_Key="order-1"), made_by(bert, 6, Idempotency_Key="order-1")
    assert first.talk["id"] != other.talk["id"]
    body = {"source_url": first.image["url"], "script": {"type": "audio", "audio_url": first.audio["url"]},
            "name": "of 6"}  # fmt: skip
    again = anna.post("/talks", body, Idempotency_Key="order-1")
    assert (again.status, again.json["id"]) == (201, first.talk["id"])


def test_a_deletion_by_the_administrator_reaches_every_tenants_job(bert: Api, boss: Api) -> None:
    theirs = made_by(bert, 7)
    assert boss.call("DELETE", f"/talks/{theirs.talk['id']}").status == 200
    assert bert.get(f"/talks/{theirs.talk['id']}").status == 404


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_tenant_is_the_user_or_the_start_of_the_digest() -> None:
    assert key_of(ANNA).tenant == "anna"
    assert digest_of(WORD).hex().startswith(key_of(WORD).tenant)
    assert len(key_of(WORD).tenant) >= 12
    assert key_of(":no-user-at-all").tenant not in ("", ":no-user-at-all")
    ranks = {f"{BOSS} admin": True, f"{BOSS}\tadmin": True, f"{BOSS}admin": False, "admin:secret": False, BOSS: False}
    assert {text: key_of(text).admin for text in ranks} == ranks
    assert key_of(f"{BOSS} admin").digests == key_of(BOSS).digests


def test_equal_keys_count_once_and_rank_counts_in_all_three_sources(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for path in (credentials / "api-key", tmp_path / "file"):
        path.write_text(f"{ANNA}\n")
        path.chmod(0o600)
    environment = {"CREDENTIALS_DIRECTORY": str(credentials), "LIPSYNCD_API_KEY": ANNA}
    web = Web(api_key_file=tmp_path / "file")
    assert [key.tenant for key in read_keys(web, environment)] == ["anna"]
    assert not without_admin(read_keys(web, environment))
    for source in ("credential", "file", "variable"):
        lines = {name: f"{ANNA} admin" if name == source else BERT for name in ("credential", "file", "variable")}
        (credentials / "api-key").write_text(lines["credential"])
        (tmp_path / "file").write_text(lines["file"])
        keys = read_keys(web, {**environment, "LIPSYNCD_API_KEY": lines["variable"]})
        assert {(key.tenant, key.admin) for key in keys} == {("anna", True), ("bert", False)}
    with pytest.raises(Exception, match="has 7 characters"):
        read_keys(Web(), {"LIPSYNCD_API_KEY": "a:short admin"})


def test_two_passwords_of_one_user_are_one_tenant() -> None:
    access = Access(None, [key_of("anna:old-secret"), key_of("anna:new-secret"), key_of(BERT)])  # type: ignore[arg-type]
    clients = [access.client({"Authorization": key}) for key in ("anna:old-secret", "anna:new-secret")]
    assert clients[0] == clients[1]
    assert clients[0] is not None
    assert (clients[0].tenant, clients[0].is_all, clients[0].tenants) == ("anna", False, 2)


@pytest.mark.parametrize("keys", [(), (ANNA,), (ANNA, ANNA)], ids=["no key", "one key", "the same key twice"])
def test_a_single_key_or_none_has_everything(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with serving(tmp_path, changes=keys_file(tmp_path, *keys) if keys else None) as api:
        client = with_key(api, keys[0] if keys else "")
        api.installation.drop_pair("dropped")
        job_id = api.installation.until_done("dropped").id
        assert client.get(f"/talk-status/{job_id}").json["status"] == "done"
        assert client.get(client.get(f"/talk-status/{job_id}").json["result_url"]).status == 200
        theirs = made_by(client)
        assert listed(client) == {theirs.talk["id"], f"tlk_{job_id.replace('-', '')}"}
        assert client.call("DELETE", f"/talks/{theirs.talk['id']}").status == 200
        assert "administrator" not in api.installation.log


def test_a_second_key_leaves_each_its_own_and_the_jobs_of_before_to_the_administrator(tmp_path: Path) -> None:
    """One key first; then two, which the start warns of; then an administrator's beside them."""
    changes = keys_file(tmp_path, ANNA)
    with serving(tmp_path, changes=changes) as api:
        annas, earlier = made_by(with_key(api, ANNA), 1), made_by(with_key(api, ANNA), 2)
        assert "administrator" not in api.installation.log
    as_of_an_older_version(api.installation, earlier)
    keys_file(tmp_path, ANNA, BERT)
    with serving(tmp_path, changes=changes) as api:
        assert "2 keys and none of an administrator" in api.installation.log
        found = doctors_key(api.installation)
        assert (found["verdict"], "admin" in found["remedy"]) == ("warning", True), found
        anna, bert = with_key(api, ANNA), with_key(api, BERT)
        assert listed(anna) == {annas.talk["id"]}
        assert listed(bert) == set()
        assert anna.get(f"/talks/{earlier.talk['id']}").status == 404
        assert anna.get(unsigned(earlier.image["url"])).status == 404
        assert anna.get(earlier.talk["result_url"]).status == 200  # a signed link of before
    keys_file(tmp_path, ANNA, BERT, f"{BOSS} admin")
    with serving(tmp_path, changes=changes) as api:
        boss = with_key(api, BOSS)
        assert listed(boss) == {annas.talk["id"], earlier.talk["id"]}
        assert boss.get(unsigned(earlier.image["url"])).status == 200
        assert doctors_key(api.installation)["verdict"] == "ok"


def doctors_key(installation: Installation) -> dict[str, Any]:
    """What `lipsyncd doctor` finds about keys."""
    checks = json.loads(installation.cli("doctor", "--json").stdout)["checks"]
    [found] = [check for check in checks if check["name"] == "key"]
    return dict(found)


def as_of_an_older_version(installation: Installation, theirs: Theirs) -> None:
    """Make a job and its uploads look like those that a version without tenants has left."""
    with closing(sqlite3.connect(installation.path("state") / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE job SET tenant=NULL, rest=json_remove(rest, '$.tenant') WHERE id=?", (theirs.job_id,))
    for upload in (theirs.image, theirs.audio):
        facts = installation.path("state") / "uploads" / upload["id"] / "facts.json"
        content = json.loads(facts.read_text())
        del content["tenant"]
        facts.write_text(json.dumps(content))


# -- manifests in the inbox --------------------------------------------------------------------------------------------


def refused(installation: Installation, name: str) -> str:
    """The message with which the job of that name was refused as `bad-manifest`."""
    job = installation.until_failed(name)
    assert job.reason_code == "bad-manifest", job
    assert job.tenant is None
    return str(job.reason)


def forgeries(annas: Theirs) -> dict[str, dict[str, Any]]:
    """Manifests that claim what only REST may write."""
    upload = {"image": f"upload:{annas.image['id']}"}
    pair = {"image": "http://192.0.2.1/a.png", "audio": "http://192.0.2.1/a.wav"}
    return {
        "reads an upload": {**upload, "text": "hello"},
        "reads a sound": {"image": "http://192.0.2.1/a.png", "audio": f"upload:{annas.audio['id']}"},
        "is another tenant": {**pair, "rest": {"tenant": "anna", "api": "talks"}},
        "has an empty rest": {**pair, "rest": {}},
        "has a false proof": {**upload, "text": "hello", "mac": "0" * 64},
        "has a proof of nothing": {**pair, "mac": "f" * 64},
        "writes it in capitals": {"image": f"UPLOAD:{annas.image['id'].upper()}", "text": "hello"},
    }


def test_a_member_of_the_folder_can_neither_read_uploads_nor_be_a_tenant(
    api: Api, anna: Api, boss: Api, annas: Theirs
) -> None:
    mine = listed(anna)
    cases = forgeries(annas)
    for name, fields in cases.items():
        api.installation.drop_manifest(name, **fields)
        id_ = new_id()
        put(api.installation.path("inbox"), f"rest-{id_}.json", json.dumps({**fields, "id": id_}).encode())
        assert [client.get(f"/talk-status/{id_}").status for client in (anna, boss)] == [404, 404]
        refused(api.installation, f"rest-{id_}")
    for name in cases:
        assert "REST service" in refused(api.installation, name)
    assert listed(anna) == mine
    files = [path for path in api.installation.path("failed").rglob("*") if path.is_file()]
    copied = [path for path in files if path.read_bytes() == picture(1)]
    assert copied == []


def test_a_changed_or_copied_manifest_of_rest_proves_nothing(api: Api, anna: Api, tmp_path: Path) -> None:
    """The bytes that REST leaves, as a member may read them in the inbox, under other names and with other fields."""
    secret = secret_in(api.installation.path("state") / "manifest-secret")
    order = build({"image": "http://192.0.2.1/a.png", "audio": "http://192.0.2.1/a.wav", "id": new_id(),
                   "rest": {"tenant": "anna", "api": "talks"}})  # fmt: skip
    signed = manifest_mac.signed(order, secret)
    manifest_mac.check(parse(to_json(signed)), secret)
    changes: list[dict[str, Any]] = [
        {"image": "http://192.0.2.1/b.png"}, {"id": new_id()}, {"rest": {"tenant": "bert", "api": "talks"}},
        {"webhook": "https://example.com/"}, {"priority": 9}, {"out_name": "x"}, {"mac": None}, {"user_data": {}},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(BadManifest, match="REST service"):
            manifest_mac.check(replace(signed, **change), secret)
    with pytest.raises(BadManifest, match="REST service"):
        manifest_mac.check(signed, os.urandom(32))
    other = new_id()
    put(api.installation.path("inbox"), f"rest-{other}.json", to_json(signed))  # under another id's name
    assert anna.get(f"/talk-status/{other}").status == 404


def test_the_secret_is_ours_alone_and_outlives_a_restart(tmp_path: Path) -> None:
    """An order that was left just before a crash is accepted after it."""
    changes = keys_file(tmp_path, ANNA, BERT)
    with serving(tmp_path, changes=changes) as api:
        path = api.installation.path("state") / "manifest-secret"
        before = path.read_bytes()
        assert (path.stat().st_mode & 0o777, len(before)) == (0o600, 32)
        order = {"image": "http://192.0.2.1/a.png", "audio": "http://192.0.2.1/a.wav", "id": new_id(),
                 "out_name": "left", "rest": {"tenant": "anna", "api": "talks"}}  # fmt: skip
        api.installation.kill()
        put(api.installation.path("inbox"), f"rest-{order['id']}.json",
            to_json(manifest_mac.signed(build(order), before)))  # fmt: skip
        api.installation.start()
        job = api.installation.until_state("left", JobState.FAILED)
        assert (job.reason_code, job.tenant) == ("fetch-refused", "anna")
        assert path.read_bytes() == before


def test_a_kept_job_that_a_member_rewrites_reads_no_upload_at_its_retry(api: Api, bert: Api, annas: Theirs) -> None:
    body = {"source_url": "http://192.0.2.1/a.png", "script": {"type": "audio", "audio_url": "http://192.0.2.1/a.wav"}}
    made = bert.talk(bert.post("/talks", {**body, "name": "retried"}).json["id"], "error")
    job = api.installation.until_failed("retried")
    kept = Path(str(job.kept)) / "job.json"
    spec = json.loads(kept.read_text())
    kept.write_text(json.dumps({**spec, "image_url": f"upload:{annas.image['id']}"}))
    done = api.installation.cli("retry", job.id)
    assert done.returncode == 1
    assert "was changed" in done.stderr
    kept.write_text(json.dumps({**spec, "rest": {**spec["rest"], "tenant": "anna"}}))
    assert api.installation.cli("retry", job.id).returncode == 0
    assert bert.talk(made["id"], "error")["user_id"] == "bert"
    assert api.installation.until_failed("retried").tenant == "bert"


def test_ended_jobs_keep_their_tenant_when_the_ledger_is_lost_and_no_other_is_believed(tmp_path: Path) -> None:
    changes = keys_file(tmp_path, ANNA, BERT, f"{BOSS} admin")
    with serving(tmp_path, changes=changes) as api:
        annas, forged = made_by(with_key(api, ANNA), 1), made_by(with_key(api, ANNA), 2)
        failed = with_key(api, ANNA).post("/talks", {
            "source_url": "http://192.0.2.1/a.png",
            "script": {"type": "audio", "audio_url": "http://192.0.2.1/a.wav"},
        }).json["id"]  # fmt: skip
        with_key(api, ANNA).talk(failed, "error")
    for path in api.installation.path("state").glob("ledger.db*"):
        path.unlink()
    [kept] = api.installation.path("archive").glob(f"*/{forged.job_id}/job.json")
    spec = json.loads(kept.read_text())
    kept.write_text(json.dumps({**spec, "rest": {**spec["rest"], "tenant": "bert"}}))
    with serving(tmp_path, changes=changes) as api:
        assert listed(with_key(api, ANNA)) == {annas.talk["id"], failed}
        assert listed(with_key(api, BERT)) == set()
        assert listed(with_key(api, BOSS)) == {annas.talk["id"], forged.talk["id"], failed}
