"""The engine, driven on a thread of this process; who asks is a list of what it was told."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from pxcompat import serialize
from pxcompat.engine.output import Flusher, RequestOutput, routed
from pxcompat.engine.runtime import Engine
from pxcompat.protocol import OutputEvent, Reply, Request

#: seconds for anything to happen that a test waits for
PATIENCE = 90


class Recorder:
    """An Origin that notes what it is told."""

    def __init__(self, heard: dict[str, int] | None = None) -> None:
        #: failures that were heard of, by client
        self.heard = {} if heard is None else heard
        self.said: list[tuple[str, Any]] = []
        self._changed = threading.Condition()

    def _note(self, msg_id: str, what: Any) -> None:
        with self._changed:
            self.said.append((msg_id, what))
            self._changed.notify_all()

    def started(self, msg_id: str) -> None:
        self._note(msg_id, "started")

    def output(self, msg_id: str, event: OutputEvent) -> None:
        self._note(msg_id, event)

    def reply(self, reply: Reply) -> None:
        if "failures" in reply.content:
            self.heard[reply.msg_id.rpartition("_")[0]] = reply.content["failures"]
        self._note(reply.msg_id, reply)

    def _first(self, msg_id: str, kind: type) -> Any:
        return next((w for m, w in self.said if m == msg_id and isinstance(w, kind)), None)

    def wait(self, msg_id: str, kind: type = Reply) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self._first(msg_id, kind), PATIENCE), self.said
            return self._first(msg_id, kind)

    def outputs(self, msg_id: str) -> list[OutputEvent]:
        return [what for m, what in self.said if m == msg_id and isinstance(what, OutputEvent)]

    def replied(self) -> list[str]:
        return [m for m, what in self.said if isinstance(what, Reply)]


class Driver:
    """An engine on a thread, and one client of it."""

    def __init__(self, **options: Any) -> None:
        before = InteractiveShell._instance
        self.engine = Engine("key", own_process=False, **options)
        InteractiveShell._instance = before  # whose display() is, stays as it was
        self.engine.id = 7
        self.me = Recorder()
        self.count = 0
        self.thread = threading.Thread(target=self.engine.run)
        self.thread.start()

    @property
    def names(self) -> dict[str, Any]:
        return self.engine.shell.user_ns

    def reset(self) -> None:
        """Empty the namespace, and listen anew.

        ``show(data)`` displays: ``display`` itself is for the shell that has the process.
        """
        self.me = Recorder(self.me.heard)
        self.engine.shell.reset(new_session=False)
        publish = self.engine.shell.display_pub.publish
        self.names["show"] = lambda data: publish({"text/plain": data})

    def request(self, kind: str, client: str = "me", **more: Any) -> Request:
        self.count += 1
        header = {
            "client": client,
            "submitted": float(self.count),
            "heard": self.me.heard.get(client, 0),
        }
        return Request(f"{client}_{self.count}", kind, "label", header=header, **more)

    def apply(self, code: str, *args: Any, client: str = "me", map: bool = False) -> str:
        """Call what the code defines as ``f``, as a notebook function."""
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, "<notebook>", "exec", dont_inherit=True), scope)
        request = self.request("apply", client, content={"map": True} if map else {})
        request.function = serialize.dumps(scope["f"])
        request.arguments = serialize.dumps((args, {}))
        self.engine.submit(request, self.me)
        return request.msg_id

    def execute(self, code: str, *, silent: bool = False, client: str = "me") -> str:
        content = {"code": code, "silent": silent, "store_history": not silent}
        request = self.request("execute", client, content=content)
        self.engine.submit(request, self.me)
        return request.msg_id

    def value(self, msg_id: str) -> Any:
        reply = self.me.wait(msg_id)
        assert reply.status == "ok", reply
        return serialize.loads(reply.result)

    def error(self, msg_id: str) -> dict[str, Any]:
        reply = self.me.wait(msg_id)
        assert reply.status == "error", reply
        return reply.content

    def hold(self) -> threading.Event:
        """Occupy the engine until the event is set."""
        running, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            running.set()
            go_on.wait(PATIENCE)

        self.names["_hold"] = wait
        self.apply("def f(): _hold()")
        assert running.wait(PATIENCE)
        return go_on

    def stop(self) -> None:
        self.engine.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.stop()


@pytest.fixture
def on(shared: Driver) -> Driver:
    """The engine, with an empty namespace and a client that has been told nothing."""
    shared.reset()
    return shared


# -- calls --------------------------------------------------------------------------


def test_a_call_and_its_reply(on):
    msg_id = on.apply("def f(a, b): return a + b", 1, 2)
    reply = on.me.wait(msg_id)
    assert serialize.loads(reply.result) == 3
    assert (reply.status, reply.engine, reply.outputs) == ("ok", "key", 0)
    assert reply.started <= reply.completed


def test_requests_run_in_order(on):
    go_on = on.hold()
    on.names["seen"] = []
    sent = [on.apply(f"def f(): seen.append({n})") for n in range(9)]
    sent.append(on.execute("seen.append('cell')"))
    sent.append(on.apply("def f(): seen.append('last')"))
    go_on.set()
    on.me.wait(sent[-1])
    assert on.names["seen"] == [*range(9), "cell", "last"]
    assert on.me.replied()[1:] == sent


def test_functions_read_and_write_the_engines_names(on):
    on.names["x"] = 1
    assert on.value(on.apply("def f():\n    global y\n    y = x + 1\n    return y")) == 2
    assert on.names["y"] == 2


def test_an_error_says_where_and_what_to_do(on):
    error = on.error(on.apply("def f(): return nowhere"))
    assert error["ename"] == "NameError"
    assert "nowhere" in error["evalue"] and "view.push" in error["evalue"]
    assert error["engine_info"] == {"engine_uuid": "key", "engine_id": 7, "method": "apply"}
    # the user's frames and none of the engine's
    assert "runtime.py" not in "\n".join(error["traceback"])


def test_no_hint_where_none_is_needed(on):
    assert on.error(on.execute("nowhere"))["evalue"] == "name 'nowhere' is not defined"
    # nor in a function that was typed for the engine
    on.execute("def g(): return nowhere")
    assert on.error(on.execute("g()"))["evalue"] == "name 'nowhere' is not defined"
    assert "pip" not in on.error(on.apply("def f(): 1 / 0"))["evalue"]
    missing = on.error(on.apply("def f(): import no_such_module"))
    assert "install no_such_module where the engines run" in missing["evalue"]


@pytest.mark.parametrize("failure", ["1 / 0", "exit(1)"])
def test_an_error_whose_str_fails(on, failure):
    on.execute(f"from sys import exit\nclass Bad(Exception):\n    def __str__(self): {failure}\n")
    assert on.error(on.execute("raise Bad"))
    assert "whose str() fails" in on.error(on.apply("def f(): raise Bad"))["evalue"]


def test_a_result_that_cannot_be_sent_is_named(on):
    error = on.error(on.apply("def f():\n    import threading\n    return [threading.Lock()]"))
    assert error["ename"] == "SerializationError"
    assert "the result[0], of type _thread.lock" in error["evalue"]


def test_arguments_that_cannot_be_read_fail_their_request_alone(on):
    request = on.request("apply", function=serialize.dumps(len), arguments=[b"no pickle"])
    on.engine.submit(request, on.me)
    assert on.error(request.msg_id)["ename"] == "UnpicklingError"
    assert on.value(on.apply("def f(): return 1")) == 1


def test_a_mapped_call(on):
    assert on.value(on.apply("def f(a, b): return a * b", [1, 2], [3, 4], map=True)) == [3, 8]


def test_coroutines_are_awaited(on):
    code = "async def f(x):\n    import asyncio\n    await asyncio.sleep(0)\n    return x + 1"
    assert on.value(on.apply(code, 1)) == 2
    assert on.value(on.apply(code, [1, 2], map=True)) == [2, 3]


def test_a_result_is_as_it_was_when_it_was_returned(on):
    numpy = pytest.importorskip("numpy")
    on.names["a"] = numpy.zeros(100_000)
    first = on.apply("def f(): return a")
    on.me.wait(on.apply("def f(): a[:] = 1"))
    assert on.value(first).sum() == 0


def test_sys_exit_ends_a_request_and_not_the_engine(on):
    assert on.error(on.apply("def f():\n    import sys\n    sys.exit(3)"))["ename"] == "SystemExit"
    assert on.value(on.apply("def f(): return 1")) == 1


# -- cells --------------------------------------------------------------------------


def test_a_cells_value_is_output(on):
    msg_id = on.execute("3 * 4")
    reply = on.me.wait(msg_id)
    (event,) = on.me.outputs(msg_id)
    assert event.type == "execute_result"
    assert event.content["data"] == {"text/plain": "12"}
    assert event.content["execution_count"] == reply.content["execution_count"]


def test_a_silent_cell_shows_nothing(on):
    msg_id = on.execute("3 * 4", silent=True)
    assert on.me.wait(msg_id).outputs == 0


def test_top_level_await_and_magics(on):
    on.execute("import asyncio\nx = await asyncio.sleep(0, 5)")
    on.me.wait(on.execute("y = %env HOME"))
    assert on.names["x"] == 5 and on.names["y"]


@pytest.mark.parametrize(
    "code",
    [
        "x = [n async for n in numbers()]",
        "x = []\nasync for n in numbers(): x.append(n)",
        "async with opened() as x: pass",
        "if True:\n    x = await listed()",
    ],
)
def test_whatever_waits_at_top_level_is_awaited(on, code):
    on.execute(
        "import asyncio, contextlib\n"
        "async def numbers():\n    yield 1\n    await asyncio.sleep(0)\n    yield 2\n"
        "async def listed(): return [n async for n in numbers()]\n"
        "@contextlib.asynccontextmanager\n"
        "async def opened(): yield await listed()"
    )
    on.me.wait(on.execute(code))
    assert on.names["x"] == [1, 2]


def test_the_users_transforms_see_every_cell(on):
    """Also one that was run before, by whom there were none."""
    seen = []
    transforms = on.engine.shell.input_transformers_cleanup
    on.me.wait(on.execute("x = 1"))
    transforms.append(lambda lines: seen.append(lines) or [f"x = {len(seen) + 1}\n"])
    on.me.wait(on.execute("x = 1"))
    assert on.names["x"] == 2
    on.me.wait(on.execute("x = 1"))
    assert on.names["x"] == 3
    transforms.pop()
    on.me.wait(on.execute("x = 1"))
    assert on.names["x"] == 1


def test_syntax_errors(on):
    error = on.error(on.execute("def"))
    assert error["ename"] == "SyntaxError" and error["traceback"]


def test_a_failing_cell_is_output_too(on):
    msg_id = on.execute("1/0")
    on.me.wait(msg_id)
    assert [event.type for event in on.me.outputs(msg_id)] == ["error"]


def test_what_cells_print_is_not_kept(on):
    on.me.wait(on.execute("for i in range(1000): print(i)"))
    history = on.engine.shell.history_manager
    assert not getattr(history, "outputs", {})  # of IPython 9


def test_output_is_numbered_and_complete_before_the_reply(on):
    msg_id = on.execute("for n in range(5): show(n)\n'last'")
    reply = on.me.wait(msg_id)
    events = on.me.outputs(msg_id)
    assert [event.seq for event in events] == list(range(6))
    assert reply.outputs == 6
    assert on.me.said[-1] == (msg_id, reply)


def test_streams_are_routed_by_thread_and_request(capsys):
    flusher = Flusher()
    said: list[list[str]] = [[], []]
    outputs = [
        RequestOutput(lambda e, n=n: said[n].append(e.content["text"]), flusher) for n in (0, 1)
    ]
    running: dict[int, RequestOutput] = {}

    def engine() -> None:
        for output in outputs:  # one request after another
            running[threading.get_ident()] = output
            print("to a request")
            output.flush()

    before = sys.stdout
    # one of our own: the engine of the other tests has the process's
    with type(routed)()(lambda: running.get(threading.get_ident())):
        thread = threading.Thread(target=engine)
        thread.start()
        thread.join()
        print("to the process")
        assert sys.stdout.line_buffering == before.line_buffering
    assert sys.stdout is before
    flusher.stop()
    assert said == [["to a request\n"], ["to a request\n"]]
    assert capsys.readouterr().out == "to the process\n"


def test_bytes_in_displays_are_plain(on):
    msg_id = on.execute("show(b'abc')\nshow({1: [b'd']})")
    on.me.wait(msg_id)
    shown = [event.content["data"]["text/plain"] for event in on.me.outputs(msg_id)]
    assert shown == ["YWJj", {"1": ["ZA=="]}]


def test_published_data(on):
    code = (
        "def f():\n    from pxcompat.engine.calls import publish_data\n    publish_data({'a': 1})"
    )
    msg_id = on.apply(code)
    on.me.wait(msg_id)
    (event,) = on.me.outputs(msg_id)
    assert event.type == "data"
    assert serialize.loads(event.content["frames"]) == {"a": 1}
    error = on.error(on.apply(code.replace("{'a': 1}", "5")))
    assert error["ename"] == "TypeError"


# -- aborting -----------------------------------------------------------------------


def test_a_loud_failure_aborts_the_cells_behind_it(on):
    go_on = on.hold()
    failing = on.execute("1/0")
    behind = on.execute("ran = 1")
    call = on.apply("def f(): return 2")
    theirs = on.execute("theirs = 1", client="them")
    go_on.set()
    assert on.me.wait(theirs).status == "ok"
    assert on.me.wait(failing).status == "error"
    assert on.me.wait(behind).status == "aborted"
    assert on.value(call) == 2
    assert "ran" not in on.names and on.names["theirs"] == 1
    # once, and for what was queued then
    assert on.me.wait(on.execute("ran = 2")).status == "ok"


@pytest.mark.parametrize("how", ["silent", "apply"])
def test_other_failures_abort_nothing(on, how):
    go_on = on.hold()
    failing = on.execute("1/0", silent=True) if how == "silent" else on.apply("def f(): return 1/0")
    behind = on.execute("ran = 1")
    go_on.set()
    assert on.me.wait(behind).status == "ok"
    assert on.me.wait(failing).status == "error"


def test_a_queued_request_can_be_cancelled_and_never_runs(on):
    go_on = on.hold()
    holding = on.engine.tasks.status()["running"]
    queued = on.execute("ran = 1")
    answer = on.engine.tasks.cancel([queued, holding, "me_later"])
    assert answer == {
        "cancelled": [queued],
        "refused": ["me_later"],
        "running": [holding],
        "done": [],
    }
    # at once, although the engine is busy
    assert on.me.wait(queued).status == "aborted"
    go_on.set()
    on.me.wait(holding)
    assert on.engine.tasks.cancel([holding, queued])["done"] == [holding, queued]
    on.value(on.apply("def f(): return 1"))
    assert "ran" not in on.names
    assert on.me.replied().count(queued) == 1


def test_what_is_on_its_way_can_be_given_back_and_is_refused_once(on):
    coming, announced = (
        on.request("execute", content={"code": "1", "silent": True}) for _ in range(2)
    )
    on.engine.tasks.announce([announced], on.me)
    done = on.execute("1", silent=True)
    on.me.wait(done)
    ids = [coming.msg_id, announced.msg_id]
    assert on.engine.tasks.give_back([done, *ids], coming=True) == ids
    assert on.engine.tasks.status()["queue"] == []
    for request in (coming, announced):
        on.engine.submit(request, on.me)
        assert on.me.wait(request.msg_id).status == "aborted"
        assert on.engine.tasks.query({"msg_id": request.msg_id}) == []
    on.me.said.clear()
    on.engine.submit(coming, on.me)  # sent again: nobody else wanted it
    assert on.me.wait(coming.msg_id).status == "ok"


def test_what_was_given_back_can_be_cancelled_and_is_refused_when_it_comes_again(on):
    go_on = on.hold()
    request = on.request("execute", content={"code": "ran = 1", "silent": True})
    on.engine.submit(request, on.me)
    assert on.engine.tasks.give_back([request.msg_id]) == [request.msg_id]
    # it waits elsewhere: this engine has not run it, and is not to
    assert on.engine.tasks.cancel([request.msg_id])["refused"] == [request.msg_id]
    on.engine.submit(request, on.me)
    assert on.me.wait(request.msg_id).status == "aborted"
    go_on.set()
    on.value(on.apply("def f(): return 1"))
    assert "ran" not in on.names


def test_what_is_announced_counts_as_queued_and_can_be_cancelled(on):
    coming, cancelled = (
        on.request("execute", content={"code": f"{name} = 1", "silent": False})
        for name in ("came", "never")
    )
    # of that which waits elsewhere an engine is told no more than this
    heads = [Request(r.msg_id, r.kind, r.label, header=r.header) for r in (coming, cancelled)]
    on.engine.tasks.announce(heads, on.me)
    assert on.engine.tasks.status()["queue"] == [coming.msg_id, cancelled.msg_id]
    assert on.engine.tasks.cancel([cancelled.msg_id])["cancelled"] == [cancelled.msg_id]
    for request in (coming, cancelled):
        on.engine.submit(request, on.me)
    assert on.me.wait(coming.msg_id).status == "ok"
    assert on.me.wait(cancelled.msg_id).status == "aborted"
    assert on.engine.tasks.recall(cancelled.msg_id) is cancelled
    # late news change nothing
    on.engine.tasks.announce([coming, cancelled], on.me)
    assert on.engine.tasks.status()["queue"] == []
    assert "came" in on.names and "never" not in on.names


def test_late_news_of_what_is_forgotten_change_nothing(on):
    done, other = (on.execute("1", silent=True) for _ in range(2))
    on.me.wait(other)
    requests = [on.engine.tasks.recall(msg_id) for msg_id in (done, other)]
    on.engine.tasks.purge(None)
    on.engine.tasks.announce(requests, on.me)
    assert on.engine.tasks.status()["queue"] == []
    assert on.engine.tasks.give_back([done], coming=True) == []
    assert on.engine.tasks.cancel([other])["done"] == [other]


def test_what_a_client_announced_goes_with_it(on):
    theirs = on.request("execute", "them", content={"code": "1", "silent": True})
    ours = on.request("execute", content={"code": "1", "silent": True})
    on.engine.tasks.announce([theirs, ours], on.me)
    other = Recorder()
    on.engine.tasks.attach(theirs.msg_id, other)
    on.engine.tasks.forget_announced("them")
    assert other.wait(theirs.msg_id).status == "aborted"  # who waits for it is told
    assert on.engine.tasks.status()["queue"] == [ours.msg_id]
    assert on.engine.tasks.query({"msg_id": theirs.msg_id}) == []
    on.engine.tasks.forget_announced("me")
    assert on.engine.tasks.status()["queue"] == []


def test_what_a_client_was_to_see_to_goes_with_it(on):
    aside = "def f(t):\n    from pxcompat.engine.parts import set_aside\n    set_aside('1', t)"
    bind = "def f(t):\n    from pxcompat.engine.parts import bind\n    bind('x', 5, t)"
    for client in ("them", "me"):
        on.value(on.apply(aside, f"{client} aside", client=client))
        on.value(on.apply(bind, f"{client} bound", client=client))
    on.engine.forget_client("them")
    # what they had queued comes too late
    on.value(on.apply(aside, "late", client="them"))
    assert list(on.engine.aside) == ["me aside"]
    assert list(on.engine.unsettled) == ["me bound"]
    assert on.names["x"] == 5
    on.engine.forget_client("me")
    assert not on.engine.aside and not on.engine.unsettled


def test_what_is_cancelled_before_it_comes_is_refused(on):
    request = on.request("execute", content={"code": "ran = 1", "silent": False})
    other = Recorder()
    assert on.engine.tasks.attach(request.msg_id, other) is None
    on.engine.tasks.cancel([request.msg_id])
    on.engine.submit(request, on.me)
    assert on.me.wait(request.msg_id).status == "aborted"
    assert other.wait(request.msg_id).status == "aborted"
    # it has a history, and may be run again, as if it had been cancelled in the queue
    assert [r["status"] for r in on.engine.tasks.query({"msg_id": request.msg_id})] == ["aborted"]
    assert on.engine.tasks.recall(request.msg_id) is request
    on.value(on.apply("def f(): return 1"))
    assert "ran" not in on.names


# -- interrupting -------------------------------------------------------------------


def test_an_interrupt_ends_what_runs_and_spares_what_is_queued(on):
    running = threading.Event()
    on.names["running"] = running
    endless = on.apply("def f():\n    running.set()\n    while True: pass")
    behind = on.apply("def f(): return 1")
    assert running.wait(PATIENCE)
    on.engine.interrupt()
    assert on.error(endless)["ename"] == "KeyboardInterrupt"
    assert on.value(behind) == 1


def test_an_idle_engine_cannot_be_interrupted(on):
    on.me.wait(on.execute("x = 1"))
    on.engine.interrupt()
    assert on.value(on.apply("def f(): return x")) == 1


def test_an_interrupt_as_a_request_begins_is_for_it(on):
    """It cannot be taken back any more, and nothing of it has run yet."""
    request = on.request("execute", content={"code": "ran = True", "silent": True})
    admitted = on.engine.admit([request], on.me)
    on.engine.call(lambda: on.engine.run_batch(admitted, lambda _: on.engine.interrupt()))
    assert on.error(request.msg_id)["ename"] == "KeyboardInterrupt"
    assert not on.value(on.apply("def f(): return 'ran' in globals()"))


def test_an_interrupt_before_a_request_begins_is_not_for_it(on):
    request = on.request("execute", content={"code": "ran = True", "silent": True})
    admitted = on.engine.admit([request], on.me)

    def begin():
        on.engine.interrupt()
        on.engine.run_batch(admitted, lambda _: None)

    on.engine.call(begin)
    assert on.me.wait(request.msg_id).status == "ok"
    assert on.names["ran"]


# -- others asking ------------------------------------------------------------------


def test_status(on):
    go_on = on.hold()
    before = on.engine.tasks.status()
    queued = on.execute("1")
    placed = on.request("execute", content={"code": "1", "silent": True})
    placed.header["balanced"] = True
    on.engine.submit(placed, on.me)
    status = on.engine.tasks.status()
    assert status["queue"] == [before["running"], queued]
    assert status["tasks"] == [placed.msg_id]
    go_on.set()
    on.me.wait(placed.msg_id)
    on.value(on.apply("def f(): return 1"))
    assert on.engine.tasks.status()["queue"] == []
    assert on.engine.tasks.status()["completed"] >= before["completed"] + 3


def test_attaching_to_what_is_done(on):
    msg_id = on.execute("show(1)\n2")
    on.me.wait(msg_id)
    other = Recorder()
    record = on.engine.tasks.attach(msg_id, other)
    assert record["msg_id"] == msg_id
    assert other.said == [said for said in on.me.said if said[0] == msg_id]


def test_what_comes_after_the_end_is_not_counted(on):
    """Of a widget, say: its messages are a request's output, and are not remembered."""
    msg_id = on.execute("show(1)\noutput = get_ipython().output\noutput.emit('comm', {})\nshow(2)")
    assert on.me.wait(msg_id).outputs == 3
    on.names["output"].emit("comm", {})
    on.names["output"].emit("display_data", {"data": {}})
    assert [event.seq for event in on.me.outputs(msg_id)] == [0, 1, 2, -1, -1]
    other = Recorder()
    on.engine.tasks.attach(msg_id, other)
    assert [(event.seq, event.type) for event in other.outputs(msg_id)] == [
        (number, "display_data") for number in range(3)
    ]
    assert other.wait(msg_id).outputs == 3


def test_attaching_to_what_runs(on):
    displayed, go_on = threading.Event(), threading.Event()
    on.names.update(displayed=displayed, go_on=go_on)
    msg_id = on.execute("show(1)\ndisplayed.set()\nassert go_on.wait(90)\nshow(2)")
    assert displayed.wait(PATIENCE)
    other = Recorder()
    assert on.engine.tasks.attach(msg_id, other)["status"] == "running"
    assert [event.seq for event in other.outputs(msg_id)] == [0]
    go_on.set()
    assert other.wait(msg_id).status == "ok"
    assert [event.seq for event in other.outputs(msg_id)] == [0, 1]
    assert on.me.wait(msg_id).outputs == 2


def test_attaching_again_to_what_runs(on):
    displayed, go_on = threading.Event(), threading.Event()
    on.names.update(displayed=displayed, go_on=go_on)
    msg_id = on.execute("show(1)\ndisplayed.set()\nassert go_on.wait(90)")
    assert displayed.wait(PATIENCE)
    other = Recorder()
    for _ in range(2):
        assert on.engine.tasks.attach(msg_id, other)["status"] == "running"
    go_on.set()
    other.wait(msg_id)
    assert len(other.said) == 2


@pytest.mark.parametrize("how", ["before", "after"])
def test_who_did_not_send_it_knows_that_a_failure_may_not_be_the_last_word(on, how):
    finals = []
    for header in ({"retries": 1}, {"retries": 1, "tries": 0}, {"retries": 0}):
        request = on.request("execute", content={"code": "1/0", "silent": True})
        request.header.update(header, balanced=True)
        other = Recorder()
        if how == "before":
            on.engine.tasks.attach(request.msg_id, other)
        on.engine.submit(request, on.me)
        assert "moves" not in on.me.wait(request.msg_id).content
        if how == "after":
            on.engine.tasks.attach(request.msg_id, other)
        finals.append("moves" not in other.wait(request.msg_id).content)
    assert finals == [False, True, True]


def test_attaching_to_what_is_yet_to_come(on):
    request = on.request("execute", content={"code": "1", "silent": False})
    other = Recorder()
    assert on.engine.tasks.attach(request.msg_id, other) is None
    assert on.engine.tasks.attach(request.msg_id, other) is None
    on.engine.submit(request, on.me)
    on.me.wait(request.msg_id)
    other.wait(request.msg_id)
    assert other.said == on.me.said


def test_attaching_when_not_all_output_was_remembered(on, monkeypatch):
    monkeypatch.setattr("pxcompat.engine.records.OUTPUT_LIMIT", 100)
    msg_id = on.execute("show('a' * 1000)")
    assert on.me.wait(msg_id).outputs == 1
    other = Recorder()
    on.engine.tasks.attach(msg_id, other)
    # nobody is to wait for what will not come
    assert other.wait(msg_id).outputs == 0


def test_recalling_and_purging(on):
    small, large = on.apply("def f(a): pass", 1), on.apply("def f(a): pass", bytes(2 << 20))
    on.me.wait(on.apply("def f(): pass"))
    assert serialize.loads(on.engine.tasks.recall(small).arguments) == ((1,), {})
    assert on.engine.tasks.recall(large).arguments is None
    assert on.engine.tasks.recall("unknown") is None
    rows = on.engine.tasks.query({"msg_id": {"$in": [small, large]}})
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert on.engine.tasks.purge([small]) == 1
    assert on.engine.tasks.recall(small) is None
    assert on.engine.tasks.query({"msg_id": small}) == []


def test_what_the_scheduler_places_is_announced(on):
    request = on.request("execute", content={"code": "1", "silent": True})
    on.engine.call(lambda: on.engine.run_now(request, on.me))
    on.me.wait(request.msg_id)
    assert on.me.said[0] == (request.msg_id, "started")


def test_a_failing_call_of_the_backends_leaves_the_engine_running(on, caplog):
    on.engine.call(lambda: 1 / 0)
    assert on.value(on.apply("def f(): return 1")) == 1


def test_an_engine_remembers_within_bounds():
    driver = Driver(max_records=3)
    try:
        sent = [driver.execute("1", silent=True) for _ in range(6)]
        driver.me.wait(sent[-1])
        driver.value(driver.apply("def f(): return 1"))
        ids = [row["msg_id"] for row in driver.engine.tasks.query({})]
        assert sent[0] not in ids and len(ids) <= 4
        assert set(driver.engine.describe()) == {"key", "pid", "host", "own_process"}
    finally:
        driver.stop()
