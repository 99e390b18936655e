"""A client without a cluster: its engines are namespaces in this process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pxcompat import engine, serialize
from pxcompat.error import InvalidEngineId, NoEnginesRegistered, RemoteError
from pxcompat.futures import MessageFuture, Metadata


class FakeClient:
    """What views need of a client.  Requests run when they are sent, or while ``hold`` is
    set, at :meth:`release`."""

    def __init__(self, n: int) -> None:
        self.block = False
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
