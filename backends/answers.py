"""What the answers to a backend's questions become, the same way on every backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pxcompat.engine.interrupts import OwnFuture
from pxcompat.error import EngineError

__all__ = ["accepted", "cancelled", "converted"]

T = TypeVar("T")


def converted(answer: Future[Any], convert: Callable[[Any], T]) -> Future[T]:
    """The future of an answer's conversion; has the error of either."""
    target: Future[T] = OwnFuture()

    def forward(source: Future[Any]) -> None:
        try:
            target.set_result(convert(source.result()))
        except Exception as error:
            target.set_exception(error)

    answer.add_done_callback(forward)
    return target


def cancelled(answer: Future[Any]) -> Future[list[str]]:
    """The ids of requests that an engine has kept from running."""
    return converted(answer, lambda value: list(value["cancelled"]))


def accepted(answer: Future[Any]) -> Future[None]:
    """Done when an answer is no refusal; EngineError with the refusal when it is one."""

    def check(refusal: str) -> None:
        if refusal:
            raise EngineError(refusal)

    return converted(answer, check)
