"""Faults of comparable systems that users reported in public, and the tests that show what happens here instead."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ALONE, REAL, PEEK = "cluster/test_ray_actors_alone.py", "cluster/test_ray_actors.py", "learner/test_schedule.py"
ATARI, ROLLOUT, PROCESSES = "actors/test_atari.py", "actors/test_rollout.py", "integration/test_processes.py"

# Repository and number of the report: what went wrong there, and tests as file::function.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ray#63849": (
        "weights pushed to busy runners were dropped without a word",
        (
            f"{ALONE}::test_a_stream_is_of_the_newest_weights_and_a_batch_ahead_of_the_one_it_brings",
            f"{PEEK}::test_published_versions_count_real_updates",
        ),
    ),
    "ray#58697": (
        "weights never reached a runner",
        (
            f"{ROLLOUT}::test_an_actor_acts_under_the_snapshot_that_it_is_given",
            "learner/test_batch.py::test_a_rollout_of_another_version_is_refused",
        ),
    ),
    "ray#48702": (
        "samples dropped silently, throughput that is not real",
        (
            "cluster/test_colocated.py::test_whatever_happens_sampled_is_consumed_dropped_or_in_flight",
            f"{REAL}::test_peek_drops_and_counts_what_is_too_old",
        ),
    ),
    "ray#59544": (
        "weak back-pressure",
        (
            "cluster/test_reports.py::test_whoever_reports_more_than_is_fetched_waits",
            f"{ALONE}::test_all_of_many_actors_work_where_their_rollouts_will_be_used_in_time",
        ),
    ),
    "ray#4402": (
        "samples dropped silently, throughput that is not real",
        (
            f"{ALONE}::test_whatever_happens_to_actors_the_account_holds_and_the_run_goes_on",
            "cluster/test_train.py::test_sequential_updates_use_real_frames_and_hold_one_batch",
        ),
    ),
    "ray#24329": (
        "the object store or the disk fills",
        (
            f"{ALONE}::test_a_stream_is_of_the_newest_weights_and_a_batch_ahead_of_the_one_it_brings",
            "integration/test_memory.py::test_resident_memory_is_flat",
        ),
    ),
    "ray#23769": (
        "the object store or the disk fills",
        (f"{ALONE}::test_actors_that_hang_keep_no_other_from_working",),
    ),
    "ray#8227": (
        "the object store or the disk fills",
        (
            "cluster/test_ray_session.py::test_the_folder_and_the_token_of_an_embedded_ray_are_its_users_alone",
            f"{REAL}::test_what_environments_print_is_shown_and_bounded",
        ),
    ),
    "ray#63694": (
        "ray.get hangs when an object's owner dies",
        (
            "cluster/test_lifecycle.py::test_a_learner_that_does_not_answer_is_waited_for_so_long",
            "cluster/test_supervise.py::test_an_answer_that_went_with_the_node_is_not_waited_for",
        ),
    ),
    "ray#59339": (
        "ray.get hangs",
        (f"{ALONE}::test_an_actor_that_cannot_be_reached_is_stood_in_for_and_its_late_rollout_dropped",),
    ),
    "acme#213": (
        "death of a learner or an actor",
        (
            f"{REAL}::test_a_killed_learner_goes_on_from_its_checkpoint_with_the_actors_kept",
            "cluster/test_supervise.py::test_each_life_begins_at_the_newest_checkpoint",
        ),
    ),
    "marin#1719": (
        "an actor whose owner died is gone for ever",
        (
            f"{REAL}::test_an_actor_that_dies_at_rest_is_started_again",
            f"{ALONE}::test_actors_of_another_life_are_taken_as_they_are",
        ),
    ),
    "ray#50007": (
        "death of a learner or an actor",
        (f"{REAL}::test_a_killed_actor_is_replaced_and_the_run_completes",),
    ),
    "sample-factory#316": (
        "a silent stall without a diagnosis",
        (
            f"{REAL}::test_a_hung_actor_is_named_and_replaced",
            "cluster/test_supervise.py::test_a_run_waits_for_room_that_others_have_and_says_for_what",
        ),
    ),
    "ray#54408": (
        "a restore that does not continue: state of connectors",
        (
            f"{PROCESSES}::test_a_ray_run_continues_bitwise_and_leaves_no_process",
            f"{REAL}::test_a_stopped_run_continues_bitwise",
        ),
    ),
    "ray#53877": (
        "a restore that does not continue: counters and learning rate",
        (
            "cluster/test_train.py::test_a_stopped_run_continues_bitwise",
            "cluster/test_colocated.py::test_an_account_continues_from_its_tree",
        ),
    ),
    "ray#41290": (
        "a restore that does not continue",
        (f"{PROCESSES}::test_a_colocated_run_that_was_killed_continues_bitwise_from_its_last_checkpoint",),
    ),
    "rl#4188": (
        "a restore that does not continue",
        (
            f"{ROLLOUT}::test_loaded_state_continues_bitwise",
            "learner/test_metrics.py::test_a_window_continues_from_a_checkpoint",
        ),
    ),
    "envpool#194": (
        "what happens at the end of an episode (autoreset)",
        (f"{ATARI}::test_the_step_after_an_end_only_resets_and_ignores_its_action",),
    ),
    "envpool#33": (
        "what happens at the end of an episode (autoreset)",
        (f"{ATARI}::test_the_step_after_an_end_only_resets_and_ignores_its_action",),
    ),
    "envpool#257": (
        "what happens at the end of an episode (autoreset)",
        (f"{ROLLOUT}::test_statistics_are_raw_returns_of_full_lives_over_valid_steps",),
    ),
    "cleanrl#475": (
        "the loss was computed across a resetting step",
        (
            "metagrad/test_returns.py::test_nothing_crosses_an_episode_end",
            "metagrad/test_returns.py::test_vtrace_lets_nothing_cross_an_episode_end",
        ),
    ),
    "envpool#299": (
        "confusion of clipped rewards, lives and episodes",
        (f"{ATARI}::test_training_returns_are_those_of_an_unmodified_pool",),
    ),
    "envpool#53": ("clipped and raw rewards were confused", (f"{ATARI}::test_the_learner_gets_the_sign_of_the_score",)),
    "envpool#255": (
        "the flag of a truncation with episodes that end with a life",
        (f"{ATARI}::test_what_is_terminal_is_not_truncated", f"{ATARI}::test_the_time_limit_truncates"),
    ),
    "sample-factory#270": (
        "confusion of clipped rewards, lives and episodes",
        ("actors/test_evaluate.py::test_full_lives_are_played_whatever_training_does",),
    ),
    "envpool#14": (
        "defaults: sticky actions, versions of games",
        (f"{ATARI}::test_sticky_actions_change_the_game",),
    ),
    "ALE#435": (
        "defaults: sticky actions, versions of games",
        ("experiments/test_atari.py::test_the_papers_settings",),
    ),
    "gym#1082": (
        "defaults: sticky actions, versions of games",
        ("experiments/test_atari.py::test_the_papers_settings",),
    ),
    "ray#46986": (
        "the same seed for every runner's environments",
        (f"{ROLLOUT}::test_actors_purposes_and_incarnations_play_different_games",),
    ),
    "ray#18245": (
        "seeds",
        (
            "cluster/test_launch.py::test_the_same_seed_gives_the_same_bits",
            f"{REAL}::test_a_seed_gives_the_same_bits_on_ray_and_colocated",
        ),
    ),
    "torchopt#218": (
        "memory grows with every meta-update",
        ("integration/test_memory.py::test_resident_memory_is_flat",),
    ),
    "ray#56271": ("evaluation in parallel is broken", (f"{REAL}::test_evaluations_are_played_beside_training",)),
    "ray#24107": (
        "Ray's own lines are noise",
        ("cluster/test_worker_prints.py::test_of_ray_itself_only_what_it_pushes_is_shown_and_no_obituary",),
    ),
    "SkyRL#945": (
        "Ray's own lines are noise",
        ("cluster/test_worker_prints.py::test_so_many_lines_of_a_process_are_shown_and_no_more",),
    ),
    "envpool#259": ("empty arrays are returned", (f"{ATARI}::test_spec_and_types",)),
    "sample-factory#280": (
        "speeds that cannot be reproduced",
        ("benchmarks/test_harness.py::test_ratios_are_taken_round_by_round",),
    ),
    "ray#50221": (
        "several GPUs are slower than one",
        ("cluster/test_launch.py::test_on_a_cluster_a_learner_has_one_gpu_or_none",),
    ),
}


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("report", CASES)
def test_each_public_report_has_tests_that_exist(report: str) -> None:
    _, tests = CASES[report]
    assert tests
    for place in tests:
        file, _, name = place.partition("::")
        assert name in functions(TESTS / file), f"{report}: {place} is gone; name the test that shows it now"


def test_no_report_is_listed_twice() -> None:
    listed = [key.value for key in table().keys if isinstance(key, ast.Constant)]
    assert len(listed) == len(set(listed)) == len(CASES)


def table() -> ast.Dict:
    tree = ast.parse(Path(__file__).read_text())
    (found,) = (
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    )
    return found
