"""One daemon with three keys for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kits.web_kit import Api, serving
from tests.web.test_tenants import ANNA, BERT, BOSS, with_key


@pytest.fixture(scope="package")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("routes")
    keys = root / "keys"
    keys.write_text(f"{ANNA}\n{BERT}\n{BOSS} admin\n")
    keys.chmod(0o600)
    with serving(root, changes={"web": {"api_key_file": str(keys)}}) as api:
        yield api


@pytest.fixture(scope="package")
def anna(api: Api) -> Api:
    return with_key(api, ANNA)
