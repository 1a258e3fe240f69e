"""What every job store must do, as checks that its own tests run.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check, harness):
        await asyncio.wait_for(check(harness), 60)

A check raises ``AssertionError`` with a sentence about what is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from headrace.jobs import conformance_clients as clients
from headrace.jobs import conformance_leases as leases
from headrace.jobs import conformance_text as text
from headrace.jobs import conformance_time as times
from headrace.jobs import conformance_webhooks as webhooks
from headrace.jobs import conformance_workers as workers
from headrace.jobs.conformance_bench import Bench, Harness, opened

__all__ = ["CHECKS", "Bench", "Check", "Harness", "opened"]

Check = Callable[[Harness], Awaitable[None]]

CHECKS: tuple[Check, ...] = (
    clients.stores_everything,
    clients.bodies_of_any_size,
    clients.survives_a_reopening,
    clients.one_job_per_key,
    clients.one_job_per_key_under_contention,
    clients.one_job_per_id,
    clients.waiters_keep_a_call,
    clients.waiters_come_while_others_leave,
    clients.projects_are_apart,
    clients.lists_newest_first,
    clients.lists_by_endpoint_and_state,
    clients.cancels_what_waits,
    clients.cancel_voids_the_fence,
    clients.retries_what_is_dead,
    clients.a_retry_has_a_new_budget,
    clients.purges_only_what_waits,
    clients.purges_no_fresh_lease_of_another,
    clients.counts_every_state,
    workers.leases_by_priority_then_age,
    workers.keys_take_turns,
    workers.a_retry_takes_a_new_turn,
    workers.leases_are_exclusive,
    workers.leases_only_one_endpoint,
    workers.waiting_endpoints_are_told,
    workers.waiting_tells_what_comes_next,
    workers.a_result_is_stored_once,
    workers.failures_are_kept_with_their_reason,
    workers.late_results_are_dropped_and_counted,
    workers.heartbeats_tell_what_is_gone,
    workers.notes_need_the_fence,
    workers.chunks_of_a_new_attempt_replace_the_old,
    workers.chunks_are_read_in_pages,
    workers.chunks_are_taken_once,
    workers.released_jobs_come_again,
    workers.released_jobs_wait_for_their_delay,
    workers.releases_that_count_are_bounded,
    workers.a_gone_worker_loses_its_jobs,
    leases.a_lease_is_no_start,
    leases.lists_what_waits_in_a_gateway_as_queued,
    leases.a_refused_job_was_not_sent,
    leases.unsent_leases_do_not_count,
    leases.leases_without_an_answer_are_taken_back,
    times.an_expired_lease_is_queued_again,
    times.a_prolonged_lease_is_not_touched,
    times.a_sweep_may_leave_leases_alone,
    times.lost_attempts_are_bounded,
    times.the_time_to_live_ends_a_job,
    times.every_retry_gives_the_time_to_live_anew,
    times.a_dead_job_is_not_leased,
    times.finished_jobs_go_after_their_retention,
    times.a_removed_job_frees_its_key,
    times.blobs_that_nobody_names_are_given,
    times.blobs_of_dropped_results_are_given,
    times.announced_blobs_are_given_unless_named,
    times.a_sweep_is_bounded,
    text.numbers_of_any_size,
    text.an_end_by_itself_is_told,
    text.results_of_any_text,
    webhooks.events_follow_the_moves,
    webhooks.events_default_to_completed,
    webhooks.every_end_is_told,
    webhooks.output_is_told_in_batches,
    webhooks.a_start_is_told_once,
    webhooks.a_delivery_comes_again_until_settled,
    webhooks.what_was_not_delivered_is_told,
    webhooks.two_senders_never_have_the_same,
    webhooks.deliveries_survive_their_job,
)
