"""Batches of balanced calls: what their Dask task carries, its key, and what has begun."""

from __future__ import annotations

import os

import pytest
from dask.utils import key_split

from pxcompat.backends.dask.batch import ids_of_key, key_of, pack, unpack
from pxcompat.backends.dask.ledger import SLOTS, Ledger
from pxcompat.backends.dask.wire import Blob
from pxcompat.protocol import Request


def calls(*numbers: int, label: str = "f") -> list[Request]:
    function = [b"code"]
    header = {"client": "abc"}
    return [
        Request(f"abc_{n}", "apply", label, {}, function, [b"x%d" % n], header) for n in numbers
    ]


@pytest.mark.parametrize("numbers", [[0], [7, 8, 9], [3, 5, 6, 2], [10, 1, 2, 3, 20]])
def test_the_key_names_the_calls(numbers: list[int]) -> None:
    key = key_of(calls(*numbers), 4)
    assert list(ids_of_key(key)) == [f"abc_{n}" for n in numbers]


def test_the_key_of_many_calls_in_a_row_is_short() -> None:
    assert len(key_of(calls(*range(1000)), 4)) < 50


@pytest.mark.parametrize("label", ["f", "<lambda>", "push:a,b", "my-name", "1 - x"])
def test_dask_takes_the_label_for_the_name_of_the_task(label: str) -> None:
    key = key_of(calls(1, 2, label=label), 4)
    assert key_split(key) == f"px:apply:{label.replace('-', '_')}"


def test_what_calls_share_is_carried_once() -> None:
    function = [b"f" * 10_000]
    requests = [
        Request(f"a_{n}", "apply", "f", {}, function, [b"", bytearray(b"b")], {"client": "a"})
        for n in range(10)
    ]
    data = pack(requests)
    assert len(data) < 20_000
    got = unpack(data)
    assert [r.msg_id for r in got] == [r.msg_id for r in requests]
    # writable, so that arrays that arrive are, and a header is a request's own
    assert all(isinstance(r.arguments[1], bytearray) for r in got)
    assert got[0].header is not got[1].header


def test_a_value_held_elsewhere_stays_there() -> None:
    blob = Blob("b", "tcp://h:1", 7)
    (got,) = unpack(pack([Request("a_1", "apply", "f", {}, [b"f"], blob, {})]))
    assert isinstance(got.arguments, Blob)
    assert (got.arguments.id, got.arguments.address, got.arguments.nbytes) == ("b", "tcp://h:1", 7)


def test_a_ledger_says_what_a_process_that_is_gone_had_begun() -> None:
    ledger = Ledger()
    pid = os.fork()
    if not pid:
        ledger.open("first")
        ledger.begin(1)
        ledger.begin(2)
        ledger.open("never begun")
        ledger.open("last")
        ledger.begin(1)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert ledger.read() == {"first": 2, "last": 1}
    ledger.close()


def test_a_ledger_remembers_the_latest() -> None:
    ledger = Ledger()
    for n in range(SLOTS + 5):
        ledger.open(f"batch {n}")
        ledger.begin(n + 1)
    assert ledger.read() == {f"batch {n}": n + 1 for n in range(5, SLOTS + 5)}
    ledger.close()
