"""The face of a still is looked for in the jail, before its job is in the queue."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from lipsyncd.errors import JailFailed
from lipsyncd.jobs.faces import Faces
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.prepared import Picture
from lipsyncd.prepare import find_faces
from lipsyncd.web.routes.did_request import read_talk
from tests.kits.installation import Installation, put, sound
from tests.kits.media import portraits
from tests.kits.web_kit import serving


def written(folder: Path, image: np.ndarray) -> Picture:
    (folder / "picture.rgb").write_bytes(np.ascontiguousarray(image).tobytes())
    return Picture("picture.rgb", image.shape[1], image.shape[0])


def test_the_jailed_search_sees_what_the_renderers_see(tmp_path: Path) -> None:
    from lipsyncd.renderers.face.choose import choose_face

    image = portraits.picture("astronaut")
    found = find_faces.find_faces(tmp_path, written(tmp_path, image))
    face = choose_face(image)
    (seen,) = found.seen
    assert (found.chosen, found.refusal, seen.fault) == (0, {}, "")
    assert (seen.x, seen.y, seen.width, seen.height) == (face.box.x, face.box.y, face.box.width, face.box.height)
    assert seen.mouth == pytest.approx(face.mouth, abs=0.1)


def test_a_refusal_has_its_place_and_reason(tmp_path: Path) -> None:
    image = portraits.picture("ada")
    x, y = (round(c) for c in portraits_mouth(image))
    barred = image.copy()
    barred[y - 22 : y + 22, x - 45 : x + 45] = 0
    found = find_faces.find_faces(tmp_path, written(tmp_path, barred))
    assert found.chosen is None
    assert found.refusal["code"] == "no-face"
    assert "px wide" in found.refusal["message"] and "its mouth is covered" in found.refusal["message"]
    assert found.seen[0].fault == "its mouth is covered"
    assert Faces.from_json(json.loads(json.dumps({**vars(found), "seen": [vars(f) for f in found.seen]}))) == found


def portraits_mouth(image: np.ndarray) -> tuple[float, float]:
    from lipsyncd.renderers.face.finder import find_faces as look

    return look(image)[0].mouth


@pytest.mark.parametrize("choice", ["nowhere", [1, 2], {"x": 1}, True])
def test_a_choice_that_is_none_is_refused(tmp_path: Path, choice: object) -> None:
    found = find_faces.find_faces(tmp_path, written(tmp_path, np.zeros((64, 64, 3), np.uint8)), choice)
    assert found.refusal["code"] == "bad-option"
    assert found.choice == choice


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"seen": [], "chosen": 0, "refusal": {}, "choice": null}',
        b'{"seen": [], "chosen": null, "refusal": {}, "choice": null}',
        b'{"seen": [], "chosen": null, "refusal": {"code": "job-cancelled"}, "choice": null}',
        b'{"seen": [{"x": 1}], "chosen": 0, "refusal": {}, "choice": null}',
        b"[" * 60_000,
    ],
)
def test_an_answer_that_is_none_is_the_machines_fault(answer: bytes) -> None:
    with pytest.raises(JailFailed):
        find_faces._answer(answer, None)


# -- in the daemon -----------------------------------------------------------------------------------------------------


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def drop(installation: Installation, name: str, image: np.ndarray, **fields: object) -> None:
    put(installation.path("inbox"), f"{name}-face.png", png(image))
    put(installation.path("inbox"), f"{name}-voice.wav", sound())
    installation.drop_manifest(name, image=f"{name}-face.png", audio=f"{name}-voice.wav", **fields)


def test_a_still_without_a_face_fails_before_its_turn(tmp_path: Path) -> None:
    """It fails while a job before it still renders; a renderer that is not ours decides for itself."""
    cat = np.asarray(skimage.data.cat())
    with Installation(tmp_path).running() as installation:
        drop(installation, "cat-first", cat, renderer="hang")
        installation.until_state("cat-first", JobState.RUNNING)
        drop(installation, "cat-next", cat, renderer="flat")
        drop(installation, "cat", cat, renderer="preview")
        refused = installation.until_failed("cat")
        assert (refused.reason_code, refused.attempt) == ("no-face", 0)
        assert "no face in the picture of 451x300 pixels" in (refused.reason or "")
        assert installation.job("cat-first").state is JobState.RUNNING
        assert installation.job("cat-next").state is JobState.QUEUED
        assert installation.cli("cancel", installation.job("cat-first").id).returncode == 0
        installation.until_done("cat-next")


def test_the_verdict_is_recorded_with_the_job(tmp_path: Path) -> None:
    with Installation(tmp_path).running() as installation:
        drop(installation, "first", portraits.picture("ada"), renderer="hang")
        first = installation.until_state("first", JobState.RUNNING)
        drop(installation, "anna", two_faces(), renderer="preview", lipsyncd={"face": 1})
        job = installation.until(lambda: (j := installation.job("anna")) and j.frames and j, "the prepared job")
        kept = json.loads((installation.path("spool") / job.id / "prepared.json").read_text())["faces"]
        assert (kept["choice"], kept["chosen"], len(kept["seen"])) == (1, 1, 2)
        assert installation.cli("cancel", first.id).returncode == 0


def two_faces() -> np.ndarray:
    """The astronaut at the left, a larger painted face at the right."""
    return np.hstack([portraits.picture("astronaut"), portraits.picture("bashir")])


def test_uploads_answer_with_the_faces_and_a_talk_may_choose_one(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        answer = api.form("/images", image=("two.png", png(two_faces()))).json
        first, second = answer["faces"]
        assert (answer["face"], answer["reason"]) == (0, None)
        assert first["size"] > second["size"]
        assert first["top_left"][0] > 512
        assert (first["overlap"], first["face_occluded"]) == ("NO", False)
        box = second["detection"]
        assert box["left"] < 225 < box["right"]
        assert box["top"] < 145 < box["bottom"]
        cat = api.form("/images", image=("cat.png", png(np.asarray(skimage.data.cat())))).json
        assert (cat["faces"], cat["face"]) == ([], None)
        assert cat["reason"].startswith("no face in the picture")
        assert ";" in cat["reason"]  # and what helps
        script = {"type": "audio", "audio_url": api.form("/audios", audio=("a.wav", sound())).json["url"]}
        body = {
            "source_url": answer["url"],
            "script": script,
            "face": second,
            "config": {"lipsyncd": {"renderer": "x"}},
        }
        left, top = second["top_left"]
        assert read_talk(body).options["lipsyncd"] == {
            "face": f"{left + second['size'] / 2:.0f},{top + second['size'] / 2:.0f}"
        }
