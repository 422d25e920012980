"""A network on digits in PyTorch: its own Adam and gradstep's, the same curve in less time.

Needs PyTorch and the extra `demo`. `--output` names a picture of both curves.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import gradstep.torch
from gradstep.tools import datasets

LABELS = {
    "torch.optim.Adam": torch.optim.Adam,
    "torch.optim.Adam(fused=True)": lambda params, **kw: torch.optim.Adam(params, fused=True, **kw),
    "gradstep.torch.Adam": gradstep.torch.Adam,
}
WIDTH, BATCH = 128, 128


class Run:
    """One network and its optimizer. All begin with the same weights and see the same batches."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer], inputs: int, kinds: int) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(inputs, WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, kinds),
        )
        self.opt = make(self.model.parameters(), lr=1e-3)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def train(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for x, y in batches:
            self.opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            start = time.perf_counter()
            self.opt.step()
            self.seconds.append(time.perf_counter() - start)
            self.losses.append(loss.item())


def draw(runs: dict[str, Run], steps_per_epoch: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained", dpi=120)
    curves, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    styles = [("#b0b0b0", 7, "-"), ("#e08a00", 3.5, "-"), ("#0050a0", 1.5, "--")]
    for (name, run), (colour, width, dash) in zip(runs.items(), styles, strict=True):
        means = torch.tensor(run.losses).reshape(-1, steps_per_epoch).mean(1).tolist()
        curves.semilogy(
            range(1, len(means) + 1), means, dash, color=colour, linewidth=width, label=name
        )
        bar = bars.barh(name.replace("optim.", "optim.\n").replace("torch.A", "torch.\nA"),
                        1e6 * median(run.seconds), color=colour)  # fmt: skip
        bars.bar_label(bar, fmt="%.0f us", padding=3)
    curves.set(title="One curve: the same steps", xlabel="epoch", ylabel="training loss")
    curves.grid(alpha=0.3)
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.legend()
    bars.set(title="Median time of a step", xlabel="microseconds")
    bars.invert_yaxis()
    bars.margins(x=0.25)
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="at least 1, default 20")
    parser.add_argument("--output", type=Path, help="a picture, such as picture.png")
    arguments = parser.parse_args()

    data = datasets.load("digits")
    x, test_x = (torch.from_numpy(rows).float() for rows in (data.x, data.x_test))
    y, test_y = (torch.from_numpy(targets).long() for targets in (data.y, data.y_test))
    runs = {name: Run(make, x.shape[1], data.classes) for name, make in LABELS.items()}
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for epoch in range(arguments.epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        batches = [(x[rows], y[rows]) for rows in order.split(BATCH)]
        for run in runs.values():  # side by side, so that all have the machine as it is
            run.train(batches)

    print(f"{'':30}  last loss  held-out accuracy  median step")
    for name, run in runs.items():
        with torch.no_grad():
            accuracy = (run.model(test_x).argmax(1) == test_y).double().mean().item()
        step = 1e6 * median(run.seconds)
        print(f"{name:30}  {run.losses[-1]:9.2e}  {accuracy:17.1%}  {step:8.0f} us")
    theirs, _, ours = (torch.tensor(run.losses) for run in runs.values())
    print(f"largest difference of the losses: {(ours - theirs).abs().max().item():.1e}")
    if arguments.output:
        draw(runs, len(batches), arguments.output)
        print(f"{arguments.output} shows both curves and the time of a step")


if __name__ == "__main__":
    main()
