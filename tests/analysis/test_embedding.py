"""Points of codes: the same for the same seed, faithful, and drawn so that all can be seen."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mpl_toolkits.mplot3d.art3d import Text3D
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.manifold import trustworthiness as sklearn_trustworthiness

from dsh_cli.analysis.classes import class_table, nearest_classes
from dsh_cli.analysis.embedding import Method, Projection, Space, embed, embed_run, of_run, trustworthiness
from dsh_cli.codes.bits import hamming, pack, unpack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.errors import DataError, UsageError
from dsh_cli.runs.run import Run
from dsh_cli.show import figures
from dsh_cli.show.drawing import Drawing
from tests.support.codes import made
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.imports import loaded_by_command
from tests.support.projector import Projector
from tests.support.runs import small_run
from tests.support.values import there

ROOT = Path(__file__).parent.parent.parent

CONTRACT = ["method", "space", "points", "out", "trustworthiness", "silhouette", "seconds"]


def trust(away: NDArray[np.float64], points: NDArray[np.float32], near: int) -> float:
    """Trustworthiness as its authors define it, loop by loop (Venna & Kaski, 2001, equation 1)."""
    n, total = len(points), 0
    seen = cdist(points, points)
    for i in range(n):
        for j in [j for j in np.argsort(seen[i], kind="stable") if j != i][:near]:
            rank = 1 + sum(away[i, other] < away[i, j] - 1e-9 for other in range(n) if other != i)
            total += max(0, rank - near)
    return 1 - 2 / (n * near * (2 * n - 3 * near - 1)) * total


@pytest.mark.parametrize("method", ["tsne", "umap", "pca"])
@pytest.mark.parametrize("space", ["relaxed", "code"])
@pytest.mark.parametrize("dims", [2, 3])
def test_one_seed_gives_one_picture_in_which_classes_are_apart(method: Method, space: Space, dims: int) -> None:
    codes = made(noise=0.4 if space == "relaxed" else 0.8)  # the latter for more distinct codes
    how = Projection(method, space, dims)
    one, again = embed(codes, how), embed(codes, how)
    assert one == replace(again, codes=one.codes, counts=one.counts, points=one.points)  # the rest
    assert (one.points == again.points).all() and one.points.shape == (len(one.codes), dims)
    assert np.abs(one.points).max() == 1 and np.allclose(one.points.max(axis=0), -one.points.min(axis=0), atol=1e-5)
    assert one.counts.sum() == 120 and one.measured == len(one.codes)
    assert one.trustworthiness > 0.7
    if space == "relaxed":  # distinct codes of a class are few, and no cluster
        assert there(one.silhouette) > 0.3
    if method != "pca":
        assert not (embed(codes, replace(how, seed=1)).points == one.points).all()


def test_umap_leaves_torch_as_many_threads_as_it_had() -> None:
    """Numba takes OpenMP's number for its own as it starts, and a training after it came to other weights."""
    script = """
import os, torch
from dsh_cli.analysis.embedding import Projection, embed
from tests.support.codes import made
torch.set_num_threads(os.cpu_count() + 1)
threads = torch.get_num_threads()  # asked, it sets them at last
embed(made(60), Projection("umap"))
print(torch.get_num_threads() - threads)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_figures_agree_with_their_definitions() -> None:
    codes = made(60)
    for space in ("relaxed", "code"):
        one = embed(codes, Projection("pca", space))
        vectors = there(codes.relaxed).astype(float) if space == "relaxed" else unpack(one.codes.packed, 16)
        away = cdist(vectors, vectors, "euclidean" if space == "relaxed" else "hamming")
        assert one.trustworthiness == pytest.approx(trust(away, one.points, one.near), abs=1e-6)
        silhouettes = []
        apart = cdist(one.points, one.points)
        for i, label in enumerate(one.codes.labels):
            own = (one.codes.labels == label) & (np.arange(len(apart)) != i)
            others = [apart[i, one.codes.labels == other].mean() for other in set(one.codes.labels) - {label}]
            inside = apart[i, own].mean()
            silhouettes.append((min(others) - inside) / max(min(others), inside) if own.any() else 0)
        assert one.silhouette == pytest.approx(np.mean(silhouettes), abs=1e-5)


def test_in_the_space_of_codes_each_code_is_one_point_of_its_commonest_class() -> None:
    packed = pack([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 1, 1]])
    labels = np.array([1, 0, 1, 0, 0, 1, 0])
    codes = CodeSet(
        3,
        packed,
        labels,
        ("a", "b"),
        [f"{i}" for i in range(7)],
        np.zeros((7, 3), np.float16),
        np.zeros((7, 8, 8, 1), np.uint8),
    )
    one = embed(codes, Projection("pca", "code"))
    points = {
        code: (label, count, name)
        for code, label, count, name in zip(one.codes.hex, one.codes.labels, one.counts, one.codes.names, strict=True)
    }
    assert points == {
        "0": (1, 3, "0"),
        "7": (0, 1, "3"),
        "4": (0, 1, "4"),
        "3": (1, 2, "5"),
    }


def test_hamming_distance_is_what_the_space_of_codes_is_about() -> None:
    """PCA of 0 and 1 keeps Hamming distance exactly where there are as many dimensions as it takes."""
    codes = made(bits=2)
    one = embed(replace(codes, packed=codes.packed), Projection("pca", "code"))
    between = hamming(one.codes.packed, one.codes.packed)
    squared = cdist(one.points, one.points) ** 2
    scale = squared.max() / between.max()
    assert np.allclose(squared, between * scale, atol=1e-4)


def test_the_nearest_class_is_that_of_the_nearest_class_code() -> None:
    codes = made()
    one = embed(codes, Projection("pca"))
    share = np.mean([name == codes.classes[label] for name, label in zip(one.nearest, one.codes.labels, strict=True)])
    assert share > 0.95


def test_without_labels_no_class_is_nearest() -> None:
    codes = made()
    assert set(embed(replace(codes, labels=np.full(120, -1)), Projection("pca")).nearest) == {""}


@pytest.mark.parametrize("space", ["relaxed", "code"])
def test_a_code_has_the_same_nearest_class_as_a_point_and_when_it_is_looked_up(digits_run: Path, space: Space) -> None:
    one = embed_run(Run.open(digits_run), "test", Projection("pca", space))
    assert one.counts.sum() == 359
    assert predicted(digits_run, one.codes.hex) == dict(zip(one.codes.hex, one.nearest, strict=True))


def test_of_classes_that_are_equally_near_pictures_and_look_ups_name_the_same(tmp_path: Path) -> None:
    """By the codes of the pictures trained on, not of those shown."""
    train = [("dog", "0f"), ("cat", "f0"), ("owl", "3c"), ("owl", "3c"), ("cat", "f1"), ("dog", "0f")]
    every = [f"{number:02x}" for number in range(256)]
    shown = [("cat", code) for code in every]
    run = Run.open(small_run(tmp_path / "run", train, test=shown, validation=shown[:1]))
    known = class_table(run.codes("train"), "train")
    assert sum(bool(near.tied) for near in nearest_classes(run.codes("test").packed, known)) > 50
    codes = replace(run.codes("test"), names=[str(number) for number in range(256)])
    one = embed(codes, Projection("pca", "code"), table=known)
    names = dict(zip(one.codes.hex, one.nearest, strict=True))
    assert names == predicted(run.path, every) and set(names.values()) == {"cat", "dog", "owl"}


def predicted(run: Path, codes: Sequence[str]) -> dict[str, str]:
    """What class looking a code up predicts."""
    result = dsh("neighbors", *(f"0x{code}" for code in codes), "--model", run, "-k", 1, "--json")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(codes)
    return {answer["code"]: answer["predicted_label"] for answer in answers}


def test_a_sample_has_the_shares_of_the_classes() -> None:
    one = embed(made(400), Projection("pca"), most=40)
    assert np.bincount(one.codes.labels).tolist() == [10] * 4
    assert len(set(one.codes.names)) == 40


@pytest.mark.parametrize("method", ["tsne", "umap", "pca"])
def test_few_and_equal_points_make_a_picture_too(method: Method) -> None:
    few = embed(made(8), Projection(method, perplexity=30))
    assert len(few.points) == 8 and np.isfinite(few.points).all()
    assert bool(few.notes) == (method != "pca")
    codes = made(40)
    equal = replace(codes, relaxed=np.ones_like(codes.relaxed))
    one = embed(equal, Projection(method))
    assert not one.points.any() and one.notes[0].startswith("40 pictures have 1 output; equal ones share")
    with pytest.raises(DataError, match="1 distinct codes make no picture.*`space` relaxed"):
        embed(replace(codes, packed=codes.packed[:1].repeat(40, axis=0)), Projection(method, "code"))


@pytest.mark.parametrize("method", ["tsne", "umap", "pca"])
@pytest.mark.parametrize("kinds", [2, 3, 20])
def test_many_pictures_of_few_outputs_share_points_and_are_soon_drawn(method: Method, kinds: int) -> None:
    """UMAP took as long for them as for as many different ones, and twice that where outputs were few."""
    rng = np.random.default_rng(0)
    codes, of = made(2000), rng.permutation(np.arange(2000) % kinds)
    assert codes.relaxed is not None
    some = rng.normal(size=(kinds, codes.bits)).astype(np.float16)
    embed(made(20), Projection(method))  # compiles
    start = time.process_time()
    one = embed(replace(codes, relaxed=some[of]), Projection(method))
    assert time.process_time() - start < 3
    first = one.points[[np.flatnonzero(of == kind)[0] for kind in range(kinds)]]
    assert (one.points == first[of]).all() and len(np.unique(first, axis=0)) == kinds
    assert f"2,000 pictures have {kinds} different outputs; equal ones share a point" in one.notes[0]


def test_what_no_picture_can_be_made_of_is_refused(digits_run: Path) -> None:
    for wrong in (["--dims", 4], ["--perplexity", 0.5], ["--neighbors", 1], ["--min-dist", 2], ["--sample", 3],
                  ["--seed", -1], ["--split", "all"], ["--out", "x.xyz"], ["--out", "no/x.png"],
                  ["--out", "no/x.html"], ["--dims", 3, "--points", "codes"], ["--dims", 3, "--out", "x.html"],
                  ["--points", "dots", "--out", "x.html"], ["--out", "x.pgf"], ["--out", ""],
                  ["--perplexity", 20], ["--neighbors", 5], ["--min-dist", 0.5]):  # fmt: skip
        line = one_line_error(dsh("embed", "--model", digits_run, "--method", "pca", *wrong, "--quiet"), 2)
        assert str(wrong[0]) in line or "x." in line or wrong == ["--out", ""]
    assert [path.name for path in Path().iterdir()] in ([], ["cache"])


def test_options_of_another_method_are_refused_also_as_they_are_by_default() -> None:
    assert Projection.for_method("tsne", perplexity=None, neighbors=None, min_dist=None) == Projection()
    assert Projection.for_method("tsne", "code", 3, 7, perplexity=5) == Projection("tsne", "code", 3, 5, seed=7)
    mine = Projection.for_method("umap", neighbors=4, min_dist=0.0, perplexity=None)
    assert mine == Projection("umap", neighbors=4, min_dist=0.0)
    for method, name in (("pca", "perplexity"), ("umap", "perplexity"), ("tsne", "neighbors"), ("pca", "min_dist")):
        with pytest.raises(UsageError, match=rf"`{name}` is for `method` \w+; leave it out") as caught:
            Projection.for_method(method, **{name: getattr(Projection(), name)})  # type: ignore[arg-type]
        assert caught.value.fields == (name, "method")
    with pytest.raises(UsageError, match="`dims` 4"):
        Projection.for_method("pca", dims=4)


def test_a_drawing_that_contradicts_itself_names_its_fields(digits_run: Path) -> None:
    for points in ("codes", "thumbnails"):
        with pytest.raises(UsageError, match="three dimensions have dots") as caught:
            Drawing(points=points, dims=3).check()
        assert caught.value.fields == ("points", "dims")
    with pytest.raises(UsageError, match="TensorBoard cannot write") as caught:
        Drawing(tensorboard=True).check("r\udcff")
    assert caught.value.fields == ("tensorboard",)
    for fine in (Drawing(points="dots", dims=3), Drawing(tensorboard=True), Drawing()):
        fine.check("run")


def test_a_drawing_has_a_place_where_it_can_be_drawn(digits_run: Path, tmp_path: Path) -> None:
    run = Run.open(digits_run)
    assert Drawing().place(run, "umap") == str(digits_run / "umap.png")
    for fine in (Drawing("a.html"), Drawing("a.svg", "codes"), Drawing("a.pdf", dims=3)):
        assert fine.place(run, "pca") == fine.out
    wide = Run.open(small_run(tmp_path / "wide", [("cat", "0" * 17)], 65, [], []))
    for drawing, of, fields in (
        (Drawing("a.html", dims=3), run, ("dims", "dims")),
        (Drawing("a.HTM", "dots"), run, ("points",)),
        (Drawing("a.png", "codes"), wide, ("points",)),
        (Drawing("a.bmp"), run, ()),
    ):
        with pytest.raises(UsageError) as caught:
            drawing.place(of, "pca")
        assert caught.value.fields == fields and "--" not in str(caught.value)


def test_without_a_place_it_is_the_runs_own(digits_run: Path) -> None:
    answer = dsh_json("embed", "--model", digits_run, "--method", "pca")
    assert list(answer) == CONTRACT
    file = digits_run / "pca.png"
    assert answer["out"] == str(file) and answer["points"] == 359
    with Image.open(file) as image:
        assert min(image.size) >= 900 and max(image.size) >= 1200
    file.unlink()
    same = embed_run(Run.open(digits_run), "test", Projection("pca"))
    assert (answer["trustworthiness"], answer["silhouette"]) == (same.trustworthiness, same.silhouette)
    assert same.trustworthiness > 0.7  # by chance it is .5
    plain = dsh("embed", "--model", digits_run, "--method", "pca", "--sample", 50, "--out", "a.png").stdout
    assert dict(line.split("\t") for line in plain.splitlines())["points"] == "50"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("points", ["thumbnails", "dots", "codes"])
def test_pictures_of_every_kind(digits_run: Path, suffix: str, points: str) -> None:
    file = f"out{suffix}"
    command = ["embed", "--model", digits_run, "--method", "pca", "--out", file, "--points", points, "--quiet"]
    assert dsh(*command).exit_code == 0
    start = Path(file).read_bytes()[:200]
    assert {".png": b"PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix] in start


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_seed_gives_the_same_bytes(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, date in ((1, "1"), (2, "1000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)  # which Matplotlib would take the date from
        figures.save(figures.embedding(embed(made(), Projection("pca")), "run", "test", "dots"), f"{number}{suffix}")
    assert Path(f"1{suffix}").read_bytes() == Path(f"2{suffix}").read_bytes()


def test_places_that_cannot_be_written_are_refused_before_anything_is_computed(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsh_cli.analysis.embedding.embed", lambda *_: pytest.fail("computed"))
    Path("folder.png").mkdir()
    Path("locked").mkdir()
    Path("link.png").symlink_to("nowhere/x.png")
    command = ["embed", "--model", digits_run, "--method", "pca", "--quiet", "--out"]
    assert "cannot write folder.png: it is a folder" in one_line_error(dsh(*command, "folder.png"), 1)
    assert "there is no folder" in one_line_error(dsh(*command, "link.png"), 2)
    monkeypatch.setattr("os.access", lambda path, mode: "locked" not in str(path))
    for file in ("locked/x.png", "locked/x.html"):
        assert f"cannot write {file}: nothing can be" in one_line_error(dsh(*command, file), 1)


def test_a_picture_is_written_through_a_link_and_keeps_the_mode_of_what_was_there(digits_run: Path) -> None:
    Path("real.png").touch(0o600)
    Path("link.png").symlink_to("real.png")
    name = "x" * 250 + ".png"
    for file in ("link.png", name):
        assert dsh("embed", "--model", digits_run, "--method", "pca", "--out", file, "--quiet").exit_code == 0
    assert Path("link.png").is_symlink() and Path("real.png").stat().st_size > 1000 and Path(name).is_file()
    assert Path("real.png").stat().st_mode & 0o777 == 0o600


def test_characters_without_a_font_are_told_of_in_a_line_and_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    codes = replace(made(), classes=("\U00013000", "b", "c", "d"))  # an Egyptian hieroglyph
    (note,) = figures.save(figures.embedding(embed(codes, Projection("pca")), "run", "test", "dots"), "x.png")
    assert note.startswith("none of the fonts looked for has \U00013000")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_codes_as_points_have_no_dot_beneath() -> None:
    embedding = embed(made(noise=0.8), Projection("pca", "code"))
    figure = figures.embedding(embedding, "run", "test", "codes")
    texts = [text.get_text() for text in figure.axes[0].texts]
    drawn = sum(len(np.asarray(dots.get_offsets())) for dots in figure.axes[0].collections)
    written = [text for text in texts if text in embedding.codes.hex]
    assert len(written) > 10 and drawn + len(written) == len(embedding.codes)


def test_many_classes_are_drawn_by_what_they_look_like_not_one_by_one() -> None:
    codes = replace(made(600), labels=np.arange(600), classes=tuple(map(str, range(600))))
    one = embed(codes, Projection("pca"))
    figure = figures.embedding(one, "run", "test", "dots")
    dots = figure.axes[0].collections
    assert len(dots) <= 100 + 120  # looks, and lines of the legend
    assert sum(len(np.asarray(drawn.get_offsets())) for drawn in dots) == 600
    assert figure.legends[0].get_title().get_text() == "600 classes, the first 120"


def test_titles_legend_and_names_say_what_is_seen(digits_run: Path) -> None:
    embedding = embed(of_run(Run.open(digits_run), "test"), Projection("pca"))
    figure = figures.embedding(embedding, "runs $x$", "test", "thumbnails")
    title = figure.axes[0].get_title(loc="left")
    assert r"runs \$x\$: PCA of relaxed codes of 359 test pictures, 8 bits" in title
    assert f"trustworthiness {embedding.trustworthiness:.3f} (of 10 neighbours, Euclidean on relaxed codes)" in title
    assert f"silhouette by class {embedding.silhouette:.3f}" in title
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list("0123456789")
    assert {text.get_text() for text in figure.axes[0].texts} == set("0123456789")


def test_a_hundred_classes_can_be_told_apart_and_their_names_do_not_overlap() -> None:
    codes = made(1000)
    labels = np.arange(1000) % 100
    centers = np.random.default_rng(0).normal(size=(100, 16))
    codes = replace(codes, labels=labels, classes=tuple(f"class {i}" for i in range(100)),
                    relaxed=centers[labels].astype(np.float16))  # fmt: skip
    styles = figures._styles(labels, 100)
    assert len(set(styles.values())) == 100
    figure = figures.embedding(embed(codes, Projection("tsne")), "run", "test", "dots")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    overlapping = sum(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert len(boxes) > 60 and overlapping == 0  # those without room are left to the legend
    frame = figure.axes[0].get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    inside = figure.bbox
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_names_of_classes_stand_at_their_points_in_three_dimensions_too() -> None:
    embedding = embed(made(200), Projection("pca", dims=3))
    (axes,) = figures.embedding(embedding, "run", "test", "dots").axes
    places = {text.get_text(): text.get_position_3d() for text in axes.texts if isinstance(text, Text3D)}
    assert places == {name: tuple(embedding.place_of(label)) for label, name in enumerate("abcd")}


def test_thumbnails_do_not_hide_one_another() -> None:
    rng = np.random.default_rng(0)
    places = rng.random((500, 2)) * 300
    some = embed(made(500), Projection("pca"))
    kept = figures._with_room(places, np.full(500, 28.0), some)
    apart = cdist(places[kept], places[kept], "chebyshev")
    assert apart[~np.eye(len(kept), dtype=bool)].min() >= 28
    left = np.setdiff1d(np.arange(500), kept)
    assert (cdist(places[left], places[kept], "chebyshev").min(axis=1) < 28).all()  # none is left out that had room


def test_tensorboards_own_reader_sees_the_points(digits_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(digits_run, tmp_path / "run")
    assert dsh("embed", "--model", run, "--method", "pca", "--tensorboard", "--quiet").exit_code == 0
    codes = of_run(Run.open(run), "test")
    points, header, rows, atlas, size = Projector(run / "tensorboard").read("pca")
    assert np.allclose(points, embed(codes, Projection("pca")).points, atol=1e-6)
    assert header == ["label", "code", "name"]
    assert rows == [
        [codes.classes[label], f"#{code}", name]
        for label, code, name in zip(codes.labels, codes.hex, codes.names, strict=True)
    ]
    height, width = size
    assert (atlas[:height, :width, 0] == there(codes.thumbnails)[0, ..., 0]).all()


def test_a_run_that_has_lost_its_pictures_says_so(digits_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(digits_run, tmp_path / "run")
    (run / "codes" / "test.safetensors").write_bytes(b"damaged")
    line = one_line_error(dsh("embed", "--model", run, "--method", "pca", "--quiet"), 1)
    assert "test.safetensors" in line


def test_torch_is_not_even_loaded(digits_run: Path) -> None:
    assert "torch" not in loaded_by_command("embed", "--model", digits_run, "--out", "x.png", "--quiet")
    assert Path("x.png").is_file()


def test_trustworthiness_is_that_of_scikit_learn_where_no_distances_tie() -> None:
    rng = np.random.default_rng(0)
    vectors, points = rng.normal(size=(80, 6)), rng.normal(size=(80, 2))
    expected = sklearn_trustworthiness(vectors, points, n_neighbors=7)
    assert trustworthiness(cdist(vectors, vectors), cdist(points, points), 7) == pytest.approx(expected, abs=1e-12)


def test_trustworthiness_of_codes_does_not_depend_on_what_changes_no_distance() -> None:
    codes = made()
    one = embed(codes, Projection("pca", "code"))
    away = hamming(one.codes.packed, one.codes.packed).astype(float)
    shown = cdist(one.points, one.points)
    mixed = np.random.default_rng(0).permutation(len(away))
    same = trustworthiness(away[mixed][:, mixed], shown[mixed][:, mixed], one.near)
    assert same == pytest.approx(one.trustworthiness, abs=1e-9)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_outputs_past_float16_do_not_spoil_the_picture(method: Method) -> None:
    codes = made()
    relaxed = there(codes.relaxed).copy()
    relaxed[0, 0], relaxed[1, 1] = np.inf, -np.inf
    one = embed(replace(codes, relaxed=relaxed), Projection(method))
    assert np.isfinite(one.points).all() and len(np.unique(one.points, axis=0)) > 100
    assert one.trustworthiness > (0.7 if method == "tsne" else 0)


def test_codes_alone_are_enough_for_the_space_of_codes_and_not_for_the_other() -> None:
    codes = replace(made(), relaxed=None)
    assert len(embed(codes, Projection("pca", "code")).points) > 10
    with pytest.raises(UsageError, match="no relaxed codes"):
        embed(codes, Projection("pca"))


def test_odd_names_of_runs_and_classes_are_drawn() -> None:
    codes = replace(made(40), classes=("$x$ \udcff", "a\nb", "c" * 200, "\x1b[31m"))
    embedding = embed(codes, Projection("pca"))
    figure = figures.embedding(embedding, "cost$\\oops$ \udcff\n", "test", "thumbnails")
    figure.canvas.draw()
    figures.save(figure, "odd.svg")
    assert "cost" in figure.axes[0].get_title(loc="left")
