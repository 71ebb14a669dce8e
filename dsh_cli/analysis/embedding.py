"""The codes of a run as points of a picture, and how far that picture can be trusted. Free of torch."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.classes import ClassTable, class_table, nearest_labels
from dsh_cli.codes.bits import to_words, unpack
from dsh_cli.codes.sets import CodeSet, sample, taken
from dsh_cli.errors import DataError, UsageError
from dsh_cli.runs.run import Run

Method = Literal["tsne", "umap", "pca"]
Space = Literal["relaxed", "code"]

SAMPLE = 2000  # points by default
_MEASURED = 3000  # points that the figures are of, at most: they take every pair
_NEAR = 10  # neighbours whose trustworthiness is measured
_METRIC: dict[Space, str] = {"relaxed": "euclidean", "code": "hamming"}
_LEAST = 4  # points, for a picture to say anything
_OF_METHOD: dict[str, Method] = {"perplexity": "tsne", "neighbors": "umap", "min_dist": "umap"}


@dataclass(frozen=True)
class Projection:
    """How points are to be found for codes."""

    method: Method = "tsne"
    space: Space = "relaxed"  # Euclidean on relaxed codes, or Hamming on distinct codes
    dims: int = 2
    perplexity: float = 30.0  # of t-SNE: about how many neighbours a point has
    neighbors: int = 15  # of UMAP
    min_dist: float = 0.1  # of UMAP: how near two points may come
    seed: int = 0  # with 0 t-SNE starts from principal components, which no seed changes

    @classmethod
    def for_method(
        cls,
        method: Method,
        space: Space = "relaxed",
        dims: int = 2,
        seed: int = 0,
        perplexity: float | None = None,
        neighbors: int | None = None,
        min_dist: float | None = None,
    ) -> Projection:
        """One with those options of the method that are given, not None; the others are as they are by default.

        Raises:
            UsageError: an option is of another method, or as in `check`; the message names it.
        """
        options = {"perplexity": perplexity, "neighbors": neighbors, "min_dist": min_dist}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if _OF_METHOD[name] != method:
                raise UsageError(f"`{name}` is for `method` {_OF_METHOD[name]}; leave it out, or choose that")
        how = cls(method, space, dims, seed=seed, **given)
        how.check()
        return how

    def check(self) -> None:
        """Refuse what no picture could be made of.

        Raises:
            UsageError: an option is out of its range; the message names it.
        """
        checks = (
            (self.dims in (2, 3), f"`dims` {self.dims}: 2 or 3"),
            (1 <= self.perplexity < math.inf, f"`perplexity` {self.perplexity:g}: a number of 1 or more"),
            (self.neighbors >= 2, f"`neighbors` {self.neighbors}: 2 or more"),
            (0 <= self.min_dist <= 1, f"`min_dist` {self.min_dist:g}: 0 to 1"),
            (0 <= self.seed < 2**32, f"`seed` {self.seed}: 0 to 2^32 - 1"),
        )
        for fine, message in checks:
            if not fine:
                raise UsageError(message)


@dataclass(frozen=True)
class Embedding:
    """Points, what each stands for, and two figures of how good they are.

    Attributes:
        how: as asked for.
        codes: of n pictures; in the space `code`, one for each distinct code.
        counts: (n,) pictures that have the code of a point; 1 in the space `relaxed`.
        nearest: n names: the class whose code is nearest to a point's, see `nearest_classes`; empty where none has one.
        points: (n, dims) float32, in the middle of a cube that reaches from -1 to 1.
        trustworthiness: see `trustworthiness`; of `near` neighbours, by the metric of the space.
        silhouette: by class, Euclidean, in the picture, in [-1, 1] (Rousseeuw, 1987); None with one class.
        measured: points that the two figures are of.
        near: neighbours of a point that trustworthiness looks at.
        notes: what was done otherwise than asked, for there are too few points.
    """

    how: Projection
    codes: CodeSet
    counts: NDArray[np.int64]
    nearest: tuple[str, ...]
    points: NDArray[np.float32]
    trustworthiness: float
    silhouette: float | None
    measured: int
    near: int
    notes: tuple[str, ...]
    seconds: float = field(compare=False)

    def place_of(self, label: int) -> NDArray[np.float32]:
        """Where the name of a class belongs: the median of its points, or the code that most of its pictures have."""
        rows = np.flatnonzero(self.codes.labels == label)
        if self.how.space == "code":
            most: NDArray[np.float32] = self.points[rows[self.counts[rows].argmax()]]
            return most.copy()
        return np.median(self.points[rows], axis=0).astype(np.float32)

    @property
    def metric(self) -> str:
        """What trustworthiness is measured by, for people."""
        return "Euclidean on relaxed codes" if self.how.space == "relaxed" else "Hamming on distinct codes"


def of_run(run: Run, split: str) -> CodeSet:
    """The codes of a split of a run, with all that is kept of its pictures.

    Raises:
        UsageError: the run has no such split.
        RunError: they are missing or damaged.
    """
    return replace(run.codes(split, "relaxed", "thumbnails"), names=run.names()[split])


def embed_run(
    run: Run, split: str, how: Projection, most: int = SAMPLE, progress: Callable[[str], None] = lambda text: None
) -> Embedding:
    """Find points for the codes of a split of a run; classes have the codes of the pictures it was trained on.

    Args:
        run: a finished run.
        split: a name in `run.counts`.
        how: as in `embed`, and so are the others.
        most: pictures to take.
        progress: told what is being done.

    Raises:
        UsageError: as in `embed`, or the run has no such split.
        DataError: as in `embed`.
        RunError: codes or names of the run are missing or damaged.
    """
    return embed(of_run(run, split), how, most, progress, class_table(run.codes("train"), "train"))


def embed(
    codes: CodeSet,
    how: Projection,
    most: int = SAMPLE,
    progress: Callable[[str], None] = lambda text: None,
    table: ClassTable | None = None,
) -> Embedding:
    """Find points for the codes of at most `most` pictures, each class in proportion.

    Args:
        codes: with relaxed codes, if `how.space` is `relaxed`.
        how: method and its options.
        most: pictures to take, drawn by the seed.
        progress: told what is being done.
        table: of classes, says which of them is nearest to a point; None: that of `codes`. With the table of the
            training pictures of a run it is the class that looking up the code predicts.

    Raises:
        UsageError: an option is out of its range, or there are no relaxed codes.
        DataError: there are too few codes for a picture.
    """
    how.check()
    if most < _LEAST:
        raise UsageError(f"`sample` {most}: {_LEAST} or more")
    if how.space == "relaxed" and codes.relaxed is None:
        raise UsageError("there are no relaxed codes; take space='code', or codes of a run")
    started = time.perf_counter()
    chosen = taken(codes, sample(codes.labels, most, how.seed))
    counts = np.ones(len(chosen), np.int64)
    if how.space == "code":
        chosen, counts = _one_of_each(chosen)
        vectors = unpack(chosen.packed, chosen.bits).astype(np.float32)  # (n, k)
    else:
        assert chosen.relaxed is not None
        vectors = np.nan_to_num(chosen.relaxed).astype(np.float32)  # in this order: float16's largest is not too large
    if len(chosen) < _LEAST:
        what = "distinct codes" if how.space == "code" else "pictures"
        raise DataError(
            f"{len(chosen)} {what} make no picture; take a larger split or `sample`"
            + (", or `space` relaxed" if how.space == "code" else "")
        )
    points, notes = _points_of_all(vectors, how, progress)
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    points = (points / (np.abs(points).max() or 1)).astype(np.float32)
    progress("measuring the picture")
    rows = np.arange(len(points))
    if len(rows) > _MEASURED:
        rows = np.sort(np.random.default_rng(how.seed).permutation(len(rows))[:_MEASURED])
    near = min(_NEAR, (len(rows) - 1) // 2)
    trust, silhouette = _figures(vectors[rows], points[rows], chosen.labels[rows], how.space, near)
    seconds = time.perf_counter() - started
    nearest = _nearest(chosen, table or class_table(codes, "given"))
    return Embedding(how, chosen, counts, nearest, points, trust, silhouette, len(rows), near, notes, seconds)


def _nearest(codes: CodeSet, table: ClassTable) -> tuple[str, ...]:
    if not len(table.present):  # as of pictures without labels
        return ("",) * len(codes)
    return nearest_labels(codes.packed, table)


def _one_of_each(codes: CodeSet) -> tuple[CodeSet, NDArray[np.int64]]:
    """A picture for each distinct code, of the class most have that have it; and how many those are."""
    _, inverse, counts = np.unique(to_words(codes.packed), axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    # Pictures by code, within it by how many of its class have it, the first of these first.
    pairs = np.stack([inverse, codes.labels], axis=1)
    _, of_pair, with_class = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((np.arange(len(codes)), -with_class[of_pair.ravel()], inverse))
    first = order[np.searchsorted(inverse[order], np.arange(len(counts)))]
    return taken(codes, first), counts


def _points_of_all(
    vectors: NDArray[np.float32], how: Projection, progress: Callable[[str], None]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """As `_points`; equal vectors share a point. Many of few UMAP takes long to part, and nothing parts them."""
    _, first, inverse = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(vectors):
        return _points(vectors, how, progress)
    order = np.argsort(first)
    distinct = vectors[first[order]]
    outputs = "1 output" if len(distinct) == 1 else f"{len(distinct):,} different outputs"
    note = f"{len(vectors):,} pictures have {outputs}; equal ones share a point"
    if len(distinct) < _LEAST and how.method != "pca":
        how = replace(how, method="pca")
        note += ", found by PCA, for there are too few for more"
    points, notes = _points(distinct, how, progress)
    return points[np.argsort(order)[inverse.ravel()]], (note, *notes)


def _points(
    vectors: NDArray[np.float32], how: Projection, progress: Callable[[str], None]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(n, dims) points, and what was done otherwise than asked."""
    count = len(vectors)
    metric = _METRIC[how.space]
    notes: list[str] = []
    with warnings.catch_warnings(action="ignore"):  # of few threads, and of what later versions will do
        match how.method:
            case "pca":
                from sklearn.decomposition import PCA

                progress("PCA")
                dims = min(how.dims, *vectors.shape)
                points = PCA(dims, svd_solver="full").fit_transform(vectors)
                points = np.pad(points, ((0, 0), (0, how.dims - dims)))
            case "tsne":
                from sklearn.manifold import TSNE

                perplexity = min(how.perplexity, (count - 1) / 3)
                if perplexity < how.perplexity:
                    notes.append(f"perplexity {perplexity:.3g} instead of {how.perplexity:g}, for {count} points")
                progress(f"t-SNE of {count:,} points")
                start = "pca" if how.seed == 0 and vectors.shape[1] >= how.dims else "random"
                net = TSNE(how.dims, perplexity=perplexity, metric=metric, init=start, random_state=how.seed)
                points = net.fit_transform(vectors)
            case "umap":
                progress("loading UMAP, which compiles for some seconds")
                import numba
                import umap

                # Numba, as it starts its threads, sets how many the thread that asks it to has, of PyTorch's too, and
                # with others a training would come to other weights: let one ask that ends.
                asking = threading.Thread(target=numba.get_num_threads)
                asking.start()
                asking.join()
                neighbors = min(how.neighbors, count - 1)
                if neighbors < how.neighbors:
                    notes.append(f"{neighbors} neighbours instead of {how.neighbors}, for {count} points")
                progress(f"UMAP of {count:,} points")
                # One thread, for with more the same seed would give another picture each time.
                points = umap.UMAP(
                    n_components=how.dims,
                    n_neighbors=neighbors,
                    min_dist=how.min_dist,
                    metric=metric,
                    init="spectral" if count > how.dims + 1 + _LEAST else "random",
                    random_state=how.seed,
                    n_jobs=1,
                ).fit_transform(vectors)
    return np.nan_to_num(np.asarray(points, np.float32)), tuple(notes)


def _figures(
    vectors: NDArray[np.float32], points: NDArray[np.float32], labels: NDArray[np.int64], space: Space, near: int
) -> tuple[float, float | None]:
    from sklearn.metrics import pairwise_distances, silhouette_score

    # Differing bits as whole numbers, so that equal distances are equal.
    away = pairwise_distances(vectors, metric=_METRIC[space])
    if space == "code":
        away = np.rint(away * vectors.shape[1])
    trust = trustworthiness(away, pairwise_distances(points), near)
    class_count = len(np.unique(labels))
    return trust, float(silhouette_score(points, labels)) if 1 < class_count < len(labels) else None


def trustworthiness(away: NDArray[np.floating], shown: NDArray[np.floating], near: int) -> float:
    """How far the neighbours in a picture are neighbours: 1 less a penalty for those that are not, by their rank.

    Venna & Kaski, *Neighborhood Preservation in Nonlinear Projection Methods*, ICANN 2001, equation 1. Distances of
    codes tie massively, so of equally far points none is ranked before another: a rank is 1 and the points that are
    nearer. scikit-learn's ranks them in the order of its sort.

    Args:
        away: (n, n) distances of what the points stand for.
        shown: (n, n) distances in the picture.
        near: neighbours in the picture to look at, below n / 2.
    """
    count = len(away)
    penalty = 0
    for row in range(count):
        others = np.delete(np.arange(count), row)
        neighbours = others[np.argsort(shown[row, others], kind="stable")[:near]]
        ranks = 1 + np.searchsorted(np.sort(away[row, others]), away[row, neighbours])
        penalty += int(np.maximum(0, ranks - near).sum())
    return 1 - 2 * penalty / (count * near * (2 * count - 3 * near - 1))
