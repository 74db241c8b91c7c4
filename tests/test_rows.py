"""Which job a worker gets next."""

from __future__ import annotations

import queue

import fake_training

from ablate.rows import Answer, Rows


def rows(shapes: str, workers: int, *, by_shape: bool = True) -> tuple[Rows, queue.Queue[Answer]]:
    answers: queue.Queue[Answer] = queue.Queue()
    made = Rows([fake_training.job(i, shape=shape) for i, shape in enumerate(shapes)], answers)
    made.begin(workers, by_shape=by_shape)
    return made, answers


def given(made: Rows, turn: str) -> int | None:
    row = made.take(turn)
    return row and row[0]


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
    assert made.take("x") == (0, 0)
    made.lost("x", "killed")
    assert answers.get() == Answer(index=0, reason="killed")
    assert given(made, "y") is None
    assert not made.over
    made.again(0, finished_before=4)
    assert made.take("y") == (0, 4)
    assert made.tries[0] == 2
    made.settle(0)
    assert made.over


def test_what_a_broken_round_left_is_handed_out_again() -> None:
    made, _ = rows("ab", 2)
    given(made, "x")
    made.begin(2, by_shape=True)
    assert {given(made, "y"), given(made, "z")} == {0, 1}
