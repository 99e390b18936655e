"""What an engine remembers: bounds, descriptions, queries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pxcompat.engine import records
from pxcompat.engine.records import Record, Records, check, copied, matches
from pxcompat.protocol import OutputEvent, Reply, Request


def request(msg_id: str, **more: Any) -> Request:
    given = {"function": [b"f"], "arguments": [b"a"], "header": {"client": "c", "submitted": 1.0}}
    return Request(msg_id, "apply", "f", **{**given, **more})


def finished(remembered: Records, msg_id: str, result: bytes = b"r", **more: Any) -> Record:
    record = Record(request(msg_id, **more))
    remembered.add(record)
    record.reply = Reply(msg_id, "ok", "e", 2.0, 3.0, [result])
    remembered.finish(record)
    return record


def ids(remembered: Records, query: dict[str, Any] | None = None) -> list[str]:
    return [row["msg_id"] for row in remembered.query(query or {}, "e")]


# -- bounds -------------------------------------------------------------------------


def test_the_oldest_finished_are_forgotten():
    remembered = Records(max_count=3)
    waiting = Record(request("waiting"))
    remembered.add(waiting)
    for n in range(5):
        finished(remembered, str(n))
    assert ids(remembered) == ["waiting", "2", "3", "4"]
    assert "0" not in remembered and "4" in remembered
    assert remembered.get("waiting") is waiting and remembered.get("0") is None


def test_bytes_are_bounded():
    remembered = Records(max_bytes=10_000)
    for n in range(4):
        finished(remembered, str(n), bytes(3000))
    assert ids(remembered) == ["2", "3"]
    finished(remembered, "huge", bytes(20_000))
    assert ids(remembered) == ["2", "3"]
    # nothing is left of its weight
    finished(remembered, "small")
    assert ids(remembered) == ["2", "3", "small"]


@pytest.mark.parametrize(("memory", "processors"), [(160_000, 2), (1_280_000, 16)])
def test_engines_of_a_machine_share_a_part_of_its_memory(monkeypatch, memory, processors):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=memory))
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    remembered = Records()
    for n in range(4):
        finished(remembered, str(n), bytes(3000))
    assert ids(remembered) == ["2", "3"]


def test_forgetting_and_purging():
    remembered = Records()
    for n in range(4):
        finished(remembered, str(n))
    remembered.add(Record(request("running")))
    assert remembered.forget("0") and not remembered.forget("0")
    assert remembered.purge(["1", "running", "unknown"]) == 1
    assert ids(remembered) == ["2", "3", "running"]
    assert remembered.purge(None) == 2
    assert ids(remembered) == ["running"]


def test_finishing_what_was_forgotten_changes_nothing():
    remembered = Records()
    record = finished(remembered, "x")
    remembered.purge(None)
    remembered.finish(record)
    assert ids(remembered) == [] and not remembered.forget("x")


def test_output_is_bounded(monkeypatch):
    monkeypatch.setattr(records, "OUTPUT_LIMIT", 1000)
    record = Record(request("x"))
    record.add(OutputEvent(0, "stream", {"name": "stdout", "text": "a" * 500}))
    record.add(OutputEvent(1, "display_data", {"data": {"image/png": "b" * 900}}))
    assert record.truncated
    record.add(OutputEvent(2, "stream", {"name": "stdout", "text": "c" * 100}))
    assert [event.seq for event in record.events] == [0, 2]
    assert record.nbytes > 600


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [([b"small"], True), ([bytes(2 << 20)], False), ([b"head", b"buffer"], False), (None, False)],
)
def test_arguments_are_kept_when_small_and_unshared(arguments, kept):
    record = Record(request("x", arguments=arguments))
    record.forget_large_arguments()
    assert (record.request.arguments is not None) == kept


def test_buffers_of_results_are_copied():
    buffer = bytearray(b"abc")
    head, copy = copied([b"head", memoryview(buffer)])
    buffer[0] = 0
    assert (head, copy) == (b"head", b"abc")


# -- descriptions -------------------------------------------------------------------


def test_a_record_through_its_life():
    record = Record(request("x", header={"client": "c", "submitted": 1.0, "label": "mine"}))
    row = record.describe("e")
    assert (row["status"], row["queue"], row["label"]) == ("queued", "mux", "mine")
    assert (row["client_uuid"], row["engine_uuid"], row["submitted"]) == ("c", "e", 1.0)
    assert row["header"]["msg_type"] == "apply_request"
    record.started = 2.0
    record.add(OutputEvent(0, "stream", {"name": "stdout", "text": "out"}))
    record.add(OutputEvent(1, "stream", {"name": "stderr", "text": "err"}))
    row = record.describe("e")
    assert (row["status"], row["started"], row["completed"]) == ("running", 2.0, None)
    assert (row["stdout"], row["stderr"]) == ("out", "err")
    record.reply = Reply("x", "error", "e", 2.0, 3.0, content={"ename": "E"})
    row = record.describe("e")
    assert (row["status"], row["completed"]) == ("error", 3.0)
    assert row["result_content"] == {"ename": "E", "status": "error"}


def test_balanced_requests_and_those_without_a_label():
    row = Record(request("x", header={"balanced": True})).describe("e")
    assert row["queue"] == "task" and row["label"] is None


# -- queries ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (5, True),
        (6, False),
        ({"$eq": 5}, True),
        ({"$ne": 5}, False),
        ({"$lt": 6}, True),
        ({"$lt": 5}, False),
        ({"$lte": 5}, True),
        ({"$gt": 4}, True),
        ({"$gt": 5}, False),
        ({"$gte": 5}, True),
        ({"$gte": 6}, False),
        ({"$in": [4, 5]}, True),
        ({"$in": []}, False),
        ({"$nin": [4]}, True),
        ({"$nin": [5]}, False),
        ({"$mod": [2, 1]}, True),
        ({"$mod": [2, 0]}, False),
        ({"$exists": True}, True),
        ({"$exists": False}, False),
        ({"$gt": 4, "$lt": 6}, True),
        ({"$gt": 4, "$lt": 5}, False),
        ({"$and": [{"$gt": 4}, {"$lt": 6}]}, True),
        ({"$or": [{"$gt": 6}, 5]}, True),
        ({"$or": [{"$gt": 6}, 4]}, False),
    ],
)
def test_operators(test, found):
    assert matches({"n": 5}, {"n": test}) is found


def test_what_is_missing_is_none():
    row = {"n": None}
    for operator in ("$lt", "$lte", "$gt", "$gte"):
        assert not matches(row, {"n": {operator: 0}})
    assert matches(row, {"unknown": {"$nin": [""]}})
    assert not matches(row, {"unknown": {"$glob": "*"}})
    assert matches({"msg_id": "ab_1"}, {"msg_id": {"$glob": "ab_*"}})
    assert matches(row, {"unknown": None, "n": {"$exists": False}})


def test_all_operators_on_lists_and_plain_dicts():
    row = {"tags": ["a", "b"], "content": {"silent": True}}
    assert matches(row, {"tags": {"$all": ["b", "a"]}})
    assert not matches(row, {"tags": {"$all": ["c"]}})
    assert matches(row, {"content": {"silent": True}})
    assert matches(row, {"content": {}})  # no operator: any


def test_every_key_must_match():
    assert matches({"a": 1, "b": 2}, {"a": 1, "b": 2})
    assert not matches({"a": 1, "b": 2}, {"a": 1, "b": 3})
    assert matches({"a": 1}, {})


def test_unknown_operators_are_named():
    for query in ({"n": {"$nope": 1}}, {"n": {"$and": [{"$nope": 1}]}}):
        with pytest.raises(ValueError, match=r"'\$nope'; there are \$eq"):
            matches({"n": 5}, query)
    with pytest.raises(ValueError, match=r"\$nope"):
        check({"n": {"$nope": 1}})
    check({"n": {"$lt": 1}, "m": 2})


def test_a_query_for_one_id_is_a_look_up():
    remembered = Records()
    for n in range(3):
        finished(remembered, str(n))
    assert ids(remembered, {"msg_id": "1"}) == ["1"]
    assert ids(remembered, {"msg_id": "1", "status": "error"}) == []
    assert ids(remembered, {"msg_id": "unknown"}) == []
    assert ids(remembered, {"msg_id": {"$in": ["2", "0"]}}) == ["0", "2"]
