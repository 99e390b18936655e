"""What may stand on the line of ``%px``, ``%pxconfig`` and ``%pxresult``."""

from __future__ import annotations

import argparse
import inspect
import re
import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser, argument

from ..display import GROUPINGS

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "cell_parser",
    "config_parser",
    "documents",
    "exec_args",
    "output_args",
    "parse",
    "result_parser",
    "targets_of",
    "who_parser",
]

Method = TypeVar("Method", bound=Callable[..., Any])

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")


def config_parser() -> MagicArgumentParser:
    """The options of ``%pxconfig``."""
    parser = _parser("pxconfig")
    _add_execution(parser)
    _add_grouping(parser)
    return parser


def who_parser() -> MagicArgumentParser:
    """The options of ``%pxwho``."""
    parser = _parser("pxwho")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="names to list, with wildcards as *_of_x; default: all that are not private",
    )
    _add_targets(parser)
    parser.add_argument(
        "-d", "--differences", action="store_true", help="only names that differ between engines"
    )
    return parser


def result_parser() -> MagicArgumentParser:
    """The options of ``%pxresult``."""
    parser = _parser("pxresult")
    _add_output(parser)
    return parser


def cell_parser() -> MagicArgumentParser:
    """The options of ``%%px``."""
    parser = _parser("%px")
    _add_execution(parser)
    _add_output(parser)
    parser.add_argument(
        "--local", action="store_true", help="also run the cell here, while the engines run it"
    )
    parser.add_argument(
        "--push",
        type=_names,
        metavar="NAMES",
        help="names of this session, as a,b, whose values the engines get before they run the cell",
    )
    parser.add_argument(
        "--pull",
        type=_names,
        metavar="NAMES",
        help="names of the engines, as a,b, that this session gets when they have run the cell:"
        " a list of each engine's value, or for one engine by its id the value; with --noblock"
        " an AsyncResult of that",
    )
    return parser


def exec_args(f: Method) -> Method:
    """Decorate a magic of your own, beneath ``@magic_arguments()``, to have the options of
    ``%pxconfig`` (ipyparallel.client.magics.exec_args)."""
    return _decorated(f, _add_execution)


def output_args(f: Method) -> Method:
    """The same for the options of ``%pxresult`` (ipyparallel.client.magics.output_args)."""
    return _decorated(f, _add_output)


def _decorated(f: Method, add: Callable[[MagicArgumentParser], None]) -> Method:
    recorder = _Recorder()
    add(recorder)  # type: ignore[arg-type]
    # decorators apply from the bottom up
    for names, options in reversed(recorder.arguments):
        f = argument(*names, **options)(f)
    return f


class _Recorder:
    """Stands for a parser that is made later."""

    def __init__(self) -> None:
        self.arguments: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def add_argument(self, *names: str, **options: Any) -> None:
        self.arguments.append((names, options))


def parse(parser: MagicArgumentParser, line: str) -> argparse.Namespace:
    """The options on a magic's line; UsageError where they make no sense."""
    options: argparse.Namespace = parser.parse_argstring(line)
    return options


def documents(parser: MagicArgumentParser) -> Callable[[Method], Method]:
    """Give a method's docstring, which ``%px?`` shows, the usage and options of its magic."""

    def document(method: Method) -> Method:
        parser.description = inspect.cleandoc(method.__doc__ or "")
        method.__doc__ = parser.format_help()
        return method

    return document


def targets_of(text: str, ids: Iterable[int], shell: InteractiveShell) -> Any:
    """The engines that ``--targets`` names.

    Parameters
    ----------
    text : str
        ``all``; a slice of the engine ids (``:``, ``0:2``, ``::2``); or a Python
        expression for an id or a list of ids, with the names of the session.
    ids : iterable of int
        The engines there are; read only for a slice.

    Raises
    ------
    UsageError
        When the text is none of these.
    """
    text = text.strip("\"'")
    if text == "all":
        return text
    if part := _SLICE.fullmatch(text):
        try:
            return list(ids)[slice(*(int(n) if n else None for n in part.groups()))]
        except ValueError as error:
            raise UsageError(f"--targets {text}: {error}") from None
    try:
        targets = shell.ev(text)
    except Exception as error:
        raise UsageError(
            f"--targets {text}: {type(error).__name__}: {error}."
            " Name engines as 'all', an id, a list as 0,2 or a slice as 0:2"
        ) from None
    if isinstance(targets, (int, str, slice)):
        return targets
    try:
        return list(targets)
    except TypeError:
        raise UsageError(f"--targets {text}: {targets!r} names no engines") from None


def _parser(name: str) -> MagicArgumentParser:
    return MagicArgumentParser(prog=name)


def _signal(text: str) -> int | str:
    if text.isdigit():
        return int(text)
    if text in signal.Signals.__members__:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither a signal's name nor its number")


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.strip("\"'").split(",")]
    for name in names:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is no name; write several as a,b")
    return names


def _add_targets(parser: MagicArgumentParser) -> None:
    parser.add_argument(
        "-t", "--targets", help="engines to run on: all, an id, a list as 0,2 or a slice as 0:2"
    )


def _add_execution(parser: MagicArgumentParser) -> None:
    add = parser.add_argument
    add("-b", "--block", action="store_true", default=None, help="wait for the engines")
    add(
        "-a",
        "--noblock",
        dest="block",
        action="store_false",
        default=None,
        help="do not wait for the engines: return an AsyncResult",
    )
    add(
        "--stream",
        action="store_true",
        default=None,
        help="show output as it comes; with --noblock, too, in the cell that asked for it",
    )
    add(
        "--no-stream",
        dest="stream",
        action="store_false",
        default=None,
        help="show output, grouped, when every engine has finished",
    )
    _add_targets(parser)
    add(
        "--verbose",
        dest="set_verbose",
        action="store_true",
        default=None,
        help="say at each execution where it runs",
    )
    add(
        "--no-verbose",
        dest="set_verbose",
        action="store_false",
        default=None,
        help="say nothing but what the engines say",
    )
    add(
        "--progress-after",
        dest="progress_after_seconds",
        metavar="SECONDS",
        type=float,
        help="show a progress bar once this long has passed; 0 for at once, -1 for never",
    )
    add(
        "--signal-on-interrupt",
        dest="signal_on_interrupt",
        metavar="SIGNAL",
        type=_signal,
        help="signal that a KeyboardInterrupt sends to the engines while waiting for them, by"
        " name or number (default: SIGINT); 0 sends none and leaves them running",
    )
    add(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="interrupt engines that have not finished by then, and raise TimeoutError; 0: never",
    )
    add(
        "--interrupt-on-error",
        action="store_true",
        default=None,
        help="when one engine fails, interrupt the others",
    )
    add(
        "--no-interrupt-on-error",
        dest="interrupt_on_error",
        action="store_false",
        default=None,
        help="when one engine fails, let the others finish",
    )


def _add_output(parser: MagicArgumentParser) -> None:
    _add_grouping(parser)
    parser.add_argument(
        "-o",
        "--out",
        "--name",
        dest="save_name",
        metavar="NAME",
        help="keep the AsyncResult under this name",
    )


def _add_grouping(parser: MagicArgumentParser) -> None:
    add = parser.add_argument
    for option, grouping in (("-r", "order"), ("-e", "engine"), ("--fold", "folded")):
        add(
            option,
            dest="groupby",
            action="store_const",
            const=grouping,
            help=f"short for --group-outputs={grouping}",
        )
    add(
        "-g",
        "--group-outputs",
        dest="groupby",
        choices=GROUPINGS,
        help="how to group output that was not streamed. type (default): every engine's stdout,"
        " then stderr, then displays; engine: all of one engine, then of the next;"
        " order: as type, but the first display of each engine, then the second; folded: as"
        " type, with what is the same on several engines, errors too, shown once, and not"
        " streamed",
    )
