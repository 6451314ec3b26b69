"""The cluster's token and addresses: nothing starts without a token."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner

from sdstream.cli.main import main
from sdstream.cluster.setup import (
    check_token,
    make_token,
    own_address,
    ray_variables,
    split_address,
)
from sdstream.core.errors import ConfigurationError


def test_a_token_is_made_for_this_user_alone(tmp_path: Path) -> None:
    """Only the user can read the token, and a second token never replaces the first."""
    path = tmp_path / "below" / "token"
    token = make_token(path)
    assert len(token) == 64
    assert path.read_text() == token
    assert path.stat().st_mode & 0o777 == 0o600
    assert check_token(path) == path
    with pytest.raises(ConfigurationError, match="File exists"):
        make_token(path)


def test_a_token_must_be_one(tmp_path: Path) -> None:
    """A token that is missing, too short or readable by others is rejected."""
    path = tmp_path / "token"
    with pytest.raises(ConfigurationError, match="sdstream cluster head"):
        check_token(path)
    path.write_text("short")
    with pytest.raises(ConfigurationError, match="5 characters"):
        check_token(path)
    path.write_text("x" * 64)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"chmod 600"):
        check_token(path)


def test_every_process_of_ray_demands_the_token(tmp_path: Path) -> None:
    """The variables demand the token and switch Ray's usage statistics off."""
    variables = ray_variables(tmp_path / "token")
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_silent_machine_is_noticed_within_five_seconds(tmp_path: Path) -> None:
    """All waits together take under five seconds, but a machine may be silent for two."""
    variables = ray_variables(tmp_path / "token")
    answer = int(variables["RAY_grpc_client_keepalive_timeout_ms"])
    names = (
        "RAY_grpc_client_keepalive_time_ms",
        "RAY_timeout_ms_task_wait_for_death_info",
        "RAY_core_worker_internal_heartbeat_ms",
    )
    assert answer > 2000
    assert answer + sum(int(variables[name]) for name in names) < 5000


@pytest.mark.parametrize("address", ["host", "host:", ":6379", "host:port", "host:0", "host:70000"])
def test_an_address_has_a_port(address: str) -> None:
    """An address without a valid port is rejected, and the message shows the form."""
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        split_address(address)
    assert split_address("192.0.2.1:6379") == ("192.0.2.1", 6379)


def test_a_machine_takes_the_address_of_its_route_to_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a route, a machine uses an interface's address that others can reach."""
    assert own_address("127.0.0.3") == "127.0.0.1"

    def no_route(*_: object) -> None:
        raise OSError("Network is unreachable")

    addresses = [
        SimpleNamespace(family=socket.AF_INET6, address="fe80::1%eth0"),
        SimpleNamespace(family=socket.AF_INET, address="127.0.0.1"),
        SimpleNamespace(family=socket.AF_INET, address="192.168.1.10"),
    ]
    monkeypatch.setattr(socket.socket, "connect", no_route)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"all": addresses})
    assert own_address("192.168.1.10") == "192.168.1.10"
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": addresses[:2]})
    assert own_address() == "127.0.0.1"


def test_a_server_does_not_start_without_a_token(tmp_path: Path) -> None:
    """The server ends with an error that contains the remedy before it connects to the cluster."""
    token = tmp_path / "token"
    command = ["serve", "--cluster", "127.0.0.1:1", "--cluster-token-file", str(token)]
    result = CliRunner().invoke(main, [*command, "--data-dir", str(tmp_path), "--engine", "fake"])
    assert result.exit_code == 78, result.output
    assert "token" in result.output
