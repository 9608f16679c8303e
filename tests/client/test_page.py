"""docs/python.md: its blocks run as they stand, one after another, like the cells of a notebook.

Only the daemon's port is replaced.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.kits import doc_pages
from tests.kits.installation import sound
from tests.kits.media.preview_people import PEOPLE, portrait
from tests.kits.web_kit import serving

PAGE = "docs/python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", doc_pages.read(PAGE), re.DOTALL)


def run(block: str, names: dict[str, Any]) -> object:
    """Run a block; gives the value of its last line if that is an expression, as a notebook shows it."""
    tree = ast.parse(block)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, PAGE, "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), PAGE, "exec"), names)
    return eval(compile(ast.Expression(last.value), PAGE, "eval"), names)


def test_the_blocks_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    monkeypatch.chdir(work)
    Image.fromarray(portrait(PEOPLE["ada"], 160)).save("ada.jpg")
    Path("hello.wav").write_bytes(sound(0.6))
    names: dict[str, Any] = {}
    with serving(home) as api:
        for name, value in api.installation.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LIPSYNCD_CONFIG", str(api.installation.config))
        shown = [run(block.replace("127.0.0.1:8003", f"127.0.0.1:{api.port}"), names) for block in BLOCKS]
    said = capsys.readouterr().out
    assert "ada.mp4 15 25 0.6" in said
    assert re.search(r"rendering \d+ of \d+", said)
    assert any("<video" in value._repr_html_() for value in shown if isinstance(value, names["lipsyncd"].Video))
    assert "(64, 64, 3)" in said
    assert "160 160" in said
    assert "force=True" in said
    assert re.search(r"^done 100% $", said, re.MULTILINE)
    assert "one.mp4\ntwo.mp4\n" in said
    assert {"ada.mp4", "morning.mp4", "from-daemon.mp4", "one.mp4", "two.mp4"} <= {path.name for path in work.iterdir()}
    assert len(BLOCKS) >= 8
