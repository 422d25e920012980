"""`gradstep bench`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import _core, runtime
from . import bench
from .bench import linear as bench_linear
from .bench import tables
from .bench.linear_works import standard
from .bench.picture import save_picture
from .command import WRONG_BITS, _checked_info, _error_line, _list_of, _whole
from .datasets import UsageError

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


def _add_bench(parser: argparse.ArgumentParser) -> None:
    def option(name: str, description: str, **settings: Any) -> None:
        parser.add_argument(name, help=description, **settings)

    threads = _list_of(_whole(1, _core.thread_limit))
    option("--linear", "time linear models instead of steps", action="store_true")
    option(
        "--classes",
        "time every class instead of workloads, or those named",
        metavar="CLASS,...",
        nargs="?",
        const="all",
    )
    option(
        "--storage",
        "time what storage types cost instead of workloads",
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
    option("--json", "print JSON instead of the table", action="store_true")
    option("--out", "the picture; default bench.png, if matplotlib is installed", type=Path)
    parser.set_defaults(command=_bench)


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
    print(json.dumps(bench.as_json(found), indent=2) if arguments.json else tables.table(found))
    if out is not None:
        save_picture(found, out)
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
    print(json.dumps(told, indent=2) if arguments.json else tables.class_table(found))
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
    print(json.dumps(told, indent=2) if arguments.json else tables.storage_table(found))
    return _told_of_wrong_bits(found)


def _bench_linear(arguments: argparse.Namespace) -> int:
    others = ("storage", "classes", "rules", "sizes", "arrays", "peers", "python", "out")
    _refuse(arguments, "linear", others)
    threads = _one_number_of_threads(arguments, "linear")
    if threads is not None:
        runtime.set_num_threads(threads)
    _checked_info()
    found = bench_linear.bench(
        standard(arguments.quick), rounds=arguments.rounds or bench_linear.ROUNDS
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
