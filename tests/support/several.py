"""Trainings in several processes: started by `torchrun`, and this file as what it starts where no command would do.

torchrun ... several.py same OUT CENTERS            # in double precision: losses and weights into OUT.npz
torchrun ... several.py tell                        # what they tell each other, checked
torchrun ... several.py other OUT                   # on data of which the second process has lost a picture
torchrun ... several.py slowly OUT                  # `dsh train`, with a pause after each batch, told in OUT.<rank>
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__)
STEPS = 20  # of `same`
PAUSE = 0.1  # seconds after a batch of `slowly`


def started(count: int, *command: object) -> subprocess.Popen[str]:
    """A program in so many processes of one thread each; in one without `torchrun`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    return subprocess.Popen(
        [sys.executable, *torchrun, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"},
    )


def ended(count: int, *command: object) -> tuple[int, str, str]:
    """Its exit code, and what it said on stdout and stderr."""
    process = started(count, *command)
    out, said = process.communicate(timeout=300)
    return process.returncode, out, said


def errors(said: str) -> list[str]:
    """The lines on stderr that are errors of ours."""
    return [line for line in said.splitlines() if line.startswith("error: ")]


def _same(out: str, centers: Any) -> None:
    import numpy as np
    import torch
    from safetensors.numpy import load_file

    from dsh_cli import TrainConfig, load_splits, train
    from dsh_cli.speaking import may_speak
    from dsh_cli.training import loop

    losses: list[float] = []
    own: Any = loop
    starting, making = own.starting_network, own.make_objective

    def in_double(*arguments: Any) -> Any:
        net, taken = starting(*arguments)
        return net.double(), taken

    def recorded(*arguments: Any) -> Any:
        objective = making(*arguments)
        for name, value in vars(objective).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(objective, name, value.double())

        class Recorded(type(objective)):  # type: ignore[misc]
            def __call__(self, relaxed: Any, labels: Any) -> Any:
                terms = super().__call__(relaxed, labels)
                losses.append(terms.total.item())
                return terms

        objective.__class__ = Recorded
        return objective

    own.starting_network, own.make_objective = in_double, recorded
    config = TrainConfig(
        data="digits",
        bits=16,
        backbone="dsh-cnn",  # which has no BatchNorm
        image_size=32,
        optimizer="sgd",
        lr=0.2,
        clip=20.0,
        batch_size=129,  # odd: the shares are not equal
        epochs=2,
        augment="photos",
        mirror=False,
        amp=False,
        tensorboard=False,
        seed=3,
        centers=centers,
    )
    run = train(config, load_splits(config), out).run
    if may_speak():
        arrays: dict[str, Any] = {"losses": losses, **load_file(run.path / "model.safetensors")}
        np.savez(f"{out}.npz", **arrays)


def _tell() -> None:
    import torch

    from dsh_cli.training.processes import joined

    with joined() as processes:
        rank, count = processes.rank, processes.world_size
        assert processes.by_first(lambda: f"made by {rank}") == "made by 0"
        assert processes.of_all(rank) == list(range(count))
        assert list(processes.most(rank, -rank)) == [count - 1, 0]
        assert processes.after_first(lambda: rank) == rank

        outputs = torch.full((rank + 1, 2), float(rank), requires_grad=True)  # shares of unequal sizes
        relaxed, labels = processes.gathered(outputs, torch.full((rank + 1,), rank))
        owners = [of for of in range(count) for _ in range(of + 1)]
        assert labels.tolist() == owners and relaxed[:, 0].tolist() == owners
        (relaxed * torch.arange(len(labels))[:, None]).sum().backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None
        assert outputs.grad[:, 0].tolist() == [place for place, of in enumerate(owners) if of == rank]

        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).to(
            memory_format=torch.channels_last
        )
        with torch.no_grad():
            for values in net.state_dict().values():
                values.fill_(rank)
        processes.start_alike(net)
        assert all((values == 0).all() for values in net.state_dict().values())
        norm: Any = net[1]
        norm.running_mean.fill_(rank)
        norm.running_var.copy_(torch.tensor([rank, 2.0 * rank]))
        processes.average_statistics(net)
        assert norm.running_mean.tolist() == [(count - 1) / 2] * 2
        assert norm.running_var.tolist() == [(count - 1) / 2, float(count - 1)]
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, float(rank))
        processes.add_gradients(net)
        assert all((one.grad == sum(range(count))).all() for one in net.parameters() if one.grad is not None)


def _other(out: str) -> None:
    import numpy as np

    from dsh_cli import TrainConfig, load_splits, train
    from dsh_cli.speaking import may_speak

    config = TrainConfig(data="digits", tensorboard=False)
    splits = load_splits(config)
    if not may_speak():
        splits = replace(splits, train=splits.train.take(np.arange(len(splits.train)) > 0))
    train(config, splits, out)


def _slowly(out: str) -> None:
    from dsh_cli.__main__ import main
    from dsh_cli.training.events import RunningLoss

    add = RunningLoss.add

    def slowly(self: RunningLoss, terms: Any) -> None:
        add(self, terms)
        Path(f"{out}.{os.environ['RANK']}").write_text(f"{os.getpid()} {self.batches}")
        time.sleep(PAUSE)

    patched: Any = RunningLoss
    patched.add = slowly
    sys.argv = ["dsh", "train", "digits", "--bits", "8", "--epochs", "3", "--no-tensorboard", "--out", out]
    main()


if __name__ == "__main__":
    tasks: dict[str, Any] = {"same": _same, "tell": _tell, "other": _other, "slowly": _slowly}
    tasks[sys.argv[1]](*sys.argv[2:])
