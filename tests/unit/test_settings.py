"""Settings from flags and environment variables."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import HttpUrl, ValidationError

from sdstream.core.hosts import HostPattern
from sdstream.settings import (
    Settings,
    UnknownVariable,
    check_variables,
    origin_of,
    worker_environment,
)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is SDSTREAM_ and the field's name.

    Lists have commas, and an empty value is ignored.
    """
    monkeypatch.setenv("SDSTREAM_PORT", "9000")
    monkeypatch.setenv("SDSTREAM_API_KEYS", "one, two,")
    monkeypatch.setenv("SDSTREAM_HOST", "")
    settings = Settings()
    assert settings.port == 9000
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.host == "127.0.0.1"


def test_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value given in code takes precedence over the environment."""
    monkeypatch.setenv("SDSTREAM_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_keys_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys appear neither in a printed Settings nor in the workers' environment."""
    monkeypatch.setenv("SDSTREAM_API_KEYS", "hush")
    monkeypatch.setenv("SDSTREAM_CLIENT_KEY", "hush")
    monkeypatch.setenv("HF_TOKEN", "hf_hush")
    monkeypatch.setenv("SDSTREAM_DATABASE", "postgresql://me:hush@localhost/jobs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush")
    assert "hush" not in repr(Settings())
    assert "hush" not in str(worker_environment())


def test_workers_wait_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP's threads sleep while waiting, unless the user's environment sets another policy."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert worker_environment()["OMP_WAIT_POLICY"] == "passive"
    assert worker_environment()["GGML_NO_BACKTRACE"] == "1"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert worker_environment()["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("QUEUE_IMAGES", "0"),
        ("GRACE_SECONDS", "inf"),
        ("HANG_SECONDS", "inf"),
        ("KEEPALIVE_SECONDS", "nan"),
        ("GRACE_SECONDS", "nan"),
        ("API_KEYS", "schlüssel"),
        ("API_KEYS", "good, b\tad"),
        ("HIGH_PRIORITY_KEYS", "ключ"),
        ("ENGINE", "magic"),
        ("LOG_LEVEL", "loud"),
        ("PUBLIC_URL", "here"),
        ("LORA_DIR", "/nowhere"),
        ("EMBEDDING_DIR", "/nowhere"),
        ("EMBEDDING_DIR", f"/{'a' * 300}"),
        ("UPSCALER_DIR", __file__),
        ("DATABASE", "jobs.sqlite"),
        ("DATABASE", "mysql://localhost/jobs"),
        ("IMAGES", "/mnt/images"),
        ("IMAGES", "s3://"),
        ("IMAGES", "https://bucket.example/"),
        ("TRUSTED_PROXIES", "localhost"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "*"),
        *(
            ("ALLOWED_HOSTS", host)
            for host in (
                "http://a.example",
                "a.example/b",
                "a b",
                "[::1",
                "*.",
                "a.*",
                "a:",
                "a..b:x",
            )
        ),
        ("CORS_ORIGINS", "localhost:4000"),
        ("CORS_ORIGINS", "example.com"),
        ("CORS_ORIGINS", "http://localhost:3000/page"),
        ("CORS_ORIGINS", "http://me@localhost"),
        ("CORS_ORIGINS", "http://"),
        ("CORS_ORIGINS", "http://[::1"),
        ("CORS_ORIGINS", "http://a..b"),
        ("CORS_ORIGINS", "//example.com"),
        ("CORS_ORIGINS", "http://example.com:99999"),
        ("CORS_ORIGINS", "*, https://example.com/*"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """An invalid value stops the start with an error that names the setting."""
    monkeypatch.setenv(f"SDSTREAM_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://Example.com", "https://example.com"),
        ("https://example.com:443/", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("https://example.com:80", "https://example.com:80"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("tauri://localhost", "tauri://localhost"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins_are_what_browsers_send(
    monkeypatch: pytest.MonkeyPatch, written: str, sent: str
) -> None:
    """Origins are normalised to the form browsers send, as they are compared as text."""
    monkeypatch.setenv("SDSTREAM_CORS_ORIGINS", written)
    assert Settings().cors_origins == (sent,)


def test_proxies_are_addresses_or_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses and networks of both IP versions are accepted, as text or as a tuple."""
    monkeypatch.setenv("SDSTREAM_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8,::1")
    assert [str(network) for network in Settings().trusted_proxies] == [
        "127.0.0.1/32", "10.0.0.0/8", "::1/128"
    ]  # fmt: skip
    assert Settings(trusted_proxies=("fd00::/8",)).trusted_proxies == (ip_network("fd00::/8"),)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://Images.example/sub/", "https://images.example"),
        ("http://images.example:80/", "http://images.example"),
        ("http://images.example:8080/", "http://images.example:8080"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_the_origin_of_an_address(written: str, sent: str) -> None:
    """The origin is that of pages at this URL."""
    assert origin_of(HttpUrl(written)) == sent


def test_allowed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, addresses and patterns are accepted, as text or as a tuple."""
    monkeypatch.setenv("SDSTREAM_ALLOWED_HOSTS", "A.example, *.b.example:8000 ,::1")
    assert Settings().allowed_hosts == (
        HostPattern("a.example"), HostPattern("*.b.example", 8000), HostPattern("::1")
    )  # fmt: skip
    given = Settings(allowed_hosts=("[::1]:80", HostPattern("*"))).allowed_hosts
    assert given == (HostPattern("::1", 80), HostPattern("*"))


def test_the_shipped_catalogue_is_found() -> None:
    """Without a flag, the project's models.yaml is used."""
    assert Settings().models.name == "models.yaml"
    assert Path(Settings().models).is_file()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SDSTREAM_API_KEY", "Did you mean 'SDSTREAM_API_KEYS'?"),
        ("SDSTREAM_KEY", "Unknown variable SDSTREAM_KEY."),
        ("sdstream_api_key", "Did you mean 'SDSTREAM_API_KEYS'?"),
        ("SDSTREAM_MASTER_KEYS", "Unknown variable"),
        ("SDSTREAM_QUEUE_IMAGE", "Did you mean 'SDSTREAM_QUEUE_IMAGES'?"),
    ],
)
def test_variables_that_were_meant_to_be_others(name: str, words: str) -> None:
    """A likely misspelling stops the start, so that a server is not open by mistake."""
    with pytest.raises(UnknownVariable, match=re.escape(words)):
        check_variables({name: "x"})


def test_variables_that_say_nothing() -> None:
    """Unknown variables and those that Kubernetes sets are ignored with a warning each."""
    given = {
        "SDSTREAM_HOST": "::1", "SDSTREAM_CLIENT_KEY": "x", "PATH": "/bin",
        "SDSTREAM_COLOUR_OF_THE_PAGE": "red", "SDSTREAM_PORT": "tcp://10.0.0.1:8000",
        "SDSTREAM_SERVICE_HOST": "10.0.0.1", "SDSTREAM_PORT_8000_TCP_ADDR": "10.0.0.1",
        "SDSTREAM_WEB_SERVICE_PORT_HTTP": "80",
    }  # fmt: skip
    ignored: list[str] = []
    told: list[str] = []
    for warning in check_variables(given):
        name = warning.removeprefix("Unknown variable ").split()[0]
        (ignored if "Kubernetes" in warning else told).append(name)
    assert told == ["SDSTREAM_COLOUR_OF_THE_PAGE"]
    assert ignored == [
        "SDSTREAM_PORT", "SDSTREAM_PORT_8000_TCP_ADDR", "SDSTREAM_SERVICE_HOST",
        "SDSTREAM_WEB_SERVICE_PORT_HTTP",
    ]  # fmt: skip


def test_the_address_of_a_kubernetes_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service address that Kubernetes puts into SDSTREAM_PORT is ignored."""
    monkeypatch.setenv("SDSTREAM_PORT", "tcp://10.0.0.1:8000")
    assert Settings().port == 8000
