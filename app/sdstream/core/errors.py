"""The exceptions for failed requests, as one class hierarchy.

::

    ImageServiceError
    ├── InvalidRequest        400  invalid_request_error
    ├── Unauthorized          401  authentication_error
    ├── Forbidden             403  permission_error
    ├── NotFound              404  not_found_error
    ├── MethodNotAllowed      405  invalid_request_error
    ├── NotAcceptable         406  invalid_request_error
    ├── PayloadTooLarge       413  invalid_request_error
    ├── UnsupportedMediaType  415  invalid_request_error
    ├── KeyReused             422  invalid_request_error
    ├── CatalogRejected       422  invalid_request_error
    ├── QueueFull             429  rate_limit_error      (with Retry-After)
    ├── JobWasCancelled       499  server_error          (never retried by clients)
    ├── GenerationFailed      500  server_error          (never retried by clients)
    ├── CodingNotSupported    501  server_error          (never retried by clients)
    ├── NotAvailable          501  server_error          (no model of this server does that)
    ├── NotInstalled          501  server_error          (an optional extra is missing)
    ├── Unavailable           503  unavailable_error     (usually with Retry-After)
    └── StorageFull           507  server_error          (never retried by clients)

A fault outside a request is an OperatorError. The program prints its message and exits.

An error has an HTTP status and a stable code (``reason``), so that clients need not match message
texts. A message for clients never contains a path of the server, a traceback or a key.
"""

from __future__ import annotations

from typing import Final

from sdstream.core.enums import DescribedEnum


class Reason(DescribedEnum):
    """The stable codes of ``error.reason``, each with a line that explains it."""

    INVALID_JSON = "invalid_json", "The body is not one JSON object."
    INVALID_IMAGE = "invalid_image", "An image cannot be read, or has the wrong size."
    INVALID_FORM = "invalid_form", "The body is not a complete multipart form."
    INVALID_VALUE = "invalid_value", "A field has a value outside its type or bounds."
    INVALID_HTTP = "invalid_http", "The header section of the request violates HTTP."
    CODING_NOT_SUPPORTED = (
        "coding_not_supported",
        "The server does not support this Transfer-Encoding.",
    )
    INVALID_CODING = "invalid_coding", "The body is not one complete gzip member."
    MISSING_FIELD = "missing_field", "A required field was not given."
    UNKNOWN_FIELD = "unknown_field", "The server does not know this field."
    CONFLICTING_FIELDS = "conflicting_fields", "Two fields of the request contradict each other."
    NOT_SUPPORTED = "not_supported", "The option has no meaning for this model or route."
    NOT_SUPPORTED_YET = "not_supported_yet", "The option is known but not supported yet."
    UNSAFE_COMBINATION = (
        "unsafe_combination",
        "The runtime crashes or generates blank images with these values.",
    )
    SAFETY_CHECKER_UNAVAILABLE = (
        "safety_checker_unavailable",
        "The request requires a safety check, and no checker is configured.",
    )
    CONTENT_POLICY_VIOLATION = (
        "content_policy_violation",
        "The requested safety check flagged an image.",
    )
    LORA_UNUSABLE = "lora_unusable", "The LoRA cannot be applied to this model."
    INVALID_API_KEY = "invalid_api_key", "The API key or the token is missing or wrong."
    CROSS_ORIGIN = "cross_origin", "The request came from a page of an origin that is not allowed."
    HOST_NOT_ALLOWED = "host_not_allowed", "The Host header is not a name of this server."
    PRIORITY_NOT_ALLOWED = (
        "priority_not_allowed",
        "This API key is not allowed to request that priority.",
    )
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency_key_reused",
        "A different request has used this Idempotency-Key.",
    )
    WEBHOOK_NOT_ALLOWED = "webhook_not_allowed", "Webhooks are off, or not allowed to this host."
    MODEL_NOT_FOUND = "model_not_found", "Model not found."
    CATALOG_INVALID = (
        "catalog_invalid",
        "models.yaml cannot be used; the server keeps the old catalogue.",
    )
    ROUTE_NOT_FOUND = "route_not_found", "Route not found."
    JOB_NOT_FOUND = "job_not_found", "Job not found; it may have expired or belong to another key."
    IMAGE_NOT_FOUND = "image_not_found", "Image not found; it may have expired."
    METHOD_NOT_ALLOWED = "method_not_allowed", "The route does not support this HTTP method."
    NOT_ACCEPTABLE = "not_acceptable", "The route cannot return a type that Accept allows."
    BODY_TOO_LARGE = "body_too_large", "The body is larger than this server accepts."
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported_media_type",
        "The route does not accept bodies of this type.",
    )
    QUEUE_FULL = (
        "queue_full",
        "The queue of the server is full, or the key has too many waiting images.",
    )
    STORAGE_FULL = "storage_full", "The disk has no room for another job."
    STORAGE_UNAVAILABLE = (
        "storage_unavailable",
        "The database or the image store cannot be used now.",
    )
    GENERATION_FAILED = "generation_failed", "The runtime returned no image."
    WORKER_CRASHED = "worker_crashed", "The worker process crashed."
    WORKER_KILLED = "worker_killed", "The worker process was killed, usually for lack of memory."
    WORKER_LOST = "worker_lost", "The worker's machine became unreachable twice."
    WORKER_HUNG = "worker_hung", "The worker process made no progress for too long."
    INTERRUPTED = "interrupted", "The server stopped while the job was running."
    CANCELLED = "cancelled", "The job was cancelled."
    MODEL_UNAVAILABLE = "model_unavailable", "The model could not be loaded."
    NOT_INSTALLED = "not_installed", "The route needs an optional extra that is not installed."
    STANDBY = "standby", "The server waits until it can take over from another one."
    SHUTTING_DOWN = "shutting_down", "The server is shutting down."
    INTERNAL_ERROR = "internal_error", "Internal server error; the log has details."


#: Reasons of failed jobs for which the same request may succeed soon: the error is 503.
TEMPORARY_REASONS: Final = (
    Reason.SHUTTING_DOWN,
    Reason.MODEL_UNAVAILABLE,
    Reason.WORKER_LOST,
    Reason.STORAGE_UNAVAILABLE,
)


class ImageServiceError(Exception):
    """The base class: one failed request or job, in a form that can be sent to a client.

    Args:
        message: One sentence for people.
        reason: The code for programs.
        param: The invalid field, as the client spelled it.
        retry_after: Seconds after which the client may retry (Retry-After).
    """

    status = 500
    type = "server_error"
    #: False: clients must not retry automatically. None: the status code decides.
    should_retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(ImageServiceError):
    """The request is not valid; ``param`` names the field."""

    status = 400
    type = "invalid_request_error"

    def __init__(
        self, message: str, *, reason: Reason = Reason.INVALID_VALUE, param: str | None = None
    ) -> None:
        super().__init__(message, reason=reason, param=param)


class Unauthorized(ImageServiceError):
    """The API key is missing or wrong."""

    status = 401
    type = "authentication_error"


class Forbidden(ImageServiceError):
    """The API key, or the web page that sent the request, is not allowed to do this."""

    status = 403
    type = "permission_error"


class NotFound(ImageServiceError):
    """The model, job, image or route does not exist."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(ImageServiceError):
    """The route exists for another HTTP method."""

    status = 405
    type = "invalid_request_error"


class NotAcceptable(ImageServiceError):
    """The server cannot answer with a media type that the Accept header allows."""

    status = 406
    type = "invalid_request_error"


class PayloadTooLarge(ImageServiceError):
    """The body is larger than the server allows."""

    status = 413
    type = "invalid_request_error"


class UnsupportedMediaType(ImageServiceError):
    """The route does not read bodies of this media type."""

    status = 415
    type = "invalid_request_error"


class KeyReused(ImageServiceError):
    """The Idempotency-Key was used for a different request."""

    status = 422
    type = "invalid_request_error"


class CatalogRejected(ImageServiceError):
    """The reloaded models.yaml is not valid; the server keeps the old catalogue."""

    status = 422
    type = "invalid_request_error"


class QueueFull(ImageServiceError):
    """The queue is full; the client may retry after the seconds in ``Retry-After``."""

    status = 429
    type = "rate_limit_error"


class JobWasCancelled(ImageServiceError):
    """The job was cancelled by another request."""

    status = 499
    type = "server_error"
    should_retry = False


class GenerationFailed(ImageServiceError):
    """The job was accepted, but it failed before all of its images were finished."""

    status = 500
    type = "server_error"
    # An automatic retry would repeat the work that just failed.
    should_retry = False


class CodingNotSupported(ImageServiceError):
    """The body has a transfer coding that the server does not support."""

    status = 501
    type = "server_error"
    should_retry = False


class NotAvailable(ImageServiceError):
    """The route belongs to the API of another program; this server does not support it."""

    status = 501
    type = "server_error"
    should_retry = False


class NotInstalled(ImageServiceError):
    """The route needs an optional extra; the message contains the command that installs it."""

    status = 501
    type = "server_error"
    should_retry = False


class Unavailable(ImageServiceError):
    """The server or the model cannot accept work now."""

    status = 503
    type = "unavailable_error"


class StorageFull(ImageServiceError):
    """The disk has no room for another job; the files of finished jobs stay."""

    status = 507
    type = "server_error"
    should_retry = False


class OperatorError(Exception):
    """A fault outside a request that the operator can correct; its text is for the operator.

    Attributes:
        exit_code: Exit status of the program.
    """

    exit_code = 1


class ConfigurationError(OperatorError):
    """A setting, a file or an address that the operator chose cannot be used."""

    exit_code = 78


class EngineError(Exception):
    """The engine could not load a model or generate an image.

    ``message`` is safe for clients: it contains no path of the server.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
