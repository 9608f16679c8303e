"""Runs the client programs of the documentation unchanged: only the port and the key are replaced."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.kits import doc_pages
from tests.kits.installation import picture, sound
from tests.kits.web_kit import Api, serving

BLOCKS = [
    (page, language, text)
    for page in ("README.md", "docs/rest.md")
    for language, text in re.findall(r"```(sh|python|js)\n(.*?)```", doc_pages.read(page), re.DOTALL)
]
PROGRAMS = {"sh": ["sh", "-eu"], "python": [sys.executable], "js": ["node"]}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("readme")) as api:
        yield api


def test_there_are_programs_for_both_apis_in_three_languages() -> None:
    assert [language for _, language, _ in BLOCKS] == ["sh", *["sh", "python", "js"] * 2]


@pytest.mark.parametrize(
    ("language", "text"),
    [(language, text) for _, language, text in BLOCKS],
    ids=[f"{page} {language} {number}" for number, (page, language, _) in enumerate(BLOCKS)],
)
def test_the_programs_make_a_video(api: Api, tmp_path: Path, language: str, text: str) -> None:
    if shutil.which("curl" if language == "sh" else PROGRAMS[language][0]) is None:
        pytest.skip(f"this machine has no program for {language}")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(width=200, height=180))).save(buffer, "JPEG")
    (tmp_path / "anna.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "hello.wav").write_bytes(sound())
    (tmp_path / "program").write_text(text.replace("http://127.0.0.1:8003", api.url))
    environment = {**api.installation.environment(DID_KEY="me:one-long-word"), "NO_PROXY": "*"}
    done = subprocess.run(
        [*PROGRAMS[language], "program"], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "anna.mp4").read_bytes()[4:8] == b"ftyp", done.stdout
