"""Which job a worker gets next, and that a device is kept busy by it."""

from __future__ import annotations

import heapq
import itertools
import queue

import fake_training
import pytest

from ablate.rows import Answer, Row, Rows


def rows(shapes: str, workers: int, *, by_shape: bool = True) -> tuple[Rows, queue.Queue[Answer]]:
    answers: queue.Queue[Answer] = queue.Queue()
    made = Rows([fake_training.job(i, shape=shape) for i, shape in enumerate(shapes)], answers)
    made.begin(workers, by_shape=by_shape)
    return made, answers


def given(made: Rows, turn: str) -> int | None:
    row = made.take(turn)
    return None if row is None else row.index


def test_a_freed_worker_gets_the_shape_it_compiled_and_a_new_one_a_fresh_shape() -> None:
    made, _ = rows("aabbc", 2)
    assert [given(made, "x"), given(made, "y"), given(made, "z")] == [0, 2, None]
    made.answer("y", "{}", None)
    assert given(made, "z") == 3
    made.answer("z", "{}", None)
    assert given(made, "u") == 4


def test_without_compiling_rows_keep_their_order() -> None:
    made, _ = rows("abab", 2, by_shape=False)
    assert [given(made, "x"), given(made, "y")] == [0, 1]
    made.answer("y", "{}", None)
    assert given(made, "z") == 2


def test_rows_are_over_when_all_are_settled_and_a_lost_one_comes_again() -> None:
    made, answers = rows("a", 1)
    assert made.take("x") == Row(0, finished_before=0, deaths=0)
    made.lost("x", "killed")
    assert answers.get() == Answer(index=0, reason="killed")
    assert given(made, "y") is None
    assert not made.over
    made.again(0, finished_before=4)
    assert made.take("y") == Row(0, finished_before=4, deaths=1)
    made.settle(0)
    assert made.over


def test_what_a_broken_round_left_is_handed_out_again() -> None:
    made, _ = rows("ab", 2)
    given(made, "x")
    made.begin(2, by_shape=True)
    assert {given(made, "y"), given(made, "z")} == {0, 1}


def test_a_row_that_was_set_aside_waits_for_a_round_of_its_own() -> None:
    made, answers = rows("ab", 2)
    given(made, "x"), given(made, "y")
    made.answer("x", crowded=True)
    assert answers.get() == Answer(index=0, crowded=True)
    made.aside(0)
    assert not made.over
    assert given(made, "z") is None
    made.settle(1)
    assert made.over
    assert made.resume() == 1
    made.begin(1, by_shape=True)
    assert not made.over
    assert given(made, "z") == 0


def simulate(
    shapes: str, *, workers: int, cold: float, warm: float, train: float, turn: float = 0.5
) -> tuple[float, float]:
    """Seconds until the first training begins, and that the device idles between then and the last trial's end.

    A worker takes `turn` to come to a row and `cold` to prepare a shape, or `warm` if that was done before; it then waits for the
    device, which goes to who waits longest.
    """
    made, answers = rows(shapes, workers)
    prepared: dict[int, str] = {}
    cached: dict[str, float] = {}
    number = itertools.count()
    events: list[tuple[float, int, str, int, str]] = []
    waiting: list[tuple[int, str]] = []
    now = first = busy = 0.0
    training = False

    def start(worker: int) -> None:
        name = f"turn {next(number)}"
        if (index := given(made, name)) is not None:
            shape = shapes[index]
            prepare = 0.0 if prepared.get(worker) == shape else warm if cached.get(shape, now + 1) <= now else cold
            prepared[worker] = shape
            cached.setdefault(shape, now + turn + prepare)
            heapq.heappush(events, (now + turn + prepare, next(number), "ready", worker, name))

    for worker in range(workers):
        start(worker)
    while events:
        now, _, what, worker, name = heapq.heappop(events)
        if what == "ready":
            waiting.append((worker, name))
        else:
            training = False
            made.answer(name, "{}")
            made.settle(answers.get().index)
            start(worker)
        if waiting and not training:
            training, first, busy = True, first or now, busy + train
            heapq.heappush(events, (now + train, next(number), "trained", *waiting.pop(0)))
    assert made.over
    return first, now - first - busy


@pytest.mark.parametrize(
    ("arms", "seeds", "workers", "cold", "train", "idle"),
    [
        (8, 4, 4, 20.0, 7.0, 0.0),  # 10M parameters, 20M tokens, nothing cached
        (8, 4, 2, 9.0, 7.0, 0.05),  # with a warm cache two are enough
        (9, 4, 4, 20.0, 7.0, 0.0),  # the last arm's rows go to all
        (3, 5, 4, 20.0, 7.0, 0.01),
        (1, 32, 4, 20.0, 7.0, 0.0),
        (8, 4, 4, 40.0, 7.0, 0.15),  # compilers that are too slow for four workers to hide
    ],
)
def test_the_device_hardly_idles_once_the_first_trial_trains(
    arms: int, seeds: int, workers: int, cold: float, train: float, idle: float
) -> None:
    shapes = "abcdefghi"[:arms] * seeds
    first, lost = simulate(shapes, workers=workers, cold=cold, warm=9.0, train=train)
    assert first == cold + 0.5
    assert lost <= idle * len(shapes) * train


def test_one_worker_leaves_the_device_idle_while_it_prepares() -> None:
    _, lost = simulate("abcd" * 4, workers=1, cold=20.0, warm=9.0, train=7.0)
    assert lost == 3 * 20.0 + 15 * 0.5
