"""The command `gradstep`: compare the rules on data, time steps, or show what runs here and where.

Whatever goes wrong is told in one line on stderr, with the exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import (
    _bench_report,
    _core,
    bench,
    bench_linear,
    compare,
    compare_ranks,
    datasets,
    embedding,
    runtime,
)
from .datasets import UsageError

WRONG_BITS, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names).lower()
    return textwrap.fill(text, 90, initial_indent="  ", subsequent_indent="  ")


COMPARE_HELP = f"""\
Train a linear model with each rule on the same data and batches, by gradstep and again by NumPy.
Print a table, the lowest loss first, and draw a picture: the loss by epoch, by time and by batch
size, the paths of the rules over an error surface, and who reaches the optimum.

Learning rates are formed from the data: a factor over its curvature, or times the size that weights
must have. ASGD, Nesterov and the schedule-free rules are judged at the point that they are meant
for. Rprop takes a step per epoch, with all rows. Of many rules, the best have colours and names.

Whatever --rules says, four rules race to the optimum of the loss with an L2 penalty, all with one
learning rate: SGD, WindowSAG, and SAG and SAGA, which keep a gradient for each batch.

data:
  digits    8 x 8 pictures of digits, softmax regression (default)
  line      y = 3.5 x + 4 and noise, least squares
  diabetes  progress of a disease from ten measurements, least squares
  photo     a pixel from the eight around it, 542,300 times, least squares
  FILE.csv  columns under a line of names; --target names the one to predict
  FILE.npz  arrays; --target names the one to predict ("y"), "X" or all others are the features
A quarter of the rows is held out. A target of text, or of at most {datasets.MAX_CLASSES} distinct
whole numbers, is classification, any other is regression. Features and the targets of regression
are standardised, those of digits and line excepted.

rules, each on its own or all of them:
{_listed(compare.RULES)} (default)
{_listed(name for name in compare.ALL_RULES if name not in compare.RULES)}

examples:
  gradstep compare
  gradstep compare --rules all --out all.png
  gradstep compare --ranks 4 --rules sgd,adam
  gradstep compare --data diabetes --rules sgd,adam,sag --out diabetes.png
  gradstep compare --data houses.csv --target price --epochs 50
"""

BENCH_HELP = f"""\
Time one optimizer step here and in every other package that is installed, all in one run. Print a
table, and draw a picture: the time by size, and how many times as long the others take.

Each contestant has a process of its own and takes turns with the others. It is only timed after
{bench.CHECKED_STEPS} steps have been compared with NumPy's.

Without --rules, --sizes and --arrays it is a table of works, Adam with up to 250,000,000 elements
among them. With one of them it is each rule at each size.

With --classes it is every class with its default options, and the variants among the rules below:
{bench.CLASS_SIZE:,} elements against the memory, NumPy and PyTorch, as a table in Markdown.

With --storage it is Adam with numbers held in float32, 16 and 8 bits, {bench.STORAGE_SIZE:,}
of them, against PyTorch's fused Adam and gradstep's own in float32, as a table in Markdown.

With --linear it is gradstep.linear against the solvers "sag" and "saga" of scikit-learn, in this
process: an epoch of dense and of sparse rows, and whole fits of digits and of photo.

rules:
{textwrap.fill(", ".join(bench.RULES), 96, initial_indent="  ", subsequent_indent="  ")}

peers ("torch" means all three):
{textwrap.fill(", ".join(bench.PEERS), 96, initial_indent="  ", subsequent_indent="  ")}

examples:
  gradstep bench
  gradstep bench --quick --peers numpy
  gradstep bench --rules sgd,adam --sizes 1000,1000000 --threads 1,2 --json
  gradstep bench --classes adam,lion
  gradstep bench --storage --sizes 10000000
  gradstep bench --linear --quick
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the name of the program; those of the process by default.

    Returns:
        The exit code: 0, 1 where NumPy's bits differ, 2 for what cannot be done, 130 after Ctrl-C,
        141 where nobody reads the output.

    Example:
        >>> from gradstep.cli import main
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


def _error_line(text: str) -> str:
    return "gradstep: error: " + " ".join(text.split())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


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


def _add_compare(parser: argparse.ArgumentParser) -> None:
    def option(name: str, description: str, **settings: Any) -> None:
        parser.add_argument(name, help=description, **settings)

    option("--data", "a name or a file, see above", default="digits")
    option("--target", "the column or array to predict, for files", metavar="NAME")
    option("--rules", "which rules, such as adam,sgd, or all", metavar="RULE,...")
    option(
        "--epochs",
        "passes over the data; by default 20 to 100, for about 2500 steps, and "
        f"{compare.FINITE_SUM_PASSES} to the optimum",
        type=_whole(1),
    )
    option("--batch-size", "rows in a batch; by default 32, or a 400th of the data", type=_whole(1))
    option("--seed", "of the rows held out and the batches; default 0", type=_whole(0), default=0)
    option("--threads", "the most that the kernels may use", type=_whole(1, _core.thread_limit))
    option(
        "--ranks",
        "train by so many processes that share the states, and by one; no picture",
        type=_whole(1),
    )
    option("--out", "the picture; default compare.png", type=Path, default=Path("compare.png"))
    parser.set_defaults(command=_compare)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    def option(name: str, description: str, **settings: Any) -> None:
        parser.add_argument(name, help=description, **settings)

    threads = _list_of(_whole(1, _core.thread_limit))
    option("--linear", "time linear models in the place of steps", action="store_true")
    option(
        "--classes",
        "time every class in the place of works, or those named",
        metavar="CLASS,...",
        nargs="?",
        const="all",
    )
    option(
        "--storage",
        "time what storage types cost in the place of works",
        action="store_true",
        default=None,
    )
    option("--rules", "which rules, such as adam,sgd; default adam", metavar="RULE,...")
    option(
        "--sizes",
        f"elements of each array; default {','.join(map(str, bench.SIZES))}, of --storage "
        f"{bench.STORAGE_SIZE}",
        metavar="N,...",
        type=_list_of(_whole(1)),
    )
    option("--arrays", "how many arrays of each size; default 1", metavar="N", type=_whole(1))
    option("--threads", "the most to use; default as gradstep", metavar="N,...", type=threads)
    option("--peers", "which peers, such as numpy,torch; default all", metavar="PEER,...")
    option(
        "--python",
        "the interpreter of a peer that has one of its own; may be repeated",
        metavar="PEER=PATH",
        action="append",
    )
    option(
        "--rounds",
        f"turns of each; default {bench.ROUNDS}, of --classes {bench.CLASS_ROUNDS}, of --linear "
        f"{bench_linear.ROUNDS}",
        type=_whole(1),
    )
    option(
        "--quick",
        "of the table only works of up to 1,000,000 elements; of --linear small ones; of --classes "
        f"{bench.QUICK_CLASS_SIZE:,} elements in {bench.QUICK_CLASS_ROUNDS} rounds; of --storage "
        f"{bench.QUICK_STORAGE_SIZE:,}",
        action="store_true",
    )
    option("--json", "print JSON in the place of the table", action="store_true")
    option("--out", "the picture; default bench.png, if matplotlib is installed", type=Path)
    parser.set_defaults(command=_bench)


def _list_of(item: Callable[[str], int]) -> Callable[[str], list[int]]:
    return lambda text: [item(part) for part in text.split(",")]


def _whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    limits = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text!r}")

    return parse


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.threads is not None:
        runtime.set_num_threads(arguments.threads)
    _checked_info()
    rules = list(compare.RULES)
    if arguments.rules is not None:
        rules = compare.find_rules(arguments.rules)
    if arguments.ranks is None:
        compare.check_picture(arguments.out)
    data = datasets.load(arguments.data, arguments.target, arguments.seed)
    if arguments.ranks is not None:
        named = ("data", "target", "epochs", "batch_size", "seed", "threads")
        options = {name: getattr(arguments, name) for name in named}
        return compare_ranks.start(arguments.ranks, rules=rules, **options)
    found = compare.compare(
        data,
        rules,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    print(compare.table(found))
    compare.save_picture(found, arguments.out)
    print(f"\npicture: {arguments.out}")
    wrong = [run.name for run in found.runs if not run.same_bits]
    if wrong:
        text = f"{', '.join(wrong)} ended with other bits than NumPy; please report this"
        print(_error_line(text), file=sys.stderr)
    return WRONG_BITS if wrong else 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.linear:
        return _bench_linear(arguments)
    if arguments.storage:
        return _bench_storage(arguments)
    if arguments.classes is not None:
        return _bench_classes(arguments)
    threads = arguments.threads or [_checked_info()["threads"]]
    rules, sizes, arrays = arguments.rules, arguments.sizes, arguments.arrays
    if rules is sizes is arrays is None:
        works = bench.standard(threads, quick=arguments.quick)
    else:
        names = bench.find_rules("adam" if rules is None else rules)
        works = bench.matrix(names, sizes or bench.SIZES, arrays or 1, threads)
    peers = list(bench.PEERS) if arguments.peers is None else bench.find_peers(arguments.peers)
    pythons = bench.find_pythons(arguments.python or [])
    out = bench.find_picture(arguments.out)
    found = bench.bench(works, peers, rounds=arguments.rounds or bench.ROUNDS, pythons=pythons)
    print(
        json.dumps(bench.as_json(found), indent=2) if arguments.json else _bench_report.table(found)
    )
    if out is not None:
        _bench_report.save_picture(found, out)
    if not arguments.json:
        print(f"\npicture: {out or 'none, for matplotlib is not installed'}")
    return _told_of_wrong_bits(found)


def _told_of_wrong_bits(found: bench.Bench) -> int:
    wrong = [f"{row.work.title}, {row.work.shape}" for row in found.wrong_bits]
    if wrong:
        text = f"{'; '.join(wrong)}: other bits than NumPy; please report this"
        print(_error_line(text), file=sys.stderr)
    return WRONG_BITS if wrong else 0


def _bench_classes(arguments: argparse.Namespace) -> int:
    _refuse(arguments, "classes", ("rules", "sizes", "arrays", "peers", "out"))
    threads = _one_number_of_threads(arguments, "classes") or _checked_info()["threads"]
    quick = arguments.quick
    works = bench.classes(bench.find_classes(arguments.classes), threads, quick)
    rounds = arguments.rounds or (bench.QUICK_CLASS_ROUNDS if quick else bench.CLASS_ROUNDS)
    pythons = bench.find_pythons(arguments.python or [])
    found = bench.bench(works, bench.CLASS_PEERS, rounds=rounds, pythons=pythons)
    told = bench.as_json(found)
    print(json.dumps(told, indent=2) if arguments.json else _bench_report.class_table(found))
    return _told_of_wrong_bits(found)


def _bench_storage(arguments: argparse.Namespace) -> int:
    _refuse(arguments, "storage", ("classes", "rules", "arrays", "peers", "out"))
    threads = _one_number_of_threads(arguments, "storage") or _checked_info()["threads"]
    size = bench.QUICK_STORAGE_SIZE if arguments.quick else bench.STORAGE_SIZE
    works = bench.storages(arguments.sizes or [size], threads)
    pythons = bench.find_pythons(arguments.python or [])
    rounds = arguments.rounds or bench.ROUNDS
    found = bench.bench(works, bench.STORAGE_PEERS, rounds=rounds, pythons=pythons)
    told = bench.as_json(found)
    print(json.dumps(told, indent=2) if arguments.json else _bench_report.storage_table(found))
    return _told_of_wrong_bits(found)


def _bench_linear(arguments: argparse.Namespace) -> int:
    others = ("storage", "classes", "rules", "sizes", "arrays", "peers", "python", "out")
    _refuse(arguments, "linear", others)
    threads = _one_number_of_threads(arguments, "linear")
    if threads is not None:
        runtime.set_num_threads(threads)
    _checked_info()
    found = bench_linear.bench(
        bench_linear.standard(arguments.quick), rounds=arguments.rounds or bench_linear.ROUNDS
    )
    told = bench_linear.as_json(found)
    print(json.dumps(told, indent=2) if arguments.json else bench_linear.table(found))
    wrong = [row.title for row in found.wrong]
    if wrong:
        text = f"{'; '.join(wrong)}: gradstep is not at the optimum; please report this"
        print(_error_line(text), file=sys.stderr)
    return WRONG_BITS if wrong else 0


def _refuse(arguments: argparse.Namespace, table: str, names: Sequence[str]) -> None:
    """Raise if an option was given that is for another table."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is not for --{table}")


def _one_number_of_threads(arguments: argparse.Namespace, table: str) -> int | None:
    threads: list[int] | None = arguments.threads
    if threads is None:
        return None
    if len(threads) > 1:
        given = ",".join(map(str, threads))
        raise UsageError(f"--threads must be one number with --{table}, got {given}")
    return threads[0]


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


def _checked_info() -> dict[str, Any]:
    """What runs here; the environment may ask for what does not exist."""
    try:
        return runtime.info()
    except ValueError as error:
        raise UsageError(str(error)) from error
