"""What a request can run into. Each error knows its HTTP status and the fields of OpenAI's error body."""

from coconut_ds.errors import CoconutError


class ServiceError(CoconutError):
    """Base: a failure of the server's own, unless a class says otherwise."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The field of the request that is at fault."""
        self.retry_after_s = retry_after_s


class RequestError(ServiceError):
    """The request asks for what cannot be."""

    status = 400
    type = "invalid_request_error"


class NotAuthorizedError(ServiceError):
    """No key, or another."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class UnknownModelError(ServiceError):
    """No checkpoint has this name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class TooSlowError(ServiceError):
    """The client did not send its request in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class TooLargeError(ServiceError):
    """The body is larger than the server reads."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class QueueFullError(ServiceError):
    """No room for another request now."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class EngineFailedError(ServiceError):
    """A pass of the model failed, and the request with it."""

    code = "engine_failed"


class UnavailableError(ServiceError):
    """The server stops, or a model can no longer be used."""

    status = 503
    code = "unavailable"


class TimeLimitError(ServiceError):
    """The request ran for longer than the server lets one run."""

    status = 504
    code = "time_limit"
