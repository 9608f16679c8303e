"""One browser for all tests of the page, and for each module a daemon with the `preview` renderer."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import skimage.data
from PIL import Image

from tests.kits.web_kit import Api, serving
from tests.system.page.visit import Visit, chromium, visiting

AXE = "axe-core@4.14.1"
SETTINGS: dict[str, dict[str, Any]] = {
    "render": {"renderer": "preview", "renderers": ["missing=tests.no_such_module:Nothing"]},
    "output": {"resolution": 128},
    "web": {"max_queue": 50},
    "fetch": {"allow": ["127.0.0.1"]},
}


@cache
def portrait(times: int = 1) -> bytes:
    """A JPEG of an astronaut; twice: of her beside her own mirror image."""
    one = Image.fromarray(skimage.data.astronaut()).crop((60, 0, 380, 320))
    picture = Image.new("RGB", (320 * times, 320))
    for number in range(times):
        picture.paste(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else one, (320 * number, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@cache
def wall() -> bytes:
    """A PNG without a face."""
    buffer = io.BytesIO()
    Image.new("RGB", (200, 200), (180, 170, 160)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server without a key."""
    with serving(tmp_path_factory.mktemp("page"), changes=SETTINGS) as api:
        yield api


@pytest.fixture
def visit(browser: Any, api: Api) -> Iterator[Visit]:
    """A page of that server. The test fails if the browser's console is not empty at its end."""
    with visiting(browser, api.url) as visit:
        yield visit


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm."""
    if not shutil.which("npm"):
        pytest.skip("there is no npm; the package npm is one")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if packed.returncode != 0:
        refused = re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|ERR_SOCKET", packed.stderr)
        assert refused, packed.stderr
        pytest.skip(f"npm reaches no registry: {refused[0]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        content = archive.extractfile("package/axe.min.js")
        assert content is not None
        return content.read().decode()
