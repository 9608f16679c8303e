"""`web.outbox_folder`: results of REST in a folder of their own, which other consumers leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipsyncd.errors import ConfigError
from tests.kits.installation import Installation, picture, sound
from tests.kits.web_kit import Api, serving


def ordered(api: Api, seed: int) -> str:
    answer = api.form("/generate-video", source_image=("anna.png", picture(seed)), audio_data=("a.wav", sound()))
    assert answer.status == 200, answer
    job_id: str = answer.json["id"]
    return job_id


def shown(installation: Installation) -> set[str]:
    outbox = installation.path("outbox")
    return {str(path.relative_to(outbox)) for path in outbox.rglob("[!.]*.*") if ".lipsyncd" not in path.parts}


def test_results_of_rest_have_a_folder_and_those_of_the_inbox_stay_where_they_were(tmp_path: Path) -> None:
    with serving(tmp_path, changes={"web": {"outbox_folder": "rest"}}) as api:
        installation = api.installation
        job_id = ordered(api, seed=1)
        installation.drop_pair("bert", seed=2)
        done = api.done(job_id)
        bert = installation.until_done("bert")
        assert bert.place == "bert"
        found = shown(installation)
        [video] = [name for name in found if name.startswith("rest/") and name.endswith(".mp4")]
        assert found == {"bert.mp4", "bert.json", video, video.replace(".mp4", ".json")}
        assert installation.view.get(job_id).place == video.removesuffix(".mp4")
        assert api.get(done["result_url"]).body == (installation.path("outbox") / video).read_bytes()

        for suffix in (".mp4", ".json"):
            (installation.path("outbox") / video).with_suffix(suffix).unlink()
        assert installation.cli("republish", job_id).returncode == 0
        installation.until(lambda: (installation.path("outbox") / video).exists(), "the video again")

        installation.kill()  # a daemon without the setting still knows where that result lies
        installation.changes["web"]["outbox_folder"] = ""
        installation.start()
        assert installation.cli("republish", job_id).returncode == 0
        installation.until(lambda: any("(2)" in name for name in shown(installation)), "one more")
        assert all(name.startswith("rest/") for name in shown(installation) if "(2)" in name)


@pytest.mark.parametrize("name", ["night", "NIGHT"])
def test_a_folder_that_a_queue_has_is_refused(installation: Installation, name: str) -> None:
    installation.changes |= {"queue.night": {}, "web": {"outbox_folder": name}}
    with pytest.raises(ConfigError, match=r"web\.outbox_folder is '.*a name that no queue has"):
        _ = installation.settings


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "-x", "a b", "x" * 65])
def test_a_name_that_is_no_plain_folder_is_refused(installation: Installation, name: str) -> None:
    installation.changes["web"] = {"outbox_folder": name}
    with pytest.raises(ConfigError, match=r"web\.outbox_folder is "):
        _ = installation.settings
