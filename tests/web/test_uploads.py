"""What clients have uploaded: who may read it, how long it is kept, how much of it, how slowly it may come."""

from __future__ import annotations

import os
from pathlib import Path

from tests.kits.installation import Installation, picture, sound
from tests.kits.web_kit import Api, port_of, serving


def test_uploads_are_ours_alone_and_must_be_those_that_were_checked(tmp_path: Path) -> None:
    """Under the unit's umask, and also those of an older version; one whose bytes have changed is no source."""
    installation = Installation(tmp_path, changes={"web": {"enabled": True}})
    before = os.umask(0o007)
    try:
        installation.start(fresh=True)
    finally:
        os.umask(before)
    api = Api(installation, port_of(installation))
    image = api.form("/images", image=("a.png", picture())).json
    folder = installation.path("state") / "uploads" / image["id"]
    for name in ("content", "facts.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    (folder / "content").chmod(0o660)
    installation.stop()

    with serving(tmp_path) as api:
        api.installation.until(lambda: (folder / "content").stat().st_mode & 0o777 == 0o600, "the right mode")
        (folder / "content").write_bytes(picture(7))
        made = api.form("/generate-video", source_url=image["url"], audio_data=("a.wav", sound()))
        talk = api.talk(made.json["id"], "error")
        assert talk["error"]["code"] == "inputs-lost"
        assert "checked" in talk["error"]["description"]
