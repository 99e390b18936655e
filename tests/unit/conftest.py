"""A client without a cluster, whose engines are namespaces in this process; and a backend
without engines, which notes what it is asked and says what a test has it say."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

from pxcompat import engine, serialize
from pxcompat.dispatch import Dispatcher
from pxcompat.error import InvalidEngineId, NoEnginesRegistered, RemoteError
from pxcompat.futures import MessageFuture, Metadata
from pxcompat.protocol import Capabilities, EngineInfo, Frames, Reply, Request


class FakeClient:
    """What views need of a client.  Requests run when they are sent, or while ``hold`` is
    set, at :meth:`release`."""

    def __init__(self, n: int) -> None:
        self.block = False
        self._copy = True
        self.history: list[str] = []
        self.results: dict[str, Any] = {}
        self.metadata: dict[str, Metadata] = {}
        self.outstanding: set[str] = set()
        self._futures: dict[str, MessageFuture] = {}
        self.namespaces: dict[int, dict[str, Any]] = {i: {} for i in range(n)}
        #: (engine id or None, keywords, function frames, argument frames) of each request
        self.requests: list[tuple[int | None, dict[str, Any], Any, Any]] = []
        #: (method, arguments) of each call of a method of the client itself
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.hold = False
        self._held: list[Any] = []

    @property
    def ids(self) -> list[int]:
        return sorted(self.namespaces)

    def _build_targets(self, targets: Any) -> tuple[list[str], list[int]]:
        if not self.namespaces:
            raise NoEnginesRegistered()
        if targets is None or targets == "all":
            targets = self.ids
        targets = [targets] if isinstance(targets, int) else list(targets)
        for target in targets:
            if target not in self.namespaces:
                raise InvalidEngineId(f"No such engine: {target}")
        return [f"engine-{i}" for i in targets], targets

    def _submit(self, engine_id: int | None, function: Any, arguments: Any, **kw: Any) -> Any:
        msg_id = uuid.uuid4().hex
        label = (kw.get("header") or {}).get("label")
        future = MessageFuture(msg_id, metadata=Metadata(msg_id=msg_id, label=label))
        future.sent.set_result(None)
        self.history.append(msg_id)
        self.outstanding.add(msg_id)
        self.requests.append((engine_id, kw, function, arguments))

        def run() -> None:
            failure, value = None, None
            try:
                value = self._run(engine_id or 0, function, arguments, kw)
            except Exception as error:
                failure = RemoteError(type(error).__name__, str(error), None)
            self.outstanding.discard(msg_id)
            if failure is None:
                future.finish_value(value)
            else:
                future.fail(failure)
            future.output.set_result(None)

        if self.hold:
            self._held.append(run)
        else:
            run()
        return future

    def release(self) -> None:
        held, self._held = self._held, []
        for run in held:
            run()

    def _run(self, engine_id: int, function: Any, arguments: Any, kw: dict[str, Any]) -> Any:
        namespace = self.namespaces[engine_id]
        shell = SimpleNamespace(user_ns=namespace)
        engine.set_current(SimpleNamespace(shell=shell), process=False)  # type: ignore[arg-type]
        try:
            if "code" in kw:
                return exec(kw["code"], namespace)
            f = serialize.loads(function, namespace)
            args, kwargs = serialize.loads(arguments, namespace)
            return list(map(f, *args)) if kw.get("map") else f(*args, **kwargs)
        finally:
            engine.set_current(None, process=False)

    def _awaited(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> None:
        """No collections of a backend's own."""

    def _submit_apply(self, key: str, function: Any, arguments: Any, **kw: Any) -> Any:
        return self._submit(int(key.rpartition("-")[2]), function, arguments, **kw)

    def _submit_apply_many(self, keys: Sequence[str], function: Any, args: Any, **kw: Any) -> Any:
        return [self._submit_apply(key, function, args, **kw) for key in keys]

    def _submit_execute(self, key: str, code: str, **kw: Any) -> Any:
        return self._submit_apply(key, None, None, code=code, **kw)

    def _submit_balanced(self, calls: Any, **kw: Any) -> Any:
        return [self._submit(None, function, arguments, **kw) for function, arguments in calls]

    def __getattr__(self, name: str) -> Any:
        # wait, abort, queue_status ...: recorded
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, {"args": args, **kwargs}))
            return name

        return call


@pytest.fixture
def client() -> Iterator[FakeClient]:
    """A fake client with three engines; pickling is by default rules afterwards."""
    yield FakeClient(3)
    serialize.use_pickle()


class Held:
    """A handle: frames that the fake backend holds."""

    def __init__(self, frames: Frames) -> None:
        self.nbytes = sum(memoryview(frame).nbytes for frame in frames)


class FakeBackend:
    """A backend whose engines do nothing by themselves."""

    name = "fake"
    capabilities = Capabilities(put_threshold=1000)

    def __init__(self) -> None:
        self.sink = Dispatcher()
        self.sink.backend = self  # type: ignore[assignment]
        #: (engine, request), and (candidates, request) of balanced ones, in the order sent
        self.sent: list[tuple[str, Request]] = []
        self.balanced: list[tuple[Sequence[str] | None, Request]] = []
        #: balanced ones as they were sent together
        self.batches: list[list[Request]] = []
        self.held: list[Held] = []
        #: what was asked, and who answers: question -> function of engine and arguments
        self.asked: list[tuple[str | None, str, Mapping[str, Any]]] = []
        self.answers: dict[str, Callable[[str | None, Mapping[str, Any]], Any]] = {}

    def engines(self, *keys: str) -> None:
        """Have engines come up, with ids from 0."""
        for key in keys:
            self.sink.engine_up(EngineInfo(key, len(self.sink.ids), 1, "here"))

    def send(self, key: str, requests: Sequence[Request]) -> None:
        self.sent.extend((key, request) for request in requests)

    def send_balanced(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        self.batches.append(list(requests))
        self.balanced.extend((candidates, request) for request in requests)

    def awaited(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def put(self, frames: Frames, keys: Sequence[str]) -> Held:
        self.held.append(Held(frames))
        return self.held[-1]

    def control(self, key: str | None, op: str, args: Mapping[str, Any]) -> Future[Any]:
        self.asked.append((key, op, args))
        answer: Future[Any] = Future()
        try:
            answer.set_result(self.answers[op](key, args))
        except Exception as error:
            answer.set_exception(error)
        return answer

    def ok(self, msg_id: str, value: Any = None, *, engine: str = "a", **more: Any) -> None:
        """An engine has a result."""
        result = serialize.dumps(value)
        self.sink.reply(Reply(msg_id, "ok", engine, 1.0, 2.0, result, **more))

    def error(self, msg_id: str, ename: str = "ValueError", *, engine: str | None = "a") -> None:
        """An engine has an error."""
        content = {"ename": ename, "evalue": "no", "traceback": [], "engine_info": {}}
        self.sink.reply(Reply(msg_id, "error", engine, content=content))


@pytest.fixture
def backend() -> FakeBackend:
    """A backend with the engines ``a`` (0) and ``b`` (1), and a Dispatcher as its sink."""
    backend = FakeBackend()
    backend.engines("a", "b")
    return backend
