"""The site is whole or not there, says what the registry says, and no name in it becomes a path or is run."""

from __future__ import annotations

import csv
import html.parser
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from effects_frames import HOSTILE
from registry_records import design, empty_store, record, retraction, write_at_once
from site_records import hostile, registry

from ablate.cli import main
from ablate.commands import pages as commands
from registry import Leaderboard, _pages, _site_cell, _site_index, site
from registry._records import newest
from registry._site_data import cells, slug, suite_path
from registry.leaderboard import RegistryEmpty
from registry.mirror import sync
from registry.site import SiteError, build
from registry.store import Store


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a registry of two suites, one hostile."""
    folder = tmp_path_factory.mktemp("registry")
    small = [one for one in registry(100) if one.suite == "attention" and one.scale in ("nano", "10m")]
    write_at_once(empty_store(folder), [*hostile(), *small])
    return folder


@pytest.fixture(scope="module")
def built(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("www") / "site"
    build(folder, home=kept)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a registry of one suite, two cells with two seeds."""
    folder, cells = tmp_path_factory.mktemp("tiny"), [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    runs = [
        record(levels, seed, loss=3 + number + seed / 100) for number, levels in enumerate(cells) for seed in range(2)
    ]
    write_at_once(empty_store(folder), [design(cells), *runs])
    return folder


@pytest.fixture
def site_of(tiny: Path, tmp_path: Path) -> Path:
    """A site that was built before."""
    build(tmp_path / "site", home=tiny)
    return tmp_path / "site"


class Links(html.parser.HTMLParser):
    """What a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found |= {value or "" for name, value in attrs if name in ("href", "src")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pages(folder: Path) -> Iterator[tuple[Path, Links]]:
    for path in sorted(folder.rglob("*.html")):
        yield path, Links(path.read_text(encoding="utf-8"))


def test_there_is_a_page_for_each_suite_and_scale_and_for_each_cell(kept: Path, built: Path) -> None:
    board = Leaderboard(home=kept).frame()
    places = set(zip(board["suite"], board["scale"], strict=True))
    assert len(list((built / "suites").iterdir())) == len(places) == 3
    with (built / "cells.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["page"] for row in rows} == {f"cells/{path.name}" for path in (built / "cells").iterdir()}
    assert {row["cell_id"] for row in rows} >= {cell for cell in board["cell_id"] if "attention" in cell}
    assert len(rows) == len(board)


def check_links(built: Path) -> None:
    """Every link of every page leads somewhere in the site."""
    for path, links in pages(built):
        ids = set(re.findall(r'id="?([^"\s>]+)', path.read_text(encoding="utf-8")))
        for link in links.found - {"data:,"}:
            target = urlsplit(urljoin(path.as_uri(), link))
            assert target.scheme == "file", link
            assert Path(unquote(target.path)).is_relative_to(built) and Path(unquote(target.path)).is_file(), (
                path,
                link,
            )
            assert not (link.startswith("#")) or link[1:] in ids, (path, link)


def test_every_link_leads_somewhere_in_the_site(built: Path) -> None:
    check_links(built)


def test_no_name_becomes_a_path_or_markup(built: Path) -> None:
    names = [str(path.relative_to(built)) for path in built.rglob("*")]
    assert all(re.fullmatch(r"[a-z0-9_.@/-]+", name) and len(name) < 160 and ".." not in name for name in names), names
    index = (built / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in index
    for path, links in pages(built):
        assert links.tags.count("script") == 2 and "img" not in links.tags and "iframe" not in links.tags, path
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\u202e\x00\x1b]", text)


def test_names_alike_to_a_file_system_have_pages_of_their_own() -> None:
    names = ["a/b", "a-b", "A-B", "a b", "../a-b", "a-b@x", HOSTILE[5], HOSTILE[6], "层", ".", ""]
    paths = [suite_path(name, "nano") for name in names] + [suite_path("a-b@x", "y"), suite_path("a-b", "x@y")]
    assert len({path.lower() for path in paths}) == len(paths)
    assert suite_path("attention", "10m") == "suites/attention@10m.html"
    assert all(slug(name) for name in names)


def test_an_older_site_is_replaced_whole_by_the_same_bytes(tiny: Path, site_of: Path, tmp_path: Path) -> None:
    before = files(site_of)
    (site_of / "cells" / "gone.html").write_text("of a cell that is no more")
    build(site_of, home=tiny)
    assert files(site_of) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert os.stat(site_of).st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_build_that_fails_leaves_the_old_site(
    tiny: Path, site_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(site_of)
    monkeypatch.setattr(site._site_index, "index", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(site_of, home=tiny)
    assert files(site_of) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("what", ["thesis.tex", ".git", "index.html"])
def test_a_folder_of_something_else_is_left_alone(tiny: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / what).write_text("years of work")
    with pytest.raises(SiteError, match="not empty"):
        build(tmp_path, home=tiny)
    assert [path.name for path in tmp_path.iterdir()] == [what]


def test_a_site_that_also_holds_something_else_is_left_alone(tiny: Path, site_of: Path) -> None:
    (site_of / "CNAME").write_text("results.example.org")
    with pytest.raises(SiteError, match="also holds CNAME"):
        build(site_of, home=tiny)
    assert (site_of / "CNAME").exists()


def test_an_empty_registry_says_how_to_fill_it(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RegistryEmpty):
        build(tmp_path / "site", home=home)
    assert main(["site", "-o", str(tmp_path / "site")]) == 2
    assert capsys.readouterr().err.startswith("error: no results yet")
    assert not (tmp_path / "site").exists()


def test_the_command_prints_where_it_begins(
    home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABLATE_HOME", str(tiny))
    assert main(["site", "-o", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "site" / "index.html")
    (tmp_path / "file").touch()
    assert main(["site", "-o", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_cell_says_how_it_is_run_again_and_what_differs(site_of: Path) -> None:
    (gqa,) = (site_of / "cells").glob("*-gqa-*.html")
    text = gqa.read_text(encoding="utf-8")
    assert "ablate run attention --scale nano --seeds 2 --only model.attention=gqa" in text
    differs = text[text.index('id="differs"') : text.index('id="settings"')]
    assert "model.attention.n_kv_heads" in differs and "batch_tokens" not in differs
    assert "+1.0000 ± 0.0000" in (site_of / "index.html").read_text(encoding="utf-8")


def test_offline_it_has_no_curves(tiny: Path, site_of: Path, tmp_path: Path) -> None:
    build(tmp_path / "without", home=tiny, offline=True)
    drawn = [
        b'<polyline class="mark"' in b"".join(files(folder).values()) for folder in (site_of, tmp_path / "without")
    ]
    assert drawn == [True, False]


def test_ui_is_mlflows_on_this_machine_alone(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATE_HOME", str(tiny))
    started: list[list[str]] = []
    monkeypatch.setattr(commands.os, "execv", lambda program, argv: started.append(argv))
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert main(["ui", "--port", port]) == 0
    options = dict(zip(started[0][4::2], started[0][5::2], strict=True))
    assert started[0][1:4] == ["-m", "mlflow", "ui"]
    assert (options["--host"], options["--workers"], options["--port"]) == ("127.0.0.1", "1", port)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tiny / 'mlflow.db'}"
    assert os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_ui_says_in_a_line_what_is_in_its_way(
    home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABLATE_HOME", str(tiny))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
        assert f"port {port} cannot be used" in capsys.readouterr().err
    monkeypatch.setenv("ABLATE_HOME", str(home))
    assert main(["ui"]) == 2
    assert "no results yet" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org/mlflow")
    assert main(["ui"]) == 0
    assert capsys.readouterr().out == "https://example.org/mlflow\n"


def test_what_was_said_of_a_record_since_is_seen_first(tiny: Path) -> None:
    """Registries that know of retractions and verifications have these columns."""
    mirror = sync(Store.open(tiny, create=False))
    designs = newest(mirror)
    first, other = cells(mirror, Leaderboard(home=tiny), designs)
    marked = {"retracted": "<b>wrong</b> corpus", "refuted": 2, "verified": 1}
    shown = replace(first, records=[first.records[0] | marked, *first.records[1:]])
    page = _site_cell.page(shown, designs["attention"]["nano"], {})
    assert page.flags == ("Retracted: <b>wrong</b> corpus", "Trained again, it did not reproduce: 2×; it did 1×")
    text = _pages.html("site").render(page=page, site=site.Place("cell", "../", (("a", ""),)))
    assert "&lt;b&gt;wrong&lt;/b&gt; corpus" in text and "<b>wrong" not in text
    assert _site_index.standing(shown).text == "retracted"
    assert _site_index.standing(replace(other, records=[other.records[0] | {"verified": 1}])).text == "verified"
    assert _site_index.standing(other).text == "finished"


def test_a_suite_of_which_all_was_retracted_is_shown_as_such(tmp_path: Path) -> None:
    store, other = empty_store(tmp_path / "home"), {"model.norm": "rmsnorm"}
    wrong, good = record({"model.norm": "layernorm"}, suite="norms"), record(other)
    write_at_once(
        store,
        [design([{"model.norm": "layernorm"}], 1, suite="norms"), wrong, design([other], 1), good],
    )
    store.write_mark(retraction(wrong, "a <wrong> corpus"))
    folder = tmp_path / "site"
    made = build(folder, home=tmp_path / "home")
    assert (made.suites, made.cells, len(made.left_out)) == (1, 2, 1)
    check_links(folder)
    (page,) = (folder / "cells").glob("norms@*")
    assert "Retracted: a &lt;wrong&gt; corpus" in page.read_text(encoding="utf-8")
    assert ">retracted</span>" in (folder / "index.html").read_text(encoding="utf-8")
