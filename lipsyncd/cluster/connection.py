"""Connect this process to a Ray cluster: nothing is reported to Ray's makers, and a token is used."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lipsyncd.cluster import auth_token
from lipsyncd.errors import ClusterUnavailable, ConfigError
from lipsyncd.extras import how_to_install
from lipsyncd.settings import Settings

_ANSWER_S = 3.0
_SIGACTION_BYTES = 1024  # more than any struct sigaction


def prepare(settings: Settings) -> None:
    """Set what Ray reads when it is imported. Raises `ConfigError` without Ray or without a token.

    RAY_AUTH_MODE is always set: its default changes from version to version.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("executor.kind is 'ray', and Ray is not installed", remedy=how_to_install("ray"))
    os.environ["RAY_AUTH_MODE"] = auth_token.require(allow_none=settings.executor_ray.allow_no_token)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray ends this process a minute after its control store has gone; `answers` notices that before, and jobs wait.
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(365 * 86_400)  # noqa: SIM112 - Ray's own spelling
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a call without a connection starts no cluster of its own
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"


def connect(settings: Settings, known: str = "") -> Any:
    """The module `ray`, connected; call `prepare` before. Raises `ClusterUnavailable`.

    known  the address of the control store at an earlier connection
    """
    address = known or settings.executor_ray.address
    if address != "auto" and not _takes_connections(address):  # Ray itself would wait for minutes
        raise ClusterUnavailable(f"Ray at {address} takes no connections")
    import ray
    import ray.util.scheduling_strategies

    cluster = settings.executor_ray
    try:
        with _own_signal_handlers():
            ray.init(
                address=cluster.address,
                namespace=cluster.namespace,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, errors of gRPC: they have no common base
        raise ClusterUnavailable(f"Ray at {cluster.address} does not answer: {_first_line(error)}") from error
    return ray


def answers(ray: Any) -> bool:
    """Does Ray's control store take connections? Its own calls would wait for it for ever."""
    return _takes_connections(address_of(ray))


def address_of(ray: Any) -> str:
    """The address of the control store that this process is connected to."""
    return str(ray.get_runtime_context().gcs_address)


def disconnect(ray: Any) -> None:
    """Leave the cluster; Ray then ends all actors of this process."""
    with _own_signal_handlers():
        ray.shutdown()


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put back what Ray sets to its default, SIGTERM above all, also in a thread that is not the main one."""
    libc, saved = ctypes.CDLL(None), {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        saved[number] = ctypes.create_string_buffer(_SIGACTION_BYTES)
        libc.sigaction(number, None, saved[number])
    try:
        yield
    finally:
        for number, handler in saved.items():
            libc.sigaction(number, handler, None)


def _takes_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
