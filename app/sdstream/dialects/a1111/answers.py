"""Answers of AUTOMATIC1111's API, /sdapi/v1: finished jobs, progress, lists and settings.

Deliberate oddities:

1. A batch is generated image by image, so ``job_count`` is the number of images. AUTOMATIC1111
   counts batches.
2. An interrupted job is not an error: its answer contains the finished images.
3. In the body of an error, ``error`` is this server's object and not a string. ``detail``, ``body``
   and ``errors`` are as in AUTOMATIC1111.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sdstream import __version__
from sdstream.core import infotext
from sdstream.core.errors import ImageServiceError
from sdstream.core.job import ImageReady, ImageResult, Job, JobStatus, PreviewReady, Running
from sdstream.core.messages import Phase
from sdstream.core.request import GenerationRequest
from sdstream.core.samplers import SAMPLERS, SCHEDULES, Schedule
from sdstream.dialects.a1111.extras import PLAIN
from sdstream.dialects.a1111.generation import LATENT_UPSCALE_MODES, Drawing
from sdstream.dialects.a1111.settings import CHECKPOINT, CLIP_SKIP, FIXED, Settings
from sdstream.dialects.rendering import JsonObject, ResponseFormat, compact, error_body, with_base64

#: Limit on the previews of one image for ``current_image``. A preview is made when a client asks
#: for the progress. For models without a cheap projection, it decodes the whole image, and with a
#: small model that takes as long as all steps.
PICTURES: Final = 4

#: Messages of the cancels of these routes, which are no errors.
INTERRUPTED: Final = "The job was interrupted."
SKIPPED: Final = "The image was skipped."
ENDINGS: Final = (INTERRUPTED, SKIPPED)

#: Label of the model's own schedule.
_AUTOMATIC: Final = "Automatic"
#: The scale that is reported for upscalers that accept any scale.
_PLAIN_SCALE: Final = 4


# --- answers --------------------------------------------------------------------------------------


def answer(job: Job, drawing: Drawing, infotexts: Sequence[str]) -> bytes:
    """Return the JSON of a job that is finished or was interrupted.

    Args:
        job: The job, which has ended.
        drawing: The request of the job.
        infotexts: The text of generation parameters for each finished image.
    """
    images = [job.images[index] for index in sorted(job.images)]
    shown = images if drawing.send_images else []
    parts = [b'"' + base64.b64encode(image.content) + b'"' for image in shown]
    tail: JsonObject = {
        "parameters": _effective(job, drawing) | _given(drawing.echo),
        "info": compact(_info(job, drawing, images, infotexts)).decode(),
    }
    warnings = [*job.request.warnings]
    if len(images) < job.request.n:
        warnings.append(f"Interrupted after {len(images)} of {job.request.n} images.")
    if warnings:
        tail["warnings"] = warnings
    return b"".join((b'{"images":[', b",".join(parts), b"],", compact(tail)[1:]))


def _given(echo: JsonObject) -> JsonObject:
    pictures = ("init_images", "mask")
    return {k: v for k, v in echo.items() if v is not None or k in pictures}


def _effective(job: Job, drawing: Drawing) -> JsonObject:
    """Return the values that were used, under the names of the request's fields."""
    request = job.request
    values: JsonObject = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": -1,
        "steps": request.steps,
        "cfg_scale": request.cfg_scale,
        "width": request.output_size.width,
        "height": request.output_size.height,
        "sampler_name": SAMPLERS[request.sampler].label,
        "scheduler": _schedule_label(request),
        "batch_size": drawing.batch_size,
        "n_iter": request.n // drawing.batch_size,
    }
    if request.cut is not None or request.enlarged:
        values["generated_size"] = str(request.generated_size)
    if request.options.strength is not None:
        values["denoising_strength"] = request.options.strength
    return values


def _info(
    job: Job, drawing: Drawing, images: Sequence[ImageResult], infotexts: Sequence[str]
) -> JsonObject:
    request = job.request
    # Variation seeds are not supported; AUTOMATIC1111 returns random ones even if they are unused.
    subseeds = [-1] * len(images)
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(images),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(images),
        "seed": request.seed,
        "all_seeds": [image.seed for image in images],
        "subseed": -1,
        "all_subseeds": subseeds,
        "subseed_strength": 0,
        "width": request.output_size.width,
        "height": request.output_size.height,
        "sampler_name": SAMPLERS[request.sampler].label,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": drawing.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": infotext.short_hash(request.model_hash) or None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.options.strength or request.options.hires_strength,
        "extra_generation_params": {"Schedule type": _schedule_label(request)},
        "index_of_first_image": 0,
        "infotexts": list(infotexts),
        "styles": [],
        "job_timestamp": _timestamp(job),
        "clip_skip": request.options.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sdstream {__version__}",
    }


def _schedule_label(request: GenerationRequest) -> str:
    return SCHEDULES[request.schedule].label or _AUTOMATIC


def _timestamp(job: Job) -> str:
    return datetime.fromtimestamp(job.created, UTC).strftime("%Y%m%d%H%M%S")


def problem(error: ImageServiceError) -> JsonObject:
    """Return the body of an error answer."""
    return {**error_body(error), "body": "", "errors": error.message}


# --- progress -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """The state that a progress answer reports.

    Attributes:
        job: The job that runs or is next; None if there is no job.
        interrupted, skipped: The client interrupted or skipped the job. Without a job, this is
            about the last job.
    """

    job: Job | None = None
    interrupted: bool = False
    skipped: bool = False


def progress(standing: Standing, now: float, *, with_image: bool = True) -> bytes:
    """Return the JSON of a progress answer.

    Args:
        standing: The state to report.
        now: The current time in Unix seconds.
        with_image: Add the newest preview or finished image.
    """
    job = standing.job
    reached = job.percent / 100 if job else 0.0
    fields = {
        "progress": round(reached, 4),
        "eta_relative": round(_seconds_left(job, reached, now), 2) if job else 0.0,
        "state": {
            "skipped": standing.skipped,
            "interrupted": standing.interrupted,
            "stopping_generation": False,
            **_counters(job),
        },
        "current_image": _newest_picture(job) if job and with_image else None,
        "textinfo": _textinfo(job) if job else None,
    }
    return compact(fields)


def wants_picture(job: Job) -> bool:
    """Return whether a client should get a new preview, which is due every quarter of the steps."""
    now = job.progress
    if now is None or now.phase is not Phase.SAMPLING:
        return False
    seen = [
        entry.event.step
        for entry in job.entries
        if isinstance(entry.event, PreviewReady) and entry.event.index == now.index
    ]
    return not seen or now.step - seen[-1] >= now.steps / PICTURES


def _seconds_left(job: Job, reached: float, now: float) -> float:
    began = next((entry.at for entry in job.entries if isinstance(entry.event, Running)), now)
    taken = max(0.0, now - began)
    return taken / reached - taken if reached else 0.0


def _counters(job: Job | None) -> JsonObject:
    if job is None:
        return {
            "job": "",
            "job_count": 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        }
    current = job.progress
    return {
        "job": job.id,
        "job_count": job.request.n,
        "job_timestamp": _timestamp(job),
        "job_no": len(job.images),
        "sampling_step": current.step if current else 0,
        "sampling_steps": current.steps if current else job.request.steps,
    }


def _newest_picture(job: Job) -> str | None:
    for entry in reversed(job.entries):
        match entry.event:
            case PreviewReady(data=data):
                return base64.b64encode(data).decode()
            case ImageReady(image):
                return base64.b64encode(image.content).decode()
    return None


def _textinfo(job: Job) -> str | None:
    match job.status:
        case JobStatus.QUEUED:
            return f"Waiting, {job.queue_position} jobs before this one"
        case JobStatus.LOADING:
            return "Loading the model"
        case _:
            return None


# --- lists and settings ---------------------------------------------------------------------------


def samplers() -> bytes:
    """Return the JSON of GET samplers."""
    return compact(
        [
            {"name": sampler.label, "aliases": [name, *sampler.aliases], "options": {}}
            for name, sampler in SAMPLERS.items()
        ]
    )


def schedulers() -> bytes:
    """Return the JSON of GET schedulers."""
    return compact([_scheduler(name, schedule) for name, schedule in SCHEDULES.items()])


def _scheduler(name: str, schedule: Schedule) -> JsonObject:
    label = schedule.label or _AUTOMATIC
    return {
        "name": label.lower().replace(" ", "_"),
        "label": label,
        "aliases": [name if schedule.label else _AUTOMATIC.lower(), *schedule.aliases],
        "default_rho": -1,
        "need_inner_model": False,
    }


def models(hashes: Mapping[str, str | None]) -> bytes:
    """Return the JSON of GET sd-models, without the paths of the server's files.

    Args:
        hashes: Id of a model -> SHA-256 of its checkpoint; None while it is unknown.
    """
    return compact(
        [
            {
                "title": name,
                "model_name": name,
                "hash": checksum and infotext.short_hash(checksum),
                "sha256": checksum,
                "filename": name,
                "config": None,
            }
            for name, checksum in hashes.items()
        ]
    )


def loras(names: Iterable[str], hashes: Mapping[str, str]) -> bytes:
    """Return the JSON of GET loras; the path is the name, since no client needs the server's path.

    Args:
        names: Names of the LoRA files.
        hashes: Name -> SHA-256 of the weights, if it is known.
    """
    return compact(
        [
            {
                "name": name,
                "alias": name,
                "path": name,
                "metadata": {"sshs_model_hash": hashes[name]} if name in hashes else {},
            }
            for name in names
        ]
    )


def latent_upscale_modes() -> bytes:
    """Return the JSON of GET latent-upscale-modes: the hires upscalers for the latent image."""
    return compact([{"name": name} for name in LATENT_UPSCALE_MODES])


def embeddings(words: Iterable[str], unusable: Mapping[str, str]) -> bytes:
    """Return the JSON of GET embeddings.

    Args:
        words: Words that stand for embeddings in prompts of the loaded model.
        unusable: File -> the reason why it cannot be used.
    """
    facts = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    skipped = {file: {**facts, "error": problem} for file, problem in unusable.items()}
    return compact({"loaded": dict.fromkeys(words, facts), "skipped": skipped})


def upscalers(factors: Mapping[str, int]) -> bytes:
    """Return the JSON of GET upscalers; the plain ones, which need no file, come first.

    Args:
        factors: Name of an upscaler file -> its scale.
    """
    empty = {"model_path": None, "model_url": None}
    plain = [{"name": n, "model_name": None, **empty, "scale": _PLAIN_SCALE} for n in PLAIN]
    there = [{"name": n, "model_name": n, **empty, "scale": f} for n, f in factors.items()]
    return compact([*plain, *there])


def extra_answer(job: Job, _form: ResponseFormat, _created: int) -> bytes:
    """Return the JSON of a finished extra-single-image job."""
    return extra_file(job.images[0].content, job.request.warnings)


def extra_file(data: bytes, warnings: Sequence[str]) -> bytes:
    """Return the JSON of an extra-single-image answer with this image file."""
    return with_base64(_extra_fields(warnings), "image", "", data)


def extra_files(files: Iterable[bytes], warnings: Sequence[str]) -> bytes:
    """Return the JSON of an extra-batch-images answer."""
    images = b",".join(b'"%b"' % base64.b64encode(data) for data in files)
    return b'%b,"images":[%b]}' % (compact(_extra_fields(warnings))[:-1], images)


def _extra_fields(warnings: Sequence[str]) -> JsonObject:
    return {"html_info": "", **({"warnings": list(warnings)} if warnings else {})}


def memory(total: int, free: int) -> bytes:
    """Return the JSON of GET memory.

    Args:
        total: Memory of the machine, or of the container, in bytes.
        free: Available memory in bytes.
    """
    ram = {"free": free, "used": total - free, "total": total}
    return compact({"ram": ram, "cuda": {"error": "not measured by this server"}})


def options(chosen: Settings, checksum: str | None) -> bytes:
    """Return the JSON of GET options: the options that POST options reads, and the fixed ones.

    Args:
        chosen: Options that the user has set.
        checksum: SHA-256 of the chosen checkpoint; None while it is unknown.
    """
    own = {
        CHECKPOINT: chosen.model,
        "sd_checkpoint_hash": checksum,
        CLIP_SKIP: chosen.clip_skip or 1,
    }
    return compact({**own, **FIXED})


def png_info(texts: Mapping[str, str]) -> bytes:
    """Return the JSON of a png-info answer.

    Args:
        texts: The texts in the file, by name; AUTOMATIC1111's text is ``parameters``.
    """
    text = texts.get("parameters", "")
    items = {name: value for name, value in texts.items() if name != "parameters"}
    return compact({"info": text, "items": items, "parameters": infotext.read(text)})
