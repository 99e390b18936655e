"""Conditions of tasks: checked on arrival at an engine, and nowhere else."""

from __future__ import annotations

import base64
import pickle
from types import SimpleNamespace

import pytest

from pxcompat import serialize
from pxcompat.dependency import Dependency, depend, dependent, require
from pxcompat.error import UnmetDependency
from pxcompat.util import interactive

CHECKED: list[tuple] = []


def allow(*args, **kwargs):
    CHECKED.append((args, kwargs))
    return True


def refuse():
    return False


def refuse_by_raising():
    raise UnmetDependency("not here")


def send(f, namespace):
    """The function as it arrives on an engine."""
    return serialize.loads(serialize.dumps(f), namespace)


@pytest.fixture(autouse=True)
def nothing_checked():
    CHECKED.clear()


def test_the_condition_is_called_on_arrival_with_its_arguments():
    @depend(allow, 1, b=2)
    def f(x):
        return x + 1

    assert f(1) == 2 and f.__name__ == "f"
    assert CHECKED == []
    arrived = send(f, {})
    assert CHECKED == [((1,), {"b": 2})]
    assert arrived(1) == 2
    assert len(CHECKED) == 1


@pytest.mark.parametrize("condition", [refuse, refuse_by_raising])
def test_an_unmet_condition_keeps_the_function_from_running(condition):
    f = depend(condition)(lambda: 1)
    with pytest.raises(UnmetDependency):
        send(f, {})
    with pytest.raises(UnmetDependency):
        f.check_dependency()


def test_what_comes_back_to_the_client_is_not_checked():
    f = depend(refuse)(abs)
    assert pickle.loads(pickle.dumps(f))(-1) == 1
    assert serialize.loads(serialize.dumps(f))(-1) == 1


def test_canning_checks_too():
    namespace: dict = {}
    f = serialize.uncan(serialize.can(require("base64")(interactive(lambda: base64))), namespace)
    assert f() is base64 and namespace["base64"] is base64


def test_conditions_of_conditions_are_checked():
    f = depend(allow)(depend(refuse)(abs))
    with pytest.raises(UnmetDependency):
        send(f, {})


def test_require_imports_modules():
    namespace: dict = {}

    @require("base64", "os.path")
    @interactive
    def encode(data):
        return base64.b64encode(data), os.path  # noqa: F821

    assert send(encode, namespace)(b"foo")[0] == b"Zm9v"
    assert namespace["base64"] is base64


def test_require_takes_modules_and_functions_and_objects():
    namespace: dict = {}

    @interactive
    def double(x):
        return 2 * x

    @require(base64, double, offset=5)
    @interactive
    def f(x):
        return double(x) + offset, base64  # noqa: F821

    assert send(f, namespace)(1) == (7, base64)
    assert namespace["offset"] == 5


def test_a_module_that_is_not_there_is_an_unmet_dependency():
    f = require("no_such_module")(interactive(lambda: 1))
    with pytest.raises(UnmetDependency, match="no_such_module"):
        send(f, {})


def test_requirements_add_up():
    @require("base64")
    @require(offset=1)
    @interactive
    def f():
        return base64, offset  # noqa: F821

    assert send(f, {})() == (base64, 1)


def test_require_works_under_cloudpickle():
    serialize.use_cloudpickle()
    try:

        @require(offset=1)
        @interactive
        def f():
            return offset  # noqa: F821

        assert send(f, {})() == 1
    finally:
        serialize.use_pickle()


def test_require_wants_a_name_for_what_has_none():
    with pytest.raises(TypeError, match="by keyword"):
        require(5)


def test_dependency_takes_results_ids_and_its_own_dict():
    result = SimpleNamespace(msg_ids=["a", "b"])
    assert Dependency(result) == {"a", "b"}
    assert Dependency([result, "c"]) == {"a", "b", "c"}
    assert Dependency("abc") == {"abc"}
    dep = Dependency(["a"], all=False, success=False, failure=True)
    again = Dependency(dep.as_dict())
    assert again == dep and again.as_dict() == dep.as_dict()
    assert Dependency(dep).as_dict() == dep.as_dict()
    assert pickle.loads(pickle.dumps(dep)).as_dict() == dep.as_dict()


def test_dependency_refuses_other_things():
    with pytest.raises(TypeError, match="int"):
        Dependency([5])
    with pytest.raises(ValueError):
        Dependency([], success=False, failure=False)


# (all, success, failure) -> met and lost, given that "a" succeeded, "b" failed, and "c" runs
@pytest.mark.parametrize(
    "ids, flags, met, lost",
    [
        ("a", (True, True, False), True, False),
        ("b", (True, True, False), False, True),
        ("c", (True, True, False), False, False),
        ("ab", (True, True, False), False, True),
        ("ab", (True, True, True), True, False),
        ("ab", (False, True, False), True, False),
        ("bc", (False, True, False), False, False),
        ("b", (False, True, False), False, True),
        ("a", (True, False, True), False, True),
        ("b", (True, False, True), True, False),
        ("", (True, True, False), True, False),
    ],
)
def test_met_and_unreachable(ids, flags, met, lost):
    dep = Dependency(list(ids), *flags)
    assert dep.check({"a"}, {"b"}) is met
    assert dep.unreachable({"a"}, {"b"}) is lost


def test_dependent_is_what_the_decorators_make():
    assert isinstance(depend(allow)(abs), dependent)
    assert isinstance(require("os")(abs), dependent)
