"""Every error the services raise on purpose.

    StructKVError
    ├── InvalidRequestError      the caller's mistake; repeating it will not help
    │   ├── ContextLengthError   prompt and max_tokens exceed the model's length
    │   ├── GrammarError         the answer's grammar is wrong, or too much
    │   └── ModelNotFoundError   no such model is served
    ├── ModelLoadError           the weights, tokenizer or architecture cannot be used
    ├── SkeletonError            received bytes that are not the skeleton they claim to be
    ├── OverloadedError          no room now; later there may be
    ├── StoreError               the shared store fails, is full, or has lost what it was given
    ├── UnavailableError         no worker answers
    │   ├── NoWorkerError        and none of a kind is known to serve
    │   ├── WorkerFailedError    this one can no longer compute, and ends
    │   └── PrefillFailedError   a decode worker got the skeleton from none of the prefill workers
    └── DeadlineError            the request's time is over

Codes are gRPC's; the gateway maps the same errors to HTTP in one place.
"""

import grpc

_RETRY_AFTER_KEY = "retry-after-seconds"


class StructKVError(Exception):
    """Base of all: `code` says how the error crosses a service boundary.

    Attributes:
        reason: the word under which metrics and traces count it.
        retry_after_seconds: when it makes sense to ask again, where that can be said.
        quotes_text: whether the message may quote what the client wrote, and is for nobody else.
    """

    code = grpc.StatusCode.INTERNAL
    reason = "internal"
    retry_after_seconds: int | None = None
    quotes_text = False


class InvalidRequestError(StructKVError):
    """The request itself is wrong. `param` names the offending field where one is known."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "invalid"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """Prompt and requested tokens do not fit the model's length."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "context_length"


class GrammarError(InvalidRequestError):
    """An answer's grammar cannot be used. To its callers it is the same as InvalidRequestError."""

    quotes_text = True


class ModelNotFoundError(InvalidRequestError):
    """The named model is not the one served."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "model_not_found"


class ModelLoadError(StructKVError):
    """A model cannot be loaded, or cannot be run faithfully."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class SkeletonError(StructKVError):
    """A skeleton is damaged, incomplete, or not for this model."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "skeleton"


class OverloadedError(StructKVError):
    """A queue or the KV memory is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "overloaded"

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class StoreError(StructKVError):
    """The store cannot be used. It never reaches a caller: the skeleton crosses inline instead."""


class UnavailableError(StructKVError):
    """No worker of the needed kind answers."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "unavailable"


class NoWorkerError(UnavailableError):
    """No worker of a kind is serving."""


class WorkerFailedError(UnavailableError):
    """The worker itself can no longer compute, for nobody. It ends, for its supervisor to start it again."""


class PrefillFailedError(UnavailableError):
    """No prefill worker that the request names delivered its skeleton; the decode worker itself is well."""

    code = grpc.StatusCode.ABORTED


class DeadlineError(StructKVError):
    """The deadline passed before the request was done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "deadline"


_BY_CODE: dict[grpc.StatusCode, type[StructKVError]] = {
    error.code: error
    for error in (
        InvalidRequestError,
        ContextLengthError,
        ModelNotFoundError,
        ModelLoadError,
        SkeletonError,
        OverloadedError,
        UnavailableError,
        PrefillFailedError,
        DeadlineError,
    )
}
# Whoever cancels a call reads no status from it. One that does was cancelled by its peer, which is going down.


def from_rpc(error: grpc.aio.AioRpcError) -> StructKVError:
    """Turn a peer's status back into the error it was raised as; a code of no error's is StructKVError.

    CANCELLED, where our own side did not cancel, and UNKNOWN are what grpc says of a peer that is going down.
    """
    if error.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}:
        return UnavailableError("the peer stopped")
    kind = _BY_CODE.get(error.code(), StructKVError)
    message = error.details() or error.code().name
    if issubclass(kind, OverloadedError):
        return kind(message, retry_after_seconds=_retry_after(error))
    return kind(message)


def trailing_metadata(error: StructKVError) -> tuple[tuple[str, str], ...]:
    """Return what an error's status carries besides its code and message, for `from_rpc` to read."""
    if error.retry_after_seconds is None:
        return ()
    return ((_RETRY_AFTER_KEY, str(error.retry_after_seconds)),)


def _retry_after(error: grpc.aio.AioRpcError) -> int:
    seconds = str(error.trailing_metadata().get(_RETRY_AFTER_KEY, ""))
    return int(seconds) if seconds.isascii() and seconds.isdigit() else 1
