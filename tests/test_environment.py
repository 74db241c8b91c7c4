"""How workers share a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ablate import environment
from ablate.design import expand
from ablate.environment import Share, for_workers, workers_per_gpu
from ablate.errors import UserError
from ablate.plan import make_plan
from ablate.suite import load_suite


@pytest.mark.parametrize(
    ("device_gib", "trial_gib", "cores", "host_gib", "workers"),
    [
        (140.0, 4.0, 16, 128.0, 4),
        (140.0, 0.0, 16, 128.0, 4),  # no forecast
        (140.0, 45.0, 16, 128.0, 2),  # 0.8 x 140 / 45
        (140.0, 60.0, 16, 128.0, 1),
        (24.0, 30.0, 16, 128.0, 1),  # one may try
        (140.0, 4.0, 4, 128.0, 2),
        (140.0, 4.0, 1, 128.0, 1),
        (140.0, 4.0, 16, 15.0, 2),
    ],
)
def test_a_gpu_has_as_many_workers_as_it_has_room_for(
    device_gib: float, trial_gib: float, cores: int, host_gib: float, workers: int
) -> None:
    found = workers_per_gpu(device_gib=device_gib, trial_gib=trial_gib, cores=cores, host_gib=host_gib)
    assert found == workers


def test_a_run_starts_no_more_workers_than_it_has_trials() -> None:
    share = Share(device="cuda", devices=2, per_device=4, threads=1)
    assert [share.workers(trials) for trials in (3, 8, 20)] == [3, 8, 8]


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"workers": 0}, "workers per device"), ({"pack": 0}, "packed"), ({"pack": 2, "workers": 2}, "leave out --workers")],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(asked: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        environment.share(**asked)


def test_workers_get_their_threads_and_caches_that_outlive_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 16)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert for_workers(Share(device="cuda", devices=1, per_device=4, threads=1), tmp_path) == {
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/cache/inductor", "TRITON_CACHE_DIR": "/mine",
        "TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    threads = for_workers(Share(device="cpu", devices=1, per_device=3, threads=5), tmp_path)["OMP_NUM_THREADS"]
    assert threads == "5"


def test_a_control_group_may_give_less_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = environment.cores(), environment.host_gib()
    monkeypatch.setattr(environment, "_control_group", {"cpu.max": "100000 100000", "memory.max": str(2**30)}.get)
    assert (environment.cores(), environment.host_gib()) == (1, 1.0)
    monkeypatch.setattr(environment, "_control_group", {"cpu.max": "max 100000", "memory.max": "max"}.get)
    assert environment.cores() >= machine[0]
    assert environment.host_gib() >= machine[1]


def test_plan_and_scheduler_ask_for_the_same_workers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablate import scheduler

    asked: list[dict[str, Any]] = []

    def share(workers: int | None = None, **given: Any) -> Share:
        asked.append(given)
        return Share(device="cuda", devices=2, per_device=4, threads=1)

    suite = expand(load_suite("attention"), overrides={"data.source": "synthetic"}, seeds=3)
    monkeypatch.setattr(environment, "expected", lambda **given: environment.describe("cpu", 1))
    monkeypatch.setattr(environment, "share", share)
    made = make_plan(suite, home=home)
    assert (made.workers, made.at_once) == (8, 2)
    assert made.seconds == pytest.approx(15.0 + sum(row.seconds for row in made.pending) / 2)
    monkeypatch.setattr(scheduler, "_Run", mock.MagicMock())
    scheduler.run(made.jobs(), home=home, open_store=mock.Mock())
    assert asked[0] == asked[1] == {"pack": None, "memory_gib": max(row.memory_gib for row in made.rows)}
