"""What `safeguards.py` takes out of the code, for each row of tests/FAULTS.md: its test must fail then."""

from __future__ import annotations

from dataclasses import dataclass

from copied import Change


@dataclass(frozen=True, slots=True, init=False)
class Safeguard:
    """What a test of the table proves, and the changes that take it out: several where one safeguard covers another."""

    name: str
    test: str
    changes: tuple[Change, ...]

    def __init__(self, name: str, test: str, *changes: Change) -> None:
        for field, value in (("name", name), ("test", test), ("changes", changes)):
            object.__setattr__(self, field, value)

    @property
    def row(self) -> str:
        """The test as its row has it, without the parameters of one of its cases."""
        return self.test.partition("[")[0]


# fmt: off
HELD_BY_THE_KERNEL = (
    Change("registry/locks.py",
        "(0 if blocking else fcntl.LOCK_NB)\n                )\n",
        "(0 if blocking else fcntl.LOCK_NB)\n                )\n"
        '                mark = self.path.with_suffix(".held")\n'
        "                if mark.exists() and not shared:\n"
        '                    raise OSError("held by a process that died") if blocking else BlockingIOError\n'
        "                shared or mark.touch()\n"),
    Change("registry/locks.py",
        "        os.close(self._descriptor)\n",
        '        self.path.with_suffix(".held").unlink(missing_ok=True)\n        os.close(self._descriptor)\n'),
)
"""Instead, it is marked in a file that its holder removes."""
LOOKED_UP = Change("registry/store.py",
    "return layout.merge_statuses(rest for record_id, *rest in attempts if record_id not in retracted)", "return {}")
WRITER_LIVES_ON = Change("ablate/writer.py",
    "except Exception as error:  # without", "except ZeroDivisionError as error:  # without")
COMPLETE_ONLY = Change("registry/store.py", "if COMPLETE in run.data.tags:", "if True:")
CLEARED_ONCE_STORED = Change("registry/store.py",
    "            else:\n                spool.clear", "            finally:\n                spool.clear")
TAKEN_OVER_FIRST = Change("registry/mirror.py",
    "            state, old = store.state(), found.described()\n",
    "            state, old = store.state(), found.described()\n"
    '            found.facts = found.facts | {"state": state}\n'
    "            found.commit()\n")
NEXT_WORKER = Change("ablate/scheduler.py", "elif self.rows.deaths[answer.index] < TRIES:", "elif False:")

SAFEGUARDS = [
    # a death at any step
    Safeguard("what a killed process left of a corpus is cleared",
        "test_faults_any_step.py::test_killed_at_any_step_and_twice[prepare]",
        Change("ablate/_preparation.py", "for old in (partial, folder):", "for old in ():")),
    Safeguard("the kernel frees a lock when its holder dies",
        "test_faults_any_step.py::test_killed_at_any_step_and_twice[record]",
        *HELD_BY_THE_KERNEL),
    Safeguard("a run of MLflow's counts once it is complete",
        "test_faults_any_step.py::test_killed_at_any_step_and_twice[upload]",
        COMPLETE_ONLY),
    Safeguard("the mirror's state is entered once all is taken over",
        "test_faults_any_step.py::test_killed_at_any_step_and_twice[sync]",
        TAKEN_OVER_FIRST),
    # workers
    Safeguard("a worker that is terminated is replaced, for SIGTERM is not Ray's to handle",
        "test_faults_fire.py::test_workers_that_are_terminated_or_killed_in_any_phase_are_replaced",
        Change("ablate/scheduler.py", "        handle({signal.SIGTERM: signal.SIG_DFL})\n", "")),
    Safeguard("the trial of a dead worker is done by the next",
        "test_faults_fire.py::test_workers_that_are_terminated_or_killed_in_any_phase_are_replaced",
        NEXT_WORKER),
    Safeguard("the kernel frees a lease when its holder dies",
        "test_fire.py::test_a_killed_workers_trial_is_given_to_the_next[holding the lease]",
        *HELD_BY_THE_KERNEL),
    Safeguard("the trial of a dead worker is done by the next, where workers share a device",
        "test_fire.py::test_a_killed_workers_trial_is_given_to_the_next[sharing the device]",
        NEXT_WORKER),
    Safeguard("a trial that killed three workers is recorded",
        "test_fire.py::test_a_trial_that_always_kills_its_worker_is_recorded_as_killed",
        Change("ablate/scheduler.py", "self._give_up(answer.index, answer.reason)", "self.rows.settle(answer.index)")),
    # drivers
    Safeguard("what the store has is not done again",
        "test_fire.py::test_a_killed_driver_loses_nothing_and_repeats_nothing",
        LOOKED_UP),
    Safeguard("what the store has is not done again, by a third driver either",
        "test_faults_fire.py::test_a_driver_killed_twice_loses_nothing",
        LOOKED_UP),
    Safeguard("what the store has is not done again by the command",
        "test_cli.py::test_a_run_that_was_killed_goes_on_where_it_was",
        LOOKED_UP),
    Safeguard("signals are taken from Ray",
        "test_fire.py::test_a_signal_ends_a_run_at_once_and_leaves_no_process",
        Change("ablate/scheduler.py", "                handle(dict.fromkeys(SIGNALS, self._interrupt))  # Ray", "                # Ray")),
    Safeguard("Ray's processes are killed at the end",
        "test_fire.py::test_a_signal_ends_a_run_at_once_and_leaves_no_process",
        Change("ablate/ending.py", "            process.kill()\n", "            pass\n")),
    Safeguard("signals are taken before Ray starts",
        "test_fire.py::test_a_signal_while_ray_starts_ends_the_run_too",
        Change("ablate/scheduler.py", "with signals(self._interrupt), scratch", "with nullcontext(), scratch")),
    Safeguard("signals are taken until the end, not only the first",
        "test_faults_fire.py::test_a_second_signal_while_a_run_ends_changes_nothing",
        Change("ablate/scheduler.py",
               "        self.signal = number\n",
               "        self.signal = number\n"
               "        handle({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL})\n")),
    # disks
    Safeguard("what a full disk left of a corpus is cleared",
        "test_faults_any_step.py::test_a_full_disk_at_any_write[prepare]",
        Change("ablate/_preparation.py", "for old in (partial, folder):", "for old in ():"),
        Change("ablate/_preparation.py", "    finally:\n        shutil.rmtree(partial, ignore_errors=True)\n",
               "    finally:\n        pass\n")),
    Safeguard("a record appears whole, and half of one is set aside",
        "test_faults_any_step.py::test_a_full_disk_at_any_write[record]",
        Change("registry/locks.py", 'path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")', "path"),
        Change("registry/locks.py", "os.O_EXCL", "os.O_TRUNC"),
        Change("registry/locks.py", "        temporary.unlink(missing_ok=True)\n", ""),
        Change("registry/spool.py", "except (RecordError, OSError, RecursionError) as error:", "except RecursionError as error:")),
    Safeguard("a record is cleared once the store has it",
        "test_faults_any_step.py::test_a_full_disk_at_any_write[upload]",
        CLEARED_ONCE_STORED),
    Safeguard("the mirror's state is entered once there was room for all that is taken over",
        "test_faults_any_step.py::test_a_full_disk_at_any_write[sync]",
        TAKEN_OVER_FIRST),
    Safeguard("trouble with the disk ends the run",
        "test_faults_fire.py::test_a_full_disk_ends_a_run_at_once_with_what_to_do",
        Change("ablate/scheduler.py", '        except OSError as error:\n            return {"done"',
               '        except ZeroDivisionError as error:\n            return {"done"')),
    Safeguard("what the disk refuses is no result of a trial, whatever a library says of it",
        "test_faults.py::test_a_disk_that_is_full_while_a_trial_trains_is_no_result_of_the_trial",
        Change("ablate/errors.py", "found = found.__cause__ or found.__context__", "found = None")),
    Safeguard("numpy's way to say that a disk is full is known",
        "test_faults.py::test_a_full_disk_is_named_where_numpy_counts_what_it_wrote",
        Change("ablate/errors.py", '"requested and" in str(error)', "False")),
    Safeguard("a log loses what a full disk does not take",
        "test_faults.py::test_a_log_and_a_status_that_cannot_be_written_end_no_trial",
        Change("ablate/worker.py", "            except OSError:\n                return len(data)",
               "            except ZeroDivisionError:\n                return len(data)")),
    Safeguard("a status that cannot be written is left",
        "test_faults.py::test_a_log_and_a_status_that_cannot_be_written_end_no_trial",
        Change("ablate/status.py", "with contextlib.suppress(OSError):  # a full",
               "with contextlib.suppress(ZeroDivisionError):  # a full")),
    # damaged files
    Safeguard("the checksum of a spooled record",
        "test_faults.py::test_a_spooled_record_with_any_bit_flipped_is_set_aside_and_its_trial_is_trained_again",
        Change("registry/spool.py", 'if checksum and checksum.decode("ascii", "replace") != _checksum(text):', "if False:")),
    Safeguard("a damaged counter begins again",
        "test_faults.py::test_a_damaged_counter_stops_nothing",
        Change("registry/locks.py", "except (FileNotFoundError, ValueError):", "except FileNotFoundError:")),
    Safeguard("the checksums of a corpus",
        "test_data.py::test_a_damaged_cache_is_made_again",
        Change("ablate/tokens.py", 'found["format"] == FORMAT and whole else', 'found["format"] == FORMAT else')),
    Safeguard("the checksums of the mirror's files",
        "test_registry_mirror.py::test_a_mirror_that_cannot_be_used_is_made_again[trials-flipped]",
        Change("registry/segments.py", "return found if sound else None", "return found")),
    Safeguard("the checksum of the mirror's manifest",
        "test_registry_mirror.py::test_a_mirror_that_cannot_be_used_is_made_again",
        Change("registry/segments.py", "if int(crc) == zlib.crc32(body.encode()) else {}", "")),
    Safeguard("the checksums of a checkpoint",
        "test_faults.py::test_a_damaged_checkpoint_is_not_gone_on_from",
        Change("ablate/checkpoints.py", "return archive.testzip() is None", "return True")),
    Safeguard("half of a checkpoint is cleared",
        "test_faults.py::test_a_damaged_checkpoint_is_not_gone_on_from",
        Change("ablate/checkpoints.py", '    found.with_suffix(".partial").unlink(missing_ok=True)\n', "")),
    # the store
    Safeguard("a database that cannot be read is named",
        "test_faults.py::test_a_database_that_was_cut_off_is_named",
        Change("registry/sqlite_read.py", 'raise unreadable(error, f"sqlite:///{self.path}") from None', "raise")),
    Safeguard("the writer lives on without a server",
        "test_fire.py::test_a_tracking_server_may_be_away_in_the_middle",
        WRITER_LIVES_ON),
    Safeguard("a server without an answer is named",
        "test_faults.py::test_a_server_that_takes_calls_and_never_answers",
        Change("registry/store.py", "raise explained(error, self.name, self.uri) from None", "raise")),
    Safeguard("a record is cleared once a server has it",
        "test_faults.py::test_a_server_that_takes_calls_and_never_answers",
        CLEARED_ONCE_STORED),
    Safeguard("a server's refusal is named",
        "test_registry_postgres.py::test_wrong_credentials_give_one_line",
        Change("registry/trouble.py", "if status == 401:", "if False:")),
    Safeguard("a run of MLflow's counts once it is complete, whatever the call after which the server dies",
        "test_faults_any_step.py::test_a_server_that_dies_between_any_two_calls",
        COMPLETE_ONLY),
    Safeguard("a record is looked for before it is written, and of several runs one is kept",
        "test_faults_any_step.py::test_a_server_that_dies_between_any_two_calls",
        Change("registry/store.py", "for run in list(self._search(None, {ID: content.record_id}, complete=False)):", "for run in []:"),
        Change("registry/store.py", "if self.path else self._smallest(content.record_id), True", ", True")),
    Safeguard("a record is cleared once the store of three users has it",
        "test_registry_postgres.py::test_three_people_lose_nothing_and_double_nothing_over_a_server_that_dies",
        CLEARED_ONCE_STORED),
    Safeguard("a comparison ends at a signal as at an error",
        "test_against.py::test_a_comparison_that_is_killed_leaves_no_process_and_no_checkout",
        Change("ablate/against.py", "with signals(_leave), scratch", "with scratch")),
    Safeguard("a side ends with what started it",
        "test_against.py::test_a_side_that_is_busy_ends_with_what_started_it",
        Change("ablate/side.py", "while os.getppid() == parent:", "while True:")),
    Safeguard("checkouts of killed comparisons are cleared",
        "test_against.py::test_a_comparison_that_is_killed_leaves_no_process_and_no_checkout",
        Change("ablate/scratch.py", "for use in get_args(Use)", "for use in ['ray']")),
    Safeguard("git forgets checkouts of killed comparisons",
        "test_against.py::test_a_comparison_that_is_killed_leaves_no_process_and_no_checkout",
        Change("ablate/against.py", '        _git(here, "worktree", "prune")  # of', "        # of")),
    Safeguard("a locked database is called that",
        "test_faults.py::test_a_database_that_another_process_has_locked",
        Change("registry/trouble.py", "if LOCKED in str(error):", "if False:")),
    Safeguard("the writer lives on while the database is locked",
        "test_faults_fire.py::test_records_wait_while_another_process_has_locked_the_database",
        WRITER_LIVES_ON),
    # others
    Safeguard("a trial that another run has finished in between is not trained again",
        "test_fire.py::test_two_drivers_on_an_empty_home_share_the_work",
        Change("ablate/worker.py", "if finished > job.finished_before or (not finished and spool.find(key)):", "if False:")),
    Safeguard("what allocators say of memory is known",
        "test_faults_any_step.py::test_the_memory_of_the_machine_runs_out",
        Change("ablate/memory.py", "return known or any(text in str(error) for text in EXHAUSTED)", "return known")),
    Safeguard("exhausted memory is not taken for a compiler that fails",
        "test_gpu.py::test_a_trial_that_exhausts_the_device_leaves_it_usable",
        Change("ablate/step.py", 'if self.mode == "eager" or memory.is_exhausted(error):', 'if self.mode == "eager":')),
    Safeguard("a trial without room is tried alone",
        "test_fire.py::test_a_trial_without_room_beside_others_is_tried_alone",
        Change("ablate/worker.py", 'if how == "out_of_memory" and not place.alone and "first_attempt" in notes:', "if False:")),
    Safeguard("losses are looked at",
        "test_train.py::test_a_loss_that_is_not_finite_ends_the_run_as_a_result",
        Change("ablate/train.py", "if len(bad):", "if False:")),
    Safeguard("the watchdog",
        "test_fire.py::test_a_trial_that_hangs_is_ended_and_the_rest_goes_on",
        Change("ablate/watchdog.py", "if self._elapsed() > self._limit:", "if False:")),
    Safeguard("no phase ends before it began",
        "test_faults_fire.py::test_the_clock_is_set_back_by_two_hours_while_a_trial_trains",
        Change("ablate/status.py", "max(self._since, time.time())", "time.time()")),
    Safeguard("progress is told by a clock that nobody sets",
        "test_faults_fire.py::test_the_clock_is_set_back_by_two_hours_while_a_trial_trains",
        Change("ablate/status.py", "updated_at=time.time()), time.monotonic()", "updated_at=time.time()), time.time()"),
        Change("ablate/status.py", "if time.monotonic() - self._written", "if time.time() - self._written")),
    Safeguard("a design is later than the one before it",
        "test_faults.py::test_a_design_that_is_declared_after_the_clock_was_set_back_is_the_newest",
        Change("registry/store.py", "if design.created_at <= newest.created_at:", "if False:")),
    Safeguard("a home that cannot be written to is named",
        "test_faults.py::test_a_home_that_cannot_be_written_to",
        Change("ablate/errors.py", "if error.errno in (errno.EROFS, errno.EACCES) and", "if False and")),
    Safeguard("Ray's object store is small: next to no shared memory is no reason not to start",
        "test_faults_fire.py::test_next_to_no_shared_memory",
        Change("ablate/scheduler.py", "object_store_memory=100 * 2**20", "object_store_memory=16 * 2**30")),
]
# fmt: on
