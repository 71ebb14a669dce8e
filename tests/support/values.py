"""Values that may be missing or elsewhere, as tests know them to be."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dsh_cli.data.dataset import Dataset

_T = TypeVar("_T")


def there(value: _T | None) -> _T:
    """A value that must not be None."""
    assert value is not None
    return value


def in_memory(dataset: Dataset) -> NDArray[np.uint8]:
    """The pictures of a data set that must not be in files."""
    assert isinstance(dataset.images, np.ndarray)
    return dataset.images
