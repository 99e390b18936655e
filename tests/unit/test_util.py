"""Helpers that code written for ipyparallel imports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from pxcompat import util


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29T12:30:00Z", datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc)),
        ("2024-02-29T12:30:00.5Z", datetime(2024, 2, 29, 12, 30, 0, 500_000, timezone.utc)),
        (
            "2024-02-29T12:30:00.000001+0230",
            datetime(2024, 2, 29, 12, 30, 0, 1, timezone(timedelta(hours=2, minutes=30))),
        ),
        (
            "2024-02-29T12:30:00-08:00",
            datetime(2024, 2, 29, 12, 30, tzinfo=timezone(-timedelta(hours=8))),
        ),
        ("2024-02-29", "2024-02-29"),
        ("", ""),
    ],
)
def test_dates_in_what_json_gave(text: str, expected: object) -> None:
    assert util.extract_dates({"a": [text]}) == {"a": [expected]}
    assert bool(util.ISO8601_PAT.match(text)) == isinstance(expected, datetime)


def test_a_date_in_the_format_that_is_named() -> None:
    moment = datetime(2024, 2, 29, 12, 30, 0, 7)
    assert util.extract_dates(moment.strftime(util.ISO8601)).replace(tzinfo=None) == moment


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test_util.logger")
    yield logger
    logger.handlers.clear()


def test_a_local_logger_writes_once(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert util.local_logger(logger.name, "INFO") is logger
    assert util.local_logger(logger.name, "INFO") is None, "it has its stream"
    logger.info("something")
    logger.debug("more")
    assert capsys.readouterr().err.endswith("[test_util.logger] something\n")
