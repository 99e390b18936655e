"""The record of work: history, queries, resubmitting, purging."""

from __future__ import annotations

from typing import Any

import pytest

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .test_requests import hold


def test_queries(rc: ipp.Client) -> None:
    ars = [rc[rc.ids[0]].apply_async(lambda: 1) for _ in range(3)]
    rc.wait(ars, timeout=PATIENCE)
    ids = [ar.msg_ids[0] for ar in ars]
    assert [m for m in rc.hub_history() if m in ids] == ids
    middle = rc.db_query({"msg_id": ids[1]})[0]
    assert middle["submitted"] == ars[1].submitted
    assert middle["status"] == "ok"
    later = rc.db_query({"submitted": {"$gt": middle["submitted"]}}, keys=["submitted"])
    assert ids[2] in [row["msg_id"] for row in later]
    assert ids[0] not in [row["msg_id"] for row in later]
    assert all(set(row) == {"msg_id", "submitted"} for row in later)
    assert rc.db_query({"msg_id": ids[1], "completed": {}}, keys=[]) == [middle]
    with pytest.raises(ValueError, match=r"\$nope"):
        rc.db_query({"msg_id": {"$nope": 1}})
    with pytest.raises(KeyError, match="buffers"):
        rc.db_query({"msg_id": ids[1]}, keys=["result_buffers"])


def test_whose_a_request_was(rc: ipp.Client, cluster: Any) -> None:
    with cluster.connect_client_sync() as other:
        mine, theirs = (client[client.ids[0]].apply_async(lambda: 1) for client in (rc, other))
        assert (mine.get(PATIENCE), theirs.get(PATIENCE)) == (1, 1)
    ids = [*mine.msg_ids, *theirs.msg_ids]
    for whose, sent in (rc.session.session, mine), ({"$ne": rc.session.session}, theirs):
        (record,) = rc.db_query({"msg_id": {"$in": ids}, "client_uuid": whose})
        assert record["msg_id"] == sent.msg_ids[0]


def test_what_a_record_says(rc: ipp.Client) -> None:
    view = rc[rc.ids[0]]
    view.set_flags(label="mine")
    well = view.execute("print('said')\n6 * 7", silent=False)
    badly = view.execute("1 / 0", silent=False)
    called = view.apply_async(lambda: 1 / 0)
    for ar in (well, badly, called):
        ar.wait_for_output(PATIENCE)
    ids = well.msg_ids + badly.msg_ids + called.msg_ids
    wait_until(lambda: ids[-1] in rc.hub_history())
    record, failed, call = rc.db_query({"msg_id": {"$in": ids}})
    assert record["execute_input"] == "print('said')\n6 * 7"
    assert record["execute_result"]["data"]["text/plain"] == "42"
    assert (record["stdout"], record["label"]) == ("said\n", "mine")
    assert record["metadata"]["label"] == "mine" and record["error"] is None
    assert record["submitted"] <= record["started"] <= record["received"]
    assert record["result_header"]["msg_type"] == "execute_reply"
    assert (failed["execute_result"], failed["error"]["ename"]) == (None, "ZeroDivisionError")
    assert call["error"]["ename"] == "ZeroDivisionError"


def test_queue_status(rc: ipp.Client, tmp_path: Any) -> None:
    running = rc[rc.ids[0]].apply_async(hold, str(tmp_path / "go"))
    queued = rc[rc.ids[0]].apply_async(lambda: 1)
    wait_until(lambda: rc.queue_status(rc.ids[0])["queue"] == 2)
    verbose = rc.queue_status(verbose=True)
    assert verbose[rc.ids[0]]["queue"] == [*running.msg_ids, *queued.msg_ids]
    assert verbose["unassigned"] == []
    assert isinstance(verbose[rc.ids[0]]["completed"], list)
    before = rc.queue_status(rc.ids[0])["completed"]
    (tmp_path / "go").touch()
    rc.wait([running, queued], timeout=PATIENCE)
    wait_until(lambda: rc.queue_status(rc.ids[0])["completed"] == before + 2)


def test_resubmit(rc: ipp.Client) -> None:
    first = rc.load_balanced_view().apply_async(lambda: __import__("random").random())
    value = first.get(PATIENCE)
    again = rc.resubmit(first.msg_ids)
    assert again.get(PATIENCE)[0] != value
    assert again.msg_ids != first.msg_ids
    record, new = rc.db_query({"msg_id": {"$in": first.msg_ids + again.msg_ids}})
    assert (record["resubmitted"], new["resubmitted"]) == (again.msg_ids[0], None)


def test_a_cell_is_resubmitted(rc: ipp.Client) -> None:
    first = rc[rc.ids[0]].execute("6 * 7", silent=False)
    first.get(PATIENCE)
    (reply,) = rc.resubmit(first.msg_ids).get(PATIENCE)
    assert reply.execute_result["data"]["text/plain"] == "42"


def test_the_error_of_what_is_resubmitted_is_its_own(rc: ipp.Client) -> None:
    first = rc.load_balanced_view().apply_async(lambda: 1 / 0)
    first.wait(PATIENCE)
    with pytest.raises(ipp.RemoteError) as caught:
        rc.resubmit(first).get(PATIENCE)
    assert caught.value.ename == "ZeroDivisionError"


def test_purging(rc: ipp.Client) -> None:
    ar = rc[rc.ids[0]].apply_async(lambda: 1)
    ar.get(PATIENCE)
    wait_until(lambda: ar.msg_ids[0] in rc.hub_history())
    rc.purge_results(ar)
    assert ar.msg_ids[0] not in rc.hub_history()
    with pytest.raises(KeyError):
        rc.resubmit(ar.msg_ids)
    rc.purge_everything()
    assert rc.hub_history() == []
    assert list(rc.history) == []


def test_result_status(rc: ipp.Client, tmp_path: Any) -> None:
    done = rc[rc.ids[0]].apply_async(lambda: 5)
    done.get(PATIENCE)
    running = rc[rc.ids[0]].apply_async(hold, str(tmp_path / "go"))
    status = rc.result_status([done, running])
    assert status["completed"] == done.msg_ids
    assert status["pending"] == running.msg_ids
    assert rc.result_status(done, status_only=False)[done.msg_ids[0]] == 5
    (tmp_path / "go").touch()
    running.get(PATIENCE)
