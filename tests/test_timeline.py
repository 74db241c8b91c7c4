"""Where the time of a run went, as a number and as a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from registry_records import design, empty_store, record

from ablate.cli import main
from ablate.timeline import COLOURS, Timeline, save

SVG = "{http://www.w3.org/2000/svg}"


def context(
    *phases: tuple[str, float, float], worker: int = 1, device: str = "cpu", run: float = 100.0
) -> dict[str, Any]:
    return {"timeline": [list(phase) for phase in phases], "worker": worker, "device_uuid": device, "run_started": run}


def timeline(*contexts: dict[str, Any]) -> Timeline:
    made = Timeline.of((f"trial {i}", one, {"host": "here"}) for i, one in enumerate(contexts))
    assert made is not None
    return made


def test_the_share_counts_from_the_start_of_the_run_and_overlaps_once() -> None:
    made = timeline(
        context(("prepare", 102, 104), ("train", 104, 112)),
        context(("compile", 103, 110), ("train", 110, 114), worker=2),
        context(("wait", 113, 116), ("train", 116, 120), worker=2),
    )
    assert made.seconds == 20
    assert made.share == pytest.approx((114 - 104 + 120 - 116) / 20)
    assert made.summary() == "somebody was training 70 % of 20 s of wall time"


def test_of_two_devices_the_mean_counts() -> None:
    made = timeline(context(("train", 100, 110), device="a"), context(("train", 105, 110), device="b", worker=2))
    assert made.share == 0.75
    assert "on each of 2 devices 75 %" in made.summary()


def test_only_the_newest_run_is_shown() -> None:
    made = timeline(context(("train", 50, 60), run=40.0), context(("train", 105, 110)))
    assert (made.start, made.end, made.share) == (100, 110, 0.5)
    assert Timeline.of([("old", {"levels": {}}, {})]) is None


def test_the_picture_has_a_lane_for_each_device_and_worker() -> None:
    made = timeline(
        context(("prepare", 101, 102), ("compile", 102, 105), ("wait", 105, 106), ("train", 106, 118), device="GPU-1"),
        context(("train", 102, 106), worker=2, device="GPU-1"),
    )
    root = ElementTree.fromstring(made.svg("a <suite> & more"))
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert texts[0] == "a <suite> & more"
    assert made.summary() in texts
    assert [text for text in texts if text.startswith(("GPU", "worker"))] == [
        "GPU GPU-1",
        "worker 1 (1)",
        "worker 2 (2)",
    ]
    assert [text.partition(":")[0] for text in texts if ": " in text] == list(COLOURS)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles.count("trial 0: train 12.0 s, from 6.0 s on") == 2
    assert "trial 0: compile 3.0 s, from 2.0 s on" in titles
    bars = {bar.find(f"{SVG}title").text: bar.find(f"{SVG}rect").attrib for bar in root.iter(f"{SVG}g")}  # type: ignore[union-attr]
    wait = bars["trial 0: wait 1.0 s, from 5.0 s on"]
    assert (wait["fill"], float(wait["x"])) == (COLOURS["wait"], pytest.approx(150 + 5 / 18 * 1030, abs=0.01))


def test_pictures_are_numbered(tmp_path: Path) -> None:
    made = timeline(context(("train", 100, 110)))
    names = [save(made, "reference/shakespeare nano", tmp_path / "timelines").name for _ in range(2)]
    assert names == ["reference-shakespeare-nano-1.svg", "reference-shakespeare-nano-2.svg"]


def test_the_command_draws_the_last_run_from_the_registry(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cells = [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    store = empty_store(home)
    store.write_design(design(cells, 1))
    for number, levels in enumerate(cells):
        when = context(("compile", 100 + 4 * number, 102 + 4 * number), ("train", 102 + 4 * number, 104 + 4 * number))
        store.write_trial(record(levels, context={"levels": levels, **when}))
    target = tmp_path / "x.svg"
    assert main(["timeline", "attention", "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"somebody was training 50 % of 8 s of wall time: {target}\n"
    assert "gqa seed 0: train 2.0 s, from 6.0 s on" in target.read_text()
    assert main(["timeline", "attention"]) == 0
    path = re.search(r": (/.*\.svg)$", capsys.readouterr().out.strip())
    assert path is not None
    assert Path(path[1]) == home / "timelines" / "attention-1.svg"


def test_records_without_a_timeline_are_named(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timeline", "attention"]) == 2
    assert "recorded without a timeline" in capsys.readouterr().err
