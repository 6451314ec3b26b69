"""Fixtures that several folders of tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from sdstream.core.catalog import Catalog
from sdstream.weights.embedded import materialise
from tests.support.collector import Collector, running_collector
from tests.support.postgres import Postgres, started_postgres
from tests.support.s3 import S3, started_s3
from tests.support.servers import ServerProcess, running_server

ROOT = Path(__file__).parent.parent

# A busy machine takes longer for an example.
hypothesis.settings.register_profile("sdstream", deadline=None)
hypothesis.settings.load_profile("sdstream")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a test run."""
    parser.addoption("--soak-seconds", type=float, default=120, help="time that a soak takes")


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """Seconds for which a soak test disturbs the server."""
    return float(request.config.getoption("--soak-seconds"))


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_children() -> None:
    """Handle signals that `nohup` or a shell's `&` ignores, so that children do not ignore them.

    A child inherits ignored signals, but no handlers.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def shipped_catalog() -> Catalog:
    """The catalogue of the project's models.yaml."""
    return Catalog.parse((ROOT / "models.yaml").read_text())


@pytest.fixture(scope="session")
def builtin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the built-in model."""
    return materialise("builtin:drawings", tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the fake engine that all tests may share; no test may leave it changed."""
    with running_server(tmp_path_factory.mktemp("fake"), engine="fake") as server:
        yield server


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector of the traces of one test module's server."""
    with running_collector() as found:
        yield found


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL for all tests; each test creates its own schemas."""
    with started_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server for all tests; each test creates its own buckets."""
    with started_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The S3 server, to which the environment variables of this process point."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def native_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the real runtime and the embedded model that all tests may share."""
    with running_server(tmp_path_factory.mktemp("native")) as server:
        yield server
