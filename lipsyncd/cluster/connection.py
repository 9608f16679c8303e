"""Connect this process to a Ray cluster: nothing is reported to Ray's makers, and a token is used."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from lipsyncd.cluster import auth_token
from lipsyncd.errors import ClusterUnavailable, ConfigError
from lipsyncd.extras import how_to_install
from lipsyncd.settings import Settings
from lipsyncd.storage.files import NotRegular, open_regular

T = TypeVar("T")

_ANSWER_S = 3.0
_CALL_S = 15.0  # an answer takes milliseconds; a cluster that is lost answers never
_SIGACTION_BYTES = 1024  # more than any struct sigaction
_ADDRESS_FILE = "ray_current_cluster"  # `ray start` writes it into its temporary folder
_OF_SERVICE = Path("/run/lipsyncd-ray", _ADDRESS_FILE)  # systemd/lipsyncd-ray-head.service
_MOST_ADDRESS = 300


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


def address_for(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """Where the control store takes connections; that of this machine for "auto". Raises `ClusterUnavailable`.

    Ray itself would wait for one that takes none for minutes, and as "auto" also use a cluster of another user.
    """
    address = settings.executor_ray.address
    if address != "auto":
        if not _takes_connections(address):
            raise ClusterUnavailable(f"Ray at {address} takes no connections")
        return address
    seen = []
    for place, found, fault in _candidates(environ):
        if found and _takes_connections(found):
            return found
        seen.append(f"{place} is {found}, which takes no connections" if found else f"{place} {fault}")
    raise ClusterUnavailable(
        f'executor.ray.address is "auto", and no Ray cluster answers on this machine: {"; ".join(seen)}',
        remedy="start Ray first (docs/scale.md), or set executor.ray.address to host:port of its control store",
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Where the address of this machine's cluster may stand, the address, and why there is none."""
    yield "RAY_ADDRESS", environ.get("RAY_ADDRESS", "").strip(), "is not set"
    scratch = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    for path in (Path(scratch, "ray", _ADDRESS_FILE), _OF_SERVICE):
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                owner, text = os.fstat(file.fileno()).st_uid, file.read(_MOST_ADDRESS)
        except FileNotFoundError:
            yield str(path), "", "does not exist"
        except (NotRegular, OSError) as error:
            yield str(path), "", f"cannot be read: {error}"
        else:
            ours = owner in (0, os.geteuid())
            fault = "is empty" if ours else f"belongs to user {owner}, whose cluster is not used"
            yield str(path), text.decode("ascii", "replace").strip() if ours else "", fault


def connect(settings: Settings) -> Any:
    """The module `ray`, connected; call `prepare` before. Raises `ClusterUnavailable`."""
    address = address_for(settings)
    import ray
    import ray.util.scheduling_strategies

    cluster = settings.executor_ray
    try:
        with _own_signal_handlers():
            ray.init(
                address=address,
                namespace=cluster.namespace,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, errors of gRPC: they have no common base
        raise ClusterUnavailable(f"Ray at {address} does not answer: {_first_line(error)}") from error
    return ray


def answers(ray: Any) -> bool:
    """Does Ray's control store take connections? Its own calls would wait for it for ever."""
    return _takes_connections(address_of(ray))


def address_of(ray: Any) -> str:
    """The address of the control store that this process is connected to."""
    return str(ray.get_runtime_context().gcs_address)


def bounded(call: Callable[[], T], what: str, limit_s: float = _CALL_S) -> T:
    """The result of a call of Ray's that waits for the control store. Raises `ConnectionError` after `limit_s` seconds.

    The control store may be lost between `answers` and the call, or be stopped and still take connections. The call's
    thread is left behind then: it ends when Ray gives up.
    """
    outcome: SimpleQueue[tuple[BaseException | None, T | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((None, call()))
        except BaseException as error:  # raised again in the caller's thread
            outcome.put((error, None))

    threading.Thread(target=run, name="ray-call", daemon=True).start()
    try:
        error, result = outcome.get(timeout=limit_s)
    except Empty:
        raise ConnectionError(f"{what} took more than {limit_s:g} s") from None
    if error is not None:
        raise error
    return cast(T, result)


def disconnect(ray: Any) -> None:
    """Leave the cluster; Ray then ends all actors of this process. Raises `ConnectionError` when Ray does not end."""

    def leave() -> None:
        with _own_signal_handlers():
            ray.shutdown()

    bounded(leave, "leaving the cluster")


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
    except (OSError, ValueError, OverflowError):  # ValueError: no port, or a name that cannot be looked up
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
