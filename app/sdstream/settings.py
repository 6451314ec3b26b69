"""The server's settings, read once from flags and environment variables, then immutable.

The flag ``--queue-images`` of ``sdstream serve`` or the variable ``SDSTREAM_QUEUE_IMAGES`` sets the
field ``queue_images``. A flag overrides its variable. The flag of a field with several values has a
name in the singular and may be repeated: ``--api-key`` sets ``api_keys``, and ``--trusted-proxy``
sets ``trusted_proxies``. docs/reference/settings.md is generated from the class ``Settings``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from platformdirs import user_cache_path, user_config_path, user_data_path
from pydantic import Field, HttpUrl, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sdstream.core.ask import Handling
from sdstream.core.hosts import HostPattern
from sdstream.core.options import DEFAULT_MAX_IMAGES, DEFAULT_MAX_STEPS, MAX_IMAGES, MAX_STEPS
from sdstream.core.runtime_options import Kernels
from sdstream.core.similar import did_you_mean, most_similar, near_miss

#: Variables that worker processes do not receive.
_SECRETS: Final = (
    "SDSTREAM_API_KEYS",
    "SDSTREAM_CLIENT_KEY",
    "SDSTREAM_HIGH_PRIORITY_KEYS",
    "SDSTREAM_WEBHOOK_SECRET",
    "SDSTREAM_DATABASE",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
)

#: Settings of the folders whose files requests choose by name.
ASSET_FOLDERS: Final = ("lora_dir", "embedding_dir", "upscaler_dir")

#: Default ports, which browsers omit from an origin.
_USUAL_PORTS: Final = {"http": 80, "https": 443}

#: Maximum part of the grace time, in seconds, that is reserved for the last frames and writes.
_FLUSH_SECONDS: Final = 2.0

#: Variables that only the client commands of the CLI read.
_OF_CLIENTS: Final = ("SDSTREAM_CLIENT_KEY", "SDSTREAM_SERVER")

#: Variables that Kubernetes sets in every pod for a service named "sdstream" or "sdstream-…".
_KUBERNETES: Final = re.compile(
    r"SDSTREAM_(?:\w+_)?(?:SERVICE_(?:HOST|PORT)(?:_\w+)?=.*|PORT(?:_\d+_(?:TCP|UDP)\w*)?=(?:tcp|udp):.*"
    r"|PORT_\d+_(?:TCP|UDP)_(?:PROTO|PORT|ADDR)=.*)"
)

_PACKAGE: Final = Path(__file__).parent


def shipped_models() -> Path:
    """Return the path of the bundled models.yaml: in the package, or above it in a checkout."""
    inside = _PACKAGE / "models.yaml"
    return inside if inside.exists() else _PACKAGE.parents[1] / "models.yaml"


class Settings(BaseSettings):
    """The server's settings."""

    model_config = SettingsConfigDict(
        env_prefix="SDSTREAM_", env_ignore_empty=True,
        frozen=True, extra="forbid", allow_inf_nan=False,
    )  # fmt: skip

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 means all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 means a free port.")
    models: Path = Field(
        default_factory=shipped_models, description="YAML file with the catalogue of models."
    )
    model: str | None = Field(
        None,
        description="The default model: MODEL or MODEL:QUANT of the catalogue, or a weight file.",
    )
    runtime_options: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Runtime options of the default model, separated by commas, which override "
        "those in models.yaml: offload=true, wtype=q4_0.",
    )
    pull: bool = Field(False, description="Download the default model first if it is missing.")
    aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="More names of the default model, separated by commas, for clients with a "
        "fixed model name: gpt-image-1, dall-e-3.",
    )
    model_dir: Path | None = Field(
        None, description="Folder of downloaded models, in the layout of huggingface_hub."
    )
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("sdstream"),
        description="Folder for jobs and their images; each server needs its own.",
    )
    database: SecretStr | None = Field(
        None,
        description="PostgreSQL database for jobs instead of the SQLite file in the data folder: "
        "postgresql://user@host:5432/name (needs the extra postgres).",
    )
    images: str | None = Field(
        None,
        description="Bucket for images instead of the data folder: s3://bucket/prefix (needs "
        "the extra s3). The AWS_ variables set its server and keys.",
    )
    standby: bool = Field(
        False,
        description="Wait while another server uses the database, and take over when it ends.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("sdstream"),
        description="Folder into which built-in models are unpacked.",
    )
    lora_dir: Path | None = Field(
        None, description="Folder of LoRA files that requests may choose by name."
    )
    lora_in_prompt: bool = Field(
        False, description="Allow <lora:name:scale> in prompts to choose a LoRA."
    )
    options_in_prompt: bool = Field(
        False,
        description="Allow <sd_cpp_extra_args>{…}</sd_cpp_extra_args> in prompts to set options, "
        "as in sd-server; the routes of sd-server and AUTOMATIC1111 always allow this.",
    )
    embedding_dir: Path | None = Field(
        None,
        description="Folder of textual-inversion embeddings, which prompts use by their names.",
    )
    upscaler_dir: Path | None = Field(
        None, description="Folder of ESRGAN upscalers that requests may choose by name."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="API keys, separated by commas; clients must send one. Default: none needed.",
    )
    high_priority_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="API keys that may request high priority, separated by commas. Without this "
        "setting, every client may.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may call this server, separated by commas; * means all.",
    )
    allowed_hosts: Annotated[tuple[HostPattern, ...], NoDecode] = Field(
        (),
        description="Names of this server, separated by commas: host, host:port, *.domain, an "
        "address or *. Requests with another Host are rejected. Default: all, but "
        "a server on loopback without API keys allows only localhost and IP addresses.",
    )
    default_response_format: Literal["both", "b64_json", "url"] = Field(
        "both", description="Format of images in responses if a request has no response_format."
    )
    public_url: HttpUrl | None = Field(
        None,
        description="Base URL of links to the server; by default the one that the client used.",
    )
    unknown_fields: Handling = Field(
        Handling.SUGGEST,
        description="Which unknown fields of requests are rejected: all (strict), misspelled "
        "options (suggest) or none (lenient). The others become warnings.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Addresses or networks of proxies, separated by commas. Their headers "
        "X-Forwarded-Proto, -Host, -Prefix and Forwarded are used for links and for "
        "--allowed-host.",
    )
    queue_images: int = Field(
        64, ge=1, description="Maximum number of waiting images; more are rejected (429)."
    )
    queue_images_per_key: int = Field(
        32, ge=1, description="Maximum number of waiting images of one API key."
    )
    cluster: str | None = Field(
        None,
        description="HOST:PORT of the head of a Ray cluster, whose machines generate the images.",
    )
    cluster_token_file: Path = Field(
        default_factory=lambda: user_config_path("sdstream") / "cluster-token",
        description="File with the token of the cluster, readable by its owner only.",
    )
    cluster_keep_alive: float = Field(
        300.0,
        ge=0,
        description="Seconds that an idle worker of a cluster stays loaded, for models without "
        "keep_alive in models.yaml.",
    )
    memory_mb: int = Field(
        0,
        ge=0,
        description="Memory for all loaded models, in MiB; 0 means four fifths of the machine's.",
    )
    max_body_mb: int = Field(64, ge=1, description="Maximum size of a request with images, in MiB.")
    max_input_pixels: int = Field(
        16_777_216, ge=4096, description="Maximum width x height of an input image, in pixels."
    )
    max_pixels: int = Field(
        4_194_304, ge=4096, description="Maximum width x height of a generated image, in pixels."
    )
    max_upscaled_pixels: int = Field(
        16_777_216,
        ge=4096,
        description="Maximum width x height of an enlarged image, in pixels, including images that "
        "are reduced afterwards.",
    )
    max_images: int = Field(
        DEFAULT_MAX_IMAGES,
        ge=1,
        le=MAX_IMAGES,
        description=f"Maximum number of images of one request, up to {MAX_IMAGES}.",
    )
    max_steps: int = Field(
        DEFAULT_MAX_STEPS,
        ge=1,
        le=MAX_STEPS,
        description=f"Maximum number of sampling steps of one pass, up to {MAX_STEPS} "
        "(hires_scale adds a second pass). It also limits the default steps of models.",
    )
    keepalive_seconds: float = Field(
        10.0, gt=0, description="Seconds after which a silent stream repeats its last progress."
    )
    hang_seconds: float = Field(
        60.0,
        gt=0,
        description="Minimum time without progress, in seconds, until a worker counts as hung.",
    )
    cancel_seconds: float = Field(
        5.0,
        gt=0,
        description="Seconds until the worker of a cancelled job is killed if it does not stop.",
    )
    grace_seconds: float = Field(
        20.0,
        ge=0,
        description="Maximum seconds until the server has stopped. Running jobs must end "
        "earlier: by a tenth of this time, but at most 2 s. A service manager must wait longer.",
    )
    job_ttl_seconds: int = Field(
        604_800, ge=1, description="Seconds after which ended jobs and their images are deleted."
    )
    image_store_mb: int = Field(
        1024,
        ge=1,
        description="Maximum size of all stored images, in MiB; the oldest jobs are deleted first.",
    )
    min_free_mb: int = Field(
        64, ge=0, description="Free disk space, in MiB, below which new jobs are rejected (507)."
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts that webhook_url may contain, separated by commas: host, host:port, "
        "host:* or *.host. Without this setting, webhooks are off.",
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Key that signs webhooks: whsec_ and the base64 of 24 to 64 bytes."
    )
    webhook_private: bool = Field(
        False, description="Allow webhooks to loopback and private addresses."
    )
    embed_parameters: bool = Field(
        True, description="Write the prompt and the options into image files."
    )
    safety_checker: str | None = Field(
        None, description="Checker for the option safety_check: module:attribute or entry point."
    )
    kernels: Kernels = Field(
        "auto",
        description="CPU kernels: auto (the fastest), exact (f32) or off (the runtime's own). "
        "Runtime options of a model in models.yaml have precedence.",
    )
    engine: Literal["native", "fake"] = Field(
        "native",
        description="native, or fake (colour gradients without a model, to test clients).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of log messages; only debug messages contain prompts."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: text, or json with a field for each value."
    )

    @property
    def job_grace_seconds(self) -> float:
        """Seconds of the grace time for running jobs; the rest is for last frames and writes."""
        return self.grace_seconds - min(_FLUSH_SECONDS, self.grace_seconds / 10)

    def private(self, data_dir: Path) -> Settings:
        """Return these settings for a service that only this process uses, without a shared store.

        Args:
            data_dir: Folder for the jobs and images of the service.
        """
        alone = {"database": None, "images": None, "standby": False}
        return self.model_copy(update={"data_dir": data_dir, **alone})

    @field_validator("port", mode="before")
    @classmethod
    def _not_of_kubernetes(cls, value: Any) -> Any:
        # Kubernetes sets SDSTREAM_PORT=tcp://10.0.0.1:8000 for a service named "sdstream".
        is_address = isinstance(value, str) and value.startswith("tcp:")
        return cls.model_fields["port"].default if is_address else value

    # The next two stand above _split: pydantic calls "before" validators in reverse order.
    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _as_networks(cls, value: Any) -> Any:
        return tuple(_network(item) for item in value)

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _as_patterns(cls, value: Any) -> Any:
        return tuple(
            item if isinstance(item, HostPattern) else HostPattern.parse(item) for item in value
        )

    @field_validator(
        *(
            "runtime_options",
            "aliases",
            "api_keys",
            "high_priority_keys",
            "cors_origins",
            "trusted_proxies",
        ),
        *("allowed_hosts", "webhook_hosts"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        # A flag that is repeated may have commas each time.
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())

    @field_validator("runtime_options")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            if not all(pair.partition("=")):
                raise ValueError(
                    f"'{pair}' does not have the form NAME=VALUE, for example offload=true"
                )
        return value

    @field_validator("api_keys", "high_priority_keys")
    @classmethod
    def _fit_into_headers(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in map(SecretStr.get_secret_value, value):
            if not (key.isascii() and key.isprintable()):
                raise ValueError("an API key may have printable ASCII characters only")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_send_them(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(text) for text in value)

    @field_validator("database")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        schemes = ("postgresql://", "postgres://")
        if value is not None and not value.get_secret_value().startswith(schemes):
            raise ValueError(
                "the database must be a URL, for example postgresql://user@host:5432/name"
            )
        return value

    @field_validator("images")
    @classmethod
    def _is_bucket(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(?:/.*)?", value):
            raise ValueError(
                f"'{value}' is not a bucket; write s3://bucket/prefix (a folder is --data-dir)"
            )
        return value

    def asset_folders(self) -> dict[str, Path]:
        """Return the asset folders that are set, by the name of the setting."""
        folders = {name: getattr(self, name) for name in ASSET_FOLDERS}
        return {name: folder for name, folder in folders.items() if folder is not None}

    @field_validator(*ASSET_FOLDERS)
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        # Path.is_dir would raise an error for a name that is too long.
        if value is not None and not os.path.isdir(value):  # noqa: PTH112
            raise ValueError(f"the folder {value} does not exist")
        return value


def origin_of(url: HttpUrl) -> str:
    """Return the origin of a URL in the form in which browsers send it."""
    port = "" if url.port in (None, _USUAL_PORTS[url.scheme]) else f":{url.port}"
    return f"{url.scheme}://{url.host}{port}"


def _network(item: object) -> IPv4Network | IPv6Network:
    """Return a network; a single address becomes a network of one address."""
    if isinstance(item, IPv4Network | IPv6Network):
        return item
    try:
        return ip_network(str(item))
    except ValueError:
        raise ValueError(
            f"'{item}' is not an address or a network; write 127.0.0.1, ::1 or 10.0.0.0/8"
        ) from None


def _origin(text: str) -> str:
    """Return an origin in lower case, without the default port and without a trailing slash."""
    if text in ("*", "null"):
        return text
    try:
        scheme, place, *rest = parts = urlsplit(text.lower().removesuffix("/"))
        place = place.encode("idna").decode()
        if parts.port is not None and parts.port == _USUAL_PORTS.get(scheme):
            place = place.rpartition(":")[0]
    except ValueError:
        scheme = place = ""
    if not (scheme and place) or any(rest) or "@" in place:
        raise ValueError(f"'{text}' is not an origin; write http://localhost:3000, or * for all")
    return f"{scheme}://{place}"


class UnknownVariable(ValueError):
    """An ``SDSTREAM_`` variable that the server does not know, probably a misspelled one."""


def check_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each ``SDSTREAM_`` variable that no setting reads.

    Args:
        environment: The environment of the process.

    Raises:
        UnknownVariable: The name of an unknown variable resembles that of a setting or contains
            KEY. A typing error must not leave the server without keys.
    """
    known = [*(f"SDSTREAM_{name.upper()}" for name in Settings.model_fields), *_OF_CLIENTS]
    warnings = []
    # pydantic ignores the case of the names.
    values = {name.upper(): value for name, value in environment.items()}
    for name in sorted(values):
        if not name.startswith("SDSTREAM_"):
            continue
        if _KUBERNETES.fullmatch(f"{name}={values[name]}"):
            warnings.append(f"{name} is ignored: Kubernetes sets it for a service of that name.")
            continue
        if name in known:
            continue
        near = near_miss(name, known)
        meant = near or most_similar(name, known)
        if "KEY" in name or near:
            raise UnknownVariable(f"Unknown variable {name}.{did_you_mean(meant)}")
        warnings.append(f"Unknown variable {name} has no effect.{did_you_mean(meant)}")
    return warnings


def variable(name: str) -> str | None:
    """Return an environment variable that is not a setting, or None if it is not set.

    Such variables are those that models.yaml refers to, and those of systemd, OpenTelemetry and
    ModelScope.
    """
    return os.environ.get(name)  # noqa: TID251


def variable_warnings() -> list[str]:
    """Return the warnings of ``check_variables`` for this process; raises its errors."""
    return check_variables(os.environ)  # noqa: TID251


def worker_environment() -> dict[str, str]:
    """Return the environment of worker processes.

    OMP_WAIT_POLICY makes waiting OpenMP threads sleep instead of spin. If another process uses one
    of two cores, this halves the time of an image. OpenMP reads the variable while it is loaded, so
    the worker process cannot set it later.

    GGML_NO_BACKTRACE makes a failed assertion abort at once. Without it, ggml forks a process that
    prints the stack; if several threads fail together, some of these processes never end.

    The variables of ``_SECRETS`` are left out.
    """
    environment = {key: value for key, value in os.environ.items() if key.upper() not in _SECRETS}  # noqa: TID251
    return {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1", **environment}
