"""What an embedding is drawn as: a picture, a page, points for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsh_cli.errors import UsageError
from dsh_cli.files import UNLINK, require_no_links
from dsh_cli.show.figures import Points, embedding, require_writable, save

if TYPE_CHECKING:
    from dsh_cli.analysis.embedding import Embedding
    from dsh_cli.runs.run import Run

_PAGES = (".html", ".htm")
_MOST_BITS = 64  # of codes that are drawn as points


@dataclass(frozen=True)
class Drawing:
    """What an embedding is drawn as: a picture or a page to explore, and points for TensorBoard as well."""

    out: str | None = None  # file, whose suffix says which of the two it is; None: a picture in the run's folder
    points: Points | None = None  # of a picture; None: thumbnails, or dots in three dimensions
    dims: int = 2
    tensorboard: bool = False

    def check(self, model: str | None = None) -> None:
        """Refuse what contradicts itself, before any run is opened.

        Args:
            model: path of the run; None: not known yet.

        Raises:
            UsageError: it does, or TensorBoard cannot write into the run; the message names the fields.
        """
        if self.dims != 2 and self.points not in (None, "dots"):
            raise UsageError(
                f"`points` {self.points} and `dims` {self.dims} contradict each other; three dimensions have dots"
            )
        if self.tensorboard:
            from dsh_cli.show.projector import require_utf8

            require_utf8(model or "", "leave `tensorboard` out")

    def place(self, run: Run, method: str) -> str:
        """The file to write for a run, before anything is computed.

        Raises:
            UsageError: what goes there cannot be drawn as asked, or as in `require_writable`.
            DshError: as in `require_writable`.
        """
        if self.points == "codes" and run.model.bits > _MOST_BITS:
            raise UsageError(f"`points` codes: codes of {run.model.bits} bits are too long; {_MOST_BITS} bits at most")
        file = str(run.path / f"{method}.png") if self.out is None else self.out
        if _is_page(file) and self.dims != 2:
            raise UsageError("`dims` 3: a page is flat; take a picture such as .png, or `dims` 2")
        if _is_page(file) and self.points is not None:
            raise UsageError("`points` is for pictures; a page has dots, and shows a picture where the pointer is")
        if self.out is None:
            require_no_links(Path(file), run.path, f"{UNLINK}, or name what it leads to with `out`")
        if self.tensorboard:
            require_no_links(run.path / "tensorboard" / method, run.path, UNLINK)
        require_writable(file, "choose another `out` FILE", _PAGES)
        return file

    def draw(self, made: Embedding, file: str, run: Run, split: str) -> tuple[str, ...]:
        """Draw an embedding of a split of a run into a file, and its points for TensorBoard.

        Returns:
            What is to be said of it.

        Raises:
            DshError: it cannot be written.
        """
        notes: tuple[str, ...] = ()
        if _is_page(file):
            from dsh_cli.show.pages.embedding import write_page

            write_page(file, made, run.path.name, split)
        else:
            figure = embedding(made, run.path.name, split, self.points or "thumbnails")
            notes = save(figure, file, run.path if self.out is None else None)
        if self.tensorboard:
            from dsh_cli.show.projector import write_embedding

            notes = (*notes, write_embedding(run, made, split))
        return notes


def _is_page(file: str) -> bool:
    return Path(file).suffix.lower() in _PAGES
