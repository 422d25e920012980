"""The command `gradstep`: compare the rules on data, time steps, or show what runs here and where.

Whatever goes wrong is told in one line on stderr, with the exit code 2.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence

from .. import _core, embedding
from .cli_bench import BENCH_HELP, _add_bench
from .cli_compare import COMPARE_HELP, _add_compare
from .command import BROKEN_PIPE, INTERRUPTED, USAGE, _checked_info, _error_line, _Parser
from .datasets import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the name of the program; those of the process by default.

    Returns:
        The exit code: 0, 1 where NumPy's bits differ, 2 for what cannot be done, 130 after Ctrl-C,
        141 where nobody reads the output.

    Example:
        >>> from gradstep.tools.cli import main
        >>> main(["--version"])                                       # doctest: +ELLIPSIS
        gradstep ...
        0
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # labels and paths may hold any letter
        code = _run(argv)
        if sys.stdout is not None:  # it is closed otherwise, and prints nothing
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "gradstep: interrupted"
    except BrokenPipeError:
        code, message = BROKEN_PIPE, ""
    except (UsageError, OSError, MemoryError) as error:
        code, message = USAGE, _error_line(str(error) or "out of memory")
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # nobody reads, or the disk is full
            # Python flushes once more when it exits, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Out here the traceback is gone, and with it the progress bar.
    if message and sys.stderr is not None:  # print() takes None for stdout
        print(message, file=sys.stderr)
    return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit:  # after --help or --version
        return 0
    if arguments.places and arguments.command:
        parser.error("--include, --library and --cmake-dir do not go with a command")
    if arguments.places:
        print(*arguments.places, sep="\n")
        return 0
    if arguments.command is None:
        parser.error(f"the following arguments are required: {COMMANDS}")
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


COMMANDS = "{compare,bench,info}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gradstep",
        description="The gradient step on CPUs. See `gradstep compare --help`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradstep {_core.__version__}")
    for name, path, what in (
        ("--include", embedding.get_include(), "the directory of the C and C++ headers"),
        ("--library", embedding.get_library(), "the path of the shared library"),
        ("--cmake-dir", embedding.get_cmake_dir(), "the directory for CMake's gradstep_DIR"),
    ):
        # argparse's own action that prints breaks long lines, and skips the options after it.
        parser.add_argument(
            name, dest="places", action="append_const", const=path, help=f"print {what}, and exit"
        )
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar=COMMANDS)
    _add_compare(
        commands.add_parser(
            "compare",
            help="train linear models with every rule and draw who wins",
            description=COMPARE_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _add_bench(
        commands.add_parser(
            "bench",
            help="time a step here and in every other package that is installed",
            description=BENCH_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    info = commands.add_parser("info", help="show what runs here, and every rule")
    info.add_argument("--json", action="store_true", help="print it as JSON")
    info.set_defaults(command=_info)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    info, rules = _checked_info(), _core.rules()
    if arguments.json:
        described = [
            {
                "name": rule.name,
                "hyperparameters": [*rule.hyperparameters, "weight_decay"],
                "states": list(rule.states),
                "decoupled_weight_decay": rule.decoupled,
            }
            for rule in rules
        ]
        print(json.dumps({**info, "rules": described}, indent=2))
        return 0
    for name, value in info.items():
        print(f"{name:14} {', '.join(value) if isinstance(value, list) else value}")
    print(f"\n{'rule':26} {'states':8} hyper-parameters")
    for rule in rules:
        decay = "weight_decay (decoupled)" if rule.decoupled else "weight_decay"
        hyper = ", ".join([*rule.hyperparameters, decay])
        print(f"{rule.name:26} {', '.join(rule.states) or '-':8} {hyper}")
    return 0
