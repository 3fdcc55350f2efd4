"""The contract kit can fail: every way to break a request plane is caught by the tests that are there for it.

What else fails on a breakage is listed too, so that a change of the kit shows what it sees more, or less.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SUITE = Path(__file__).with_name("broken_request_plane.py")

CAUGHT_BY: dict[str, set[str]] = {
    "r1_raw_becomes_messagepack": {
        "R1_a_buffer_may_change_once_its_call_ended",
        "R1_first_items_of_every_size_arrive",
        "R1_request_items_of_every_size_arrive",
        "R1_response_items_of_every_size_arrive",
    },
    "r1_the_last_two_items_change_places": {
        "R1_items_flow_both_ways_at_once",
    },
    "r1_a_buffer_is_shared": {
        "R1_a_buffer_may_change_once_its_call_ended",
    },
    "r1_in_a_crowd_items_go_to_another_stream": {
        "R1_many_streams_do_not_mix",
    },
    "r2_call_raises_where_nobody_serves": {
        "R2_an_address_that_nobody_serves_is_the_first_thing_received",
    },
    "r3_a_refusal_keeps_its_verdict": {
        "R3_a_refusal_arrives_as_its_class",
    },
    "r3_anybody_answers": {
        "R3_another_instance_is_not_called",
    },
    "r4_there_is_always_room": {
        "R4_a_sender_that_does_not_wait_loses_nothing",
        "R4_an_unread_input_stops_its_caller",
        "R4_an_unread_response_stops_its_handler",
        "R4_empty_items_are_bounded_too",
    },
    "r5_no_budget": {
        "R5_large_items_not_taken_stay_within_the_budget",
    },
    "r5_the_budget_goes_to_streams_that_nobody_reads": {
        "R5_streams_nobody_reads_keep_the_budget_from_none",
    },
    "r5_nothing_is_larger_than_the_budget": {
        "R5_an_item_larger_than_the_budget_passes_alone",
    },
    "r6_kill_stays_here": {
        "R6_kill_after_the_end_does_nothing",
        "R6_kill_before_anything_was_connected",
        "R6_kill_before_the_worker_saw_the_call",
        "R6_kill_cancels_the_handler_whatever_it_does",
        "R6_kill_with_items_unread_cancels_the_handler",
    },
    "r7_stop_kills": {
        "R7_a_stopped_call_can_still_be_killed",
        "R7_stop_asks_and_what_is_still_sent_arrives",
        "R7_stop_right_after_the_call_is_heard",
    },
    "r7_stop_is_lost": {
        "R7_a_stopped_call_can_still_be_killed",
        "R7_stop_asks_and_what_is_still_sent_arrives",
        "R7_stop_right_after_the_call_is_heard",
    },
    "r8_a_broken_link_looks_like_an_end": {
        "R8_a_broken_link_is_told_from_an_end",
        "R8_a_broken_link_wakes_writers_and_readers_on_both_sides",
    },
    "r8_the_worker_is_not_told": {
        "R8_a_broken_link_is_told_from_an_end",
        "R8_a_broken_link_wakes_writers_and_readers_on_both_sides",
    },
    "r9_an_error_overtakes_items": {
        "R9_an_error_comes_after_the_items_before_it",
    },
    "r9_every_error_is_remote": {
        "R9_after_an_item_nothing_is_safe_to_retry",
        "R9_errors_of_every_class_arrive_as_they_were",
    },
    "r9_an_error_loses_what_it_carries": {
        "R9_an_error_comes_after_the_items_before_it",
        "R9_what_an_error_carries_arrives",
    },
    "r10_the_end_of_the_input_ends_the_call": {
        "R10_items_go_on_coming_after_the_input_ended",
        "R10_the_worker_sees_an_input_that_is_still_open",
    },
    "r11_the_request_is_shared": {
        "R11_what_describes_a_request_arrives",
    },
    "r11_attempts_are_not_counted": {
        "R11_what_describes_a_request_arrives",
    },
    "r12_drain_is_not_announced": {
        "R12_drain_is_heard_and_what_runs_goes_on",
    },
    "r12_refuse_cuts_what_runs": {
        "R12_refuse_turns_away_what_is_new",
    },
    "r13_one_window_for_all_streams": {
        "R13_a_handler_that_does_not_read_holds_up_its_own_call_alone",
        "R13_a_slow_reader_holds_up_its_own_stream_alone",
    },
    "r14_no_item_is_too_large": {
        "R14_an_item_past_the_limit_fails_at_its_sender",
        "R14_the_limit_is_the_smaller_of_both_sides",
    },
    "r14_a_large_item_ends_the_call": {
        "R14_an_item_past_the_limit_fails_at_its_sender",
        "R14_the_limit_is_the_smaller_of_both_sides",
    },
    "r15_wait_holds_the_item_while_it_waits": {
        "R15_a_cancelled_wait_loses_no_item",
    },
    "r15_a_cancelled_writable_empties_the_queue": {
        "R15_a_cancelled_writable_loses_no_item",
    },
    "r16_a_task_for_each_killed_call": {
        "R16_nothing_is_left_of_calls_that_ended_in_every_way",
    },
    "r16_a_killed_call_keeps_its_budget": {
        "R16_killed_calls_give_their_budget_back",
    },
    "r16_leaving_serve_ends_nothing": {
        "R16_leaving_serve_with_calls_in_flight_ends_them_soon",
    },
    "r17_check_raises": {
        "R17_check_tells_and_never_raises",
    },
}
"""By breakage, the tests of its invariant that fail."""

ALSO_FAIL: dict[str, set[str]] = {
    "r1_raw_becomes_messagepack": {
        "R4_an_unread_input_stops_its_caller",
        "R4_an_unread_response_stops_its_handler",
        "R5_an_item_larger_than_the_budget_passes_alone",
        "R5_large_items_follow_each_other",
        "R5_large_items_not_taken_stay_within_the_budget",
        "R5_large_items_of_many_streams_share_a_budget",
        "R5_large_request_items_share_the_worker_s_budget",
        "R5_streams_nobody_reads_keep_the_budget_from_none",
    },
    "r1_the_last_two_items_change_places": {
        "R4_a_sender_that_does_not_wait_loses_nothing",
        "R9_an_error_comes_after_the_items_before_it",
        "R15_a_cancelled_wait_loses_no_item",
        "R15_a_cancelled_writable_loses_no_item",
    },
    "r2_call_raises_where_nobody_serves": {
        "R12_drain_is_heard_and_what_runs_goes_on",
        "R12_refuse_turns_away_what_is_new",
    },
    "r3_anybody_answers": {
        "R16_nothing_is_left_of_calls_that_ended_in_every_way",
    },
    "r4_there_is_always_room": {
        "R6_kill_cancels_the_handler_whatever_it_does",
        "R6_kill_wakes_its_own_readers_and_writers",
        "R8_a_broken_link_wakes_writers_and_readers_on_both_sides",
        "R15_a_cancelled_writable_loses_no_item",
    },
    "r6_kill_stays_here": {
        "R7_a_stopped_call_can_still_be_killed",
        "R12_calls_are_counted_while_they_run",
        "R16_killed_calls_give_their_budget_back",
        "R16_leaving_the_caller_s_plane_cancels_its_calls",
        "R16_nothing_is_left_of_calls_that_ended_in_every_way",
    },
    "r8_a_broken_link_looks_like_an_end": {
        "R16_leaving_serve_with_calls_in_flight_ends_them_soon",
    },
    "r8_the_worker_is_not_told": {
        "R16_leaving_serve_with_calls_in_flight_ends_them_soon",
    },
    "r10_the_end_of_the_input_ends_the_call": {
        "R1_items_flow_both_ways_at_once",
        "R4_an_unread_input_stops_its_caller",
        "R13_a_handler_that_does_not_read_holds_up_its_own_call_alone",
    },
    "r11_the_request_is_shared": {
        "R14_an_item_past_the_limit_fails_at_its_sender",
    },
    "r13_one_window_for_all_streams": {
        "R5_large_items_not_taken_stay_within_the_budget",
        "R5_large_items_of_many_streams_share_a_budget",
        "R5_large_request_items_share_the_worker_s_budget",
    },
    "r15_wait_holds_the_item_while_it_waits": {
        "R9_after_an_item_nothing_is_safe_to_retry",
    },
    "r16_a_killed_call_keeps_its_budget": {
        "R5_large_items_not_taken_stay_within_the_budget",
        "R5_large_items_of_many_streams_share_a_budget",
        "R5_streams_nobody_reads_keep_the_budget_from_none",
    },
    "r16_leaving_serve_ends_nothing": {
        "R2_an_address_that_nobody_serves_is_the_first_thing_received",
        "R2_one_address_is_served_once",
        "R8_a_broken_link_is_told_from_an_end",
        "R8_a_broken_link_wakes_writers_and_readers_on_both_sides",
        "R17_check_tells_and_never_raises",
    },
}
"""Tests of other invariants that fail with it."""

# Without a window memory grows, and whether that holds up the neighbour for long depends on the machine.
MAY_FAIL = {"r4_there_is_always_room": {"R13_a_slow_reader_holds_up_its_own_stream_alone"}}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The tests that failed, by breakage, from one run of the suite over all of them."""
    report = tmp_path_factory.mktemp("broken") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-n2", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, f"--junitxml={report}", str(SUITE)], cwd=SUITE.parents[2], capture_output=True, timeout=240
    )
    assert report.exists(), run.stdout.decode() + run.stderr.decode()
    failed: dict[str, set[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name, _, parameters = case.attrib["name"].partition("[")
        (breakage,) = {"nothing", *CAUGHT_BY}.intersection(parameters.removesuffix("]").split("-"))
        failures = failed.setdefault(breakage, set())
        if case.find("failure") is not None or case.find("error") is not None:
            failures.add(name.removeprefix("test_"))
    return failed


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("breakage", CAUGHT_BY)
def test_a_broken_request_plane_is_caught(failed: dict[str, set[str]], breakage: str) -> None:
    expected = CAUGHT_BY[breakage] | ALSO_FAIL.get(breakage, set())
    assert failed[breakage] - MAY_FAIL.get(breakage, set()) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_not_broken_passes_there(failed: dict[str, set[str]]) -> None:
    assert failed["nothing"] == set()


def test_every_invariant_has_a_breakage() -> None:
    assert {breakage.partition("_")[0] for breakage in CAUGHT_BY} == {f"r{number}" for number in range(1, 18)}
    assert all(CAUGHT_BY.values())
