"""A small run, and the program that torchrun starts in training/test_parallel.py."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tracker_ros.training import parallel
from tracker_ros.training.run import Run, RunOptions

OPTIONS = RunOptions(steps=6, rate=0.05, seed=5, average=0.9, bf16=False, log_every=2, device="cpu")


class SmallRun(Run):
    """A regression that does what recipes do: parts called one by one, a part that learns late, one that never does,
    and a gradient step within the loss."""

    name = "small"

    def __init__(self, out: Path, options: RunOptions) -> None:
        super().__init__(out, options)
        self.net = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("first", "late", "unused")})
        self.weight = nn.Linear(6, 1, bias=False)
        self.net["late"].requires_grad_(False)
        self.modules = {"net": self.net, "weight": self.weight}
        parameters = [*self.net.parameters(), *self.weight.parameters()]
        self.optimizer = torch.optim.SGD([{"params": parameters, "base": options.rate}], momentum=0.9)
        self.start_average()

    @property
    def averaged(self) -> nn.Module:
        return self.net

    def losses(self, step: int) -> dict[str, Tensor]:
        self.net["late"].requires_grad_(2 <= step < 5)
        return self.terms(self.generator(step))

    def terms(self, rng: np.random.Generator) -> dict[str, Tensor]:
        x = torch.from_numpy(rng.normal(size=(4, 6)).astype(np.float32))
        y = x[:, :1].sin()
        hidden = self.net["late"](self.net["first"](x).tanh()).tanh()
        before = functional.mse_loss(functional.linear(hidden, self.weight.weight), y)
        (slope,) = torch.autograd.grad(before, self.weight.weight, create_graph=True)
        after = functional.mse_loss(functional.linear(hidden, self.weight.weight - 0.1 * slope), y)
        return {"before": before, "total": after}


def tensors(run: SmallRun) -> dict[str, Tensor]:
    """All that a run has learnt."""
    parts = {"net": run.net, "weight": run.weight, "average": run.average}
    return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}


def train(out: Path, rank: int) -> None:
    """Six steps at once, and three and three with a checkpoint between them."""
    with parallel.first_ahead(), (out / "order").open("a") as file:
        file.write(f"{rank}")
    whole, part = SmallRun(out / "whole", OPTIONS), SmallRun(out / "part", OPTIONS)
    whole.run()
    for _ in range(3):
        part.train_step()
    part.save()
    torch.distributed.barrier()
    resumed = SmallRun(out / "part", OPTIONS)
    resumed.load(resumed.checkpoint)
    resumed.run()
    torch.save({"whole": tensors(whole), "resumed": tensors(resumed)}, out / f"rank{rank}.pt")


def fail(out: Path, rank: int) -> None:
    """The second process fails after the first has saved."""
    run = SmallRun(out, replace(OPTIONS, steps=10**6))
    run.train_step()
    run.save()
    if rank == 1:
        raise RuntimeError("the second process has no memory left")
    run.run()


if __name__ == "__main__":
    with parallel.joined("cpu") as ranks:
        {"train": train, "fail": fail}[sys.argv[1]](Path(sys.argv[2]), ranks.rank)
