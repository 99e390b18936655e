"""Options of the px magics, for magics that somebody else writes."""

from __future__ import annotations

from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from pxcompat.magics import exec_args, output_args


@magic_arguments()
@exec_args
@output_args
@argument("--mine", action="store_true")
def mymagic(line: str) -> None:
    """A magic."""


def test_they_are_those_of_px() -> None:
    options = parse_argstring(mymagic, "--noblock -t 0:2 --mine -o kept --group-outputs=engine")
    assert options.block is False
    assert (options.targets, options.save_name, options.groupby) == ("0:2", "kept", "engine")
    assert options.mine


def test_what_is_left_out_is_none() -> None:
    options = parse_argstring(mymagic, "")
    assert options.block is options.targets is options.groupby is options.save_name is None


def test_the_help_lists_them() -> None:
    assert mymagic.__doc__ is not None
    assert mymagic.__doc__.index("--block") < mymagic.__doc__.index("--out")
