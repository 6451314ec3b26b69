"""Every setting, read once from flags and environment and frozen from then on.

A field ``queue_images`` is the flag ``--queue-images`` of ``sdstream serve`` and the variable
``SDSTREAM_QUEUE_IMAGES``; a flag wins over its variable. A field that holds several values is a
flag that may be repeated, named for one of them: ``api_keys`` is ``--api-key``, ``trusted_proxies``
is ``--trusted-proxy``. docs/reference/settings.md is generated from this class.
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
from sdstream.core.model_spec import Kernels
from sdstream.core.options import MAX_IMAGES, MAX_STEPS
from sdstream.core.similar import did_you_mean, most_similar, near_miss

#: Variables that stay with the server.
_SECRETS: Final = (
    "SDSTREAM_API_KEYS",
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

#: Settings of the folders whose files requests name.
ASSET_FOLDERS: Final = ("lora_dir", "embedding_dir", "upscaler_dir")

#: Which browsers leave out of an origin.
_USUAL_PORTS: Final = {"http": 80, "https": 443}

#: Most of the grace time that is kept for what follows the jobs' ends.
_FLUSH_SECONDS: Final = 2.0

#: Variables of the command line's clients.
_OF_CLIENTS: Final = ("SDSTREAM_CLIENT_KEY", "SDSTREAM_SERVER")

#: What Kubernetes sets in every pod for a service "sdstream" or "sdstream-…".
_KUBERNETES: Final = re.compile(
    r"SDSTREAM_(?:\w+_)?(?:SERVICE_(?:HOST|PORT)(?:_\w+)?=.*|PORT(?:_\d+_(?:TCP|UDP)\w*)?=(?:tcp|udp):.*"
    r"|PORT_\d+_(?:TCP|UDP)_(?:PROTO|PORT|ADDR)=.*)"
)

_PACKAGE: Final = Path(__file__).parent


def shipped_models() -> Path:
    """The models.yaml that came with the program: in the package, or above it in a checkout."""
    inside = _PACKAGE / "models.yaml"
    return inside if inside.exists() else _PACKAGE.parents[1] / "models.yaml"


class Settings(BaseSettings):
    """The server's settings."""

    model_config = SettingsConfigDict(
        env_prefix="SDSTREAM_", frozen=True, env_ignore_empty=True, extra="forbid"
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    models: Path = Field(default_factory=shipped_models, description="The catalogue, a YAML file.")
    model: str | None = Field(
        None,
        description="The default model: MODEL or MODEL:QUANT of the catalogue, or a weight file.",
    )
    runtime_options: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Runtime options of the default model, separated by commas, in place of those "
        "in models.yaml: offload=true, wtype=q4_0.",
    )
    pull: bool = Field(False, description="Fetch the default model first if it is not here.")
    aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Other names of the default model, separated by commas, for clients with fixed "
        "ones: gpt-image-1, dall-e-3.",
    )
    model_dir: Path | None = Field(
        None, description="Folder of pulled models, as huggingface_hub lays it out."
    )
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("sdstream"),
        description="Folder for jobs and their images; each server needs its own.",
    )
    database: SecretStr | None = Field(
        None,
        description="PostgreSQL for jobs in place of the data folder's database, as "
        "postgresql://user@host:5432/name (extra postgres).",
    )
    images: str | None = Field(
        None,
        description="Bucket for images in place of the data folder, as s3://bucket/prefix (extra "
        "s3); the AWS_ variables name its server and keys.",
    )
    standby: bool = Field(
        False,
        description="Wait while another server has the jobs, and take over when it ends.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("sdstream"),
        description="Folder for built-in models.",
    )
    lora_dir: Path | None = Field(
        None, description="Folder of LoRA files that requests may choose by name."
    )
    lora_in_prompt: bool = Field(
        False, description="A prompt may choose a LoRA by <lora:name:scale>."
    )
    options_in_prompt: bool = Field(
        False,
        description="A prompt may choose options by <sd_cpp_extra_args>{…}</sd_cpp_extra_args>, as "
        "in sd-server; its routes and AUTOMATIC1111's always take them.",
    )
    embedding_dir: Path | None = Field(
        None,
        description="Folder of textual-inversion embeddings; their names are words of prompts.",
    )
    upscaler_dir: Path | None = Field(
        None, description="Folder of ESRGAN upscalers that requests may choose by name."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys, separated by commas, of which clients must send one; none: all may in.",
    )
    high_priority_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that may ask for high priority, separated by commas; none: all may."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose pages may call this server, separated by commas; * is all."
    )
    allowed_hosts: Annotated[tuple[HostPattern, ...], NoDecode] = Field(
        (),
        description="Names of this server, separated by commas: host, host:port, *.domain, an "
        "address or *. Requests with another Host are rejected. None: any name; on loopback "
        "without keys, localhost and addresses.",
    )
    default_response_format: Literal["both", "b64_json", "url"] = Field(
        "both", description="Form of images in answers to requests without a response_format."
    )
    public_url: HttpUrl | None = Field(
        None,
        description="Address at which clients reach the server; default: that of each request.",
    )
    unknown_fields: Handling = Field(
        Handling.SUGGEST,
        description="Unknown fields of requests that are rejected: all (strict), near misses of "
        "options (suggest), none (lenient); the others become warnings.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Addresses or networks of proxies, separated by commas, whose "
        "X-Forwarded-Proto, -Host, -Prefix and Forwarded are read for links, and for "
        "--allowed-host; none: not read.",
    )
    queue_images: int = Field(64, ge=1, description="Images that may wait; more get a 429.")
    queue_images_per_key: int = Field(
        32, ge=1, description="Images that may wait for one API key, where keys are asked for."
    )
    cluster: str | None = Field(
        None,
        description="Head of a Ray cluster whose machines generate, HOST:PORT; none: this machine.",
    )
    cluster_token_file: Path = Field(
        default_factory=lambda: user_config_path("sdstream") / "cluster-token",
        description="File with the token of the cluster, readable by its owner only.",
    )
    cluster_keep_alive: float = Field(
        300.0,
        ge=0,
        description="Seconds that an idle worker of a cluster stays loaded, for models without a "
        "keep_alive of their own.",
    )
    memory_mb: int = Field(
        0,
        ge=0,
        description="Memory for all loaded models, in MiB; 0 is four fifths of the machine's.",
    )
    max_body_mb: int = Field(64, ge=1, description="Largest request with images, in MiB.")
    max_input_pixels: int = Field(
        16_777_216, ge=4096, description="Largest width x height of an input image, in pixels."
    )
    max_pixels: int = Field(
        4_194_304, ge=4096, description="Largest width x height of an image, in pixels."
    )
    max_upscaled_pixels: int = Field(
        16_777_216,
        ge=4096,
        description="Largest width x height of an enlarged image, in pixels, also before it is "
        "reduced.",
    )
    max_images: int = Field(
        MAX_IMAGES, ge=1, le=MAX_IMAGES, description="Most images of one request."
    )
    max_steps: int = Field(
        MAX_STEPS,
        ge=1,
        le=MAX_STEPS,
        description="Most sampling steps of one pass (hires_scale adds a second one); models take "
        "no more by default either.",
    )
    keepalive_seconds: float = Field(
        10.0, gt=0, description="A silent stream repeats its last progress after this."
    )
    hang_seconds: float = Field(
        60.0, gt=0, description="Least time without progress before the runtime counts as hung."
    )
    cancel_seconds: float = Field(
        5.0, gt=0, description="A cancelled job that continues after this costs its worker process."
    )
    grace_seconds: float = Field(
        20.0,
        ge=0,
        description="Time that the server takes to stop: running jobs have it, but for the last "
        "tenth, to finish. What ends the process must wait longer.",
    )
    job_ttl_seconds: int = Field(
        604_800, ge=1, description="Ended jobs and their images are deleted after this."
    )
    image_store_mb: int = Field(
        1024, ge=1, description="Room for images, in MiB; the oldest jobs go first."
    )
    min_free_mb: int = Field(
        64, ge=0, description="With less free disk space, in MiB, new jobs are rejected (507)."
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts that webhook_url may name, separated by commas: host, host:port, "
        "host:* or *.host; none: webhooks are off.",
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Signs webhooks: whsec_ and base64 of 24 to 64 bytes."
    )
    webhook_private: bool = Field(
        False, description="Webhooks may go to loopback and private addresses."
    )
    embed_parameters: bool = Field(True, description="Write prompt and options into image files.")
    safety_checker: str | None = Field(
        None, description="Checker for safety_check: module:attribute, or an entry point."
    )
    kernels: Kernels = Field(
        "auto",
        description="CPU kernels: auto (the quickest), exact (f32) or off (the runtime's own); a "
        "model's runtime options in models.yaml win.",
    )
    engine: Literal["native", "fake"] = Field(
        "native", description="fake generates gradients without a model, for trying clients."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the log; prompts appear at debug only."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines of the log: text, or json with a field for each value."
    )

    @property
    def job_grace_seconds(self) -> float:
        """Of the grace time, what running jobs have; the rest is for the last frames and writes."""
        return self.grace_seconds - min(_FLUSH_SECONDS, self.grace_seconds / 10)

    def private(self, data_dir: Path) -> Settings:
        """Return these settings for a service of this process alone, which shares no store.

        Args:
            data_dir: Folder for its jobs and images.
        """
        alone = {"database": None, "images": None, "standby": False}
        return self.model_copy(update={"data_dir": data_dir, **alone})

    @field_validator("port", mode="before")
    @classmethod
    def _not_of_kubernetes(cls, value: Any) -> Any:
        # SDSTREAM_PORT=tcp://10.0.0.1:8000 is the address of a service called "sdstream".
        is_address = isinstance(value, str) and value.startswith("tcp:")
        return cls.model_fields["port"].default if is_address else value

    # Before the one that splits, which pydantic calls first.
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
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("runtime_options")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            if not all(pair.partition("=")):
                raise ValueError(f"'{pair}' is not NAME=VALUE; write offload=true")
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
            raise ValueError("a database is an address; write postgresql://user@host:5432/name")
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
        """Return setting -> folder, of ASSET_FOLDERS that are set."""
        folders = {name: getattr(self, name) for name in ASSET_FOLDERS}
        return {name: folder for name, folder in folders.items() if folder is not None}

    @field_validator(*ASSET_FOLDERS)
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"the folder {value} does not exist")
        return value


def origin_of(url: HttpUrl) -> str:
    """Return the origin of an address, as browsers send it."""
    port = "" if url.port in (None, _USUAL_PORTS[url.scheme]) else f":{url.port}"
    return f"{url.scheme}://{url.host}{port}"


def _network(item: object) -> IPv4Network | IPv6Network:
    """A network, or an address as the network of that address alone."""
    if isinstance(item, IPv4Network | IPv6Network):
        return item
    try:
        return ip_network(str(item))
    except ValueError:
        raise ValueError(
            f"'{item}' is not an address or a network; write 127.0.0.1, ::1 or 10.0.0.0/8"
        ) from None


def _origin(text: str) -> str:
    """An origin in small letters, without the usual port and a slash at the end."""
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
    """A variable that the server does not know; probably a misspelled one."""


def check_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each ``SDSTREAM_`` variable that no setting reads.

    Args:
        environment: Of the process.

    Raises:
        UnknownVariable: One is a near miss of a setting, or seems to hold a key: a server must not
            be open because of a typing error.
    """
    known = [*(f"SDSTREAM_{name.upper()}" for name in Settings.model_fields), *_OF_CLIENTS]
    warnings = []
    values = {name.upper(): value for name, value in environment.items()}  # as they are read
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
    """Return a variable that models.yaml, systemd or OpenTelemetry names; None if it is not set."""
    return os.environ.get(name)  # noqa: TID251


def variable_warnings() -> list[str]:
    """Return the warnings of ``check_variables`` on this process's environment; raises the same."""
    return check_variables(os.environ)  # noqa: TID251


def worker_environment() -> dict[str, str]:
    """The environment of worker processes.

    Waiting OpenMP threads sleep instead of spinning: with one busy neighbour on two cores that
    halves the time of an image. The library reads this before it is loaded, so it cannot be set
    any later. Without a backtrace a failed assertion aborts at once: ggml would fork to look at its
    own stack, and several threads that assert together leave forks behind that end never. Keys stay
    with the server.
    """
    environment = {key: value for key, value in os.environ.items() if key.upper() not in _SECRETS}  # noqa: TID251
    return {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1", **environment}
