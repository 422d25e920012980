"""`gradstep compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .. import _core, runtime
from . import compare, datasets
from .command import WRONG_BITS, _checked_info, _error_line, _listed, _whole
from .compare import ranks as compare_ranks
from .report import check_picture

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


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.threads is not None:
        runtime.set_num_threads(arguments.threads)
    _checked_info()
    rules = list(compare.RULES)
    if arguments.rules is not None:
        rules = compare.find_rules(arguments.rules)
    if arguments.ranks is None:
        check_picture(arguments.out)
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
