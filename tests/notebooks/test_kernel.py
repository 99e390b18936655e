"""Cells in a real kernel, as ``pxcompat kernel install`` installs it and Jupyter runs it.

``PXCOMPAT_TEST_PYTHONS`` names further interpreters to do so with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .jupyter import BACKENDS, PYTHONS, Notebook, install_kernel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=PYTHONS)
def notebook(
    request: pytest.FixtureRequest, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Notebook]:
    """A notebook with two engines, written for ipyparallel."""
    # a unix socket's path is short
    folder = tmp_path_factory.mktemp("k")
    install_kernel(request.param, folder, "--backend", backend, "-n", "2", "--name", "px2")
    env = {"IPYTHONDIR": str(folder / "ipython"), "PXCOMPAT_NONINTERACTIVE": ""}
    notebook = Notebook("px2", folder, env)
    try:
        cell = notebook.run("import ipyparallel as ipp; rc = ipp.Client(); rc.ids")
        assert cell.texts()[-1] == "[0, 1]", cell.all_text()
        notebook.run("import os, time; dv = rc[:]; dv.execute('import os, sys, time', block=True)")
        yield notebook
    finally:
        notebook.close()


@pytest.fixture
def gate(tmp_path: Path, notebook: Notebook) -> Path:
    """A file that engines wait for, in cells, with ``hold()``."""
    path = tmp_path / "gate"
    notebook.run(
        "%%px\n"
        "def hold():\n"
        "    end = time.monotonic() + 60\n"
        f"    while not os.path.exists({str(path)!r}) and time.monotonic() < end:\n"
        "        time.sleep(0.01)"
    )
    return path


def of_streams(texts: list[str]) -> list[str]:
    return sorted(text for text in texts if text.startswith("[std"))


def test_the_kernel_as_it_is_installed(backend: str, tmp_path: Path) -> None:
    said = install_kernel(PYTHONS[0], tmp_path)
    folder = tmp_path / "share" / "jupyter" / "kernels" / "pxcompat"
    assert str(folder) in said
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["argv"][:3] == [PYTHONS[0], "-m", "pxcompat.kernel"]
    assert spec["display_name"] == "Python 3 (pxcompat)" and spec["env"] == {}
    assert list(folder.glob("logo*.png"))


def test_the_alias_is_on(notebook: Notebook) -> None:
    cell = notebook.run(
        "from IPython import parallel; parallel.Client is ipp.Client, ipp.Client.__module__"
    )
    assert cell.texts() == ["(True, 'pxcompat.client')"]


def test_streams_results_and_displays(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%px\nfrom IPython.display import HTML, Latex, display\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "display(HTML('<b>bold</b>')); display(Latex('$x^2$')); 6 * 7"
    )
    texts = cell.texts()
    for i in (0, 1):
        assert f"[stdout:{i}] out\n" in texts and f"[stderr:{i}] err\n" in texts
        assert texts.count(f"[output:{i}]") == 2
        assert any(re.fullmatch(rf"Out\[{i}:\d+\]: 42", text) for text in texts)
    kinds = [kind for display in cell.shown() for kind in display["data"]]
    assert kinds.count("text/html") == kinds.count("text/latex") == 2
    assert cell.stream("stdout") == cell.stream("stderr") == ""


def test_output_stays_with_its_cell_while_another_runs(notebook: Notebook, gate: Path) -> None:
    first = notebook.start(
        "%%px --noblock --stream\nfrom IPython.display import HTML, display\n"
        "print('begun')\nhold()\nfor i in range(50): print(i); display(HTML(f'<i>{i}</i>'))\n"
        "'the result'"
    )
    notebook.wait(lambda: sum("begun" in text for text in first.texts()) == 2)
    second = notebook.run(
        f"print('second')\nopen({str(gate)!r}, 'w').close()\n"
        "_ = [ar.wait_for_output(60) for ar in [rc.get_result(-1, owner=False)]]\n"
        "time.sleep(0.5)\nprint('second ends')"
    )
    notebook.wait(lambda: sum("the result" in text for text in first.texts()) == 2)
    assert second.all_text().split() == ["second", "second", "ends"]
    lines = "\n".join(["begun", *map(str, range(50)), ""])
    assert of_streams(first.texts()) == [f"[stdout:{i}] {lines}" for i in (0, 1)]
    frames = [
        d["data"]["text/html"] for d in first.shown() if "<i>" in d["data"].get("text/html", "")
    ]
    assert sorted(frames) == sorted([f"<i>{i}</i>" for i in range(50)] * 2)


def test_bars_on_engines(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%px\nfrom tqdm import tqdm\nfor i in tqdm(range(20)): time.sleep(0.01)\n"
        "print('0%', end=''); print('\\rwhole', end='')"
    )
    shown = of_streams(cell.texts())
    for i, line in enumerate(shown[:2]):
        assert re.fullmatch(rf"\[stderr:{i}\] 100%\|█+\| 20/20 \[.*it/s\]\n", line)
    assert shown[2:] == ["[stdout:0] whole", "[stdout:1] whole"]


def test_frames_of_an_animation_replace_each_other(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%px -t 0\nfrom IPython.display import HTML, clear_output, display\n"
        "for i in range(5):\n    clear_output(wait=True); display(HTML(f'<b>{i}</b>')); print(i)"
    )
    assert [d["data"] for d in cell.shown() if "text/html" in d["data"]] == [
        {"text/html": "<b>4</b>", "text/plain": "<IPython.core.display.HTML object>"}
    ]
    assert of_streams(cell.texts()) == ["[stdout:0] 4\n"]


VIEW = "application/vnd.jupyter.widget-view+json"


def said_by(notebook: Notebook, model: str) -> list[dict[str, Any]]:
    """The states that a widget has told the browser of."""
    messages = [m["content"] for m in notebook.widgets if m["content"]["comm_id"] == model]
    return [content["data"].get("state", {}) for content in messages]


def test_widgets_of_engines_are_live(notebook: Notebook) -> None:
    cell = notebook.run("%%px -t 0\nimport ipywidgets\nslider = ipywidgets.IntSlider(3)\nslider")
    if "ModuleNotFoundError" in cell.all_text():
        pytest.skip("no ipywidgets in this environment")
    (shown,) = cell.shown()
    model = shown["data"][VIEW]["model_id"]
    assert "IntSlider(value=3" in shown["data"]["text/plain"]
    opened = {c["comm_id"]: c["data"]["state"] for c in cell.contents("comm_open")}
    assert opened[model]["value"] == 3

    # the browser moves it, and the engine knows; the engine moves it, and the browser knows
    history = notebook.run("len(rc.history)").texts()
    notebook.tell_widget(model, {"method": "update", "state": {"value": 7}})
    moved = notebook.run("%%px -t 0\nslider.value")
    assert moved.texts()[0].endswith(": 7"), moved.all_text()
    assert notebook.run("len(rc.history) - 1").texts() == history
    notebook.run("%%px -t 0\nslider.value = 9")
    notebook.wait(lambda: {"value": 9} in said_by(notebook, model))

    # also by a thread that outlives the cell that made it
    notebook.run(
        "%%px -t 0\nimport threading\ngo = threading.Event()\n"
        "thread = threading.Thread(target=lambda: go.wait(60) and setattr(slider, 'value', 11))\n"
        "thread.start()"
    )
    notebook.run("%%px -t 0\ngo.set(); thread.join(60)")
    notebook.wait(lambda: {"value": 11} in said_by(notebook, model))


def test_a_notebooks_bar_on_an_engine_moves(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%px -t 0\nfrom tqdm.notebook import tqdm\nfor i in tqdm(range(20)): time.sleep(0.01)"
    )
    if "ModuleNotFoundError" in cell.all_text() or "IProgress not found" in cell.all_text():
        pytest.skip("no ipywidgets in this environment")
    assert any(VIEW in shown["data"] for shown in cell.shown())
    states = [c["data"].get("state", {}) for c in cell.contents("comm_msg")]
    assert any("20/20" in str(state.get("value")) for state in states)


def test_plots(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%px\n%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()"
    )
    if "ModuleNotFoundError" in cell.all_text():
        pytest.skip("no matplotlib in this environment")
    assert sum("image/png" in display["data"] for display in cell.shown()) == 2


def test_an_error_is_shown_once(notebook: Notebook) -> None:
    one = notebook.run("%%px -t 0\n1/0").all_text()
    assert one.count("ZeroDivisionError: division by zero") == one.count("[0:execute]") == 1
    both = notebook.run("%%px\n1/0").all_text()
    assert both.count("ZeroDivisionError: division by zero") == 2
    assert both.endswith("2 errors")


@pytest.mark.parametrize(
    "code, said",
    [
        ("rc", "Dashboard"),
        ("rc[:]", "Engines"),
        ("rc.load_balanced_view()", "Engines"),
        ("dv.map_async(len, ['', ''])", "2"),
        ("ipp.Cluster(n=1)", "not running"),
    ],
)
def test_things_show_what_they_are(notebook: Notebook, code: str, said: str) -> None:
    (shown,) = notebook.run(code).shown()
    assert said in shown["data"]["text/html"]
    assert re.fullmatch(r"<.*>", shown["data"]["text/plain"])


def test_a_bar_takes_the_notebooks_form(notebook: Notebook) -> None:
    if (
        "True"
        not in notebook.run("import importlib.util as u; bool(u.find_spec('ipywidgets'))").texts()
    ):
        pytest.skip("no ipywidgets in this environment")
    cell = notebook.run("ar = dv.map_async(len, ['a'] * 6); ar.wait_interactive()")
    (bar,) = [d["data"] for d in cell.shown()]
    assert "application/vnd.jupyter.widget-view+json" in bar
    assert "6/6" in bar["text/plain"] or "0/6" in bar["text/plain"]
    assert cell.stream("stderr") == ""


def test_interrupting_a_cell_interrupts_the_engines(notebook: Notebook) -> None:
    cell = notebook.start("%%px\nprint('begun')\ntime.sleep(60)")
    notebook.wait(lambda: sum("begun" in text for text in cell.texts()) == 2)
    notebook.interrupt()
    notebook.wait(lambda: cell.idle)
    said = "Received Keyboard Interrupt. Sending signal SIGINT to engines...\n"
    assert said in cell.stream("stderr")
    assert cell.stream("stderr").count("KeyboardInterrupt") >= 2
    assert not cell.contents("error")
    assert notebook.run("dv.apply_sync(os.getpid) == rc[:].apply_sync(os.getpid)").texts() == [
        "True"
    ]


@pytest.mark.parametrize(
    "call, ends_as",
    [
        ("dv.apply_sync(hold)", "<AsyncResult(hold): pending>"),
        ("dv.map_sync(hold, [0, 0])", "<AsyncMapResult(hold): pending>"),
        ("dv.apply_async(hold).get()", "KeyboardInterrupt"),
    ],
)
def test_interrupting_a_call_leaves_the_engines_at_work(
    notebook: Notebook, gate: Path, call: str, ends_as: str
) -> None:
    started = gate.with_name("started")
    notebook.run(
        f"def hold(*ignored, started={str(started)!r}, gate={str(gate)!r}):\n"
        + "    import os, time\n    open(started, 'w').close()\n    end = time.monotonic() + 60\n"
        "    while not os.path.exists(gate) and time.monotonic() < end: time.sleep(0.01)\n"
        "    return 'done'"
    )
    cell = notebook.start(f"print('begun')\n{call}")
    notebook.wait(lambda: "begun" in cell.stream("stdout") and started.exists())
    notebook.interrupt()
    notebook.wait(lambda: cell.idle)
    assert ends_as in cell.all_text()
    gate.touch()
    answers = notebook.run("rc.get_result(rc.history[-2:]).get()").all_text()
    assert answers.count("done") == 2


def of_kind(cell: Any, kind: str) -> list[Any]:
    return [display["data"][kind] for display in cell.shown() if kind in display["data"]]


def test_many_different_outputs_are_folded_away(notebook: Notebook) -> None:
    """Twelve requests that say something different each, as of twelve engines."""
    cell = notebook.run(
        "from pxcompat.display import show_outputs\n"
        "ars = [rc[0].execute(f'print({i})', silent=False) for i in range(12)]\n"
        "_ = [ar.wait_for_output(60) for ar in ars]\n"
        "for i, ar in enumerate(ars): ar.metadata['engine_id'] = i\n"
        "show_outputs([ar.metadata for ar in ars], groupby='folded')"
    )
    assert cell.stream("stdout").startswith("[stdout:0] \n0\n[stdout:1] \n1\n")
    (hidden,) = of_kind(cell, "text/html")
    assert "<details>" in hidden and "[stdout:10-11] 2 more outputs" in hidden
