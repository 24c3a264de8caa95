"""What every recipe shares: schedule, moving average, checkpoints that resume exactly, log with the time left.

Started by ``torchrun``, a run shares its work among processes. Each draws batches of its own, the gradients are
averaged, and the first process alone logs, validates and saves. A step then sees as many batches as there are
processes; the learning rate stays what it is set to.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tracker_ros.checkpoints import read_own
from tracker_ros.errors import WeightsError
from tracker_ros.networks.inference import has_bfloat16
from tracker_ros.text import printable
from tracker_ros.training import parallel
from tracker_ros.training.board import Board
from tracker_ros.training.data import Image


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
        bf16: run convolutions in bfloat16, where the device computes it natively.
        save_minutes: time between checkpoints.
        log_every: steps between lines of the log.
        device: where to train: auto (CUDA where there is one), cpu, cuda or cuda:N.
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
    device: str = "auto"


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


def duration(seconds: float) -> str:
    """A time span as people say it: "40 s", "12 min", "2 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Losses(nn.Module):
    """The losses of a run as the forward pass of its modules, which is what DistributedDataParallel wraps.

    Recipes call parts of their networks as they need them, so that no single network has a forward pass that leads to
    the loss. DistributedDataParallel does not mind: it averages the gradient of each parameter as it is made, wherever
    that parameter was used. Only the total leaves with a gradient; a parameter that does not contribute to it in a
    step (a part that is not tuned yet, or no more) is found by walking back from it, and left out.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(run.modules)
        self._losses = run.losses

    def forward(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self._losses(step)
        return terms["total"], {name: value.detach() for name, value in terms.items()}


class Run(ABC):
    """One training run in a folder: `<name>.pt` (checkpoint) and `<name>.jsonl` (log).

    Subclasses set `modules` (everything with weights that a checkpoint keeps, on `device`) and `optimizer` (each group
    with its highest rate as `base`), call `start_average`, and give the losses of a step.

    Batch norms are frozen by the recipe, or see the batch of their own process; the running statistics that are kept
    are those of the first process.

    Attributes:
        device: where the networks and batches are.
        ranks: which process this is, of how many.
        board: curves and pictures, or None.
        gradient: norm of the last step's gradient, before it was clipped.
    """

    name: str
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    average: nn.Module

    def __init__(self, out: Path, options: RunOptions) -> None:
        self.out, self.settings = out, options
        self.step = 0
        self.elapsed = 0.0
        self.gradient = 0.0
        self.board: Board | None = None
        self.ranks = parallel.ranks()
        self.device = parallel.choose_own_device(options.device)
        #: Convolutions run in bfloat16.
        self.bf16 = options.bf16 and has_bfloat16(self.device)
        self._shared: DistributedDataParallel | None = None
        self._stop = False
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)

    def generator(self, step: int, common: bool = False) -> np.random.Generator:
        """What a step draws from: a function of seed and step and, unless it is `common` to all, of this process."""
        own = () if common or self.ranks.size == 1 else self.ranks
        return np.random.default_rng([self.settings.seed, step, *own])

    def autocast(self) -> torch.autocast:
        """Convolutions in bfloat16 inside the block, where the options say so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @abstractmethod
    def losses(self, step: int) -> dict[str, Tensor]:
        """The loss terms of optimizer step `step`; `total` is what is minimised.

        A function of the weights and of `generator(step)`. A part may be frozen in some steps and learn in others.
        """

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
        """Called after every checkpoint, in the first process alone: validate, write weights."""

    def close(self) -> None:  # noqa: B027 - optional
        """Called when `run` ends, however it ends: let helpers go."""

    def pictures(self) -> dict[str, Image]:
        """What to look at after a checkpoint, HxWx3 uint8 BGR by name; called where there is a `board`."""
        return {}

    def report(self, figures: Mapping[str, float]) -> None:
        """Say the figures of a validation: on the console, in `validation.jsonl` and on the board."""
        print("held out: " + " ".join(f"{name} {value:.4f}" for name, value in figures.items()), flush=True)
        line = {name: round(value, 5) for name, value in figures.items()}
        with (self.out / "validation.jsonl").open("a") as log:
            log.write(json.dumps(line | {"step": self.step, "done": round(self.progress(), 5)}) + "\n")
        if self.board is not None:
            self.board.scalars("held_out", figures, self.step)

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

    def _backward(self) -> dict[str, Tensor]:
        """Gradients of this step, averaged over the processes; returns this process's terms."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.size == 1:
            terms = self.losses(self.step)
            total = terms["total"]
        else:
            total, terms = (self._shared or self._share())(self.step)
        total.backward()
        return terms

    def _share(self) -> DistributedDataParallel:
        """Wrap the losses so that gradients are averaged; from here on all processes have the same weights."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        learns = [p.requires_grad for p in parameters]
        for parameter in parameters:  # what is to learn at any time must be known from the start
            parameter.requires_grad_(True)
        losses = _Losses(self)
        strange = len({id(p) for p in parameters} - {id(p) for p in losses.parameters()})
        if strange:  # each process would train them for itself, and nobody would notice
            raise RuntimeError(f"{strange} parameters of the optimizer belong to none of the run's modules")
        self._shared = DistributedDataParallel(losses, find_unused_parameters=True)
        for parameter, flag in zip(parameters, learns, strict=True):
            parameter.requires_grad_(flag)
        return self._shared

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns the loss terms.

        Raises:
            RuntimeError: the loss or the gradient is not finite. The weights are spoiled then; the checkpoint is not.
        """
        factor = self.factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        terms = self._backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        gradient = nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(self.settings.average, self.step / (self.step + 20))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.averaged.state_dict().values(), strict=True)
            for mine, theirs in pairs:
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - keep)
        # Looked at only now, all at once, so that a GPU is waited for once a step.
        numbers = torch.stack([value.detach().to(self.device, torch.float32) for value in (*terms.values(), gradient)])
        *values, self.gradient = numbers.tolist()
        result = dict(zip(terms, values, strict=True))
        if not (math.isfinite(result["total"]) and math.isfinite(self.gradient)):
            raise RuntimeError(f"the loss of step {self.step - 1} is not finite; resume with a lower rate")
        return result

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
        if not path.exists():
            raise FileNotFoundError(f"{path} not found: there is nothing to resume")
        state = read_own(path)
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.average.load_state_dict(state["average"])
            bases = [group["base"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, base in zip(self.optimizer.param_groups, bases, strict=True):
                group["base"] = base
            self.step, self.elapsed = state["step"], state["elapsed"]
            self.load_extra_state(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = printable(f"{type(error).__name__}: {error}"[:300])
            raise WeightsError(
                f"{path} is no checkpoint of this recipe, network and settings ({reason}); "
                "resume with those that it was made with, or start anew in another --out"
            ) from error

    @property
    def checkpoint(self) -> Path:
        """The file that `save` writes and `load` reads."""
        return self.out / f"{self.name}.pt"

    def save(self) -> None:
        """Write the checkpoint, in the first process; a killed run never leaves half a file."""
        if self.ranks.rank:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".tmp")
        torch.save(self.state(), partial)
        partial.replace(self.checkpoint)
        self.on_save()
        if self.board is not None:
            self.board.pictures(self.pictures(), self.step)

    def run(self) -> None:
        """Train until the planned end; `close` follows in any case.

        Raises:
            KeyboardInterrupt: interrupted (SIGINT, SIGTERM); the step was finished and the checkpoint saved.
        """
        try:
            self._run()
        finally:
            self.close()

    def _run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        last = saved = logged = time.monotonic()
        sums: dict[str, float] = {}
        count = 0
        with self._interruptible():
            while True:
                stop = self._agree()  # on the host, before a step: here the others wait while the first one saves
                if self.progress() >= 1:
                    break
                if stop:
                    print("interrupted: saving", flush=True)
                    self.save()
                    raise KeyboardInterrupt
                for name, value in self.train_step().items():
                    sums[name] = sums.get(name, 0.0) + value
                count += 1
                now = time.monotonic()
                self.elapsed, last = self.elapsed + now - last, now
                if self.step % self.settings.log_every == 0:
                    self._log({name: value / count for name, value in sums.items()}, count / (now - logged))
                    sums, count, logged = {}, 0, now
                if now - saved > 60 * self.settings.save_minutes and self.progress() < 1:
                    self.save()
                    saved = now
        self.save()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM finish the step; a second one acts as it always does."""
        if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def stop(*_: object) -> None:
            self._stop = True
            restore()

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()

    def _agree(self) -> bool:
        """Take over the first process's clock, which the learning rate follows; whether any process is to stop."""
        if self.ranks.size == 1:
            return self._stop
        shared = torch.tensor([0.0 if self.ranks.rank else self.elapsed, float(self._stop)], dtype=torch.float64)
        distributed.all_reduce(shared)
        self.elapsed = float(shared[0])
        return bool(shared[1])

    def _log(self, terms: Mapping[str, float], speed: float) -> None:
        """Write the mean `terms` of the last steps, in the first process alone."""
        if self.ranks.rank:
            return
        done = self.progress()
        left = self.elapsed * (1 - done) / max(done, 1e-6)
        more = self.on_log()
        state = {"rate": self.settings.rate * self.factor(), "gradient": self.gradient, "speed": speed}
        line: dict[str, Any] = {"step": self.step, "elapsed": round(self.elapsed), "left": round(left)}
        line |= {name: round(value, 5) for name, value in terms.items()}
        line |= {name: round(value, 4) for name, value in more.items()}
        line |= {name: float(f"{value:.4g}") for name, value in state.items()}
        with (self.out / f"{self.name}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        shown = " ".join(f"{name} {value:.4g}" for name, value in {**terms, **more}.items())
        print(f"{done:4.0%}, {duration(left)} left | step {self.step}, {speed:.2g}/s | {shown}", flush=True)
        if self.board is not None:
            self.board.scalars("loss", terms, self.step)
            self.board.scalars("run", {**more, **state}, self.step)
