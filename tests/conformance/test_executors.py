"""Views as executors: futures, asyncio, Dask's and joblib's schedulers; from many threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, as_completed, wait
from typing import Any

import dask
import joblib
import pytest

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .test_requests import hold, is_running


def square(x: int) -> int:
    return x * x


class TestExecutor:
    def test_is_one(self, rc: ipp.Client) -> None:
        with rc.executor() as executor:
            assert isinstance(executor, Executor) and executor.view.client is rc
            futures = [executor.submit(square, n) for n in range(5)]
            assert {f.result(PATIENCE) for f in as_completed(futures)} == {0, 1, 4, 9, 16}
            assert list(executor.map(square, range(5), timeout=None, chunksize=2)) == [
                *(0, 1, 4, 9, 16)
            ]
        # what leaves is the executor, not the engines
        assert rc.executor().submit(square, 3).result(PATIENCE) == 9

    def test_shutdown_takes_back_what_has_not_started(self, rc: ipp.Client, tmp_path: Any) -> None:
        executor = rc.executor(rc.ids[:1])
        running = executor.submit(hold, str(tmp_path / "go"))
        wait_until(lambda: is_running(rc, running))
        queued = [executor.submit(square, n) for n in range(3)]
        executor.shutdown(wait=False, cancel_futures=True)
        for future in queued:
            assert isinstance(future.exception(PATIENCE), ipp.TaskAborted)
        (tmp_path / "go").touch()
        assert running.result(PATIENCE)

    def test_asyncio_runs_in_it(self, rc: ipp.Client) -> None:
        async def main() -> list[int]:
            loop = asyncio.get_running_loop()
            calls = (loop.run_in_executor(rc.executor(), square, n) for n in range(4))
            return await asyncio.gather(*calls)

        assert asyncio.run(main()) == [0, 1, 4, 9]

    def test_dask_computes_on_it(self, rc: ipp.Client) -> None:
        total = dask.delayed(sum)([dask.delayed(square)(n) for n in range(10)])
        assert total.compute(scheduler=rc.executor()) == 285


class TestFutures:
    def test_wait_and_callbacks(self, rc: ipp.Client, tmp_path: Any) -> None:
        first, second = rc[rc.ids[0]], rc[rc.ids[1]]
        slow = first.apply_async(hold, str(tmp_path / "go"))
        quick = second.apply_async(square, 2)
        done, pending = wait([slow, quick], PATIENCE, return_when=FIRST_COMPLETED)
        assert done == {quick} and pending == {slow}
        told = threading.Event()
        slow.add_done_callback(lambda ar: told.set() if ar is slow else None)
        (tmp_path / "go").touch()
        assert told.wait(PATIENCE)

    def test_join_and_split(self, rc: ipp.Client) -> None:
        parts = [view.apply_async(square, n) for n, view in enumerate(rc)]
        joined = ipp.AsyncResult.join(*parts)
        assert joined.get(PATIENCE) == [n * n for n in range(len(rc))]
        assert [part.get(PATIENCE) for part in joined.split()] == joined.get()
        assert joined.get_dict() == {engine: n * n for n, engine in enumerate(rc.ids)}

    def test_cancelled_before_it_runs(self, rc: ipp.Client, tmp_path: Any) -> None:
        view = rc[rc.ids[0]]
        running = view.apply_async(hold, str(tmp_path / "go"))
        wait_until(lambda: is_running(rc, running))
        path = str(tmp_path / "ran")
        queued = view.apply_async(lambda: open(path, "w").close())
        assert queued.cancel() and queued.cancelled() and queued.done()
        assert list(as_completed([queued])) == [queued]
        # it does not wait for the engine to know
        wait_until(lambda: rc.result_status(queued.msg_ids)["completed"])
        wait_until(lambda: not rc.queue_status(targets=rc.ids[0], verbose=True)["queue"][1:])
        (tmp_path / "go").touch()
        view.apply_async(int).get(PATIENCE)
        assert not (tmp_path / "ran").exists()
        assert not running.cancel()

    def test_exceptions_among_the_results(self, rc: ipp.Client) -> None:
        def inverse(x: int) -> float:
            return 1 / x

        lbv = rc.load_balanced_view()
        for found in (
            lbv.map_async(inverse, [1, 0, 2], return_exceptions=True).get(PATIENCE),
            lbv.map_async(inverse, [1, 0, 2]).get(PATIENCE, return_exceptions=True),
            list(lbv.imap(inverse, [1, 0, 2], return_exceptions=True)),
            list(lbv.map_async(inverse, [1, 0, 2], return_exceptions=True)),
        ):
            assert found[0::2] == [1.0, 0.5]
            assert isinstance(found[1], ipp.RemoteError) and found[1].ename == "ZeroDivisionError"

    def test_a_closed_clients_results_fail(
        self, rc: ipp.Client, cluster: Any, tmp_path: Any
    ) -> None:
        other = cluster.connect_client_sync()
        ar = other[other.ids[0]].apply_async(hold, str(tmp_path / "go"))
        wait_until(lambda: is_running(rc, ar))
        other.close()
        with pytest.raises(ipp.EngineError, match="the client was closed"):
            ar.get(PATIENCE)
        (tmp_path / "go").touch()
        # its record is with the engine, and whoever asks gets it
        assert rc.get_result(ar.msg_ids[0]).get(PATIENCE) == str(tmp_path / "go")


def test_ten_threads_and_an_event_loop_use_one_client(rc: ipp.Client) -> None:
    direct, balanced, broadcast = rc[:], rc.load_balanced_view(), rc.broadcast_view()
    everybody = [1] * len(rc)

    def in_a_thread(n: int) -> bool:
        results = [
            direct.apply_sync(square, n) == [n * n] * len(rc),
            broadcast.apply_sync(square, n) == [n * n] * len(rc),
            balanced.map_sync(square, range(n)) == [x * x for x in range(n)],
            list(rc.executor().map(square, range(5))) == [0, 1, 4, 9, 16],
            rc.wait(balanced.apply_async(square, n), PATIENCE),
        ]
        return all(results)

    async def in_the_loop() -> Any:
        await asyncio.sleep(0)
        parts = (asyncio.wrap_future(direct.apply_async(square, 1)) for _ in range(20))
        everything = await asyncio.wait_for(asyncio.gather(*parts), PATIENCE)
        return [*everything, await balanced.map_async(square, range(3))]

    with ThreadPoolExecutor(10) as pool:
        working = [pool.submit(in_a_thread, n) for n in range(10, 30)]
        assert asyncio.run(in_the_loop()) == [everybody] * 20 + [[0, 1, 4]]
        assert all(future.result(PATIENCE) for future in working)


class TestJoblib:
    @pytest.fixture(autouse=True)
    def registered(self, rc: ipp.Client) -> Iterator[None]:
        rc.load_balanced_view().register_joblib_backend("of_the_test")
        yield
        del joblib.parallel.BACKENDS["of_the_test"]

    def run(self, f: Callable[[int], Any], n: int = 6, **options: Any) -> Any:
        with joblib.parallel_config("of_the_test", **options):
            return joblib.Parallel(n_jobs=-1)(joblib.delayed(f)(i) for i in range(n))

    def test_results_in_order(self) -> None:
        assert self.run(square, 20) == [n * n for n in range(20)]

    def test_with_a_client_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PXCOMPAT_CLUSTER_ID", "conformance")
        names: dict[str, Any] = {"__name__": "__main__"}
        exec("factor = 3\ndef scaled(n):\n    return n * factor", names)
        ipp.register_joblib_backend("its_own")
        try:
            with joblib.parallel_config("its_own"):
                for _ in range(2):  # its client is closed in between
                    calls = (joblib.delayed(names["scaled"])(n) for n in range(4))
                    assert joblib.Parallel()(calls) == [0, 3, 6, 9]
        finally:
            del joblib.parallel.BACKENDS["its_own"]

    def test_an_error_ends_it(self) -> None:
        with pytest.raises(ipp.RemoteError, match="ZeroDivisionError"):
            self.run(lambda n: 1 / (n - 3))

    def test_inner_threads_share_the_cores(self, rc: ipp.Client) -> None:
        @ipp.interactive
        def threads(_: int) -> Any:
            import os

            import joblib

            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            return joblib.cpu_count(), *(os.environ.get(name) for name in names)

        before = rc[:].apply_async(threads, 0).get(PATIENCE)
        share = max(1, joblib.cpu_count() // len(rc))
        assert set(self.run(threads)) == {(share, str(share), str(share))}
        most = set(self.run(threads, inner_max_num_threads=1))
        assert most == {(1, "1", "1")}
        assert rc[:].apply_async(threads, 0).get(PATIENCE) == before

    def test_what_an_engines_environment_says_counts(self, rc: ipp.Client) -> None:
        rc[:].execute("import os; os.environ['OMP_NUM_THREADS'] = '7'", block=True)
        try:

            @ipp.interactive
            def threads(_: int) -> Any:
                import os

                return os.environ.get("OMP_NUM_THREADS")

            assert set(self.run(threads)) == {"7"}
        finally:
            rc[:].execute("del os.environ['OMP_NUM_THREADS']", block=True)

    def test_nested_in_threads(self) -> None:
        @ipp.interactive
        def nested(n: int) -> Any:
            import joblib

            return joblib.Parallel(n_jobs=-1)(joblib.delayed(abs)(i) for i in range(n))

        assert self.run(nested) == [list(range(n)) for n in range(6)]

    def test_nested_on_the_same_engines(self, rc: ipp.Client) -> None:
        @ipp.interactive
        def nested(n: int) -> Any:
            import joblib
            from ipyparallel import register_joblib_backend

            register_joblib_backend("here")
            with joblib.parallel_config("here"):
                return joblib.Parallel(n_jobs=-1)(joblib.delayed(abs)(i) for i in range(n))

        assert self.run(nested) == [list(range(n)) for n in range(6)]
        assert rc[:].apply_async(nested, 5).get(PATIENCE) == [list(range(5))] * len(rc)
