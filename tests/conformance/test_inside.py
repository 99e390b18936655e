"""Clients in user code on engines: they use their own cluster, and nothing waits for ever."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

import pxcompat as ipp

from ..common import PATIENCE, held, let_go, wait_until
from .test_requests import hold, is_running


@ipp.interactive
def inside(use: Callable[[Any], Any]) -> Any:
    """What ``use`` makes of a client, here."""
    import ipyparallel

    with ipyparallel.Client() as client:
        return use(client)


@ipp.interactive
def fibonacci(n: int) -> int:
    """A call that makes two more like it, and waits for them."""
    import ipyparallel

    if n < 2:
        return n
    with ipyparallel.Client() as client:
        view = client.load_balanced_view()
        view.block = False
        parts = [view.apply(fibonacci, n - i) for i in (1, 2)]
        return sum(part.get(90) for part in parts)


def test_it_is_a_client_of_the_engines_own_cluster(rc: ipp.Client) -> None:
    assert rc[:].apply_async(inside, lambda client: client.ids).get(PATIENCE) == [rc.ids] * len(rc)


def test_a_client_that_is_closed_at_once_leaves_nothing(rc: ipp.Client) -> None:
    before = rc[:].apply_sync(held)
    for _ in range(5):
        rc[:].apply_async(inside, lambda client: None).get(PATIENCE)
    wait_until(lambda: let_go(rc[:], before))


def test_every_engine_addresses_all_and_so_itself(rc: ipp.Client) -> None:
    def use(client: Any) -> Any:
        everybody = client[:]
        everybody.execute("seen = 1", block=True)
        return [
            everybody.apply_sync(lambda x: x * 2, 3),
            everybody.map_sync(lambda x: x + 1, range(5)),
            list(everybody.map_async(lambda x: x + 1, range(5))),
            everybody["seen"],
        ]

    n = len(rc)
    expected = [[6] * n, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1] * n]
    assert rc[:].apply_async(inside, use).get(PATIENCE) == [expected] * n


@pytest.mark.parametrize("ordered", [True, False])
def test_balanced_calls_and_every_way_to_wait(rc: ipp.Client, ordered: bool) -> None:
    def use(client: Any) -> Any:
        view = client.load_balanced_view()
        view.block = False
        results = [view.apply(lambda x=x: x) for x in range(10)]
        assert client.wait(results, 20)
        done, _ = view.map(lambda x: x, range(5)).wait(20, return_when="FIRST_COMPLETED")
        assert done
        view.map(lambda x: x, range(5)).wait_interactive()
        return [
            sorted(view.map(lambda x: x, range(5), ordered=ordered)),
            sorted(view.imap(lambda x: x, range(5), ordered=ordered)),
            sum(result.result(20) for result in results),
            list(view.executor.map(abs, range(5))),
        ]

    found = rc.load_balanced_view().map_async(inside, [use] * 2 * len(rc)).get(PATIENCE)
    assert found == [[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 45, [0, 1, 2, 3, 4]]] * 2 * len(rc)


def test_calls_that_make_calls_that_make_calls(rc: ipp.Client) -> None:
    rc[:].push({"fibonacci": fibonacci}, block=True)
    assert rc.load_balanced_view().apply_async(fibonacci, 6).get(PATIENCE) == 8
    assert rc[rc.ids[0]].apply_async(fibonacci, 4).get(PATIENCE) == 3


def test_what_an_engine_starts_with_is_not_looked_through_again(rc: ipp.Client) -> None:
    """The garbage collector of an engine would take a tenth of a second for it, now and then."""
    assert min(rc[:].apply_sync(gc.get_freeze_count)) > 10_000


def test_a_result_is_awaited(rc: ipp.Client) -> None:
    @ipp.interactive
    async def both() -> Any:
        import asyncio

        import ipyparallel

        with ipyparallel.Client() as client:
            ones = client[:].apply_async(lambda: 1)
            return await asyncio.gather(ones, client.load_balanced_view().apply_async(lambda: 2))

    assert rc[:].apply_async(both).get(PATIENCE) == [[[1] * len(rc), 2]] * len(rc)


def test_others_wait_their_turn(rc: ipp.Client, tmp_path: Any) -> None:
    """What a notebook sends to an engine that waits for another one runs when it has ended."""
    waiting, busy = rc[rc.ids[0]], rc[rc.ids[1]]
    busy.push({"hold": hold, "path": str(tmp_path / "go")}, block=True)
    waiting.push({"target": rc.ids[1], "order": []}, block=True)

    @ipp.interactive
    def wait_for_the_other() -> None:
        import ipyparallel

        with ipyparallel.Client() as client:
            client[target].execute("hold(path)").get(90)  # type: ignore[name-defined]  # noqa: F821
            client[client.ids[0]].execute("order.append('mine')").get(90)
        order.append("first")  # type: ignore[name-defined]  # noqa: F821

    first = waiting.apply_async(wait_for_the_other)
    later = [waiting.execute(f"order.append({n})") for n in range(3)]
    wait_until(lambda: busy.queue_status()["queue"])
    assert is_running(rc, first) and not later[0].ready()
    (tmp_path / "go").touch()
    for result in [first, *later]:
        result.get(PATIENCE)
    assert waiting["order"] == ["mine", "first", 0, 1, 2]


def test_output_belongs_to_the_call_that_printed_it(rc: ipp.Client) -> None:
    def use(client: Any) -> Any:
        print("before")
        inner = client[:].apply_async(print, "inner")
        inner.get(90)
        inner.wait_for_output(90)
        print("after")
        return inner.stdout

    ar = rc[rc.ids[0]].apply_async(inside, use)
    assert ar.get(PATIENCE) == ["inner\n"] * len(rc)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout == "before\nafter\n"


def test_an_interrupt_reaches_the_code_that_waits(rc: ipp.Client, tmp_path: Any) -> None:
    waiting, busy = rc.ids[:2]
    rc[:].push({"hold": hold, "path": str(tmp_path / "go")}, block=True)

    @ipp.interactive
    def wait_for_the_other() -> None:
        import ipyparallel

        with ipyparallel.Client() as client:
            client[busy].execute("hold(path)").get(90)

    ar = rc[waiting].apply_async(wait_for_the_other)
    wait_until(lambda: rc[busy].queue_status()["queue"])
    rc.send_signal("SIGINT", targets=waiting, block=True)
    with pytest.raises(ipp.RemoteError, match="KeyboardInterrupt"):
        ar.get(PATIENCE)
    (tmp_path / "go").touch()
    assert rc[:].apply_async(lambda: 1).get(PATIENCE) == [1] * len(rc)


def test_a_timeout_is_kept(rc: ipp.Client, tmp_path: Any) -> None:
    rc[:].push({"other": rc.ids[1]}, block=True)
    busy = rc[rc.ids[1]].apply_async(hold, str(tmp_path / "go"))

    @ipp.interactive
    def impatient(client: Any) -> bool:
        import time

        started = time.monotonic()
        try:
            client[other].apply_async(int).get(0.2)  # type: ignore[name-defined]  # noqa: F821
        except TimeoutError:
            return time.monotonic() - started < 30
        return False

    assert rc[rc.ids[0]].apply_async(inside, impatient).get(PATIENCE)
    (tmp_path / "go").touch()
    busy.get(PATIENCE)
