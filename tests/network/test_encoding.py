"""How many threads compute codes, and that no other thread is told of it."""

import threading
from collections.abc import Generator, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dsh_cli.codes.bits import pack
from dsh_cli.config import ModelConfig
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet


@pytest.fixture(autouse=True)
def _eight_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


class Counting(TorchEncoder):
    """An encoder that notes with how many threads it computes."""

    def __init__(self) -> None:
        super().__init__(HashNet(ModelConfig("dsh-cnn", 8, 1, 16)))
        self.seen: set[int] = set()

    def relaxed(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        self.seen.add(torch.get_num_threads())
        return super().relaxed(inputs)

    def begun(self, workers: int) -> Generator[object, None, None]:
        """Codes without end, of which one was asked for."""
        source = self.each(iter(int, 1), lambda number: (number, np.zeros((16, 16, 1), np.uint8)), workers)
        assert isinstance(source, Generator)
        next(source)
        return source


def of_a_new_thread() -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_workers_share_the_threads_and_others_keep_theirs() -> None:
    encoder = Counting()
    source = encoder.begun(workers=2)
    assert (encoder.seen, of_a_new_thread(), torch.get_num_threads()) == ({4}, 8, 8)
    source.close()
    assert (of_a_new_thread(), torch.get_num_threads()) == (8, 8)


def test_elsewhere_than_on_a_processor_batches_come_in_turn_with_the_same_codes() -> None:
    torch.manual_seed(0)
    encoder = TorchEncoder(HashNet(ModelConfig("dsh-cnn", 64, 1, 16)))
    encoder.at_once = 16
    rng = np.random.default_rng(0)
    pictures = np.stack([rng.integers(0, 3 * number + 1, (16, 16, 1), np.uint8) for number in range(70)])

    def read(number: int) -> tuple[str, NDArray[np.uint8] | None]:
        return f"picture {number}", None if number in (0, 33) else pictures[number]

    expected = list(encoder.each(range(70), read, 3))
    found = list(encoder._in_turn(range(70), read, 3))
    assert [told[:2] for told in found] == [told[:2] for told in expected]
    assert [None if code is None else code.packed.tolist() for *_, code in found] == [
        None if code is None else code.packed.tolist() for *_, code in expected
    ]
    assert len({code.packed.tobytes() for *_, code in found if code is not None}) > 1  # or any would do
    for *_, code in found:
        assert code is None or code.packed.tolist() == pack(code.relaxed >= 0).tolist()


def test_what_begins_in_a_new_thread_while_another_goes_on_has_all_threads_too() -> None:
    first, second = Counting(), Counting()
    going_on = first.begun(workers=2)
    other = threading.Thread(target=lambda: second.begun(workers=2).close())
    other.start()
    other.join()
    going_on.close()
    assert (first.seen, second.seen, of_a_new_thread()) == ({4}, {4}, 8)
