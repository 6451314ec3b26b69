"""The README says what the code does: settings, options, routes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_origin

from starlette.routing import Route

from sdstream.cli.flags import singular
from sdstream.core.ask import ReplyOptions, StreamOptions
from sdstream.core.catalog import Catalog
from sdstream.core.model_families import FAMILIES
from sdstream.core.options import ALIASES, OPTIONS
from sdstream.core.samplers import SAMPLERS, SCHEDULES
from sdstream.dialects.fields import FOREIGN
from sdstream.settings import Settings
from tests.support.routes import document, routes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

#: Defaults that depend on the machine, as the README words them.
WORDED = {
    "models": "the project's",
    "data_dir": "the user's data folder",
    "cache_dir": "the user's cache folder",
    "public_url": "",
    "aliases": "",
    "trusted_proxies": "",
    "allowed_hosts": "",
    "api_keys": "",
    "high_priority_keys": "",
    "webhook_hosts": "",
    "lora_dir": "",
    "model": "",
    "model_dir": "the hub's own",
    "webhook_secret": "",
    "cors_origins": "",
    "safety_checker": "",
}


def settings_table() -> str:
    """The README's table, as the code would write it."""
    rows = []
    for name, field in Settings.model_fields.items():
        many = get_origin(field.annotation) is tuple
        flag = (singular(name) if many else name).replace("_", "-")
        default = WORDED.get(name, f"`{field.default}`")
        rows.append(f"| `--{flag}` | `SDSTREAM_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_settings_are_all_there() -> None:
    """Flag, variable, default and meaning of every setting, word for word."""
    assert settings_table() in README


def test_options_are_listed() -> None:
    """The README leads to the generated table, which has every option with all its spellings."""
    table = (ROOT / "docs/reference/options.md").read_text()
    assert "(docs/reference/options.md)" in README
    assert [name for name in (*OPTIONS, *ALIASES) if f"`{name}`" not in table] == []


def test_reply_options_are_all_there() -> None:
    """So have those of the answer."""
    names = [*ReplyOptions.model_fields, *StreamOptions.model_fields]
    assert [name for name in names if f"`{name}`" not in README] == []


def test_fields_without_effect_are_named() -> None:
    """Nobody has to find out by trying."""
    assert [
        name for name, field in FOREIGN.items() if field.note and f"`{name}`" not in README
    ] == []


def test_samplers_schedules_and_families_are_all_there() -> None:
    """Each by its name."""
    names = [*SAMPLERS, *SCHEDULES, *FAMILIES]
    assert [name for name in names if f"`{name}`" not in README] == []


def test_routes_are_described() -> None:
    """Every route but the page's is in the OpenAPI document, and all are in the README."""
    paths = {re.sub(r":\w+}", "}", route.path) for route in routes() if isinstance(route, Route)}
    paths.remove("/")  # the page is for people
    assert paths == set(document()["paths"])
    readme_paths = {re.sub(r"{\w+}", "{id}", path) for path in paths}
    assert [path for path in readme_paths if path not in README] == []


def test_generated_tables_are_fresh() -> None:
    """What cog writes into the documents is what the code says now."""
    documents = [str(path) for path in (ROOT / "docs").rglob("*.md")]
    command = [sys.executable, "-m", "cogapp", "--check", "-I", str(ROOT), *documents]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_families_of_the_readme_catalogue_parse() -> None:
    """The example of models.yaml is a catalogue."""
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert Catalog.parse(example).default == "my-flux"
