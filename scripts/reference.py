"""Generate the tables of the documentation from the code.

``scripts/lint`` writes them into the pages with cog; ``scripts/check`` fails if one is stale.
"""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_origin

import click

from sdstream.cli.flags import singular
from sdstream.cli.main import main
from sdstream.core.ask import ReplyOptions, StreamOptions
from sdstream.core.errors import ImageServiceError, Reason
from sdstream.core.model_families import FAMILIES
from sdstream.core.options import OPTIONS, ImageParams
from sdstream.core.samplers import SAMPLERS, SCHEDULES
from sdstream.dialects.fields import FOREIGN
from sdstream.service.metrics import Metrics
from sdstream.settings import Settings
from sdstream.web.application import build_app
from sdstream.web.openapi import openapi_document

PACKAGE = Path(__file__).parents[1] / "app" / "sdstream"

#: Defaults that depend on the machine.
_MACHINE_DEFAULTS: Final = {
    "models": "the project's",
    "model_dir": "the hub's own",
    "data_dir": "the user's data folder",
    "cache_dir": "the user's cache folder",
    "cluster_token_file": "in the user's configuration folder",
}

#: Modules of routes -> headings of the reference.
_GROUPS: Final = {
    "a1111": "AUTOMATIC1111",
    "chat": "Chats",
    "cluster": "Machines of a cluster",
    "fireworks": "Fireworks",
    "huggingface": "Hugging Face",
    "images": "Images",
    "job_sets": "Groups of jobs",
    "jobs": "Jobs and tokens",
    "mcp": "Model Context Protocol",
    "models": "Models, stored images and operation",
    "ocr": "Reading text",
    "parameters": "Parameters of files",
    "sdcpp": "sd-server",
    "xinference": "Xinference",
}


def module_table(room: str) -> str:
    """The modules of one folder of the package, each with the first paragraph of its docstring."""
    rows = ["| module | purpose |", "|-|-|"]
    for path in sorted((PACKAGE / room).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring is None:
            if path.stem != "__init__":
                raise ValueError(f"{path} has no docstring")
            continue
        name = path.relative_to(PACKAGE / room).as_posix()
        summary = " ".join(docstring.partition("\n\n")[0].split())
        rows.append(f"| {name} | {summary} |")
    return "\n".join(rows)


def option_table() -> str:
    """The options of a request: name, type, aliases, meaning, and name in image files."""
    schemas = ImageParams.model_json_schema()["properties"]
    rows = ["| option | type | aliases | meaning | in image files |", "|-|-|-|-|-|"]
    for name, option in OPTIONS.items():
        schema = schemas[name]
        aliases = ", ".join(f"`{alias}`" for alias in option.aliases)
        needs = f" Needs `{option.needs}`." if option.needs else ""
        meaning = schema["description"] + needs
        rows.append(
            f"| `{name}` | {_type(schema)} | {aliases} | {meaning} | {option.infotext or ''} |"
        )
    return "\n".join(rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words, such as "number 0 to 30"."""
    (kind,) = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    low = kind.get("minimum", kind.get("exclusiveMinimum"))
    high = kind.get("maximum")
    bounds = (
        "" if low is None else f" {low:g} to {high:g}" if high is not None else f" from {low:g}"
    )
    return f"{kind.get('type', 'object')}{bounds}"


def reply_table() -> str:
    """The options of the response, with those of ``stream_options``."""
    rows = ["| option | type | default | meaning |", "|-|-|-|-|"]
    for prefix, model in (("", ReplyOptions), ("stream_options.", StreamOptions)):
        for name, schema in model.model_json_schema()["properties"].items():
            if name == "stream_options":
                continue
            default = schema.get("default")
            shown = "" if default is None else f"`{json.dumps(default).strip(chr(34))}`"
            meaning = schema.get("description", "")
            rows.append(f"| `{prefix}{name}` | {_type(schema)} | {shown} | {meaning} |")
    return "\n".join(rows)


def sampler_table() -> str:
    """Samplers and schedules with the other names that requests may use."""
    rows = ["| option | value | meaning | also accepted as |", "|-|-|-|-|"]
    for option, table in (("sampler", SAMPLERS), ("schedule", SCHEDULES)):
        for name, one in table.items():
            names = ", ".join(f"`{alias}`" for alias in (one.label, *one.aliases) if alias)
            rows.append(f"| {option} | `{name}` | {one.title} | {names} |")
    return "\n".join(rows)


def foreign_table() -> str:
    """The fields of other APIs that have no effect, with their warnings."""
    rows = ["| field | warning |", "|-|-|"]
    for name, field in FOREIGN.items():
        if field.note:
            rows.append(f"| `{name}` | '{name}'{field.note} |")
    return "\n".join(rows)


def settings_table() -> str:
    """Flag, variable, default and meaning of every setting."""
    rows = ["| flag | variable | default | meaning |", "|-|-|-|-|"]
    for name, field in Settings.model_fields.items():
        many = get_origin(field.annotation) is tuple
        flag = (singular(name) if many else name).replace("_", "-")
        default = _MACHINE_DEFAULTS.get(name)
        if default is None and field.default not in (None, ()):
            assert not field.default_factory, f"the default of {name} depends on the machine"
            value = field.default
            default = f"`{'off' if value is False else 'on' if value is True else value}`"
        meaning = (field.description or "").replace("<", "\\<")
        rows.append(f"| `--{flag}` | `SDSTREAM_{name.upper()}` | {default or ''} | {meaning} |")
    return "\n".join(rows)


def command_texts() -> str:
    """The help of every command."""
    context = click.Context(main, info_name="sdstream", terminal_width=100, max_content_width=100)
    return "\n".join(_helps(main, context)).rstrip()


def _helps(group: click.Group, context: click.Context) -> Iterator[str]:
    """Yield a section for each command of a group, and for those of the groups in it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if name == "serve":
            continue  # its flags are the settings
        inner = click.Context(
            command, context, info_name=name, terminal_width=100, max_content_width=100
        )
        yield f"## {inner.command_path}\n\n```text\n{command.get_help(inner)}\n```\n"
        if isinstance(command, click.Group):
            yield from _helps(command, inner)


def reason_table() -> str:
    """Every ``reason`` of an error."""
    rows = ["| reason | meaning |", "|-|-|"]
    rows += [f"| `{reason}` | {reason.meaning} |" for reason in Reason]
    return "\n".join(rows)


def status_table() -> str:
    """HTTP statuses of errors with their ``type`` and meaning."""
    rows = ["| status | type | meaning |", "|-|-|-|"]
    kinds: dict[int, list[type[ImageServiceError]]] = {}
    for kind in _subclasses(ImageServiceError):
        kinds.setdefault(kind.status, []).append(kind)
    for status, found in sorted(kinds.items()):
        meanings = " ".join((kind.__doc__ or "").partition("\n")[0] for kind in found)
        shown = meanings.replace("``", "`")
        rows.append(f"| {status} | `{found[0].type}` | {shown} |")
    return "\n".join(rows)


def _subclasses(kind: type[ImageServiceError]) -> Iterator[type[ImageServiceError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


def route_table() -> str:
    """The routes of the OpenAPI document by group: method, path and summary."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), cache_dir=Path(folder), engine="fake")
        paths = openapi_document(build_app(settings).routes)["paths"]
    groups: dict[str, list[str]] = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            row = f"| {method.upper()} | `{path}` | {operation['summary']} |"
            groups.setdefault(operation["tags"][0], []).append(row)
    head = "| method | path | purpose |\n|-|-|-|\n"
    titles = {name: _GROUPS[name] for name in groups}  # a new module of routes needs a title
    return "\n\n".join(f"## {titles[name]}\n\n{head}" + "\n".join(groups[name]) for name in groups)


def metric_table() -> str:
    """Every metric: name, type, labels and meaning."""
    rows = ["| metric | type | labels | meaning |", "|-|-|-|-|"]
    for name, kind, labels, meaning in Metrics().described:
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {kind} | {shown} | {meaning} |")
    return "\n".join(rows)


def family_table() -> str:
    """The families of models."""
    rows = ["| family | models | size | steps | guidance | takes references | needs |"]
    rows += ["|-|-|-|-|-|-|-|"]
    for name, family in FAMILIES.items():
        needs = ", ".join(f"`{one}`" for one in family.needs)
        references = "yes" if family.references else "no"
        rows.append(
            f"| `{name}` | {family.title} | {family.size} | {family.steps} | {family.cfg_scale:g} "
            f"| {references} | {needs} |"
        )
    return "\n".join(rows)


def file_block(name: str, language: str) -> str:
    """A file of the repository as a code block."""
    text = (PACKAGE.parents[1] / name).read_text(encoding="utf-8").rstrip()
    return f"```{language}\n{text}\n```"
