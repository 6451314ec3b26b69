"""OpenAI's JSON of a finished job, with more keys for Xinference's clients."""

from __future__ import annotations

from sdstream.core.job import Job
from sdstream.dialects.rendering import (
    ResponseFormat,
    answer_fields,
    compact,
    image_item,
    usage_fields,
    with_data,
)


def plain_answer(job: Job, form: ResponseFormat, created: int) -> bytes:
    """Return the JSON of a finished job.

    Args:
        job: The completed job.
        form: The form in which the JSON contains images.
        created: Time of the answer in Unix seconds.
    """
    images = [job.images[index] for index in sorted(job.images)]
    items = [
        image_item(
            {
                "index": image.index,
                "seed": image.seed,
                "revised_prompt": None,
                "finish_reason": "stop",
                # As in Xinference, whose clients read both keys.
                **({"b64_json": None} if form.as_url else {}),
            },
            job.request,
            image,
            form,
        )
        for image in images
    ]
    head = {"created": created}
    tail = {"model": job.request.model, **answer_fields(job), "usage": usage_fields(job.usage())}
    return with_data(head, items, compact(tail))
