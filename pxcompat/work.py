"""A client's requests: those under way, and the record of those that ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from . import serialize
from .asyncresult import AsyncHubResult, AsyncResult, several
from .balance import Balancer
from .dispatch import Dispatcher
from .engine import calls
from .engine.interrupts import uninterrupted
from .engines import Engines
from .error import collect_exceptions
from .futures import MessageFuture, Metadata
from .hub import Hub
from .protocol import Request
from .waiting import wait_for

__all__ = ["FuturesByID", "Work"]

Jobs = Any  # int, str, AsyncResult, or an iterable of them


@dataclass(frozen=True)
class Session:
    """What tells a client's requests from others' (of jupyter_client.session.Session)."""

    session: str


class Work(Engines):
    """The part of a Client that is about its requests."""

    _questions: Hub
    _balancer: Balancer
    _futures: Mapping[str, MessageFuture]

    @property
    def _hub(self) -> Hub:
        """For questions to the engines, which only a client that is connected has."""
        self._check_open()
        return self._questions

    # -- requests under way --------------------------------------------------------

    @property
    def outstanding(self) -> set[str]:
        """msg_ids of what has no reply yet; a new set each time."""
        with self._dispatcher.lock:
            return set(self._dispatcher.outstanding)

    @property
    def history(self) -> list[str]:
        """msg_ids of what this client sent, oldest first."""
        return self._dispatcher.history

    @property
    def results(self) -> MutableMapping[str, Any]:
        """Results by msg_id."""
        return self._dispatcher.results

    @property
    def session(self) -> Session:
        """Who this client is in records: ``client_uuid`` is ``session.session`` there."""
        return Session(self._dispatcher.session)

    @property
    def metadata(self) -> MutableMapping[str, Metadata]:
        """Metadata by msg_id."""
        return self._dispatcher.metadata

    def spin(self) -> None:
        """Nothing to do: replies are received by a thread (ipyparallel.Client.spin)."""

    def spin_thread(self, interval: float = 1) -> None:
        """Nothing to do: replies are received by a thread."""

    def stop_spin_thread(self) -> None:
        """Nothing to do: replies are received by a thread."""

    def wait(self, jobs: Jobs = None, timeout: float = -1) -> bool:
        """Wait for requests to have their replies.

        Parameters
        ----------
        jobs : int, str, AsyncResult, Future or an iterable of them, optional
            Indices of ``history``, msg_ids, results or other futures; default everything
            outstanding.
        timeout : float
            Seconds; negative: forever.

        Returns
        -------
        bool
            Whether all have their replies.
        """
        futures: set[Future[Any]] = set()
        for job in _listed(self.outstanding if jobs is None else jobs):
            if isinstance(job, Future):
                futures.add(job)
                continue
            for msg_id in self._msg_ids_from_jobs(job):
                with self._dispatcher.lock:
                    future = self._dispatcher.outstanding.get(msg_id)
                if future is not None:
                    futures.add(future)
        left = None if timeout is None or timeout < 0 else timeout
        return not wait_for(futures, left).not_done

    def wait_interactive(
        self, jobs: Jobs = None, interval: float = 1.0, timeout: float = -1.0
    ) -> None:
        """Wait for requests, showing how many are done."""
        jobs = self.outstanding if jobs is None else jobs
        if jobs == set():
            return
        ar = self._asyncresult_from_jobs(list(jobs) if isinstance(jobs, set) else jobs)
        ar.wait_interactive(interval=interval, timeout=timeout)

    def abort(self, jobs: Jobs = None, targets: Any = None, block: bool | None = None) -> Any:
        """Keep requests that have not started from running.

        They end with :class:`~pxcompat.error.TaskAborted`.  What runs goes on; see
        :meth:`send_signal`.

        Parameters
        ----------
        jobs : int, str, AsyncResult or an iterable of them, optional
            Also other clients'.  Default: everything of this client's that is outstanding.
        targets : optional
            Of these, only what was sent to these engines.  A balanced call that no engine has
            is not anywhere yet, and aborted if it is among ``jobs``.
        block : bool, optional
            Wait until the engines have confirmed.
        """
        block = self.block if block is None else block
        keys = None if targets is None else self._build_targets(targets)[0]
        if jobs is not None:
            msg_ids: Iterable[str] = self._msg_ids_from_jobs(jobs)
        elif keys is None:
            msg_ids = self.outstanding
        else:
            with self._dispatcher.lock:
                msg_ids = [m for key in keys for m in self._dispatcher.by_engine.get(key, ())]
        return self._all(self._abort(list(msg_ids), keys), block)

    def _abort(
        self, msg_ids: Sequence[str], keys: Sequence[str] | None = None
    ) -> list[Future[list[str]]]:
        """Have requests cancelled (on these engines); futures of those that were."""
        by_engine: dict[str | None, list[str]] = {}
        with self._dispatcher.lock:
            everywhere = list(self._dispatcher.engines) if keys is None else keys
            for msg_id in msg_ids:
                future = self._dispatcher.outstanding.get(msg_id)
                if future is not None:
                    balanced = self._balancer.knows(msg_id)
                    key = None if balanced else future.metadata["engine_uuid"]
                    if key is None or keys is None or key in keys:
                        by_engine.setdefault(key, []).append(msg_id)
                elif not msg_id.startswith(self._dispatcher.session):  # another client's
                    for key in everywhere:
                        by_engine.setdefault(key, []).append(msg_id)
        waiting = set(self._balancer.cancel_waiting(by_engine.get(None, [])))
        answers = []
        for key, ids in by_engine.items():
            ids = [m for m in ids if m not in waiting]
            if ids:
                answers.append(self._backend.cancel(key, ids))
        return answers

    def clear(self, targets: Any = None, block: bool | None = None) -> Any:
        """Empty engines' namespaces."""
        block = self.block if block is None else block
        keys, ids = self._build_targets(targets)
        self._check_open()
        futures = self._dispatcher.apply(
            keys, serialize.dumps(calls.clear), serialize.dumps(((), {})), label="clear"
        )
        result = AsyncResult(self, futures, fname="clear", targets=ids, owner=True)
        if block:
            result.get()
            return None
        return result

    # -- the record ------------------------------------------------------------------

    def _msg_ids_from_jobs(self, jobs: Jobs = None) -> list[str]:
        """msg_ids of whatever names requests."""
        msg_ids: list[str] = []
        for job in _listed(jobs):
            if isinstance(job, int):
                msg_ids.append(self.history[job])
            elif isinstance(job, str):
                msg_ids.append(job)
            elif isinstance(job, AsyncResult):
                msg_ids.extend(job.msg_ids)
            else:
                raise TypeError(f"Expected msg_id, int, or AsyncResult, got {job!r}")
        return msg_ids

    def _asyncresult_from_jobs(self, jobs: Jobs = None, owner: bool = False) -> AsyncResult:
        single = not several(jobs)
        found: list[MessageFuture | str] = []  # in the order asked for
        for job in _listed(jobs):
            if isinstance(job, AsyncResult):
                found.extend(job._children)
                single = single and job._single_result
            else:
                found.extend(self._futures.get(m) or m for m in self._msg_ids_from_jobs(job))
        unknown = [f for f in found if isinstance(f, str)]
        fetched = dict(zip(unknown, self._hub.fetch(unknown), strict=True)) if unknown else {}
        futures = [fetched[f] if isinstance(f, str) else f for f in found]
        kind: type[AsyncResult] = AsyncHubResult if unknown else AsyncResult
        children: Any = futures[0] if single and len(futures) == 1 else futures
        targets = [f.metadata["engine_id"] for f in futures]
        return kind(self, children, targets=targets, owner=owner)

    def get_result(
        self, indices_or_msg_ids: Jobs = None, block: bool | None = None, owner: bool = True
    ) -> AsyncResult:
        """The result of a request, of this client or of another.

        Parameters
        ----------
        indices_or_msg_ids : int, str, AsyncResult or an iterable of them
            Indices of ``history``, msg_ids, or results; default the latest.
        block : bool, optional
            Wait for it.
        owner : bool
            Whether the client may forget it when it has been read.

        Raises
        ------
        KeyError
            When neither this client nor any engine knows the request.
        """
        block = self.block if block is None else block
        jobs = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        result = self._asyncresult_from_jobs(jobs, owner=owner)
        if block:
            result.wait()
        return result

    def resubmit(
        self, indices_or_msg_ids: Jobs = None, metadata: Any = None, block: bool | None = None
    ) -> AsyncResult:
        """Run requests again, wherever the scheduler puts them.

        Raises
        ------
        KeyError
            When no engine remembers a request.
        ValueError
            When one has not ended, or its arguments were too large to be remembered.
        """
        self._check_open()
        block = self.block if block is None else block
        jobs = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        msg_ids = self._msg_ids_from_jobs(jobs)
        result = AsyncHubResult(self, self._hub.resubmit(msg_ids, self._send_again))
        if block:
            result.wait()
        return result

    def _send_again(self, request: Request) -> MessageFuture:
        header = {k: v for k, v in request.header.items() if k not in ("client", "submitted")}
        with uninterrupted():
            future = self._dispatcher.register(request.kind, request.label, None, header)
            request.msg_id = future.msg_id
            request.header = self._dispatcher.header(future, header)
            self._backend.send_balanced([request], None)
        return future

    def result_status(self, msg_ids: Jobs, status_only: bool = True) -> dict[str, Any]:
        """Which requests are done.

        Parameters
        ----------
        msg_ids : int, str, AsyncResult or an iterable of them
        status_only : bool
            When False, the results are there too, by msg_id.

        Returns
        -------
        dict
            ``completed`` and ``pending``: lists of msg_ids.

        Raises
        ------
        RemoteError, CompositeError
            With ``status_only=False``, when a request failed.
        KeyError
            When nobody knows a request.
        """
        ids = self._msg_ids_from_jobs(msg_ids)
        status: dict[str, Any] = {"completed": [], "pending": []}
        elsewhere = []
        for msg_id in ids:
            if msg_id in self.results:
                status["completed"].append(msg_id)
            elif msg_id in self._dispatcher.outstanding:
                status["pending"].append(msg_id)
            else:
                elsewhere.append(msg_id)
        if elsewhere:
            for msg_id, state in self._hub.status(elsewhere).items():
                done = state not in ("queued", "running")
                status["completed" if done else "pending"].append(msg_id)
        if status_only:
            return status
        failures: list[Exception] = []
        for msg_id in status["completed"]:
            future = self._futures.get(msg_id) or self._hub.fetch([msg_id])[0]
            failure = future.exception(self._hub_timeout)
            if isinstance(failure, Exception):
                failures.append(failure)
            status[msg_id] = future.value()
        if len(ids) == 1 and failures:
            raise failures[0]
        collect_exceptions(failures, "result_status")
        return status

    _hub_timeout = 30.0

    def queue_status(self, targets: Any = "all", verbose: bool = False) -> Any:
        """How busy engines are.

        Parameters
        ----------
        verbose : bool
            Lists of msg_ids in place of numbers.

        Returns
        -------
        dict
            By engine id: ``queue`` and ``tasks`` (requests to the engine, and balanced ones,
            that have not ended) and ``completed`` (a number, or those that are remembered);
            and ``unassigned``, balanced requests on no engine yet.  For a single target,
            that engine's part alone.
        """
        keys, ids = self._build_targets(targets) if self.ids or targets != "all" else ([], [])
        status = self._hub.queue_status(keys, verbose)
        return status[ids[0]] if isinstance(targets, int) else status

    def hub_history(self) -> list[str]:
        """msg_ids of all requests that engines remember, of all clients, oldest first."""
        return self._hub.history()

    def db_query(
        self, query: Mapping[str, Any], keys: str | Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Records of requests, of all clients, oldest first.

        Parameters
        ----------
        query : dict
            Key to value, or to operators: ``{"submitted": {"$lt": datetime}}``; see
            :func:`pxcompat.engine.records.matches`.
        keys : str or list of str, optional
            Which keys of the records to give; ``msg_id`` always is.  Default: all.  There are
            no ``buffers`` among them; :meth:`get_result` has results.

        Raises
        ------
        KeyError
            When records have no such key.
        ValueError
            For an operator that does not exist.
        """
        keys = [keys] if isinstance(keys, str) else keys
        return self._hub.query(query, keys)

    def purge_local_results(self, jobs: Jobs = (), targets: Any = ()) -> None:
        """Forget results that this client keeps.

        Parameters
        ----------
        jobs : "all", or whatever names requests
        targets : int or list of int
            Engines whose results to forget.

        Raises
        ------
        RuntimeError
            When a request has not ended.
        ValueError
            When neither is given.
        """
        if jobs == "all":
            if self.outstanding:
                raise RuntimeError(f"Can't purge outstanding tasks: {self.outstanding}")
            msg_ids = {*self.results, *self.metadata}
        else:
            msg_ids = self._to_purge(jobs, targets)
            waiting = self.outstanding & msg_ids
            if waiting:
                raise RuntimeError(f"Can't purge outstanding tasks: {waiting}")
        for msg_id in msg_ids:
            self.results.pop(msg_id, None)
            self.metadata.pop(msg_id, None)

    def _to_purge(self, jobs: Jobs, targets: Any) -> set[str]:
        no_targets = not targets and targets != 0
        if no_targets and not jobs and jobs != 0:
            raise ValueError("Must specify at least one of `targets` and `jobs`")
        msg_ids = set(self._msg_ids_from_jobs(jobs)) if jobs or jobs == 0 else set()
        if not no_targets:
            keys = set(self._build_targets(targets)[0])
            msg_ids.update(m for m, md in list(self.metadata.items()) if md["engine_uuid"] in keys)
        return msg_ids

    def purge_hub_results(self, jobs: Jobs = (), targets: Any = ()) -> None:
        """Have engines forget requests; arguments as :meth:`purge_local_results`."""
        everybody = list(self._dispatcher.engines)
        if jobs == "all":
            self._hub.purge(None, everybody)
            return
        self._to_purge(jobs, targets)
        if targets or targets == 0:
            self._hub.purge(None, self._build_targets(targets)[0])
        if jobs or jobs == 0:
            self._hub.purge(self._msg_ids_from_jobs(jobs), everybody)

    def purge_results(self, jobs: Jobs = (), targets: Any = ()) -> None:
        """Forget requests here and on the engines."""
        self.purge_local_results(jobs=jobs, targets=targets)
        self.purge_hub_results(jobs=jobs, targets=targets)

    def purge_everything(self) -> None:
        """Forget every request, here and on the engines, and the history."""
        self.purge_results("all")
        self.history.clear()


class FuturesByID(Mapping[str, MessageFuture]):
    """Futures of requests that are outstanding, or finished and kept, by msg_id."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def __getitem__(self, msg_id: str) -> MessageFuture:
        with self._dispatcher.lock:
            future = self._dispatcher.outstanding.get(msg_id)
            return future if future is not None else self._dispatcher.results.futures[msg_id]

    def __iter__(self) -> Iterator[str]:
        with self._dispatcher.lock:
            return iter([*self._dispatcher.outstanding, *self._dispatcher.results])

    def __len__(self) -> int:
        with self._dispatcher.lock:
            return len(self._dispatcher.outstanding) + len(self._dispatcher.results)


def _listed(jobs: Jobs) -> Iterable[Any]:
    return jobs if several(jobs) else [jobs]
