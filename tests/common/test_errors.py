"""An error is the same on both sides of a call."""

import grpc
import pytest

from common.errors import (
    OverloadedError,
    PrefillFailedError,
    StoreError,
    StructKVError,
    UnavailableError,
    from_rpc,
    trailing_metadata,
)


def crossed(error: StructKVError) -> StructKVError:
    """Return what a caller reads of an error."""
    metadata = grpc.aio.Metadata(*trailing_metadata(error))
    return from_rpc(grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), metadata, str(error)))


CROSSING = {StructKVError, *StructKVError.__subclasses__(), PrefillFailedError} - {StoreError}


@pytest.mark.parametrize(
    "kind", [kind for kind in sorted(CROSSING, key=lambda kind: kind.__name__) if kind.__module__ == "common.errors"]
)
def test_kind_and_message_cross(kind: type[StructKVError]) -> None:
    error = crossed(kind("because"))
    assert type(error) is kind
    assert str(error) == "because"


def test_when_to_ask_again_crosses() -> None:
    assert crossed(OverloadedError("full", retry_after_seconds=17)).retry_after_seconds == 17


@pytest.mark.parametrize("sent", ["", "soon", "-1"])
def test_a_peer_that_says_it_badly_is_asked_again_in_a_second(sent: str) -> None:
    metadata = grpc.aio.Metadata(("retry-after-seconds", sent))
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert from_rpc(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), metadata, "")).retry_after_seconds == 1


def test_a_call_that_the_peer_cancels_may_be_handed_on() -> None:
    status = grpc.StatusCode.CANCELLED
    error = from_rpc(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), ""))
    assert isinstance(error, UnavailableError)
