"""How a client comes to a cluster's registry, and to engines where there are none yet."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

import pxcompat
from pxcompat.error import BackendError, ConnectError

from . import registry
from .adoption import explain, upload_where_missing
from .following import wants
from .order import PATIENCE, asked, registry_order
from .session import Session

__all__ = ["greet", "populate"]

log = logging.getLogger("pxcompat.ray")

#: seconds beyond an engine's own for the registry to say what became of it
STARTING = 3
#: and for Ray to give up an engine whose node went meanwhile
OUTAGE = 30


def greet(
    info: Mapping[str, Any], session: Session, client: str, deadline: float
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Find the cluster's registry, or start one on a Ray that somebody else runs; the registry,
    and what it says first.

    Parameters
    ----------
    info
        Of the cluster, as :class:`~.backend.RayBackend` takes it.
    client
        The client's id.
    deadline
        Until when the registry has to answer, by ``time.monotonic``; one that is started here,
        on a machine that may have much to do, has as long as an engine to come up.
    """
    namespace = info.get("namespace", "pxcompat")
    found: Any = None
    last = "its cluster was stopped"
    while True:
        try:
            found = ray.get_actor(registry.NAME, namespace=namespace)
        except ValueError:
            if "adopt" in info:
                with contextlib.suppress(ValueError):  # another client was quicker
                    found = _create_registry(info["adopt"], namespace)
                    deadline = max(deadline, time.monotonic() + _patience(info))
        timeout = max(0.1, deadline - time.monotonic())
        try:
            if found is not None:
                return found, _hello(found, client, info, timeout)
        except ActorDiedError as error:
            found = None  # one that was just stopped
            last = registry.why(error)
            _explain(info, last)
        except (GetTimeoutError, RayError) as error:
            raise _no_answer(info, "asking the registry", timeout, error) from error
        if time.monotonic() > deadline:
            raise ConnectError(
                f"the Ray cluster at {info['address']} has no engines of pxcompat in "
                f"its namespace {namespace!r} (stage: finding the registry): {last}"
            )
        time.sleep(0.05)  # a name may take a moment to be known everywhere, or forgotten


def _hello(
    found: Any, client: str, info: Mapping[str, Any], timeout: float
) -> list[tuple[Any, ...]]:
    """Introduce a client to a registry, of the same version of the package."""
    version = found.version.remote() if hasattr(found, "version") else None
    known: Any = None
    try:
        # we own what our staying returns: of that Ray tells the registry when we are dead
        known = found.hello.remote(client, [found.stay.remote(client)])
    except (AttributeError, TypeError):
        log.debug("the registry has other methods")
    try:
        theirs = "an older one" if version is None else ray.get(version, timeout=timeout)
        if known is None or theirs != pxcompat.__version__:
            raise BackendError(
                f"the engines on the Ray cluster at {info['address']} are of another pxcompat: "
                f"{theirs} there, {pxcompat.__version__} here. Install the same one, or stop those "
                "engines, and start others, with this one"
            )
        return list(ray.get(known, timeout=timeout))
    except BaseException:
        if hasattr(found, "goodbye"):
            found.goodbye.remote(client)
        raise


def _create_registry(adopt: Mapping[str, Any], namespace: str) -> Any:
    options = adopt["options"]
    _bring_along(options)
    order = registry_order(options, adopt["setup"], namespace, logs="", own=False, adopted=True)
    # it goes with the last client, whoever that is
    return registry.create(order, detached=True)


def _bring_along(options: dict[str, Any]) -> None:
    """Have the runtime environment bring the package along, where it is to be uploaded."""
    if options.get("upload"):
        options["runtime_env"] = upload_where_missing(options.get("runtime_env"))


def _explain(info: Mapping[str, Any], why: str) -> None:
    """Raise BackendError when the reason is that nodes lack the package."""
    if "adopt" in info and ("No module named" in why or "ModuleNotFoundError" in why):
        options = info["adopt"]["options"]
        uploaded = bool(options.get("upload"))
        explain(info["address"], options.get("runtime_env"), uploaded=uploaded)


def populate(info: Mapping[str, Any], there: Any, count: int) -> int:
    """Start the engines that are missing on a Ray that somebody else runs; how many there
    are then.

    Parameters
    ----------
    there
        The registry.
    count
        How many engines there are.
    """
    adopt = info["adopt"]
    wanted = adopt["n"]
    if (wanted is None and count) or (wanted is not None and wanted <= count):
        return count
    timeout = _patience(info) + STARTING
    try:
        if wanted is None:
            keys = ray.get(there.follow.remote(), timeout=timeout)
            wanted = count + len(keys)
            if not wanted:
                needs = wants(asked(adopt["options"])["actor"])
                log.warning(
                    "no node of the Ray cluster at %s has what an engine asks for (%s): there are"
                    " no engines until one comes that has it. Have engines ask for less (num_cpus,"
                    " num_gpus, resources), or add nodes",
                    info["address"],
                    ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount),
                )
        else:
            options = adopt["options"]
            if count and options.get("runtime_env"):
                _bring_along(options)  # it is in place of the other engines', which may do that
            started = there.start_engines.remote(wanted - count, None, asked(options))
            keys = ray.get(started, timeout=timeout)
        failures = ray.get(there.await_engines.remote(keys), timeout=timeout + OUTAGE)
    except (GetTimeoutError, RayError) as error:
        raise _no_answer(info, "starting engines", timeout, error) from error
    if failures:
        # all or nothing: what did start would keep what others need
        ray.get(there.stop_engines.remote(keys, True), timeout=OUTAGE)
        if not count:
            ray.kill(there)
        _explain(info, failures[0])
        raise BackendError(
            f"{len(failures)} of {len(keys)} engines did not start on the Ray cluster at "
            f"{info['address']}: {failures[0]}"
        )
    return int(wanted)


def _patience(info: Mapping[str, Any]) -> float:
    """Seconds for what is started on a Ray that somebody else runs."""
    return float(info["adopt"]["options"].get("patience", PATIENCE))


def _no_answer(
    info: Mapping[str, Any], stage: str, timeout: float, error: BaseException
) -> ConnectError:
    return ConnectError(
        f"the Ray cluster at {info['address']} does not answer (stage: {stage}; "
        f"waited {timeout:g} s at most): {type(error).__name__}: {error}"
    )
