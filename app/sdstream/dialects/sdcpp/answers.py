"""Answers of the API of stable-diffusion.cpp's server, /sdcpp/v1: jobs, capabilities, errors."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sdstream.core.errors import ImageServiceError
from sdstream.core.job import Job, JobStatus
from sdstream.core.model_options import default_guidance, defaults_of, schedules_of, sizes_of
from sdstream.core.model_spec import ModelSpec
from sdstream.core.request import Limits
from sdstream.core.samplers import SAMPLERS
from sdstream.dialects.rendering import JsonObject, compact, error_fields
from sdstream.dialects.sdcpp.options import HIRES_UPSCALERS

_STATUSES: Final[Mapping[JobStatus, str]] = {
    JobStatus.QUEUED: "queued",
    JobStatus.LOADING: "generating",
    JobStatus.RUNNING: "generating",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
_FORMATS: Final = ["png", "jpeg", "webp"]
_FEATURES: Final = {
    "init_image": True,
    "mask_image": True,
    "lora": True,
    "vae_tiling": True,
    "hires": True,
    "cache": True,
    "cancel_queued": True,
    "cancel_generating": True,
}


def problem(error: ImageServiceError) -> JsonObject:
    """Return the body of an error answer; as in that server's answers, ``error`` is the message."""
    fields = error_fields(error)
    message = fields.pop("message")
    return {"error": message, "message": message, "detail": message, **fields}


def submitted(job: Job) -> bytes:
    """Return the answer to an img_gen request."""
    head = {
        "id": job.id,
        "kind": "img_gen",
        "status": _STATUSES[job.status],
        "created": int(job.created),
        "poll_url": f"/sdcpp/v1/jobs/{job.id}",
    }
    if job.request.warnings:
        head["warnings"] = list(job.request.warnings)
    return compact(head)


def job_answer(job: Job) -> bytes:
    """Return the JSON of a job, with the images if the job is completed."""
    error = job.error()
    fields: JsonObject = {
        "id": job.id,
        "kind": "img_gen",
        "status": _STATUSES[job.status],
        "created": int(job.created),
        "started": None if job.started is None else int(job.started),
        "completed": None if job.ended is None else int(job.ended),
        "queue_position": job.queue_position if job.status is JobStatus.QUEUED else 0,
        "progress": _progress(job),
        "warnings": list(job.request.warnings),
        "error": {"code": error.reason.value, "message": error.message} if error else None,
    }
    if job.status is not JobStatus.COMPLETED:
        return compact({**fields, "result": None})
    images = b",".join(
        b'{"index":%d,"b64_json":"%b"}' % (index, base64.b64encode(job.images[index].content))
        for index in sorted(job.images)
    )
    kind = job.request.output_format.encode()
    result = b'{"output_format":"%b","images":[%b]}' % (kind, images)
    return b'%b,"result":%b}' % (compact(fields)[:-1], result)


def _progress(job: Job) -> JsonObject | None:
    """Return the progress of the current image; None before the first step and after the end."""
    current = job.progress
    if job.terminal or current is None:
        return None
    return {"index": current.index, "step": current.step, "steps": current.steps}


def capabilities(
    spec: ModelSpec,
    *,
    loras: Iterable[str],
    upscalers: Iterable[str],
    limits: Limits,
    queue_images: int,
) -> bytes:
    """Return the JSON of the default model's capabilities.

    Args:
        spec: The default model.
        loras: Names of the LoRA files.
        upscalers: Names of the upscaler files.
        limits: Limits on sizes and on the number of images.
        queue_images: Limit on the images in the queue.
    """
    defaults = _defaults(spec, limits)
    control = spec.files.control_net is not None
    references = spec.traits.references
    features = {**_FEATURES, "control_image": control, "ref_images": references}
    sides = sizes_of(spec)
    longest = min(sides["max"], limits.drawn // sides["min"])
    body = {
        "model": {"name": spec.id, "stem": spec.id, "path": spec.id},
        "current_mode": "img_gen",
        "supported_modes": ["img_gen"],
        "defaults": defaults,
        "defaults_by_mode": {"img_gen": defaults},
        "output_formats": _FORMATS,
        "output_formats_by_mode": {"img_gen": _FORMATS},
        "features": features,
        "features_by_mode": {"img_gen": features},
        "samplers": [*SAMPLERS],
        "schedulers": schedules_of(spec),
        "loras": [{"name": name, "path": name} for name in loras],
        "upscalers": [{"name": name} for name in (*HIRES_UPSCALERS, *upscalers)],
        "limits": {
            "min_width": sides["min"],
            "max_width": longest,
            "min_height": sides["min"],
            "max_height": longest,
            "max_batch_count": limits.images,
            "max_queue_size": queue_images,
        },
    }
    return compact(body)


def _defaults(spec: ModelSpec, limits: Limits) -> dict[str, Any]:
    """Return the default request for the model, which a client can send unchanged."""
    own = defaults_of(spec, limits)
    slg = {"layers": [7, 8, 9], "layer_start": 0.01, "layer_end": 0.2, "scale": 0.0}
    return {
        "prompt": "",
        "negative_prompt": "",
        "clip_skip": -1,
        "width": spec.default_size.width,
        "height": spec.default_size.height,
        "strength": 0.75,
        "seed": -1,
        "batch_count": 1,
        "auto_resize_ref_image": True,
        "increase_ref_index": False,
        "control_strength": 0.9,
        "sample_params": {
            "scheduler": own["schedule"],
            "sample_method": own["sampler"],
            "sample_steps": own["sample_steps"],
            "eta": None,
            "shifted_timestep": 0,
            "flow_shift": None,
            "guidance": {
                "txt_cfg": own["cfg_scale"],
                "img_cfg": None,
                "distilled_guidance": default_guidance(spec),
                "slg": slg,
            },
        },
        "hires": {
            "enabled": False,
            "upscaler": "Latent",
            "scale": 2.0,
            "target_width": 0,
            "target_height": 0,
            "steps": 0,
            "denoising_strength": 0.7,
            "upscale_tile_size": 128,
        },
        "vae_tiling_params": {
            "enabled": False,
            "tile_size_x": 0,
            "tile_size_y": 0,
            "target_overlap": 0.5,
            "rel_size_x": 0.0,
            "rel_size_y": 0.0,
        },
        "cache_mode": "disabled",
        "cache_option": "",
        "scm_mask": "",
        "scm_policy_dynamic": True,
        "output_format": "png",
        "output_compression": 100,
    }
