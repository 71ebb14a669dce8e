"""Several processes that train one network, as `torchrun` starts them. The first alone asks, writes and speaks.

All draw the same random numbers for whole batches, and each learns from its share: their outputs are gathered, so that
the loss is that of the batch, and their gradients are added. So what is learned hangs on the number of processes by
rounding alone, and by the statistics of BatchNorm: on a CPU each process takes those of its share.

Torch is imported where there are several; a process alone needs nothing of it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dsh_cli import speaking
from dsh_cli.errors import DshError, Interrupted, LostProcess, UsageError, lacking_memory, reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_Made = TypeVar("_Made")

_SAID = 120  # characters of what PyTorch says
_LONG = timedelta(days=1)  # that others wait for the first, while it measures; one that dies is noticed at once


@dataclass(frozen=True)
class Processes:
    """Those that train one network, of which this is one. Alone it waits for nobody."""

    rank: int = 0  # of this one; 0 is the first
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that asks, writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world_size == 1

    def by_first(self, work: Callable[[], _Made]) -> _Made:
        """What the first makes, in every process; the others wait for it."""
        if self.alone:
            return work()
        made: list[Any] = [work() if self.is_first else None]
        with _in_touch():
            _distributed().broadcast_object_list(made, src=0)
        return cast(_Made, made[0])

    def after_first(self, work: Callable[[], _Made]) -> _Made:
        """What each makes for itself, but the first before the others: what it downloads is there for them.

        On another machine it is not, and each downloads it.
        """
        made = work() if self.is_first else None
        self.of_all(None)  # the others wait here
        return cast(_Made, made) if self.is_first else work()

    def of_all(self, value: _Made) -> list[_Made]:
        """What each process says, by rank."""
        if self.alone:
            return [value]
        said: list[Any] = [None] * self.world_size
        with _in_touch():
            _distributed().all_gather_object(said, value)
        return said

    def most(self, *numbers: float) -> Sequence[float]:
        """The largest that any process says, of each number."""
        if self.alone:
            return numbers
        import torch

        found = torch.tensor(numbers, dtype=torch.float64)
        dist = _distributed()
        with _in_touch():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        largest: list[float] = found.tolist()
        return largest

    def share(self, count: int) -> slice:
        """Which of the places in a batch of `count` are of this process: each has as many, or one more."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def gathered(self, relaxed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(b, k) outputs of the share of this process, and (b,) labels -> (B, k) and (B,) of the batch, by rank.

        The loss of the batch is computed by every process, and its gradient goes back by the outputs of this one alone:
        `add_gradients` makes it whole.
        """
        if self.alone:
            return relaxed, labels
        import torch

        counts = [int(count) for count in self.of_each(len(labels))]
        places = torch.arange(max(counts), device=labels.device)
        everyones = []
        for own in (relaxed, labels):
            padded = own.new_zeros(max(counts), *own.shape[1:])
            padded[: len(own)] = own.detach()
            found = [torch.empty_like(padded) for _ in counts]
            with _in_touch():
                _distributed().all_gather(found, padded)
            everyones.append([one[places < count] for one, count in zip(found, counts, strict=True)])
        outputs, of_all = everyones
        outputs[self.rank] = relaxed
        return torch.cat(outputs), torch.cat(of_all)

    def of_each(self, number: int) -> Sequence[int]:
        """A number of each process, by rank."""
        import torch

        found = torch.zeros(self.world_size, dtype=torch.int64)
        found[self.rank] = number
        with _in_touch():
            _distributed().all_reduce(found)
        numbers: list[int] = found.tolist()
        return numbers

    def add_gradients(self, net: nn.Module) -> None:
        """Make each gradient the sum of those of all processes."""
        if self.alone:
            return
        import torch

        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])  # one exchange, not one for each
        with _in_touch():
            _distributed().all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view(gradient.shape))

    def start_alike(self, net: nn.Module) -> None:
        """Give the weights and buffers of the first to all."""
        if not self.alone:
            net.load_state_dict(self.by_first(net.state_dict))

    def average_statistics(self, net: nn.Module) -> None:
        """Make the running statistics of BatchNorm, by which codes are made, the means of those of all processes."""
        if self.alone:
            return
        for name, buffer in net.named_buffers():
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                with _in_touch():
                    _distributed().all_reduce(buffer)
                buffer /= self.world_size

    def place(self, device: torch.device) -> torch.device:
        """The device of this process: of several GPUs that of its number on this machine."""
        if self.alone or str(device) != "cuda":
            return device
        import torch

        there, number = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
        if number >= there:
            raise UsageError(
                f"`device` {device}: {socket.gethostname()} has {there} GPUs for more processes; start one for each"
            )
        own = torch.device("cuda", number)
        torch.cuda.set_device(own)
        return own

    def synchronise(self, net: nn.Module, device: torch.device) -> None:
        """Have BatchNorm take the statistics of whole batches, on a GPU; on a CPU PyTorch cannot."""
        if self.alone or device.type != "cuda":
            return
        import torch

        convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
        convert(net)  # its layers are replaced in place


ALONE = Processes()

_joined: Processes | None = None


@contextmanager
def joined() -> Iterator[Processes]:
    """Which of the processes that `torchrun` has started this is; alone, where it was not started so.

    SIGTERM, by which `torchrun` ends them, is as Ctrl-C meanwhile.

    Raises:
        LostProcess: the others cannot be reached, or one ended.
    """
    global _joined
    if _joined is not None or not speaking.launched():
        yield _joined or ALONE
        return
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _in_touch("the other processes cannot be reached"):
            store, rank, world_size = next(_distributed().rendezvous("env://"))
            _distributed().init_process_group(store=store, rank=rank, world_size=world_size, timeout=_LONG)
        _joined = Processes(rank, world_size)
        speaking.meet(store)
        try:
            yield _joined
        except Interrupted:
            raise
        except DshError as error:
            if rank:
                raise type(error)(f"process {rank} of {world_size}, on {socket.gethostname()}: {error}") from error
            raise
        _distributed().destroy_process_group()
    finally:
        _joined = None
        if before is not None and signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _in_touch(what: str = "another process of the training has ended") -> Iterator[None]:
    """Turn what PyTorch says where another process has ended into an error of ours."""
    try:
        yield
    except RuntimeError as error:
        if lacking_memory(error) is not None:
            raise
        if threading.current_thread() is threading.main_thread():
            # torchrun ends whoever is left, which is to say first what happened
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostProcess(f"{what} ({_short(error)})") from error


def _short(error: RuntimeError) -> str:
    """What PyTorch says, without where in its source."""
    said = re.sub(r"\[[^]]*\.\w+:\d+\] ?", "", reason(error)).partition(". ")[0]
    return said if len(said) <= _SAID else said[: _SAID - 3] + "..."


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed
