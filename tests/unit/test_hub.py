"""The record of work, put together from what engines answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from pxcompat import foreign, hub as hub_module
from pxcompat.engine.records import Record, Records
from pxcompat.error import EngineDied, EngineError, RemoteError, TaskAborted, UnknownRequest
from pxcompat.futures import MessageFuture
from pxcompat.hub import Hub
from pxcompat.protocol import Reply, Request

from ..common import PATIENCE, wait_until


@pytest.fixture
def engines(backend, monkeypatch) -> dict[str, Records]:
    """Records of the engines ``a`` and ``b``, which answer from them."""
    monkeypatch.setattr(hub_module, "ARRIVAL", 0)  # nothing is on its way
    remembered = {"a": Records(), "b": Records()}

    def attach(key: str, args: Any) -> Any:
        record = remembered[key].get(args["msg_id"])
        if record is not None and record.reply is not None:
            backend.sink.reply(record.reply)
        return record.describe(key) if record else None

    def recall(key: str, args: Any) -> Any:
        record = remembered[key].get(args["msg_id"])
        return record.request if record else None

    def resubmitted(key: str, args: Any) -> None:
        remembered[key].get(args["msg_id"]).resubmitted = args["again"]

    backend.answers.update(
        attach=attach,
        recall=recall,
        resubmitted=resubmitted,
        query=lambda key, args: remembered[key].query(args["query"], key, args["keys"]),
        purge=lambda key, args: remembered[key].purge(args["msg_ids"]),
        unassigned=lambda key, args: [],
        fates=lambda key, args: {},
    )
    return remembered


@pytest.fixture
def hub(backend, engines) -> Iterator[Hub]:
    hub = Hub(backend.sink)
    yield hub
    hub.close()


def put(
    records: Records, msg_id: str, submitted: float, reply: Reply | None = None, **header: Any
) -> Record:
    header = {"client": "them", "submitted": submitted, **header}
    record = Record(Request(msg_id, "apply", "f", {}, [b"f"], [b"a"], header))
    records.add(record)
    if reply is not None:
        record.started, record.reply = submitted + 1, reply
        records.finish(record)
    return record


def ok(msg_id: str, value: Any = None) -> Reply:
    from pxcompat import serialize

    return Reply(msg_id, "ok", "b", 11.0, 12.0, serialize.dumps(value))


# -- results ------------------------------------------------------------------------


def test_another_clients_result(backend, engines, hub):
    put(engines["b"], "x", 10.0, ok("x", 42), label="theirs", after=["w"])
    (future,) = hub.fetch(["x"])
    assert future.result(0) == 42
    md = future.metadata
    assert (md["engine_id"], md["engine_uuid"], md["label"]) == (1, "b", "theirs")
    assert (md["after"], md["submitted"].timestamp()) == (["w"], 10.0)
    # what another client received, it received when it was complete
    assert md["received"] == md["completed"] == datetime.fromtimestamp(12.0, timezone.utc)


def test_a_request_that_is_on_no_engine_yet(backend, engines, hub):
    backend.answers["unassigned"] = lambda key, args: ["x"]
    (future,) = hub.fetch(["x"])
    assert not future.done()
    backend.ok("x", 1, engine="a")
    assert future.result(0) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "PAUSE", 0.01)


def fetch_waiting(backend: Any, hub: Hub) -> MessageFuture:
    """The future of a request that is on no engine."""
    backend.answers["unassigned"] = lambda key, args: ["them_1"]
    (future,) = hub.fetch(["them_1"])
    return future


def test_what_nobody_has_any_more_is_lost(backend, engines, hub, quick):
    future = fetch_waiting(backend, hub)
    backend.answers["unassigned"] = lambda key, args: []
    with pytest.raises(EngineError, match="its client is gone"):
        future.result(PATIENCE)


def test_its_client_says_that_it_was_aborted(backend, engines, hub, quick):
    future = fetch_waiting(backend, hub)
    backend.answers["unassigned"] = lambda key, args: []
    backend.answers["fates"] = lambda key, args: dict.fromkeys(args["msg_ids"], ("aborted", None))
    with pytest.raises(TaskAborted):
        future.result(PATIENCE)


def test_its_client_says_that_its_engine_died(backend, engines, hub, quick):
    """Before anybody saw it there."""
    future = fetch_waiting(backend, hub)
    backend.answers["fates"] = lambda key, args: dict.fromkeys(args["msg_ids"], ("held", None))
    backend.answers["unassigned"] = lambda key, args: []
    backend.sink.engine_down("b", "it was killed")
    backend.answers["fates"] = lambda key, args: dict.fromkeys(args["msg_ids"], ("error", "b"))
    with pytest.raises(EngineDied, match="Engine 1 died"):
        future.result(PATIENCE)


@pytest.mark.parametrize(
    ("fate", "said"), [("ok", "was done, and engine 0 has"), ("error", "failed, and engine 0 has")]
)
def test_its_client_knows_and_its_engine_does_not(backend, engines, hub, quick, fate, said):
    future = fetch_waiting(backend, hub)
    backend.answers["unassigned"] = lambda key, args: []
    backend.answers["fates"] = lambda key, args: dict.fromkeys(args["msg_ids"], (fate, "a"))
    with pytest.raises(EngineError, match=said):
        future.result(PATIENCE)


def test_it_ends_with_the_engine_that_runs_it(backend, engines, hub, quick):
    future = fetch_waiting(backend, hub)
    put(engines["b"], "them_1", 10.0, balanced=True).started = 11.0
    wait_until(lambda: backend.sink.by_engine.get("b"))
    backend.sink.engine_down("b", "it was killed")
    with pytest.raises(EngineDied, match="it was killed"):
        future.result(0)


def test_an_engine_that_came_later_is_asked_for_it_once(backend, engines, hub, quick):
    future = fetch_waiting(backend, hub)
    engines["c"] = Records()
    backend.engines("c")
    put(engines["c"], "them_1", 10.0, balanced=True)
    wait_until(lambda: ("c", "attach", {"msg_id": "them_1"}) in backend.asked)
    looks = len(backend.asked)
    wait_until(lambda: len(backend.asked) > looks + 10)
    assert [key for key, op, _ in backend.asked if op == "attach"] == ["a", "b", "c"]
    backend.ok("them_1", 1, engine="c")
    assert future.result(0) == 1


def test_the_error_of_its_last_try_is_its_own(backend, engines, hub, quick):
    future = fetch_waiting(backend, hub)
    backend.answers["fates"] = lambda key, args: dict.fromkeys(args["msg_ids"], ("held", None))
    content = {"ename": "UnmetDependency", "evalue": "no", "traceback": [], "engine_info": {}}
    backend.sink.reply(Reply("them_1", "error", "a", content={**content, "moves": True}))
    assert not future.done()
    backend.answers["unassigned"] = lambda key, args: []
    backend.answers["fates"] = lambda key, args: dict.fromkeys(args["msg_ids"], ("error", "a"))
    with pytest.raises(RemoteError, match="ImpossibleDependency"):
        future.result(PATIENCE)


def test_nobody_follows_when_there_is_nothing_to_follow(backend, engines, hub, quick):
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "pxcompat-follow"]

    future = fetch_waiting(backend, hub)
    assert len(threads()) == 1
    backend.ok("them_1", 1)
    future.result(0)
    wait_until(lambda: not threads())
    fetch_waiting(backend, hub)
    hub.close()
    assert not threads()


def test_an_unknown_request_leaves_nothing_behind(backend, engines, hub):
    put(engines["b"], "x", 10.0)
    with pytest.raises(UnknownRequest, match="'nope'") as caught:
        hub.fetch(["x", "nope"])
    assert isinstance(caught.value, RemoteError) and caught.value.ename == "KeyError"
    assert not backend.sink.outstanding


def test_a_dead_engine_is_left_out(backend, engines, hub):
    put(engines["b"], "x", 10.0)

    def query(key: str, args: Any) -> Any:
        if key == "a":
            raise EngineError("it died")
        return engines[key].query(args["query"], key, args["keys"])

    backend.answers["query"] = query
    assert hub.history() == ["x"]


# -- records ------------------------------------------------------------------------


def test_queries_go_to_every_engine_and_are_in_order(engines, hub):
    put(engines["b"], "second", 20.0)
    put(engines["a"], "first", 10.0)
    put(engines["a"], "third", 30.0)
    assert [row["msg_id"] for row in hub.query({}, None)] == ["first", "second", "third"]
    assert hub.history() == ["first", "second", "third"]


def test_rows_have_datetimes_and_no_internals(engines, hub):
    put(engines["a"], "x", 10.0, ok("x"), balanced=True)
    (row,) = hub.query({"msg_id": "x"}, None)
    assert row["submitted"] == datetime.fromtimestamp(10.0, timezone.utc)
    assert row["completed"] == datetime.fromtimestamp(12.0, timezone.utc)
    assert row["header"]["date"] == row["submitted"]
    assert not {"client", "balanced", "submitted"} & set(row["header"])
    assert row["queue"] == "task"


def test_queries_by_time_and_by_set(backend, engines, hub):
    for n in range(3):
        put(engines["a"], str(n), 10.0 * n)
    middle = datetime.fromtimestamp(10.0, timezone.utc)
    for later in (middle, middle.isoformat()):
        assert hub.query({"submitted": {"$gt": later}}, ["msg_id"]) == [{"msg_id": "2"}]
    rows = hub.query({"msg_id": {"$in": {"0", "1"}}}, ["status"])
    # as it travels: messages have no sets
    assert isinstance(backend.asked[-1][2]["query"]["msg_id"]["$in"], list)
    assert rows == [{"msg_id": "0", "status": "queued"}, {"msg_id": "1", "status": "queued"}]


def test_a_bad_operator_is_not_even_asked(backend, hub):
    with pytest.raises(ValueError, match="nope"):
        hub.query({"n": {"$nope": 1}}, None)
    assert not backend.asked


def test_the_history_has_what_was_aborted_before_it_was_sent(backend, engines, hub):
    put(engines["a"], "late", 20.0)
    header = {"submitted": 10.0}
    backend.sink.unsent["early"] = Request("early", "apply", "f", header=header)
    assert hub.history() == ["early", "late"]
    hub.purge(["early"], ["a", "b"])
    assert hub.history() == ["late"]


def test_keys_that_no_record_has(engines, hub):
    put(engines["a"], "x", 10.0, ok("x"))
    with pytest.raises(KeyError, match="buffers"):
        hub.query({}, ["label", "buffers"])
    assert len(hub.query({}, [])[0]) > 2  # all of them, as with None


def test_purging(engines, hub):
    for n in range(3):
        put(engines["a"], str(n), float(n), ok(str(n)))
    hub.purge(["0", "unknown"], ["a", "b"])
    assert hub.history() == ["1", "2"]
    hub.purge(None, ["b"])
    assert hub.history() == ["1", "2"]
    hub.purge(None, ["a"])
    assert hub.history() == []


# -- resubmitting -------------------------------------------------------------------


def resend(sent: list[Request]) -> Callable[[Request], MessageFuture]:
    def send(request: Request) -> MessageFuture:
        sent.append(request)
        return MessageFuture(f"{request.msg_id} again")

    return send


def test_resubmitting_sends_a_copy(engines, hub):
    original = put(engines["b"], "x", 10.0, ok("x")).request
    sent: list[Request] = []
    hub.resubmit(["x"], resend(sent))
    assert sent[0] is not original and sent[0].header is not original.header
    assert sent[0].arguments == original.arguments
    assert [row["resubmitted"] for row in hub.query({"msg_id": "x"}, None)] == ["x again"]


def test_what_was_never_sent_can_be_resubmitted(backend, hub):
    backend.sink.unsent["x"] = Request("x", "apply", "f", arguments=[b"a"])
    sent: list[Request] = []
    hub.resubmit(["x"], resend(sent))
    assert sent[0].arguments == [b"a"]


def test_all_or_nothing_is_resubmitted(engines, hub):
    put(engines["a"], "x", 10.0, ok("x"))
    forgetful = put(engines["a"], "large", 10.0, ok("large"))
    forgetful.request.arguments = None
    sent: list[Request] = []
    with pytest.raises(UnknownRequest, match="nope"):
        hub.resubmit(["x", "nope"], resend(sent))
    with pytest.raises(ValueError, match="'large' were too large"):
        hub.resubmit(["x", "large"], resend(sent))
    assert not sent
    assert hub.query({"msg_id": "x"}, ["resubmitted"])[0]["resubmitted"] is None


# -- states -------------------------------------------------------------------------


def test_states(backend, engines, hub):
    put(engines["a"], "queued", 1.0)
    put(engines["a"], "running", 1.0).started = 2.0
    put(engines["b"], "done", 1.0, ok("done"))
    backend.answers["unassigned"] = lambda key, args: ["waiting"]
    ids = ["queued", "running", "done", "waiting"]
    assert hub.status(ids) == {
        "queued": "queued",
        "running": "running",
        "done": "ok",
        "waiting": "queued",
    }
    with pytest.raises(UnknownRequest, match="nope"):
        hub.status([*ids, "nope"])


def test_queues(backend, engines, hub):
    backend.answers["unassigned"] = lambda key, args: ["t", "waiting"]
    backend.answers["status"] = lambda key, args: {
        "completed": 3,
        "queue": ["q1", "q2"] if key == "a" else [],
        "tasks": ["t"] if key == "b" else [],
    }
    status = hub.queue_status(["a", "b"], verbose=False)
    assert status == {
        "unassigned": 1,
        0: {"queue": 2, "completed": 3, "tasks": 0},
        1: {"queue": 0, "completed": 3, "tasks": 1},
    }
    assert list(status) == ["unassigned", 0, 1]  # in ipyparallel's order
    put(engines["a"], "done", 10.0, ok("done"))
    verbose = hub.queue_status(["a", "b"], verbose=True)
    assert verbose[0] == {"queue": ["q1", "q2"], "completed": ["done"], "tasks": []}
    assert verbose["unassigned"] == ["waiting"]


def test_what_waits_again_after_an_engine_gave_it_back_is_counted_once(backend, engines, hub):
    backend.answers["unassigned"] = lambda key, args: ["back", "waiting", "back"]
    backend.answers["status"] = lambda key, args: {"completed": 0, "queue": [], "tasks": []}
    assert hub.queue_status(["a", "b"], verbose=False)["unassigned"] == 2
    assert hub.queue_status(["a", "b"], verbose=True)["unassigned"] == ["back", "waiting"]
