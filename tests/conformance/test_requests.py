"""Clauses 1 to 4 of the seam: order, one reply, at most once, cancelling, interrupting."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE, wait_until


@ipp.interactive
def note(n: int) -> int:
    seen.append(n)  # type: ignore[name-defined]  # noqa: F821
    return len(seen)  # type: ignore[name-defined]  # noqa: F821


@ipp.interactive
def hold(path: str) -> str:
    """Run until a file is there (or the test that should make it must have failed)."""
    import os
    import time

    deadline = time.monotonic() + 90
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return path


def is_running(rc: ipp.Client, ar: ipp.AsyncResult) -> bool:
    states = rc.db_query({"msg_id": ar.msg_ids[0]}, keys="status")
    return bool(states) and states[0]["status"] == "running"


def test_requests_run_in_the_order_sent(e0: ipp.DirectView) -> None:
    e0["seen"] = []
    results = [e0.apply_async(note, n) for n in range(300)]
    assert [r.get(PATIENCE) for r in results] == list(range(1, 301))
    assert e0["seen"] == list(range(300))


def test_replies_do_not_wait_for_a_slow_request_behind_them(
    e0: ipp.DirectView, tmp_path: Any
) -> None:
    @ipp.interactive
    def maybe(n: int, path: str) -> int:
        if path:
            held(path)  # type: ignore[name-defined]  # noqa: F821  the engine's
        return n

    e0["held"] = hold
    for ar in [e0.apply_async(maybe, n, "") for n in range(50)]:
        ar.get(PATIENCE)  # known to be short
    go = tmp_path / "go"
    results = [e0.apply_async(maybe, n, str(go) if n == 60 else "") for n in range(100)]
    assert [ar.get(PATIENCE) for ar in results[:60]] == list(range(60))
    assert not any(ar.ready() for ar in results[60:])
    go.touch()
    assert [ar.get(PATIENCE) for ar in results] == list(range(100))


def test_apply_and_execute_share_one_order(e0: ipp.DirectView) -> None:
    e0["seen"] = []
    for n in range(0, 20, 2):
        e0.apply_async(note, n)
        last = e0.execute(f"seen.append({n + 1})", block=False)
    last.get(PATIENCE)
    assert e0["seen"] == list(range(20))


def test_every_request_has_one_reply(rc: ipp.Client) -> None:
    ars = [rc[:].apply_async(lambda: 1) for _ in range(50)]
    assert rc.wait(ars, timeout=PATIENCE)
    assert not rc.outstanding
    assert all(ar.get() == [1] * len(rc) for ar in ars)


def test_any_iterable_of_results_is_waited_for(e0: ipp.DirectView, tmp_path: Path) -> None:
    results = {n: e0.apply_async(hold, str(tmp_path / "go")) for n in range(2)}
    for one in (e0, e0.client):
        assert not one.wait(results.values(), 0)
    (tmp_path / "go").touch()
    for one in (e0, e0.client):
        assert one.wait(results.values(), PATIENCE)
        assert one.wait(iter(results.values()), PATIENCE)
    assert e0.get_result(results.values()).get(PATIENCE) == [str(tmp_path / "go")] * 2


def test_an_engine_that_dies_fails_its_requests_at_once(rc: ipp.Client) -> None:
    view = rc[rc.ids[-1]]
    dying = view.apply_async(os._exit, 3)
    behind = view.apply_async(lambda: 1)
    for ar in (dying, behind):
        with pytest.raises(error.EngineError, match=f"Engine {view.targets} died") as caught:
            ar.get(PATIENCE)
        assert caught.value.ename == "EngineError"
    wait_until(lambda: view.targets not in rc.ids)
    with pytest.raises(error.InvalidEngineId, match=str(view.targets)):
        view.apply_sync(lambda: 1)
    assert rc[:].apply_sync(lambda: 1) == [1] * len(rc)


def test_a_balanced_call_that_kills_its_engine_runs_once(rc: ipp.Client, tmp_path: Any) -> None:
    @ipp.interactive
    def crash(folder: str) -> None:
        import os
        import uuid

        open(os.path.join(folder, uuid.uuid4().hex), "w").close()
        os._exit(1)

    n = len(rc)
    with pytest.raises(error.EngineError):
        rc.load_balanced_view().apply_async(crash, str(tmp_path)).get(PATIENCE)
    wait_until(lambda: len(rc) == n - 1)
    assert len(list(tmp_path.iterdir())) == 1
    assert rc.load_balanced_view().map_sync(lambda x: x, range(5)) == list(range(5))


def test_a_queued_request_can_be_aborted(rc: ipp.Client, tmp_path: Any) -> None:
    view = rc[rc.ids[0]]
    running = view.apply_async(hold, str(tmp_path / "go"))
    queued = view.execute("ran = True", block=False)
    behind = view.apply_async(lambda: 2)
    view.abort(queued)
    with pytest.raises(error.TaskAborted):
        queued.get(PATIENCE)
    (tmp_path / "go").touch()
    running.get(PATIENCE)
    assert behind.get(PATIENCE) == 2
    with pytest.raises(ipp.RemoteError, match="NameError"):
        view.pull("ran", block=True)


def test_what_is_aborted_as_it_begins_has_one_reply(rc: ipp.Client) -> None:
    for _ in range(150):
        results = [rc[:].apply_async(abs, -1), rc[:].apply_async(abs, -2)]
        rc[:].abort(block=True)
        assert rc.wait(results, PATIENCE)
        for result, value in zip(results, (1, 2), strict=True):
            for part in result.split():
                try:
                    assert part.get(0) == value
                except error.TaskAborted:
                    continue


def test_requests_are_aborted_on_some_engines_alone(rc: ipp.Client, tmp_path: Any) -> None:
    running = rc[:].apply_async(hold, str(tmp_path / "go"))
    queued = rc[:].apply_async(lambda: 1)
    rc[:].abort(queued, targets=rc.ids[0], block=True)
    rc[rc.ids[1]].abort(queued, block=True)
    (tmp_path / "go").touch()
    running.get(PATIENCE)
    *aborted, kept = queued.split()
    for part in aborted:
        with pytest.raises(error.TaskAborted):
            part.get(PATIENCE)
    assert kept.get(PATIENCE) == 1


def test_a_queued_balanced_request_can_be_aborted(rc: ipp.Client, tmp_path: Any) -> None:
    busy = rc[:].apply_async(hold, str(tmp_path / "go"))
    marker = tmp_path / "ran"
    queued = rc.load_balanced_view().apply_async(lambda p: open(p, "w").close(), str(marker))
    queued.abort()
    with pytest.raises(error.TaskAborted):
        queued.get(PATIENCE)
    (tmp_path / "go").touch()
    busy.get(PATIENCE)
    rc[:].apply_sync(lambda: None)
    assert not marker.exists()


def test_abort_leaves_alone_what_runs(rc: ipp.Client, tmp_path: Any) -> None:
    view = rc[rc.ids[0]]
    running = view.apply_async(hold, str(tmp_path / "go"))
    wait_until(lambda: is_running(rc, running))
    view.abort(running, block=True)
    (tmp_path / "go").touch()
    assert running.get(PATIENCE) == str(tmp_path / "go")


@pytest.mark.parametrize("method", ["apply", "execute"])
def test_a_running_request_can_be_interrupted(rc: ipp.Client, method: str) -> None:
    view = rc[rc.ids[0]]
    view.execute("kept = 1", block=True)
    if method == "apply":
        running = view.apply_async(time.sleep, 60)
    else:
        running = view.execute("import time; time.sleep(60)", block=False)
    behind = view.apply_async(lambda: "survived")
    wait_until(lambda: is_running(rc, running))
    rc.send_signal(signal.SIGINT, targets=rc.ids[0], block=True)
    with pytest.raises(ipp.RemoteError) as caught:
        running.get(PATIENCE)
    assert caught.value.ename == "KeyboardInterrupt"
    assert behind.get(PATIENCE) == "survived"
    assert view.pull("kept", block=True) == 1


def test_an_interrupt_that_python_drops_comes_again(
    rc: ipp.Client, e0: ipp.DirectView, tmp_path: Path
) -> None:
    """Python drops what is raised in a finalizer, or a callback of the garbage collector."""
    started = tmp_path / "started"
    code = (
        "import time\nclass Slow:\n    def __del__(self):\n"
        f"        open({str(started)!r}, 'w').close(); time.sleep(60)\n"
        "Slow()\ntime.sleep(60)"
    )
    ar = e0.execute(code, block=False)
    wait_until(started.exists)
    rc.send_signal("SIGINT", targets=e0.targets, block=True)
    with pytest.raises(error.RemoteError, match="KeyboardInterrupt"):
        ar.get(PATIENCE)


def test_an_interrupt_of_an_idle_engine_does_nothing(rc: ipp.Client) -> None:
    rc.send_signal("SIGINT", block=True)
    # nor does it come late, and strike what runs then
    assert rc[:].apply_sync(lambda: time.sleep(0.5) or 1) == [1] * len(rc)


def test_code_runs_on_the_main_thread(rc: ipp.Client) -> None:
    @ipp.interactive
    def on_main() -> bool:
        import threading

        return threading.current_thread() is threading.main_thread()

    assert all(rc[:].apply_sync(on_main))
    assert all(rc.load_balanced_view().map_sync(lambda _: on_main(), range(4)))


def test_code_that_parses_its_arguments_finds_none(e0: ipp.DirectView) -> None:
    def parsed() -> dict[str, int]:
        import argparse

        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int, default=3)
        return vars(parser.parse_args())

    assert e0.apply_sync(parsed) == {"steps": 3}


@pytest.mark.parametrize(
    ("ending", "code"), [("pass", 0), ("1 / 0", 1), ("raise SystemExit(3)", 3)]
)
@pytest.mark.parametrize("call", [True, False], ids=["call", "cell"])
def test_a_process_that_a_request_forks_off_ends_with_it(
    e0: ipp.DirectView, ending: str, code: int, call: bool
) -> None:
    @ipp.interactive
    def fork() -> None:
        import os

        if not (pid := os.fork()):
            exec(ending)
        else:
            globals()["status"] = os.waitpid(pid, 0)[1]

    e0.push({"fork": fork})
    ar = e0.apply_async(fork) if call else e0.execute("fork()", block=False)
    ar.get(PATIENCE)
    assert os.waitstatus_to_exitcode(e0["status"]) == code


def test_engines_have_the_priority_of_their_client(rc: ipp.Client) -> None:
    assert rc[:].apply_sync(os.nice, 0) == [os.nice(0)] * len(rc)


def test_a_kill_signal_ends_an_engine(rc: ipp.Client) -> None:
    target = rc.ids[-1]
    running = rc[target].apply_async(time.sleep, 60)
    wait_until(lambda: is_running(rc, running))
    rc.send_signal(signal.SIGKILL, targets=target)
    with pytest.raises(error.EngineError, match="SIGKILL"):
        running.get(PATIENCE)
    wait_until(lambda: target not in rc.ids)


def test_ids_rise_and_are_not_reused(rc: ipp.Client, cluster: Any) -> None:
    before = rc.ids
    rc.shutdown(targets=before[-1], block=True)
    assert rc.ids == before[:-1]
    cluster.start_engines_sync(1)
    rc.wait_for_engines(len(before), timeout=PATIENCE)
    assert rc.ids[:-1] == before[:-1]
    assert rc.ids[-1] > before[-1]


def test_a_failing_execute_aborts_the_executes_behind_it(rc: ipp.Client, tmp_path: Any) -> None:
    view = rc[rc.ids[0]]
    view.push({"hold": hold, "path": str(tmp_path / "go")}, block=True)
    failing = view.execute("hold(path); 1/0", silent=False, block=False)
    aborted = view.execute("ran = 1", silent=False, block=False)
    call = view.apply_async(lambda: "applies run")
    wait_until(lambda: rc.queue_status(rc.ids[0])["queue"] == 3)
    (tmp_path / "go").touch()
    with pytest.raises(ipp.RemoteError, match="ZeroDivisionError"):
        failing.get(PATIENCE)
    with pytest.raises(error.TaskAborted):
        aborted.get(PATIENCE)
    assert call.get(PATIENCE) == "applies run"


def test_interrupts_in_the_midst_of_sending_leave_nothing_half_done(rc: ipp.Client) -> None:
    # not a builtin: their signatures are parsed, which Python 3.11 cannot be interrupted at
    def negate(n: int) -> int:
        return -n

    balanced, direct = rc.load_balanced_view(), rc[:]
    interrupted, sending, over = 0, False, threading.Event()

    def interrupt() -> None:
        rng = random.Random(1)
        while interrupted < 250 and not over.is_set():
            time.sleep(rng.uniform(0, 0.01))  # at any moment, which is what this is about
            os.kill(os.getpid(), signal.SIGINT)
        over.set()

    def heard(signum: int, frame: object) -> None:
        nonlocal sending
        if sending:
            sending = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, heard)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        while not over.is_set():
            try:
                sending = True
                for _ in range(10):
                    direct.apply_async(negate, 1)
                direct.execute("n = 1", block=False)
                balanced.map_async(negate, range(3))
                sending = False
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert direct.apply_async(negate, -2).get(PATIENCE) == [2] * len(rc)
    assert balanced.map_async(negate, range(3)).get(PATIENCE) == [0, -1, -2]
    assert rc.wait(timeout=PATIENCE)
    assert not rc.outstanding


def test_a_signal_handler_may_send_in_the_midst_of_sending(rc: ipp.Client) -> None:
    direct, large = rc[:], bytearray(1 << 20)
    handled: list[ipp.AsyncResult] = []
    busy = False

    def send(signum: int, frame: object) -> None:
        nonlocal busy
        if not busy:  # one at a time
            busy = True
            handled.append(direct.push({"b": large}, block=False))
            busy = False

    before = signal.signal(signal.SIGALRM, send)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        while len(handled) < 200:
            direct.push({"a": large}, block=True)
            assert direct.apply_sync(abs, -1) == [1] * len(rc)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for ar in handled:
        ar.get(PATIENCE)
    assert direct["len(a) + len(b)"] == [2 << 20] * len(rc)


@ipp.interactive
def interrupt(first: bool, client: int, gate: str) -> int:
    """Interrupt the client as soon as this runs, be the client still sending; then hold."""
    import os
    import signal
    import time

    if first:
        os.kill(client, signal.SIGINT)
    deadline = time.monotonic() + 90
    while not os.path.exists(gate) and time.monotonic() < deadline:
        time.sleep(0.001)
    return 1


@pytest.mark.parametrize(
    "call",
    [
        lambda dv, lv, gate: dv.apply_sync(interrupt, ipp.Reference("first"), os.getpid(), gate),
        lambda dv, lv, gate: dv.map_sync(interrupt, *columns(gate)),
        lambda dv, lv, gate: dv.execute(f"interrupt(first, {os.getpid()}, {gate!r})", block=True),
        lambda dv, lv, gate: lv.apply_sync(interrupt, True, os.getpid(), gate),
        lambda dv, lv, gate: lv.map_sync(interrupt, *columns(gate)),
    ],
    ids=["apply", "map", "execute", "balanced-apply", "balanced-map"],
)
def test_an_interrupt_as_engines_begin_is_one_of_the_wait(
    rc: ipp.Client, call: Callable[[ipp.DirectView, Any, str], Any], tmp_path: Path
) -> None:
    dv, lv = rc[:], rc.load_balanced_view()
    dv.push({"interrupt": interrupt, "first": False}, block=True)
    rc[rc.ids[0]].push({"first": True}, block=True)
    for i in range(20):  # at any moment: when an engine begins is its own affair
        gate = tmp_path / str(i)
        try:
            result = call(dv, lv, str(gate))
        except KeyboardInterrupt:
            pytest.fail("the interrupt came while the client was sending, and the result is lost")
        assert isinstance(result, ipp.AsyncResult), result
        gate.touch()
        result.get(PATIENCE)
        assert result.successful()


def test_a_callback_that_takes_long_keeps_no_interrupt_off(rc: ipp.Client, tmp_path: Path) -> None:
    view = rc[rc.ids[0]]
    view.push({"interrupt": interrupt}, block=True)
    gate, began, free = tmp_path / "gate", threading.Event(), threading.Event()
    gate.touch()

    def block(_: ipp.AsyncResult) -> None:
        began.set()
        free.wait(PATIENCE)

    view.apply_async(os.getpid).add_done_callback(block)
    assert began.wait(PATIENCE)  # what comes now is not dealt with
    try:
        result = view.apply_sync(interrupt, True, os.getpid(), str(gate))
    finally:
        free.set()
    assert isinstance(result, ipp.AsyncResult)
    assert result.get(PATIENCE) == 1


def test_a_callback_may_send_and_look_and_not_wait(e0: ipp.DirectView, tmp_path: Path) -> None:
    """Nothing could bring what it waited for."""
    seen: list[Any] = []
    told = threading.Event()

    def then(first: ipp.AsyncResult) -> None:
        seen.append(first.get())
        second = e0.apply_async(hold, str(tmp_path / "second"))
        seen.append(second.wait(0))
        for wait in (second.get, second.wait, second.exception, lambda: e0.client.wait([second])):
            with pytest.raises(RuntimeError, match=r"wait for ever.* callback"):
                wait()
        with pytest.raises(RuntimeError, match=r"wait for ever.* callback"):
            e0.apply_sync(abs, 1)
        second.add_done_callback(lambda ar: seen.append(Path(ar.get()).name))
        second.add_done_callback(lambda ar: told.set())
        (tmp_path / "second").touch()

    ar = e0.apply_async(hold, str(tmp_path / "first"))
    ar.add_done_callback(then)
    (tmp_path / "first").touch()
    assert told.wait(PATIENCE)
    assert seen == [str(tmp_path / "first"), False, "second"]


def test_what_was_sent_before_a_blocking_call_is_done_after_it(rc: ipp.Client) -> None:
    dv, view = rc[:], rc[rc.ids[0]]
    for i in range(50):
        before = [view.apply_async(pow, i, 2), dv.apply_async(pow, i, 3)]
        assert view.apply_sync(pow, i, 4) == i**4
        assert before[0].done()
        assert dv.apply_sync(pow, i, 5) == [i**5] * len(dv)
        assert before[1].done()


def columns(gate: str) -> tuple[list[bool], list[int], list[str]]:
    """The arguments of two calls of ``interrupt``, the first of which does."""
    return [True, False], [os.getpid()] * 2, [gate] * 2
