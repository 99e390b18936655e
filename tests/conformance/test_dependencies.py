"""Balanced calls that depend on others: graphs, other clients' calls, deaths, and the reasons."""

from __future__ import annotations

import random
from typing import Any

import pytest

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .test_requests import hold, is_running


@pytest.fixture
def lbv(rc: ipp.Client) -> ipp.LoadBalancedView:
    return rc.load_balanced_view()


def failure_of(ar: ipp.AsyncResult) -> ipp.RemoteError:
    with pytest.raises(ipp.RemoteError) as caught:
        ar.get(PATIENCE)
    return caught.value


def test_a_graph_of_a_thousand_calls(rc: ipp.Client, lbv: ipp.LoadBalancedView) -> None:
    choose = random.Random(1).sample
    nodes: list[ipp.AsyncResult] = []
    for n in range(1000):
        with lbv.temp_flags(after=choose(nodes, min(n, 3))):
            nodes.append(lbv.apply_async(int, n))
    assert rc.wait(nodes, 60)
    assert [node.get() for node in nodes] == list(range(1000))
    by_id = {node.msg_ids[0]: node for node in nodes}
    for node in nodes:
        assert all(by_id[before].completed <= node.started for before in node.after)


def test_a_chain_fails_with_its_first(rc: ipp.Client, lbv: ipp.LoadBalancedView) -> None:
    chain = [lbv.apply_async(lambda: 1 / 0)]
    for _ in range(200):
        with lbv.temp_flags(after=chain[-1]):
            chain.append(lbv.apply_async(int))
    assert rc.wait(chain, PATIENCE)
    assert failure_of(chain[0]).ename == "ZeroDivisionError"
    assert {failure_of(ar).ename for ar in chain[1:]} == {"ImpossibleDependency"}


@pytest.mark.parametrize("of", ["direct", "balanced"])
def test_another_clients_call_is_waited_for(
    rc: ipp.Client, lbv: ipp.LoadBalancedView, cluster: Any, tmp_path: Any, of: str
) -> None:
    with cluster.connect_client_sync() as other:
        view = other[other.ids[0]] if of == "direct" else other.load_balanced_view()
        theirs = view.apply_async(hold, str(tmp_path / "go"))
        with lbv.temp_flags(after=theirs.msg_ids):
            ours = lbv.apply_async(lambda: "after")
        with lbv.temp_flags(follow=theirs.msg_ids):
            beside = lbv.apply_async(lambda: "beside")
        # while that waits, nothing else does
        wait_until(lambda: is_running(rc, theirs))
        free = next(engine for engine in rc.ids if engine != theirs.engine_id)
        assert rc[free].apply_async(int).get(PATIENCE) == 0
        assert not ours.ready() and not beside.ready()
        (tmp_path / "go").touch()
        assert (ours.get(PATIENCE), beside.get(PATIENCE)) == ("after", "beside")
        assert theirs.get(PATIENCE) and ours.started >= theirs.completed
        assert beside.engine_id == theirs.engine_id


def test_any_of_several(lbv: ipp.LoadBalancedView, tmp_path: Any) -> None:
    held, quick = lbv.apply_async(hold, str(tmp_path / "go")), lbv.apply_async(int)
    with lbv.temp_flags(after=ipp.Dependency([held, quick], all=False)):
        assert lbv.apply_async(lambda: "any").get(PATIENCE) == "any"
    assert not held.ready()
    (tmp_path / "go").touch()
    held.get(PATIENCE)


class TestReasons:
    """An impossible dependency says why."""

    def test_what_it_needs_failed(self, lbv: ipp.LoadBalancedView) -> None:
        bad = lbv.apply_async(lambda: 1 / 0)
        with lbv.temp_flags(after=bad):
            failure = failure_of(lbv.apply_async(int))
        assert failure.ename == "ImpossibleDependency"
        assert bad.msg_ids[0] in failure.evalue and "failed" in failure.evalue

    def test_what_was_to_fail_succeeded(self, lbv: ipp.LoadBalancedView) -> None:
        good = lbv.apply_async(int)
        with lbv.temp_flags(after=ipp.Dependency(good, success=False, failure=True)):
            failure = failure_of(lbv.apply_async(int))
        assert good.msg_ids[0] in failure.evalue and "succeeded" in failure.evalue

    def test_nobody_knows_it(self, lbv: ipp.LoadBalancedView) -> None:
        with lbv.temp_flags(after=["of nobody"]):
            failure = failure_of(lbv.apply_async(int))
        assert failure.ename == "InvalidDependency" and "of nobody" in failure.evalue

    def test_no_engine_ran_all_that_it_follows(
        self, rc: ipp.Client, lbv: ipp.LoadBalancedView
    ) -> None:
        parts = rc[:].apply_async(int)
        with lbv.temp_flags(follow=parts):
            failure = failure_of(lbv.apply_async(int))
        assert failure.ename == "ImpossibleDependency"
        for msg_id, engine in zip(parts.msg_ids, rc.ids, strict=True):
            assert f"{msg_id} on {engine}" in failure.evalue

    def test_the_time_was_up(self, lbv: ipp.LoadBalancedView, tmp_path: Any) -> None:
        held = lbv.apply_async(hold, str(tmp_path / "go"))
        with lbv.temp_flags(after=held, timeout=0.05):
            failure = failure_of(lbv.apply_async(int))
        assert failure.ename == "TaskTimeout" and held.msg_ids[0] in failure.evalue
        (tmp_path / "go").touch()
        held.get(PATIENCE)

    def test_a_module_is_nowhere(self, lbv: ipp.LoadBalancedView) -> None:
        @ipp.require("no_such_module")
        def needs() -> None: ...

        failure = failure_of(lbv.apply_async(needs))
        assert failure.ename == "ImpossibleDependency" and "no_such_module" in failure.evalue


class TestDeaths:
    """An engine that dies costs a call one of its retries."""

    def test_the_call_runs_elsewhere(
        self, rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Any
    ) -> None:
        path = str(tmp_path / "go")
        with lbv.temp_flags(retries=1):
            ar = lbv.apply_async(hold, path)
        wait_until(lambda: is_running(rc, ar))
        first = rc.get_result(ar.msg_ids, owner=False).engine_id[0]
        rc.send_signal("SIGKILL", targets=first, block=True)
        wait_until(lambda: first not in rc.ids)
        (tmp_path / "go").touch()
        assert ar.get(PATIENCE) == path
        assert ar.engine_id != first

    def test_without_retries_it_fails(
        self, rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Any
    ) -> None:
        ar = lbv.apply_async(hold, str(tmp_path / "go"))
        wait_until(lambda: is_running(rc, ar))
        engine = rc.get_result(ar.msg_ids, owner=False).engine_id[0]
        rc.send_signal("SIGKILL", targets=engine, block=True)
        assert isinstance(failure_of(ar), ipp.EngineError)

    def test_retries_end_with_the_engines(
        self, rc: ipp.Client, lbv: ipp.LoadBalancedView, cluster: Any
    ) -> None:
        @ipp.interactive
        def die() -> None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

        targets = rc.ids[:2]
        with lbv.temp_flags(retries=9, targets=targets):
            ar = lbv.apply_async(die)
        assert isinstance(failure_of(ar), ipp.EngineError)
        wait_until(lambda: not set(targets) & set(rc.ids))
        assert lbv.apply_async(int).get(PATIENCE) == 0
