"""What every recipe shares: schedule, moving average, checkpoints that resume exactly, log with the time left."""

from __future__ import annotations

import copy
import json
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RunOptions:
    """Options of every recipe.

    Attributes:
        minutes: length of the run; the learning rate follows the clock.
        steps: length of the run in optimizer steps instead, where not zero. Only such runs repeat bit by bit.
        rate: highest learning rate.
        warm_up: share of the run over which the rate rises; it then falls to zero along a cosine.
        average: decay of the moving average of the weights, which is what a run delivers.
        clip: largest norm of the gradient.
        seed: of everything random.
        threads: CPU threads of torch.
        bf16: run convolutions in bfloat16.
        save_minutes: time between checkpoints.
        log_every: steps between lines of the log.
    """

    minutes: float = 50.0
    steps: int = 0
    rate: float = 1e-3
    warm_up: float = 0.03
    average: float = 0.998
    clip: float = 5.0
    seed: int = 1
    threads: int = 1
    bf16: bool = True
    save_minutes: float = 3.0
    log_every: int = 50


OptionsT = TypeVar("OptionsT", bound=RunOptions)


def with_settings(options: OptionsT, settings: list[str]) -> OptionsT:
    """Apply `key=value` settings.

    Raises:
        ValueError: an unknown key, or a value of another type; the message lists what there is.
    """
    known = {f.name: type(getattr(options, f.name)) for f in fields(options)}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in known:
            raise ValueError(f"--set {setting}: expected key=value with one of {', '.join(sorted(known))}")
        kind = known[key]
        try:
            if kind is bool:
                changes[key] = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            else:
                changes[key] = kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"--set {setting}: '{key}' takes a {kind.__name__}") from None
    return replace(options, **changes)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def channels_last(module: ModuleT) -> ModuleT:
    """Store the convolutions' weights channels last, which CPUs and GPUs multiply faster in bfloat16."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


class Run(ABC):
    """One training run in a folder: `<name>.pt` (checkpoint) and `<name>.jsonl` (log).

    Subclasses set `modules` (everything with weights that a checkpoint keeps) and `optimizer` (each group with its
    highest rate as `base`), call `start_average`, and give the losses of a step.
    """

    name: str
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    average: nn.Module

    def __init__(self, out: Path, options: RunOptions) -> None:
        self.out, self.settings = out, options
        self.step = 0
        self.elapsed = 0.0
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)

    @abstractmethod
    def losses(self, step: int) -> dict[str, Tensor]:
        """The loss terms of optimizer step `step`; `total` is what is minimised. A function of weights and step."""

    @property
    @abstractmethod
    def averaged(self) -> nn.Module:
        """The module whose moving average is kept."""

    def extra_state(self) -> dict[str, Any]:
        """More to keep in a checkpoint (tensors, numbers, containers)."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Counterpart of `extra_state`."""

    def on_log(self) -> dict[str, float]:
        """More numbers for a line of the log."""
        return {}

    def on_save(self) -> None:  # noqa: B027 - optional
        """Called after every checkpoint."""

    def start_average(self) -> None:
        """Begin the moving average at the present weights."""
        self.average = copy.deepcopy(self.averaged).eval().requires_grad_(False)

    def progress(self) -> float:
        """Done share of the run, 0 to 1."""
        if self.settings.steps:
            return min(1.0, self.step / self.settings.steps)
        return min(1.0, self.elapsed / (60 * self.settings.minutes))

    def factor(self) -> float:
        """Factor of the learning rate: linear warm-up, then a cosine."""
        done, warm = self.progress(), self.settings.warm_up
        if done < warm:
            return max(done / warm, 1e-3)
        return max(0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm))), 1e-3)

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns the loss terms."""
        factor = self.factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        terms = self.losses(self.step)
        if not torch.isfinite(terms["total"]):
            raise RuntimeError(f"the loss of step {self.step} is not finite; resume with a lower rate")
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.settings.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(self.settings.average, self.step / (self.step + 20))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.averaged.state_dict().values(), strict=True)
            for mine, theirs in pairs:
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - keep)
        return {name: float(value.detach()) for name, value in terms.items()}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            **{name: module.state_dict() for name, module in self.modules.items()},
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "options": asdict(self.settings),
            **self.extra_state(),
        }

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            FileNotFoundError: there is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: there is nothing to resume")
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.average.load_state_dict(state["average"])
        bases = [group["base"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, base in zip(self.optimizer.param_groups, bases, strict=True):
            group["base"] = base
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.load_extra_state(state)

    @property
    def checkpoint(self) -> Path:
        """The file that `save` writes and `load` reads."""
        return self.out / f"{self.name}.pt"

    def save(self) -> None:
        """Write the checkpoint; a killed run never leaves half a file."""
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".tmp")
        torch.save(self.state(), partial)
        partial.replace(self.checkpoint)
        self.on_save()

    def run(self) -> None:
        """Train until the planned end."""
        self.out.mkdir(parents=True, exist_ok=True)
        every = self.settings.log_every
        last = saved = time.monotonic()
        sums: dict[str, float] = {}
        count = 0
        with (self.out / f"{self.name}.jsonl").open("a") as log:
            while self.progress() < 1:
                for name, value in self.train_step().items():
                    sums[name] = sums.get(name, 0.0) + value
                count += 1
                now = time.monotonic()
                self.elapsed, last = self.elapsed + now - last, now
                if self.step % every == 0:
                    done = self.progress()
                    left = self.elapsed * (1 - done) / max(done, 1e-6)
                    line: dict[str, Any] = {"step": self.step, "elapsed": round(self.elapsed), "left": round(left)}
                    line |= {name: round(value / count, 5) for name, value in sums.items()}
                    line |= {name: round(value, 4) for name, value in self.on_log().items()}
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    print(" ".join(f"{name} {value}" for name, value in line.items()), flush=True)
                    sums, count = {}, 0
                if now - saved > 60 * self.settings.save_minutes:
                    self.save()
                    saved = now
        self.save()
