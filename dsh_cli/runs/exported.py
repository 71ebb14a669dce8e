"""A model that `dsh export` wrote: what makes codes, apart from any run and without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsh_cli.codes.bits import from_hex, to_hex
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig
from dsh_cli.errors import RunError, UsageError, reason
from dsh_cli.files import open_regular
from dsh_cli.network.encoder import Encoder
from dsh_cli.network.onnx_encoding import LARGEST, OnnxEncoder, is_cpu, opened, require_whole
from dsh_cli.runs.run import GRAPH_FORMAT, Run
from dsh_cli.runs.schema import model_of, require, shown

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SUFFIX = ".onnx"
_AGAIN = "export its run again"
_MOST = 10_000_000  # pictures of a class
# what the file says of itself, and of what type
_ABOUT = {
    "format": int,
    "model": dict[str, Any],
    "fingerprint": str,
    "classes": list[str],
    "class_codes": dict[str, str],
    "on_class_codes": dict[str, int],
    "output_scale": float,
}


@dataclass(frozen=True)
class Exported:
    """An ONNX file, opened. It stands where a run does, wherever no pictures of the run are asked for."""

    path: Path
    model: ModelConfig
    fingerprint: str  # of the run
    classes: tuple[str, ...]
    output_scale: float
    class_codes: CodeSet  # of each class, its code, as often as training pictures have it
    session: InferenceSession = field(repr=False, compare=False)
    counts: Mapping[str, int] = field(default_factory=dict)  # it has no pictures

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Exported:
        """Read a file.

        Raises:
            RunError: it is missing, damaged, or none that `dsh export` wrote.
            EngineError: onnxruntime is not installed, or cannot be loaded.
        """
        file = Path(path)
        try:
            with os.fdopen(open_regular(file), "rb") as reader:
                size = os.fstat(reader.fileno()).st_size
                content = reader.read(size) if size <= LARGEST else b""
        except OSError as error:
            raise RunError(f"{file} cannot be read ({reason(error)}); {_AGAIN}") from error
        return cls.read(file, content)

    @classmethod
    def read(cls, file: Path, content: bytes) -> Exported:
        """What a file says; errors as in `open`."""
        try:
            if not content:
                raise ValueError("it is empty, or far too large")
            session, about = opened(content)
            if "classes" not in about and "fingerprint" in about:
                raise RunError(f"{file} is the graph of a run; name the run itself")
            require_whole(content, about)
            return cls._of(file, session, about)
        except ValueError as error:
            raise RunError(f"{file} is no exported model, or damaged ({error}); {_AGAIN}") from error

    @classmethod
    def _of(cls, file: Path, session: InferenceSession, about: Mapping[str, Any]) -> Exported:
        require(about, _ABOUT, "its metadata", ("format", "model", "fingerprint"))
        if about["format"] > GRAPH_FORMAT:
            raise ValueError(f"it has format {shown(about['format'])}, newer than {GRAPH_FORMAT}; upgrade dsh")
        require(about, _ABOUT, "its metadata", _ABOUT)
        if not about["output_scale"] > 0 or not re.fullmatch("[0-9a-f]{16}", about["fingerprint"]):
            raise ValueError("its metadata: output_scale or fingerprint is none")
        model, classes, codes = model_of(about["model"]), tuple(about["classes"]), about["class_codes"]
        if unknown := sorted(codes.keys() - set(classes)):
            raise ValueError(f"its metadata: {shown(unknown[0])} is no class")
        counts = about["on_class_codes"]
        labels = [number for number, name in enumerate(classes) if name in codes]
        if counts.keys() != codes.keys() or not all(0 < count <= _MOST for count in counts.values()):
            raise ValueError("its metadata: on_class_codes does not fit class_codes")
        times = [counts[classes[number]] for number in labels]
        try:
            packed = from_hex([codes[classes[number]] for number in labels], model.bits)
        except UsageError as error:
            raise ValueError(f"its metadata: {error}") from error
        return cls(
            path=file,
            model=model,
            fingerprint=about["fingerprint"],
            classes=classes,
            output_scale=about["output_scale"],
            class_codes=CodeSet(
                model.bits, np.repeat(packed, times, axis=0), np.repeat(np.array(labels, np.int64), times), classes, ()
            ),
            session=session,
        )

    def encoder(self, device: str = "auto") -> Encoder:
        """What makes its codes.

        Raises:
            UsageError: another device than the CPU is asked for.
            RunError: the graph is of no such model.
        """
        if device != "auto" and not is_cpu(device):
            raise UsageError(f"`device` {device}: an exported model computes on the CPU; give the run it is of")
        try:
            return OnnxEncoder(self.session, self.model, str(self.path))
        except ValueError as error:
            raise RunError(f"{self.path} is damaged ({error}); {_AGAIN}") from error

    def codes(self, split: str) -> CodeSet:
        """The code of each class, as often as it has pictures, in place of those of all training pictures."""
        assert split == "train"
        return self.class_codes


def about(run: Run, class_codes: CodeSet) -> dict[str, Any]:
    """What a file says of itself: what of the run its codes are used with.

    Args:
        run: the run.
        class_codes: of its training pictures those that have the code of their class.
    """
    from dataclasses import asdict

    labels, first, counts = np.unique(class_codes.labels, return_index=True, return_counts=True)
    names = [run.classes[label] for label in labels.tolist()]
    return {
        "format": GRAPH_FORMAT,
        "model": asdict(run.model),
        "fingerprint": run.fingerprint,
        "classes": list(run.classes),
        "class_codes": dict(zip(names, to_hex(class_codes.packed[first], run.model.bits), strict=True)),
        "on_class_codes": dict(zip(names, counts.tolist(), strict=True)),
        "output_scale": run.output_scale,
        "data": os.path.basename(run.config.data),
        "created": run.created,
        "bits": "most significant first: bit 0 is the highest of the first byte; those left over in the last are 0",
    }
