"""What is done to a home in small steps, and how it goes wrong: `python crashing.py WHAT FOLDER HOW:PLACES...`.

`SIGKILL:12` forks a child for each of twelve places, evenly spread over all calls that the code at work makes, where it really dies; with
`SIGKILL+SIGKILL:12` the next one dies, too. `full:12/40` leaves less and less room on the disk on which the folder lies, from forty blocks
to none. Then the same is done again, and what must hold is checked. Exit code 1 says that it does not.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
from registry_records import design, record
from tiny import tiny

from ablate import _preparation, data, status, tokens, worker
from ablate.errors import UserError
from registry import locks, mirror, segments, spool, store
from registry.locks import TrialLock
from registry.mirror import sync
from registry.record import attempt_key
from registry.spool import Spool
from registry.store import Store
from registry.trouble import StoreError

REFUSED, INTERRUPTED, WRONG = 3, 130, 1
CURVES = {"val_loss": [[10, 100, 3.5], [20, 200, 3.25]]}


@dataclass(frozen=True)
class Work:
    """Something that changes a home: how that comes to be what it is before, what is done, in which files that counts, and what must
    hold once it was done again; that gets what it left the first time, too."""

    begin: Callable[[Path], None]
    do: Callable[[Path], object]
    files: tuple[Any, ...]
    check: Callable[[Path], None]


def attempt(home: Path) -> None:
    """What a driver and its worker do: train what is not done."""
    job = fake_training.job(prints="a line in the log\n" * 200)
    place = worker.Place(home=home, device="cpu", threads=1, lease=None, trainer="fake_training:train")
    key = attempt_key(job.trial_id, worker.environment_id(worker.describe("cpu", 1)))
    before = TrialLock(home, key).finished()
    if Spool(home).find(key) is None:
        worker.execute(fake_training.job(prints=job.recipe["prints"], finished_before=before), place)


def one_record(home: Path) -> None:
    (kept,) = Spool(home).records()
    assert kept.status == "finished", (kept.status, kept.cause)
    assert status.running(home) == []


def spooled(home: Path) -> None:
    Store.open(home).write_design(design([{"model.attention": "mha"}]))
    for seed in range(2):
        Spool(home).put(record(seed=seed, curves=CURVES))


def stored_once(home: Path) -> None:
    kept = Store.open(home)
    assert sorted(kept._fast.run_ids("trial").values()) == sorted({one.record_id for one in kept.trials()})  # type: ignore[union-attr]
    assert sorted(one.seed for one in kept.trials()) == [0, 1]
    assert [kept.curves(one.record_id) for one in kept.trials()] == [CURVES] * 2
    assert Spool(home).records() == []


def stored(home: Path) -> None:
    spooled(home)
    Store.open(home).ingest(Spool(home))


def mirrored(home: Path) -> None:
    kept, found = Store.open(home), sync(Store.open(home))
    assert sorted(found.trials.to_table()["record_id"].to_pylist()) == sorted(one.record_id for one in kept.trials())
    assert found.designs.count_rows() == 1
    assert mirror.Segments.open(next((home / "mirror").iterdir()), mirror.VERSION) is not None


def prepare(home: Path) -> np.ndarray:
    recipe = tiny(data__source={"synthetic": {"size": 100_000}})
    return np.array(data.prepare(recipe.data, home / "cache").tokens)


def known(home: Path) -> None:
    np.save(home / "known.npy", prepare(home))
    shutil.rmtree(home / "cache")


def prepared(home: Path) -> None:
    assert np.array_equal(prepare(home), np.load(home / "known.npy"))
    (_,) = [path for path in (home / "cache" / "tokens").iterdir() if path.is_dir()]


def _mlflow() -> Any:
    store._import_quietly()
    from mlflow.tracking import client

    return client


WORK = {
    "record": lambda: Work(lambda home: None, attempt, (worker, spool, locks, status, fake_training), one_record),
    "upload": lambda: Work(spooled, lambda home: Store.open(home).ingest(Spool(home)), (_mlflow(), spool), stored_once),
    "sync": lambda: Work(stored, lambda home: sync(Store.open(home)), (mirror, segments, locks), mirrored),
    "prepare": lambda: Work(known, prepare, (_preparation, tokens), prepared),
}


class Place:
    """Counts the calls, of Python's and of C's functions, that code in some files makes; at the one wanted, `strike`."""

    def __init__(self, files: tuple[Any, ...], wanted: int = -1, strike: Callable[[], None] = lambda: None) -> None:
        self.files, self.wanted, self.strike, self.count = {one.__file__ for one in files}, wanted, strike, 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename in self.files:
            self.count += 1
            if self.count == self.wanted:
                self.strike()


def child(act: Callable[[], object], place: Place | None = None, log: Path | None = None) -> int:
    """Do it in a child; its exit code, or minus the signal that ended it. With a place, its count goes to the log."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sys.setprofile(place)
                act()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except (OSError, UserError, StoreError) as error:
            code = REFUSED
            if log is not None:
                log.write_text(str(error))
        except BaseException:
            traceback.print_exc()
            code = WRONG
        finally:
            sys.setprofile(None)
            if place is not None and place.wanted < 0 and log is not None:
                log.write_text(str(place.count))
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Sweep:
    """One kind of work, done in copies of one home."""

    def __init__(self, work: Work, folder: Path) -> None:
        self.work, self.home, self.before, self.log = work, folder / "home", folder.parent / "before", folder / "log"
        shutil.rmtree(self.before, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        assert child(lambda: work.begin(self.home)) == 0
        shutil.copytree(self.home, self.before)

    def again(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.before, self.home)

    def calls(self) -> int:
        self.again()
        assert child(lambda: self.work.do(self.home), Place(self.work.files), self.log) == 0
        return int(self.log.read_text())

    def struck(self, at: int, number: int) -> int:
        place = Place(self.work.files, at, lambda: os.kill(os.getpid(), number))
        return child(lambda: self.work.do(self.home), place)

    def recovers(self, where: str) -> None:
        """What was whole is there yet, and what was not is made now."""

        def again() -> None:
            whole = {one.record_id for one in Spool(self.home).records()}
            self.work.do(self.home)
            self.work.check(self.home)
            there = {one.record_id for one in Spool(self.home).records()}
            if whole - there:
                there |= {one.record_id for one in Store.open(self.home).trials()}
            assert whole <= there, "a record that was whole is lost"

        code = child(again)
        assert code == 0, f"{where}: the next attempt ended with {code}"


def killed(sweep: Sweep, places: int, numbers: list[int]) -> None:
    total = sweep.calls()
    for at in sorted({1 + round(i * (total - 1) / (places - 1)) for i in range(places)}):
        sweep.again()
        for turn, number in enumerate(numbers):
            code = sweep.struck(max(1, (at * (1 + 3 * turn)) % (total + 1)), number)
            ended = (-number, INTERRUPTED) if number == signal.SIGINT else (-number,)
            assert code in ended or turn, f"at call {at} of {total}: ended with {code}"
        sweep.recovers(f"killed at call {at} of {total}")


def full(sweep: Sweep, places: int, whole: int) -> None:
    """The disk on which the home lies has room for ever less of what is to be written: the last of so many places is none at all."""
    refused = 0
    for left in sorted({round(i * whole / (places - 1)) for i in range(places)}):
        sweep.again()
        disk = os.statvfs(sweep.home)
        ballast = sweep.home / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(max(0, (disk.f_bavail - left) * disk.f_frsize)))
        code = child(lambda: sweep.work.do(sweep.home), log=sweep.before / "said")
        assert code in (0, REFUSED), f"with {left} blocks left: ended with {code}"
        refused += code == REFUSED
        ballast.unlink()
        sweep.recovers(f"with {left} blocks left")
    print(refused)


def main(what: str, folder: str, *ways: str) -> None:
    sweep = Sweep(WORK[what](), Path(folder))
    for way in ways:
        how, _, places = way.partition(":")
        if how == "full":
            places, _, most = places.partition("/")
            full(sweep, int(places), int(most or 40))
        else:
            killed(sweep, int(places), [signal.Signals[name] for name in how.split("+")])


if __name__ == "__main__":
    main(*sys.argv[1:])
