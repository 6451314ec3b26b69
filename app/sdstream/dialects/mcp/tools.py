"""The tools of the MCP server: names, descriptions, and JSON Schemas of their arguments.

The HTTP and the stdio transport list the same tools. The options come from ``core/options``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sdstream.core.ask import ReplyOptions
from sdstream.core.catalog import Catalog
from sdstream.core.model_options import shared_options, supports
from sdstream.core.options import OPTIONS, params_schema
from sdstream.core.request import Assets, Limits
from sdstream.dialects.pictures import MAX_INPUT_IMAGES
from sdstream.dialects.rendering import JsonObject

GENERATE: Final = "generate_image"
EDIT: Final = "edit_image"
MODELS: Final = "list_models"
STATUS: Final = "job_status"
CANCEL: Final = "cancel_job"

INSTRUCTIONS: Final = (
    "Generates and edits images with diffusion models. An image is named by its job and its index, "
    "for example job_abc/0; edit_image takes such an id as its input. Images are returned as image "
    "content, large ones reduced, and as links to the originals."
)

#: Description of an argument that is an image.
_PICTURE: Final = (
    "Base64, a data: URL, or the id of an image of an earlier job (job_…/0). URLs are not "
    "downloaded."
)
_JOB: Final = {"job": {"type": "string", "description": "Id of the job, for example job_abc."}}
#: Values of ``acts_on`` that mark an option of edit_image only.
_ONLY_EDIT: Final = ("image", "mask")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as clients list it.

    Attributes:
        name: Name of the tool.
        title: Name for people.
        description: Effect of the tool, for the language model that chooses it.
        input_schema: JSON Schema of the arguments.
        read_only: The tool changes nothing.
        destructive: The tool stops or removes something.
    """

    name: str
    title: str
    description: str
    input_schema: JsonObject
    read_only: bool = False
    destructive: bool = False


def tools_of(catalog: Catalog, assets: Assets, limits: Limits) -> list[Tool]:
    """Return the tools, with the options that the models support.

    Args:
        catalog: The models.
        assets: The LoRA and upscaler files.
        limits: Limits of the server.
    """
    options = shared_options([*catalog.models.values()], assets, limits)
    return [
        Tool(
            GENERATE,
            "Generate images",
            "Generate images from a prompt. Returns the images, their ids, seeds and links.",
            _schema(_generation(catalog, options), ("prompt",)),
        ),
        Tool(
            EDIT,
            "Edit an image",
            "Generate images from an input image and a prompt; with a mask, repaint only its area. "
            "Returns the images, their ids, seeds and links.",
            _schema(_edit(catalog, options), ("image", "prompt")),
        ),
        Tool(
            MODELS,
            "List models",
            "List the models with their sizes and default options.",
            _schema({}),
            read_only=True,
        ),
        Tool(
            STATUS,
            "Get a job",
            "Get the state and the progress of a job, and its images when it is complete.",
            _schema(_JOB, ("job",)),
            read_only=True,
        ),
        Tool(
            CANCEL,
            "Cancel a job",
            "Cancel a job: at once while it waits, within a sampling step while it runs.",
            _schema(_JOB, ("job",)),
            destructive=True,
        ),
    ]


def _schema(properties: Mapping[str, Any], required: Sequence[str] = ()) -> JsonObject:
    schema: JsonObject = {
        "type": "object",
        "properties": dict(properties),
        "required": [*required],
        "additionalProperties": False,
    }
    # Schemas of shared options refer to definitions in $defs.
    definitions = params_schema().get("$defs", {})
    used = {name: value for name, value in definitions.items() if f"/{name}'" in str(properties)}
    return {**schema, "$defs": used} if used else schema


def _generation(catalog: Catalog, options: JsonObject) -> JsonObject:
    own = {
        name: schema
        for name, schema in options.items()
        if OPTIONS[name].acts_on not in _ONLY_EDIT
        and (OPTIONS[name].acts_on is None or _has_control(catalog))
    }
    return {**_texts(catalog), **_control(catalog), **own, **_answer()}


def _edit(catalog: Catalog, options: JsonObject) -> JsonObject:
    one = {"type": "string", "description": _PICTURE}
    several = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_INPUT_IMAGES}
    image = {
        "anyOf": [{"type": "string"}, several],
        "description": f"The input image, or several for a model that takes references. {_PICTURE}",
    }
    mask = {**one, "description": f"The area to repaint; see mask_mode. {_PICTURE}"}
    return {
        "image": image,
        "mask": mask,
        **_texts(catalog),
        **_control(catalog),
        **options,
        **_answer(),
    }


def _texts(catalog: Catalog) -> JsonObject:
    """Return the arguments of every image tool that are not in the lists of options."""
    fields = params_schema()["properties"]
    texts = {
        name: {"type": "string", "description": fields[name]["description"]}
        for name in ("prompt", "negative_prompt", "model")
    }
    return {
        **texts,
        "model": {**texts["model"], "enum": [*catalog.models], "default": catalog.default},
    }


def _has_control(catalog: Catalog) -> bool:
    return any(supports(spec, "control_strength") for spec in catalog.models.values())


def _control(catalog: Catalog) -> JsonObject:
    if not _has_control(catalog):
        return {}
    return {
        "control": {
            "type": "string",
            "description": f"An image that the model's ControlNet follows. {_PICTURE}",
        }
    }


def _answer() -> JsonObject:
    """Return the arguments that choose the form and the time of the answer."""
    fields = ReplyOptions.model_json_schema()["properties"]
    return {
        "priority": {k: v for k, v in fields["priority"].items() if k != "title"},
        "response_format": {
            "type": "string",
            "enum": ["both", "b64_json", "url"],
            "description": "both returns image content and links, b64_json content only, url links "
            "only. By default both are returned, and large images are reduced in the content; "
            "the links lead to the originals.",
        },
        "wait": {
            "type": "boolean",
            "default": True,
            "description": "false returns the job at once; job_status then returns its images.",
        },
    }
