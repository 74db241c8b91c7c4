"""Whatever text comes to the registry, it reads nothing else, changes nothing, ends in time, and says no in one line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from registry_records import design, empty_store, record
from rich.console import Console

from ablate.cli import main
from registry import sql
from registry.leaderboard import Leaderboard, QueryError, RegistryEmpty, query
from registry.tables import render

ROOT = Path(__file__).resolve().parent.parent
SECRET = "canary-7f3a"
WHERE_HOLDS = "a.b"
CELLS = [{"model.attention": "mha"}, {"model.attention": "gqa"}]

READS = """
SELECT * FROM read_csv('{f}')
SELECT * FROM read_csv_auto('{f}')
SELECT * FROM read_csv(['{f}', '{f}'])
SELECT * FROM read_text('{f}')
SELECT * FROM read_text('{d}/*')
SELECT * FROM read_blob('{f}')
SELECT * FROM read_json('{f}')
SELECT * FROM read_json_auto('{f}')
SELECT * FROM read_ndjson('{f}')
SELECT * FROM read_json_objects('{f}')
SELECT * FROM read_parquet('{d}/c.parquet')
SELECT * FROM parquet_scan('{d}/c.parquet')
SELECT * FROM parquet_metadata('{d}/c.parquet')
SELECT * FROM parquet_schema('{d}/c.parquet')
SELECT * FROM parquet_kv_metadata('{d}/c.parquet')
SELECT * FROM parquet_file_metadata('{d}/c.parquet')
SELECT * FROM sniff_csv('{f}')
SELECT * FROM glob('{d}/*')
SELECT * FROM glob('/*')
SELECT * FROM '{f}'
SELECT * FROM "{f}"
SELECT * FROM '{d}/c.parquet'
SELECT * FROM '{d}/c.json'
SELECT * FROM '{d}/*.csv'
SELECT * FROM 'file://{f}'
SELECT * FROM read_text('file://{f}')
SELECT * FROM read_text('.tmp/c.txt')
SELECT * FROM read_text(':memory:')
SELECT * FROM glob('.tmp/*')
SELECT * FROM '.tmp/c.csv'
SELECT * FROM read_text('../../../../../..{f}')
SELECT * FROM read_text('/proc/self/environ')
SELECT * FROM read_blob('/proc/self/mem')
SELECT * FROM read_csv('/dev/stdin')
SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')
SELECT * FROM read_parquet('https://127.0.0.1:1/x.parquet')
SELECT * FROM read_text('s3://bucket/x')
SELECT * FROM 'http://127.0.0.1:1/x.csv'
SELECT * FROM read_csv('hf://datasets/a/b.csv')
SELECT * FROM sqlite_scan('{d}/mlflow.db', 'runs')
SELECT * FROM postgres_scan('host=127.0.0.1', 'public', 'x')
SELECT * FROM delta_scan('{d}')
SELECT * FROM iceberg_scan('{d}')
SELECT * FROM st_read('{f}')
SELECT * FROM read_xlsx('{d}/c.xlsx')
SELECT (SELECT content FROM read_text('{f}'))
SELECT 1 WHERE EXISTS (SELECT * FROM read_text('{f}') WHERE content LIKE '%canary%')
WITH x AS (SELECT * FROM read_text('{f}')) SELECT * FROM x
WITH RECURSIVE x AS (SELECT content FROM read_text('{f}') UNION ALL SELECT content FROM x WHERE false) SELECT * FROM x
SELECT * FROM trials JOIN read_text('{f}') ON true
SELECT * FROM trials, LATERAL (SELECT * FROM read_text('{f}'))
SELECT suite FROM trials UNION ALL SELECT content FROM read_text('{f}')
SELECT list(content) FROM read_text('{f}')
SELECT * FROM (FROM read_text('{f}') SELECT content)
FROM read_text('{f}')
FROM '{f}'
TABLE '{f}'
SELECT * FROM query('SELECT * FROM read_text(''{f}'')')
SELECT * FROM query_table('{f}')
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{f}'')'))
SELECT * /* harmless */ FROM /**/ read_text( -- x
'{f}')
SELECT getenv('HOME')
SELECT getenv('ABLATE_HOME')
SELECT * FROM secret
SELECT * FROM sys.modules
SELECT * FROM os
SELECT * FROM frame
SELECT * FROM mirror
SELECT * FROM pandas_df
SELECT * FROM globals()
SELECT * FROM python_map_function(1)
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM pandas_scan(140000000)
SELECT * FROM _standing_secret
SELECT * FROM which_secret('s3://x', 's3')
SELECT * FROM duckdb_extensions()
SELECT * FROM read_duckdb('{d}/x.db')
SELECT * FROM import_database('{d}')
SELECT load_extension('{f}')
SELECT pg_read_file('{f}')
SELECT readfile('{f}')
SELECT LOAD_FILE('{f}')
SELECT xp_cmdshell('touch {d}/x')
SELECT system('touch {d}/x')
SELECT nextval('x')
PIVOT '{f}' ON x
SUMMARIZE '{f}'
DESCRIBE '{f}'
"""

STATEMENTS = """
COPY trials TO '{d}/out.csv'
COPY (SELECT 1) TO '{d}/out.parquet' (FORMAT parquet)
COPY trials FROM '{f}'
COPY (SELECT * FROM read_text('{f}')) TO '/dev/stdout'
EXPORT DATABASE '{d}/out'
IMPORT DATABASE '{d}/out'
ATTACH '{d}/out.db'
ATTACH '{d}/mlflow.db' AS m (TYPE sqlite)
ATTACH ':memory:' AS x
DETACH memory
USE memory
INSTALL httpfs
INSTALL sqlite
LOAD httpfs
LOAD '{f}'
FORCE INSTALL spatial
UPDATE EXTENSIONS
PRAGMA database_list
PRAGMA enable_profiling
PRAGMA show_tables
PRAGMA version
SET enable_external_access = true
SET lock_configuration = false
SET memory_limit = '1TB'
SET GLOBAL threads = 100
RESET memory_limit
SET VARIABLE x = (SELECT content FROM read_text('{f}'))
CALL pragma_version()
CALL checkpoint()
CREATE TABLE x AS SELECT 1
CREATE VIEW x AS SELECT * FROM read_text('{f}')
CREATE OR REPLACE VIEW trials AS SELECT 1
CREATE MACRO f(x) AS TABLE SELECT * FROM read_text(x)
CREATE FUNCTION f(x) AS x + 1
CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')
CREATE SCHEMA x
CREATE SEQUENCE x
CREATE TYPE x AS ENUM ('a')
DROP VIEW trials
DROP TABLE designs
DELETE FROM trials
UPDATE trials SET val_loss = 0
INSERT INTO trials SELECT * FROM trials
TRUNCATE trials
ALTER TABLE trials ADD COLUMN x INT
MERGE INTO trials USING designs ON true WHEN MATCHED THEN DELETE
BEGIN TRANSACTION
COMMIT
CHECKPOINT
VACUUM
ANALYZE
EXPLAIN SELECT 1
EXPLAIN ANALYZE SELECT 1
PREPARE x AS SELECT 1
EXECUTE x
DEALLOCATE x
COMMENT ON VIEW trials IS 'x'
SELECT 1; SELECT 2
SELECT 1; DROP VIEW trials
SELECT 1;COPY trials TO '{d}/out.csv'
SELECT 1; -- x
 ATTACH '{d}/out.db'
;
--
/* nothing */
SELECT
SELECT FROM WHERE
SELECT * FROM
'; DROP TABLE trials; --
SELECT 'a
SELECT "a
SELECT $$a
SELECT /* a
SELECT 1 FROM trials WHERE
SELECT * FROM trials ORDER BY
SELECT ?
SELECT $1
SELECT \\x00
\\u0000
.shell touch {d}/x
.read {f}
!touch {d}/x
"""

ENDLESS = [
    "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b",
    "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t",
    "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT * FROM t",
    "SELECT count(*) FROM range(1000000000000)",
    "SELECT * FROM range(1000000000000) a, range(1000000000000) b",
    "SELECT * FROM generate_series(1, 1000000000000) ORDER BY 1 DESC",
    "SELECT a.suite FROM trials a" + ", trials b" * 0 + "".join(f", trials t{i}" for i in range(20)),
    "SELECT repeat('x', 4000000000)",
    "SELECT length(repeat(repeat('x', 100000000), 20))",
    "SELECT repeat('x', 100000000) FROM range(100)",
    "SELECT lpad('x', 2000000000, 'ab')",
    "SELECT printf('%2000000000d', 1)",
    "SELECT len(range(1000000000))",
    "SELECT list_sum(list_transform(range(100000000), lambda x: x * 2))",
    "SELECT list(range) FROM range(1000000000)",
    "SELECT string_agg(range::TEXT, ',') FROM range(1000000000)",
    "SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))",
    "SELECT damerau_levenshtein(repeat('a', 100000), repeat('b', 100000))",
    "SELECT jaccard(repeat('ab', 100000000), repeat('ba', 100000000))",
    "SELECT " + "(" * 50000 + "1" + ")" * 50000,
    "SELECT " + "NOT " * 50000 + "true",
    "SELECT " + "[" * 20000 + "]" * 20000,
    "SELECT * FROM " + "(SELECT * FROM " * 3000 + "trials" + ")" * 3000,
    "SELECT 1" + " UNION ALL SELECT 1" * 20000,
]

EXPRESSIONS = """
seed > 1; DROP TABLE trials
seed > 1) OR (1 = 1
1 = 1) UNION SELECT * FROM (SELECT 1
1 = 1 UNION SELECT content FROM read_text('{f}')
seed > 1, seed < 2
seed > 1 ORDER BY seed
seed > 1 LIMIT 1
seed > 1 GROUP BY seed
seed IN (SELECT seed FROM read_csv('{f}'))
cause = (SELECT content FROM read_text('{f}'))
EXISTS (SELECT * FROM read_text('{f}'))
(SELECT count(*) FROM glob('{d}/*')) > 0
suite = getenv('HOME')
nope = 1
attenton = 'gqa'
seed = 'x'
seed >
seed
' OR 1=1 --
count(*) > 1
row_number() OVER () = 1
*
COLUMNS(*)
$1
?
seed = ?
levenshtein(repeat('a', 300000), repeat('b', 300000)) > 1
length(repeat('x', 4000000000)) > 0
(SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b) > 0
CASE WHEN true THEN 1/0
CREATE TABLE x AS SELECT 1
ATTACH '{d}/out.db'
COPY trials TO '{d}/out.csv'
"""

NAMES = [
    "val_los", "VAL LOSS", "", " ", "*", "val_loss; DROP TABLE trials", 'val_loss" FROM trials; --', "val_loss--", "1", "-1",
    "(SELECT 1)", "read_text('/etc/passwd')", "../../etc/passwd", "metrics.val_loss", "val_loss,", "__class__", "{0}", "%s",
    "val_loss\x00", "\x1b[31mval_loss", "\u202eval_loss", "=1+1", "<script>alert(1)</script>", "a" * 5000, "field:seed", "seeds:val_loss",
    "pass:x", "\\input{/etc/passwd}",
]  # fmt: skip

SUITES = [
    "../../etc/passwd", "/etc/passwd", "..", "~", "$HOME", "a/../../b", "attention'; DROP TABLE designs; --", "attention\x00",
    "\x1b]0;owned\x07", "%2e%2e%2f", "attention\n", "<script>alert(1)</script>", "'", '"', "\\", "a" * 5000, "attenton", "*", "?",
    "C:\\windows", "file:///etc/passwd", "|touch x", "`touch x`", "$(touch x)",
]  # fmt: skip

DATES = [
    "tomorrow",
    "2026-13-01",
    "2026-01-01' OR '1'='1",
    "",
    "2026-01-01; DROP TABLE trials",
    "99999-01-01",
    "now()",
    "-1",
]


def lines(text: str) -> list[str]:
    return [line for line in text.strip("\n").split("\n") if line]


def harmful(folder: Path, text: str) -> str:
    return text.replace("{f}", str(folder / "c.txt")).replace("{d}", str(folder))


def fingerprint(folder: Path) -> dict[str, str]:
    """Of every file in it but the mirror, which any reading may renew."""
    files = [path for path in folder.rglob("*") if path.is_file() and "mirror" not in path.parts]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with files beside it that nobody asked for."""
    folder = tmp_path_factory.mktemp("hostile")
    store = empty_store(folder / "home")
    store.write_design(design(CELLS))
    for number, levels in enumerate(CELLS):
        for seed in range(2):
            store.write_trial(record(levels, seed, loss=3 + number + seed / 100))
    (folder / ".tmp").mkdir()
    for name in ("c.txt", "c.csv", "c.json", "c.parquet", ":memory:", ".tmp/c.txt", ".tmp/c.csv"):
        (folder / name).write_text(f"value\n{SECRET}\n")
    Leaderboard(folder / "home").frame()
    return folder


@pytest.fixture(autouse=True)
def within(place: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, with little time."""
    monkeypatch.setenv("ABLATE_HOME", str(place / "home"))
    monkeypatch.setenv("CANARY", SECRET)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sql, "TIME_LIMIT_S", 2.0)


@pytest.fixture(autouse=True, scope="module")
def nothing_was_done(place: Path):
    before = fingerprint(place)
    yield
    assert fingerprint(place) == before


def answer(ask) -> str:
    """What is said: an answer, or one line of refusal."""
    refused, kind = None, None
    try:
        found = ask()
    except (QueryError, RegistryEmpty) as error:
        refused, kind = str(error), type(error)
    if refused is None:
        return str(found.to_dict("list"))
    assert kind is RegistryEmpty or "\n" not in refused  # that repeats a name as it was given
    assert "Traceback" not in refused and len(refused) < 12000
    return f"refused: {refused}"


@pytest.mark.slow
@pytest.mark.parametrize("statement", lines(READS))
def test_sql_reads_nothing_but_the_registry(place: Path, statement: str) -> None:
    said = answer(lambda: query(harmful(place, statement)))
    assert said.startswith("refused: ")
    assert SECRET not in said


@pytest.mark.slow
@pytest.mark.parametrize("statement", lines(STATEMENTS))
def test_anything_but_a_select_is_refused(place: Path, statement: str) -> None:
    assert answer(lambda: query(harmful(place, statement))).startswith("refused: ")


@pytest.mark.slow
@pytest.mark.parametrize("statement", ENDLESS, ids=range(len(ENDLESS)))
def test_what_takes_too_much_is_ended(statement: str) -> None:
    """Or it is refused at once, or answered: no call outlives its limit."""
    said = answer(lambda: query(statement, timeout=0.6))
    assert re.match("refused: the (query|answer)|refused: .*(depth|nest|stack)|{", said, re.DOTALL | re.IGNORECASE), (
        said[:300]
    )


def test_the_limits_are_those_that_were_given() -> None:
    with pytest.raises(QueryError, match=r"took longer than 0\.2 s"):
        query(ENDLESS[0], timeout=0.2)
    with pytest.raises(QueryError, match="more than 1,000,000 rows: aggregate, or say LIMIT"):
        query("SELECT * FROM range(1000001)", timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("expression", lines(EXPRESSIONS))
def test_a_filter_is_one_expression_over_the_trials(place: Path, expression: str) -> None:
    said = answer(lambda: Leaderboard().where(harmful(place, expression)).frame())
    assert SECRET not in said
    assert said.startswith("refused: ") or expression == "seed"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("option", ["sort", "columns", "group_by"])
def test_a_name_that_is_none_is_refused(option: str, name: str) -> None:
    said = answer(lambda: getattr(Leaderboard(), option)(name).frame())
    assert said.startswith("refused: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES, ids=range(len(SUITES)))
def test_a_suite_that_is_none_is_refused(name: str) -> None:
    assert answer(lambda: Leaderboard().suite(name).frame()).startswith("refused: no results for suite")
    assert answer(lambda: Leaderboard().suite("attention", name).frame()).startswith("refused: no results at scale")
    assert answer(lambda: Leaderboard().hardware(name or "x").frame()).startswith("refused: no results on hardware")


@pytest.mark.parametrize("text", DATES)
def test_a_day_that_is_none_is_refused(text: str) -> None:
    for board in (Leaderboard().dates(since=text), Leaderboard().dates(until=text)):
        said = answer(lambda board=board: board.frame())
        assert said.startswith("refused: ") or not text


@pytest.mark.parametrize(
    "argv",
    [
        ["query", "SELECT * FROM read_text('c.txt')"],
        ["query", "SELECT * FROM read_text(':memory:')"],
        ["query", "SELECT * FROM glob('.tmp/*')"],
        ["query", "COPY trials TO 'out.csv'"],
        ["query", "ATTACH 'out.db'"],
        ["query", "INSTALL httpfs"],
        ["query", "SELECT 1; SELECT 2"],
        ["query", "SELECT getenv('CANARY')"],
        ["query", "SELECT"],
        ["query", ""],
        ["query"],
        ["query", "SELECT 1", "--timeout", "0"],
        ["query", "SELECT 1", "--schema"],
        ["query", ENDLESS[0], "--timeout", "0.3"],
        ["query", ENDLESS[16], "--timeout", "0.3"],
        ["leaderboard", "--where", "suite IN (SELECT content FROM read_text('c.txt'))"],
        ["leaderboard", "--where", "seed = 1; DROP TABLE trials"],
        ["leaderboard", "--sort", "val_los"],
        ["leaderboard", "--columns", "rank,val_los"],
        ["leaderboard", "--group-by", "attenton"],
        ["leaderboard", "--group-by", ","],
        ["leaderboard", "--limit", "0"],
        ["leaderboard", "--limit", "-5"],
        ["leaderboard", "--since", "tomorrow"],
        ["leaderboard", "../../etc/passwd"],
        ["leaderboard", "/etc/passwd"],
        ["leaderboard", "attention\x1b]0;owned\x07"],
    ],
    ids=" ".join,
)
def test_the_command_refuses_in_one_line_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert SECRET not in err and "\x1b" not in err and "\x07" not in err


def test_the_real_command_is_ended_and_reads_no_file(place: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for statement in (ENDLESS[16], "SELECT * FROM read_text('c.txt')"):
        argv = [sys.executable, "-m", "ablate", "query", statement, "--timeout", "0.5"]
        done = subprocess.run(argv, env=environment, cwd=place, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ") and SECRET not in done.stderr


MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "=HYPERLINK(\"http://x\",\"y\")", "+cmd|' /C calc'!A0", "@SUM(1)", "-2+3",
    "\t=1+1", "\r=1+1", "\x1b[2J\x1b[31mred", "\x1b]0;owned\x07", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "\x9b31m", "\u202egnp.exe",
    "[link](javascript:alert(1))", "![x](http://x)", "a|b", "`code`", "$x$", "\\input{/etc/passwd}", "\\write18{touch x}", "%x",
    "[red]x[/red]",
    "a\nb", "\x00", "\u2028x", "{{7*7}}", "${jndi:ldap://x}",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKUP, ids=range(len(MARKUP)))
def test_what_a_name_holds_is_shown_and_never_run(text: str) -> None:
    """In a terminal, a spreadsheet, a page, a paper: as an answer of SQL, in every field."""
    import pandas as pd

    frame = pd.DataFrame({text: [text], "n": [1]})
    shown = {}
    for form in ("table", "json", "csv", "markdown", "latex"):
        out = io.StringIO()
        render(frame, form, Console(file=out, width=200), [text])
        shown[form] = out.getvalue()
    for form in shown:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown[form]), form
    assert not re.search(r"(?<!\\)<(script|img)", shown["markdown"])
    assert not re.search(r"(?<!\\)\]\(", shown["markdown"])
    assert "\\input{" not in "".join(line for line in lines(shown["latex"]) if not line.startswith("%"))
    assert "\\write18" not in "".join(line for line in lines(shown["latex"]) if not line.startswith("%"))
    assert all(
        not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        for row in csv.reader(io.StringIO(shown["csv"]))
        for cell in row
    )
    assert json.loads(shown["json"])["rows"] == [{text: text, "n": 1}]


def test_enough_was_tried() -> None:
    tried = [READS, STATEMENTS, EXPRESSIONS]
    assert sum(len(lines(one)) for one in tried) + len(ENDLESS) + 3 * len(NAMES) + 3 * len(SUITES) + len(MARKUP) >= 200
