"""The requests behind an AsyncResult: finding them, and reading those that have finished."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol

from .error import CompositeError, RemoteError, collect_exceptions
from .futures import MessageFuture, Metadata

__all__ = ["ResultClient", "error_of", "known", "merged", "reply_error_of", "value_of"]


class ResultClient(Protocol):
    """What an AsyncResult needs of its client."""

    @property
    def results(self) -> MutableMapping[str, Any]: ...

    @property
    def metadata(self) -> MutableMapping[str, Metadata]: ...

    @property
    def _futures(self) -> Mapping[str, MessageFuture]: ...

    def abort(self, jobs: Any, *, block: bool | None) -> Any: ...

    def _abort(self, msg_ids: Sequence[str]) -> Any: ...


def known(client: ResultClient, msg_id: str) -> MessageFuture:
    """The future of a request, made anew when ``client`` has kept only its result."""
    future = client._futures.get(msg_id)
    if future is not None:
        return future
    if msg_id not in client.results:
        raise KeyError(f"No Future or result for msg_id: {msg_id}")
    future = MessageFuture(msg_id, metadata=client.metadata[msg_id])
    result = client.results[msg_id]
    if isinstance(result, Exception):
        future.fail(result)
    else:
        future.finish_value(result)
    future.output_latch.set()
    future.sent_latch.set()
    return future


def reply_error_of(child: MessageFuture) -> BaseException | None:
    """A finished child's error as the reply has it, without unpickling its result."""
    return CancelledError(child.msg_id) if child.cancelled() else child.reply_error


def error_of(child: MessageFuture) -> BaseException | None:
    """A finished child's error, which may be that its result cannot be unpickled."""
    return CancelledError(child.msg_id) if child.cancelled() else child.unpickle()


def value_of(child: MessageFuture) -> Any:
    """A finished child's result, or its error."""
    return CancelledError(child.msg_id) if child.cancelled() else child.value()


def merged(failed: Sequence[tuple[MessageFuture, BaseException]], fname: str) -> BaseException:
    """One error for several children's.

    What went wrong on engines makes a CompositeError, which counts in what else went wrong;
    without any of that, the first error speaks for all.
    """
    if not any(isinstance(error, RemoteError) for _, error in failed):
        return failed[0][1]
    try:
        collect_exceptions([_as_remote(child, error) for child, error in failed], fname)
    except CompositeError as composite:
        return composite
    raise AssertionError("collect_exceptions did not raise")


def _as_remote(child: MessageFuture, error: BaseException) -> RemoteError:
    if isinstance(error, RemoteError):
        return error
    where = {key: child.metadata[key] for key in ("engine_id", "engine_uuid")}
    return RemoteError(type(error).__name__, str(error), None, {**where, "method": child.method})
