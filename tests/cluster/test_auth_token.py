"""The token of a cluster: made for its owner alone, and refused when others can read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lipsyncd.cluster import auth_token
from lipsyncd.errors import ConfigError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def test_it_is_made_once_and_for_its_owner_alone(environ: dict[str, str]) -> None:
    before = os.umask(0)
    try:
        path = auth_token.make(environ)
    finally:
        os.umask(before)
    assert path == Path(environ["HOME"], ".ray", "auth_token")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    content = path.read_text()
    assert len(content) == 64
    assert auth_token.make(environ).read_text() == content
    assert auth_token.require(allow_none=False, environ=environ) == "token"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_or_write_is_refused_even_if_none_is_needed(
    environ: dict[str, str], mode: int
) -> None:
    auth_token.make(environ).chmod(mode)
    for allow_none in (False, True):
        with pytest.raises(ConfigError, match=f"{mode:04o}"):
            auth_token.require(allow_none=allow_none, environ=environ)


def test_without_a_file_only_an_explicit_permission_helps(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        auth_token.require(allow_none=False, environ=environ)
    assert auth_token.require(allow_none=True, environ=environ) == "disabled"
    assert not auth_token.token_file(environ).exists()


def test_links_and_empty_files_are_no_tokens(environ: dict[str, str], tmp_path: Path) -> None:
    path = auth_token.make(environ)
    path.write_text(" \n")
    assert "is empty" in auth_token.fault(environ)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert "no regular file" in auth_token.fault(environ)


def test_the_variables_of_ray_count(environ: dict[str, str], tmp_path: Path) -> None:
    assert auth_token.fault({**environ, "RAY_AUTH_TOKEN": "0" * 64}) == ""
    elsewhere = {**environ, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert auth_token.make(elsewhere) == tmp_path / "token"
    assert auth_token.fault(elsewhere) == ""
