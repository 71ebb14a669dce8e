"""Codes handed on to services: what is in the file for each, and that PostgreSQL finds in it what we find, ties too.

The commands are those of docs/handing-on.md. PostgreSQL is real; Milvus and Elasticsearch are stand-ins, which take
what their documentation says that they take.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dsh_cli.codes.bits import Packed, hamming, pack, to_hex, unpack
from dsh_cli.config import Service
from dsh_cli.errors import DshError
from dsh_cli.index import index as index_module
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.runs.run import Run
from tests.support import postgres
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.runs import small_run

PAGE = (Path(__file__).parents[2] / "docs" / "handing-on.md").read_text()
SERVICES: tuple[Service, ...] = get_args(Service)
BITS = [8, 12, 64, 128]
K = 60  # of some hundred rows on a dozen codes and those near them, so that many tie, also at the end
NAMES = ["a", "tab\t", "line\n", r"\N", r"\xff", "'\"", "é日😀", os.fsdecode(b"caf\xe9"), "{}", "%s"]
LABELS = ["cat", None, "", r"\N", "a\tb\n", "é", os.fsdecode(b"\xff")]


def filled(bits: int, rows: int = 300) -> tuple[Index, list[str]]:
    """An index of a run, whose rows do not lie in the order of adding, and codes to look up in it, in hex."""
    rng = np.random.default_rng(bits)
    kinds = pack(rng.random((12, bits)) < 0.5)

    def codes(count: int) -> Packed:
        return kinds[rng.integers(0, 12, count)] ^ pack(rng.random((count, bits)) < 1 / bits)

    def ready(numbers: Iterable[int]) -> ReadyCodes:
        at = list(numbers)
        paths = [f"/{NAMES[i % len(NAMES)]}/{i}.png" for i in at]
        return ReadyCodes(paths, codes(len(at)), [LABELS[i % len(LABELS)] for i in at])

    queries = to_hex(np.concatenate([kinds[:4], codes(4)]), bits)
    some = [("cat", queries[0])]
    run = Run.open(small_run(Path("run"), some, bits, some, some))
    (run.path / "model.safetensors").write_bytes(b"any")
    index = Index.open("pictures.lance")
    index.add_codes([ready(range(rows))], bits, run.fingerprint)
    index.add_codes([ready(range(0, rows, 7)), ready(range(rows, rows + 30))], bits, run.fingerprint)
    index.remove([f"/{NAMES[0]}/{i}.png" for i in range(0, rows, 20)])
    return Index.open("pictures.lance"), queries


def ours(queries: Sequence[str], k: int = K) -> list[list[tuple[str, int]]]:
    """Paths and distances as `dsh neighbors` has them, for each query."""
    codes = [f"0x{query}" for query in queries]
    done = dsh("neighbors", *codes, "--model", "run", "--index", "pictures.lance", "-k", k, "--json")
    assert done.exit_code == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [[(found["path"], found["distance"]) for found in answer["neighbors"]] for answer in answers]


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def blocks(name: str, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", section(name), re.S)
    assert found
    return found


def handed_on(name: str, **values: object) -> dict[str, Any]:
    """What the page has of a service, run as it stands but for some values; what it defines."""
    for line in blocks(name, "sh")[0].splitlines():
        if line.startswith("dsh "):
            assert dsh(*shlex.split(line)[1:]).exit_code == 0
    defined: dict[str, Any] = {}
    for block in blocks(name, "python"):
        for value, to in values.items():
            block = re.sub(rf"^{value} = .*$", f"{value} = {to!r}", block, flags=re.M)
        exec(block, defined)
    return defined


def tied(answers: list[list[tuple[str, int]]]) -> bool:
    """Whether most of what was found is as near as what comes next."""
    same = [a[1] == b[1] for answer in answers for a, b in zip(answer, answer[1:], strict=False)]
    return sum(same) > 0.7 * len(same)


# pgvector, in a real PostgreSQL


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with postgres.started() as environment:
        yield environment


@pytest.fixture
def database(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty database `pictures` of a server that libpq finds by itself, as `createdb` would have made it."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    with psycopg.connect("dbname=postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE pictures")
        yield
        connection.execute("DROP DATABASE pictures WITH (FORCE)")


@pytest.mark.parametrize("bits", BITS)
def test_postgresql_finds_the_same_rows_in_the_same_order(bits: int, database: None) -> None:
    index, queries = filled(bits)
    defined = handed_on("pgvector")
    with defined["database"] as connection:
        theirs = [defined["nearest"](query, K) for query in queries]
        paths = [[(row.path, row.label) for row in index.rows([found[0] for found in answer])] for answer in theirs]
        wanted = ours(queries)
        assert [[path for path, _ in answer] for answer in paths] == [[path for path, _ in answer] for answer in wanted]
        assert [[found[3] for found in answer] for answer in theirs] == [[d for _, d in answer] for answer in wanted]
        assert tied(wanted)
        stored = connection.execute("SELECT id, path_bytes, label, code::text FROM pictures ORDER BY id").fetchall()
        rows = index.rows(range(len(index)))
        assert [row[0] for row in stored] == list(range(len(index)))
        assert [os.fsdecode(row[1]) for row in stored] == [row.path for row in rows]
        known = [row.label if row.label != LABELS[-1] else r"\xff" for row in rows]
        assert [row[2] for row in stored] == known and None in known and "" in known
        assert [row[3] for row in stored] == [
            "".join("01"[bit] for bit in row) for row in unpack(index.codes(), bits).astype(int)
        ]
        with pytest.raises(psycopg.DataError, match="different bit lengths"):
            connection.execute("SELECT code <~> '0101' FROM pictures")


def test_what_the_page_says_in_sql_is_sql(database: None) -> None:
    _, _ = filled(8)
    with handed_on("pgvector")["database"] as connection:
        nearest, graph = blocks("pgvector", "sql")
        exact = connection.execute(nearest).fetchall()
        connection.execute(graph)
        connection.execute("SET enable_seqscan = off")
        plan = "".join(line for (line,) in connection.execute(f"EXPLAIN {nearest}"))
        assert "pictures_code_idx" in plan and len(exact) == 10
        assert [(found[1], found[3]) for found in exact] == [
            (path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), distance)
            for path, distance in ours(["f7"], 10)[0]
        ]


# Elasticsearch and Milvus, as far as their documentation goes


class Elastic:
    """As much of Elasticsearch as the page asks of it."""

    def __init__(self, url: str) -> None:
        self.indices, self.documents = self, list[dict[str, Any]]()

    def create(self, index: str, mappings: dict[str, Any]) -> None:
        self.fields = mappings["properties"]
        code = self.fields["code"]
        assert code["type"] == "dense_vector" and code["element_type"] == "bit"
        assert code["dims"] % 8 == 0 and 0 < code["dims"] <= 4096

    def refresh(self, index: str) -> None:
        self.refreshed = index

    def bulk(self, client: "Elastic", actions: Iterable[dict[str, Any]]) -> None:
        assert client is self
        for action in map(json.loads, map(json.dumps, actions)):
            document = action["_source"]
            assert action["_index"] == "pictures" and len(action["_id"].encode()) <= 512
            assert document.keys() == self.fields.keys() and isinstance(document["id"], int)
            assert all(len((document[name] or "").encode()) <= 32_766 for name in ("path", "label"))
            self.documents.append(document | {"code": self.bits(document["code"])})

    def bits(self, text: str) -> Packed:
        assert re.fullmatch(f"([0-9a-f]{{2}}){{{self.fields['code']['dims'] // 8}}}", text)
        return np.frombuffer(bytes.fromhex(text), np.uint8)

    def search(self, index: str, size: int, sort: object, query: dict[str, Any]) -> dict[str, Any]:
        assert index == self.refreshed and sort == [{"_score": "desc"}, {"id": "asc"}]
        script = query["script_score"]["script"]
        params = SimpleNamespace(**script["params"])
        hits: list[dict[str, Any]] = []
        for document in self.documents:
            distance = int(hamming(self.bits(params.code), document["code"]))
            score = eval(script["source"], {"params": params, "hamming": lambda code, field, d=distance: d})
            hits.append({"_score": float(score), "_source": document})
        hits.sort(key=lambda hit: (-hit["_score"], hit["_source"]["id"]))
        return {"hits": {"hits": hits[:size]}}


class Milvus:
    """As much of Milvus as the page asks of it; what an import takes is as in its importutilv2/parquet/util.go."""

    kinds = {"INT64": pa.int64(), "VARCHAR": pa.string(), "BINARY_VECTOR": pa.list_(pa.uint8())}

    def __init__(self, uri: str) -> None:
        self.fields: dict[str, tuple[str, dict[str, Any]]] = {}

    def create_schema(self, auto_id: bool, enable_dynamic_field: bool) -> "Milvus":
        assert not auto_id and not enable_dynamic_field
        return self

    def add_field(self, name: str, kind: str, **settings: Any) -> None:
        self.fields[name] = kind, settings

    def prepare_index_params(self) -> "Milvus":
        return self

    def add_index(self, field: str, index_type: str, metric_type: str) -> None:
        assert (self.fields[field][0], index_type, metric_type) == ("BINARY_VECTOR", "BIN_FLAT", "HAMMING")

    def create_collection(self, name: str, schema: object, index_params: object) -> None:
        assert schema is self and index_params is self

    def take(self, file: str) -> None:
        self.table = pq.read_table(file)
        assert set(self.table.column_names) == set(self.fields)
        for name, (kind, settings) in self.fields.items():
            column = self.table[name]
            assert column.type == self.kinds[kind] and (settings.get("nullable") or not column.null_count)
            if kind == "VARCHAR":
                assert (
                    max(len((text or "").encode()) for text in column.to_pylist()) <= settings["max_length"] <= 65_535
                )
            if kind == "BINARY_VECTOR":
                assert settings["dim"] % 8 == 0 and {len(code) for code in column.to_pylist()} == {settings["dim"] // 8}
            assert kind != "INT64" or (settings["is_primary"] and len(set(column.to_pylist())) == len(column))

    def search(self, name: str, data: list[bytes], anns_field: str, limit: int, output_fields: list[str]) -> Any:
        codes = np.array(self.table[anns_field].to_pylist(), np.uint8)
        distances = hamming(np.frombuffer(data[0], np.uint8), codes)
        rows = self.table.select(output_fields).to_pylist()
        return [
            [
                {"id": i, "distance": float(distances[i]), "entity": rows[i]}
                for i in np.argsort(distances, kind="stable")[:limit]
            ]
        ]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    made = ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    elastic, milvus = Elastic(""), Milvus("")
    module(monkeypatch, "elasticsearch", Elasticsearch=lambda url: elastic, helpers=elastic)
    kinds = SimpleNamespace(**{kind: kind for kind in Milvus.kinds})
    module(monkeypatch, "pymilvus", DataType=kinds, MilvusClient=lambda uri: milvus)
    job = SimpleNamespace(json=lambda: {"data": {"jobId": "1"}})

    def bulk_import(url: str, collection_name: str, files: list[list[str]]) -> object:
        milvus.take(*files[0])
        return job

    module(monkeypatch, "pymilvus.bulk_writer", bulk_import=bulk_import, get_import_progress=lambda url, job_id: job)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["Elasticsearch", "Milvus"])
def test_stand_ins_of_other_services_load_the_file_and_find_the_same(name: str, bits: int, stand_ins: None) -> None:
    index, queries = filled(bits)
    nearest = cast(Callable[..., list[tuple[int, str, int]]], handed_on(name, bits=bits)["nearest"])
    theirs = [nearest(query, K) for query in queries]
    found = [
        list(zip((row.path for row in index.rows([i for i, _, _ in answer])), (d for _, _, d in answer), strict=True))
        for answer in theirs
    ]
    assert found == ours(queries) and tied(found)


# The file


@pytest.mark.parametrize("bits", [1, 8, 12, 64, 1024])
def test_columns_and_what_the_file_says_of_itself(bits: int) -> None:
    rng = np.random.default_rng(bits)
    given = rng.random((40, bits)) < 0.5
    names = [os.fsdecode(b"/caf\xe9/0.png"), *(f"/{i}.png" for i in range(1, 40))]
    Index.open("i").add_codes([ReadyCodes(names, pack(given), [None] * 39 + ["cat"])], bits, "model")
    text, number = pa.string(), pa.int64()
    code = {"milvus": pa.list_(pa.uint8()), "elasticsearch": text, "pgvector": text}
    for service in SERVICES:
        Index.open("i").export("out.parquet", service)
        table = pq.read_table("out.parquet")
        fields = [("id", number), ("path", text), ("label", text), ("code", code[service])]
        if service == "pgvector":
            fields.insert(2, ("path_bytes", pa.binary()))
            assert table["path_bytes"].to_pylist() == [os.fsencode(name) for name in names]
        wanted = pa.schema([pa.field(name, kind, name == "label") for name, kind in fields])
        assert table.schema.equals(wanted)
        about = {b"dsh.bits": str(bits).encode(), b"dsh.model": b"model", b"dsh.for": service.encode()}
        assert table.schema.metadata == about
        assert table["id"].to_pylist() == list(range(40)) and table["label"].to_pylist() == [None] * 39 + ["cat"]
        assert table["path"].to_pylist() == [r"/caf\xe9/0.png", *names[1:]]
        for row, bools in zip(table["code"].to_pylist(), given.tolist(), strict=True):
            digits = "".join("01"[bit] for bit in bools)
            padded = int(digits + "0" * (-bits % 8), 2).to_bytes(-(-bits // 8), "big")
            assert row == {"milvus": list(padded), "elasticsearch": padded.hex(), "pgvector": digits}[service]


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_written_a_batch_after_the_other(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = filled(12)
    index.export("whole.parquet", service)
    monkeypatch.setattr(index_module, "_COMMIT_ROWS", 50)
    index.export("parts.parquet", service)
    assert pq.ParquetFile("parts.parquet").num_row_groups == -(-len(index) // 50) > 3
    assert pq.read_table("parts.parquet").equals(pq.read_table("whole.parquet"))


def test_the_report_is_the_same_for_every_service() -> None:
    filled(8)
    plain = dsh_json("index", "export", "pictures.lance", "--parquet", "out.parquet")
    assert b"dsh.for" not in pq.read_schema("out.parquet").metadata
    for service in SERVICES:
        assert dsh_json("index", "export", "pictures.lance", "--parquet", "out.parquet", "--for", service) == plain
        assert pq.read_schema("out.parquet").metadata[b"dsh.for"] == service.encode()
    said = dsh("index", "export", "pictures.lance", "--parquet", "out.parquet", "--for", "milvus").stderr
    assert said == "wrote out.parquet for milvus\n"
    assert (
        "'faiss' is not one of" in dsh("index", "export", "pictures.lance", "--parquet", "x", "--for", "faiss").stderr
    )
    assert not os.path.exists("x")


def test_it_is_not_put_among_the_files_of_the_index() -> None:
    filled(8)
    os.symlink("pictures.lance", "link")
    for inside in ("pictures.lance/x.parquet", "link/data/x.parquet"):
        line = one_line_error(dsh("index", "export", "pictures.lance", "--parquet", inside), 2)
        assert line == f"error: --parquet {inside}: that is inside index pictures.lance; choose a file elsewhere"
        assert not os.path.exists(inside)


# What a service does not take


@pytest.mark.parametrize(
    ("service", "path", "label", "said"),
    [
        ("pgvector", "/a\0b", None, "the path /a\\x00b in index i has a NUL character, and no text of PostgreSQL can"),
        ("pgvector", "/a", "x\0", "the label of /a in index i has a NUL character, and no text of PostgreSQL can"),
        (
            "milvus",
            "é" * 32_768,
            None,
            f"the path {'é' * 60}... in index i has more bytes than the 65,535 of a VARCHAR",
        ),
        (
            "milvus",
            "/a",
            "x" * 65_536,
            "the label of /a in index i has more bytes than the 65,535 of a VARCHAR of Milvus",
        ),
        ("elasticsearch", "x" * 32_767, None, "has more bytes than the 32,766 of a keyword of Elasticsearch"),
        ("elasticsearch", os.fsdecode(b"\xff" * 8_192), None, "more bytes than the 32,766 of a keyword"),  # escaped
    ],
)
def test_a_text_that_a_service_does_not_take_is_one_line_and_no_file(
    service: Service, path: str, label: str | None, said: str
) -> None:
    Index.open("i").add_codes([ReadyCodes(["/first", path], pack(np.eye(2, 8)), ["x", label])], 8, "model")
    for other in SERVICES:
        if other != service and not (service == "milvus" and other == "elasticsearch"):  # which takes less
            Index.open("i").export(f"{other}.parquet", other)
    Path("out.parquet").write_text("before")
    line = one_line_error(dsh("index", "export", "i", "--parquet", "out.parquet", "--for", service), 1)
    end = "take it out with: dsh index remove i PATH, or write the file without --for and lay it out yourself"
    assert said in line and line.endswith(end)
    assert Path("out.parquet").read_text() == "before" and not list(Path().glob(".out*"))
    with pytest.raises(DshError) as caught:
        Index.open("i").export("out.parquet", service)
    assert caught.value.fields == ("service",)


def test_texts_as_long_as_a_service_takes_are_taken() -> None:
    for service, most in (("milvus", 65_535), ("elasticsearch", 32_766)):
        codes = ReadyCodes(["é" * (most // 2) + "x" * (most % 2)], pack(np.eye(1, 8)), ["x" * most])
        Index.open(service).add_codes([codes], 8, "model")
        Index.open(service).export("out.parquet", cast(Service, service))
        (row,) = pq.read_table("out.parquet").to_pylist()
        assert len(row["path"].encode()) == len(row["label"]) == most
