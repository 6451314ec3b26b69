"""The cluster's token, this machine's addresses, and the environment variables for Ray."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import psutil

from sdstream.core.errors import ConfigurationError

#: If a machine with workers stops answering, the server detects this within 4.7 s, the sum of the
#: first four values; with Ray's defaults it takes a minute. Ray pings each connection every second.
#: The answer may take 2.5 s, so that a busy machine does not count as lost. Ray then waits a second
#: for the head to report the worker's death, and checks every 0.2 s (default: 1 s) whether that
#: time is over. Only the head probes a machine without workers, and drops it after ten seconds.
_HEALTH: Final = {
    "RAY_grpc_client_keepalive_time_ms": "1000",
    "RAY_grpc_client_keepalive_timeout_ms": "2500",
    "RAY_timeout_ms_task_wait_for_death_info": "1000",
    "RAY_core_worker_internal_heartbeat_ms": "200",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}

#: An address reserved for documentation, which no network uses.
_OUTSIDE: Final = "192.0.2.1"


def ray_variables(token_file: Path) -> dict[str, str]:
    """Return the variables for every process of Ray: token, health checks, no usage statistics."""
    return {
        **_HEALTH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def use_token(token_file: Path) -> None:
    """Set Ray's variables in this process, before it imports Ray."""
    os.environ.update(ray_variables(token_file))  # noqa: TID251


def with_variables(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with more variables, for a child."""
    return {**os.environ, **more}  # noqa: TID251


def check_token(path: Path) -> Path:
    """Check the file of the token and return its absolute path.

    A cluster without a token would run the code of any client.

    Raises:
        ConfigurationError: The file is missing or too short, or other users can read it.
    """
    try:
        text = path.read_text().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigurationError(
            f"The cluster's token cannot be read: {path}: {error.strerror}. 'sdstream cluster "
            "head' makes it; copy it from there, or set --cluster-token-file."
        ) from None
    if len(text) < 32:
        raise ConfigurationError(
            f"{path} does not contain a cluster's token: it has {len(text)} "
            "characters, and a token has at least 32."
        )
    if mode & 0o077:
        raise ConfigurationError(
            f"Other users can read the cluster's token in {path}. Run: chmod 600 {path}"
        )
    return path.absolute()


def make_token(path: Path) -> str:
    """Write a new token that only this user can read, and return it.

    Raises:
        ConfigurationError: The file exists or cannot be written.
    """
    return store_token(path, secrets.token_hex(32))


def store_token(path: Path, token: str) -> str:
    """Write a token that only this user can read, and return it; raises as ``make_token``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
    except OSError as error:
        raise ConfigurationError(
            f"The cluster's token cannot be written to {path}: {error.strerror}."
        ) from None
    return token


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"'{address}' is not the address of a head; write HOST:PORT, for example "
            f"{address.partition(':')[0] or '192.168.1.10'}:6379"
        )
    return host, int(port)


def is_own(host: str) -> bool:
    """Return whether an address belongs to this machine."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def own_address(towards: str | None = None) -> str:
    """Return the address at which other machines reach this one.

    This is the source address of the route to ``towards``, or else of the default route. Without a
    route, as on an isolated network, it is the address of a network interface.

    Args:
        towards: A host of the cluster, None if not known.
    """
    for host in (towards, _OUTSIDE):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if host is not None:
                probe.connect((host, 9))  # sends nothing
                address: str = probe.getsockname()[0]
                return address
    return _interface_address()


def _interface_address() -> str:
    """Return the first IPv4 address that is not loopback, or else 127.0.0.1."""
    found = [a for every in psutil.net_if_addrs().values() for a in every]
    own = (a.address for a in found if a.family is socket.AF_INET)
    return next((a for a in own if not ip_address(a).is_loopback), "127.0.0.1")
