"""Neighbours and measures rescored, as a user meets them: any place of the option, three forms, the page, bad input."""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli import neighbors
from dsh_cli.codes import rescoring
from dsh_cli.codes.bits import hamming, parse
from dsh_cli.config import TrainConfig
from dsh_cli.data.inputs import encode_files
from dsh_cli.data.splits import load_splits
from dsh_cli.errors import UsageError
from dsh_cli.index.index import Index
from dsh_cli.neighbors import Answer, Finder, Search, split_database
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.values import in_memory, there


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 120 test pictures of the digits as files, by class."""
    root = tmp_path_factory.mktemp("pictures")
    test = load_splits(TrainConfig(data="digits")).test
    for i in range(120):
        name = root / test.classes[test.labels[i]] / f"{i:03d}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(in_memory(test)[i, ..., 0]).save(name)
    return root


@pytest.fixture(scope="module")
def kept(digits_run: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of them with outputs."""
    uri = str(tmp_path_factory.mktemp("index") / "kept")
    dsh_json("index", "add", uri, pictures, "--model", digits_run, "--labels", "folder", "--keep-outputs")
    return uri


# The option


@pytest.mark.parametrize(
    "line",
    [
        "--rescore 0x33 -k 3", "0x33 --rescore -k 3", "0x33 -k 3 --rescore", "-k 3 --rescore -- 0x33",
        "--rescore outputs 0x33 -k 3", "0x33 -k 3 --rescore=outputs", "0x33 -k 3 --rescore outputs",
    ],
)  # fmt: skip
def test_the_option_stands_anywhere_alone_or_with_its_value(line: str, digits_run: Path) -> None:
    found = (
        dsh_json("neighbors", "--model", digits_run, *line.split())
        if "--" not in line.split()
        else json.loads(dsh("neighbors", "--model", digits_run, "--json", *line.split()).stdout)
    )
    assert found["rescore"]["by"] == "outputs" and found["rescore"]["pool"] == 300
    assert [n["rank"] for n in found["neighbors"]] == [1, 2, 3]
    scores = [n["score"] for n in found["neighbors"]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1


@pytest.mark.parametrize(
    ("line", "by"),
    [("--rescore", "outputs"), ("--rescore --quiet", "outputs"), ("--rescore asymmetric", "asymmetric"),
     ("--rescore=asymmetric --quiet", "asymmetric"), ("--quiet --rescore outputs", "outputs")],
)  # fmt: skip
def test_evaluate_takes_it_too(line: str, by: str, digits_run: Path) -> None:
    assert dsh_json("evaluate", *line.split(), "--model", digits_run)["rescore"]["by"] == by


def test_a_file_of_the_name_of_a_choice_is_given_with_its_folder(digits_run: Path, pictures: Path) -> None:
    os.symlink(pictures / "0" / sorted(os.listdir(pictures / "0"))[0], "asymmetric")
    (line,) = dsh("neighbors", "--rescore", "./asymmetric", "--model", digits_run, "-k", 1).stdout.splitlines()
    assert line.startswith("./asymmetric\t1\t")
    (line,) = dsh("neighbors", "--rescore", "--model", digits_run, "-k", 1, "--", "asymmetric").stdout.splitlines()
    assert line.startswith("asymmetric\t1\t")
    said = dsh("neighbors", "--model", digits_run, "--", "--rescore")
    assert said.exit_code == 1 and "--rescore: no such file" in said.stderr


def test_a_wrong_value_names_the_choices(digits_run: Path) -> None:
    for words, wrong in (["--rescore=code"], "code"), (["--rescore", "asymetric"], "asymetric"):
        said = one_line_error(dsh("neighbors", "0x33", *words, "--model", digits_run), 2)
        assert f"{wrong!r} is not one of 'outputs', 'asymmetric'" in said


def test_a_word_that_is_nearly_a_choice_and_a_file_is_a_query(digits_run: Path, pictures: Path) -> None:
    os.symlink(pictures / "0" / sorted(os.listdir(pictures / "0"))[0], "output")
    (line,) = dsh("neighbors", "--rescore", "output", "--model", digits_run, "-k", 1).stdout.splitlines()
    assert line.startswith("output\t1\t")


# Neighbours


def slow(
    run: Run, uri: str, query: str, k: int, pool: int, by: str, radius: int | None = None
) -> list[tuple[str, int, float]]:
    """(path, distance, score) by sorting tuples."""
    index = Index.open(uri)
    rows = index.rows(range(len(index)))
    if query.startswith("0x"):
        packed = parse(query, 8)
        relaxed = np.where(np.unpackbits(packed), 1.0, -1.0)
    else:
        (item,) = encode_files(run.load_model("cpu"), [query])
        packed, relaxed = there(item.packed), there(item.relaxed).astype(np.float64)
    distances = hamming(packed, index.codes()).tolist()
    near = sorted((distance, row) for row, distance in enumerate(distances) if radius is None or distance <= radius)
    steps = rescoring.steps_of(relaxed, there(index.scale) if by == "outputs" else None)
    if by == "outputs":
        against = index.outputs(range(len(index))).astype(float)
    else:
        against = np.where(np.unpackbits(index.codes(), axis=1), 1.0, -1.0)

    def score(row: int) -> int:
        product = sum(a * b for a, b in zip(steps, against[row], strict=True))
        return round(float(product) / (math.sqrt(sum(steps**2)) * math.sqrt(sum(against[row] ** 2))) * 2**30)

    scored = sorted((-score(row), place, row) for place, (_, row) in enumerate(near[:pool]))
    return [(rows[row].path, distances[row], -of / 2**30) for of, _, row in scored[:k]]


@pytest.mark.parametrize("by", ["outputs", "asymmetric"])
@pytest.mark.parametrize("times", [1, 3, 100])
def test_neighbours_are_what_a_slow_reference_finds(
    digits_run: Path, kept: str, pictures: Path, by: str, times: int
) -> None:
    run = Run.open(digits_run)
    queries = [str(path) for path in sorted(pictures.rglob("*.png"))[::17]] + ["0x33", "0xf0"]
    line = ["--index", kept, "--model", digits_run, "-k", 5, "--rescore", by, "--pool", times, "--workers", 1]
    found = [json.loads(text) for text in dsh("neighbors", *queries, *line, "--json").stdout.splitlines()]
    for query, answer in zip(queries, found, strict=True):
        expected = slow(run, kept, query, 5, 5 * times, by)
        told = [(n["path"], n["distance"], n["score"]) for n in answer["neighbors"]]
        assert [(path, distance) for path, distance, _ in told] == [(path, distance) for path, distance, _ in expected]
        assert [score for *_, score in told] == pytest.approx([score for *_, score in expected])
        assert answer["rescore"]["pool"] == min(120, 5 * times)


def test_all_within_a_radius_are_rescored_and_of_both_limits_the_pool(digits_run: Path, kept: str) -> None:
    run = Run.open(digits_run)
    for limits, k, pool in (([], 999, 999), (["-k", 2], 2, 200), (["-k", 2, "--pool", 3], 2, 6)):
        answer = dsh_json(
            "neighbors", "0x33", "--index", kept, "--model", digits_run, "--radius", 2, "--rescore", *limits
        )
        expected = slow(run, kept, "0x33", k, pool, "outputs", radius=2)
        assert [(n["path"], n["distance"]) for n in answer["neighbors"]] == [(p, d) for p, d, _ in expected]
    nothing = dsh_json("neighbors", "0x55", "--model", digits_run, "--radius", 0, "--rescore")
    assert nothing["neighbors"] == [] and nothing["rescore"] == {"by": "outputs", "pool": 0, "cut": None}


def test_the_pool_says_where_ties_at_its_edge_were_cut(digits_run: Path) -> None:
    run = Run.open(digits_run)
    distances = np.sort(hamming(parse("0x33", 8), run.codes("train").packed))
    nearest = int((distances == distances[0]).sum())
    for k, cut in ((nearest - 1, distances[0]), (nearest, None), (len(distances), None)):
        (answer,) = Finder(run, split_database(run, outputs=True), k, rescore="outputs", pool=1).find(["0x33"])
        assert isinstance(answer, Answer)
        assert there(answer.rescored).cut == cut and len(answer.neighbors) == there(answer.rescored).pool == k


def test_a_run_and_an_index_of_its_pictures_are_rescored_alike(digits_run: Path, kept: str, pictures: Path) -> None:
    """Up to the rounding of outputs, so the best scores are about the same."""
    by_run = dsh_json("neighbors", "0x33", "--model", digits_run, "--split", "test", "--rescore", "-k", 5)
    assert by_run["neighbors"][0]["label"] == by_run["predicted_label"]
    best = dsh_json("neighbors", "0x33", "--model", digits_run, "--index", kept, "--rescore", "-k", 5)["neighbors"][0]
    names = [Path(row.path).stem for row in Index.open(kept).rows(range(120))]
    row = int(Path(best["path"]).stem)
    outputs = there(Run.open(digits_run).codes("test", "relaxed").relaxed)[row]
    signs = np.where(np.unpackbits(parse("0x33", 8)), 1.0, -1.0)
    cosine = float(outputs @ signs) / np.linalg.norm(outputs.astype(float)) / np.linalg.norm(signs)
    assert f"{row:03d}" in names and best["score"] == pytest.approx(cosine, abs=0.02)


def test_a_code_against_codes_is_the_order_of_hamming_distance(digits_run: Path) -> None:
    line = ["neighbors", "0x33", "0xf1", "--model", digits_run, "-k", 30]
    plain = dsh(*line).stdout
    found = dsh(*line, "--rescore", "asymmetric").stdout
    fields = [text.split("\t") for text in found.splitlines()]
    assert ["\t".join([*of[:5], of[6]]) for of in fields] == plain.splitlines()
    assert all(float(of[5]) == pytest.approx(1 - 2 * int(of[2]) / 8) for of in fields)


def test_asymmetric_needs_no_kept_outputs_and_outputs_do(digits_run: Path, pictures: Path) -> None:
    dsh_json("index", "add", "i", pictures / "3", "--model", digits_run)
    query = str(sorted((pictures / "3").iterdir())[0])
    line = ["neighbors", query, "--index", "i", "--model", digits_run]
    assert dsh_json(*line, "--rescore", "asymmetric")["rescore"]["by"] == "asymmetric"
    assert one_line_error(dsh(*line, "--rescore"), 1) == (
        "error: index i keeps no outputs; make one that does with: dsh index add INDEX FOLDER --keep-outputs, or do "
        "without them: --rescore asymmetric"
    )


def test_contradictions(digits_run: Path) -> None:
    for search, said in (
        (Search(pool=3), "`pool` says how many pictures `rescore` orders anew"),
        (Search(pool=3, rescore="outputs", radius=1), "`pool` is a multiple of `k`"),
    ):
        with pytest.raises(UsageError, match=said):
            search.check()
    Search(pool=3, rescore="outputs", radius=1, k=2).check()
    run = Run.open(digits_run)
    with pytest.raises(UsageError, match="came without outputs"):
        Finder(run, split_database(run), rescore="outputs")
    with pytest.raises(UsageError, match="`pool` 0"):
        Finder(run, split_database(run), rescore="asymmetric", pool=0)


def test_small_parts_change_nothing(digits_run: Path, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, codes = Run.open(digits_run), [f"0x{code:02x}" for code in range(0, 256, 5)]
    search = Search(index=kept, k=4, rescore="outputs")
    whole = list(search.finder(run).find(codes))
    monkeypatch.setattr(neighbors, "_CELLS", 8 * 7)
    monkeypatch.setattr(neighbors, "_POOLED", 100)
    parts = list(search.finder(run).find(codes))
    assert [answer.neighbors for answer in parts if isinstance(answer, Answer)] == [
        answer.neighbors for answer in whole if isinstance(answer, Answer)
    ]


# What is shown


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_plain_lines_have_the_score_before_the_path_which_stays_last(digits_run: Path) -> None:
    answer = dsh_json("neighbors", "0x33", "--model", digits_run, "-k", 2, "--rescore")
    plain = dsh("neighbors", "0x33", "--model", digits_run, "-k", 2, "--rescore").stdout.splitlines()
    assert plain == [
        f"0x33\t{n['rank']}\t{n['distance']}\t{n['label']}\t{n['code']}\t{n['score']}\t{n['path']}"
        for n in answer["neighbors"]
    ]


def test_golden_table_at_width_80(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = split_database(Run.open(digits_run), outputs=True)
    run = Run.open(digits_run)
    (answer,) = Finder(run, database, 2, rescore="outputs", pool=10).find(["0x33"])
    assert isinstance(answer, Answer)
    first, second = answer.neighbors
    line = ["neighbors", "0x33", "--model", digits_run, "-k", 2, "--rescore", "--pool", 10, "--format", "table"]
    shown = lines(dsh(*line).stdout)

    def row(rank: int, n: neighbors.Neighbor) -> str:
        return f"    {rank}          0   {there(n.score):.3f}   {n.label}       0x33 00110011     {n.path}"

    assert shown[:6] == [
        "0x33",
        "",
        " rank   distance   score   label   code, ^ differs   path",
        " " + "─" * 63,
        row(1, first),
        row(2, second),
    ]
    said = " ".join(shown[6:])
    assert (
        "rescored by outputs: the 20 pictures nearest by Hamming distance; of those 0 bits away the first added" in said
    )


def test_the_page_shows_distance_and_score(digits_run: Path, kept: str) -> None:
    dsh_json("neighbors", "0x33", "--index", kept, "--model", digits_run, "-k", 3, "--rescore", "--html", "p.html")
    page = Path("p.html").read_text()
    found = re.findall(r'<span class="away">(\d bits? away), score (-?\d+\.\d{3})</span>', page)
    assert len(found) == 3 and [float(score) for _, score in found] == sorted(
        (float(score) for _, score in found), reverse=True
    )
    assert "Rescored by outputs: the 120 pictures nearest by Hamming distance" in page
    dsh_json("neighbors", "0x33", "--index", kept, "--model", digits_run, "-k", 3, "--html", "p.html")
    assert "score" not in re.sub(r"<style>.*?</style>", "", Path("p.html").read_text(), flags=re.S)


def test_evaluate_answers_with_its_contract_and_how_it_was_rescored(digits_run: Path) -> None:
    plain = dsh_json("evaluate", "--model", digits_run)
    found = dsh_json("evaluate", "--model", digits_run, "--rescore", "--pool", 50)
    assert list(found) == [*plain, "rescore"]
    how = found["rescore"]
    assert (how["by"], how["pool"]) == ("outputs", 50) and 50 <= how["pooled"] <= 1295
    assert how["hamming"] == {name: plain[name] for name in ("map", "map_best", "map_worst")}
    assert found["map"] >= plain["map"] - 0.002 and found["map"] != plain["map"]
    assert (found["radius"], found["pr_curve"], found["health"]) == (
        plain["radius"],
        plain["pr_curve"],
        plain["health"],
    )
    shown = dict(line.split("\t") for line in dsh("evaluate", "--model", digits_run, "--rescore").stdout.splitlines())
    assert shown["rescore.pool"] == "1000" and float(shown["rescore.hamming.map"]) == plain["map"]
    table = dsh("evaluate", "--model", digits_run, "--rescore", "--pool", 50, "--format", "table").stdout
    text = " ".join(table.split())
    assert f"mAP {found['map']:.4f}, tie-aware" in text and f"before {plain['map']:.4f}, tie-aware" in text
    assert (
        "rescored by outputs: for each query the 50 nearest by Hamming distance, and all as near as the last of them, "
        f"{how['pooled']:,.0f} in the mean"
    ) in text


def test_several_runs_have_the_mean_of_both(digits_run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(digits_run, tmp_path / "other")
    line: Sequence[object] = ["evaluate", "-m", digits_run, "-m", tmp_path / "other", "--rescore", "--pool", 20]
    found = dsh_json(*line)
    assert found["rescore"] == {"by": "outputs", "pool": 20}
    assert found["mean"]["hamming"]["map"] < found["mean"]["map"] + 0.002
    assert "mAP, before" in dsh(*line, "--format", "table").stdout
    assert "rescore.pool\t20" in dsh(*line).stdout.splitlines()


def test_folders_are_rescored_with_the_outputs_of_the_network(digits_run: Path, pictures: Path) -> None:
    line = ["evaluate", "--model", digits_run, "--query", pictures, "--database", pictures]
    plain, found = dsh_json(*line), dsh_json(*line, "--rescore", "--pool", 20)
    assert found["rescore"]["hamming"]["map"] == plain["map"] and found["map"] >= plain["map"] - 0.002
    codes = Run.open(digits_run).codes("test", "relaxed")
    assert len(codes) > 120


def test_the_ten_best_of_ten_times_as_many_are_as_good_as_the_ten_nearest(digits_run: Path) -> None:
    """What the default pool of neighbours is held to."""
    run = Run.open(digits_run)
    test, database = run.codes("test", "relaxed"), split_database(run, outputs=True)
    queries = [
        neighbors.Query(str(i), True, test.packed[i], None, there(test.relaxed)[i].astype(np.float32))
        for i in range(len(test))
    ]
    share = {}
    for by in (None, "outputs", "asymmetric"):
        answers = Finder(run, database, 10, rescore=by)._answers(queries)
        share[by] = np.mean([
            neighbor.label == run.classes[test.labels[i]]
            for i, answer in enumerate(answers) for neighbor in answer.neighbors
        ])  # fmt: skip
    assert share["outputs"] >= share[None] - 0.002 and share["asymmetric"] >= share[None] - 0.002
