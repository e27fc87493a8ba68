"""Errors of requests. Each class has its HTTP status and the fields of OpenAI's error body."""

from coconut_ds.errors import CoconutError


class ServiceError(CoconutError):
    """Base class; by default an internal error of the server."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The field of the request that caused the error."""
        self.retry_after_s = retry_after_s
        """Seconds after which the client may retry; None: retrying does not help."""


class RequestError(ServiceError):
    """The request is invalid: a field has a value that is not allowed, or does not fit the model."""

    status = 400
    type = "invalid_request_error"


class NotAuthorizedError(ServiceError):
    """The API key is missing or wrong."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ForeignOriginError(ServiceError):
    """A page of another site made the request."""

    status = 403
    type = "invalid_request_error"
    code = "foreign_origin"


class WrongHostError(ServiceError):
    """The request is addressed to a host name that is not among those that are allowed."""

    status = 421
    type = "invalid_request_error"
    code = "wrong_host"


class RateLimitError(ServiceError):
    """The client has sent too many requests in the last minute."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UnknownModelError(ServiceError):
    """No checkpoint has this name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class TooSlowError(ServiceError):
    """The client did not send the request's body in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class TooLargeError(ServiceError):
    """The request's body exceeds the size limit."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class MediaTypeError(ServiceError):
    """The request's body is compressed, or is not announced as JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class QueueFullError(ServiceError):
    """There is currently no room for another request."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class EngineFailedError(ServiceError):
    """A forward pass of the model failed, and the request with it."""

    code = "engine_failed"


class UnavailableError(ServiceError):
    """The server is stopping, or the model cannot be used."""

    status = 503
    code = "unavailable"


class CheckpointFailedError(UnavailableError):
    """A checkpoint cannot be loaded. Not 503, which tells proxies that the server itself is unavailable."""

    status = 500
    code = "checkpoint_failed"


class TimeLimitError(ServiceError):
    """The request exceeded the time limit."""

    status = 504
    code = "time_limit"
