//! A few rounds of chaos with a fixed seed; `make chaos` plays all scenarios, many times.

use anyhow::{Context as _, Result, ensure};
use planaria_chaos::arena::{Arena, Model};
use planaria_chaos::scenario::{Scenario, play};
use planaria_chaos::schedule::Drawn;

use crate::binary;

const SEED: u64 = 1;

/// Plays the first rounds of a scenario.
async fn rounds(name: &str, count: u32) -> Result<()> {
    let scenario = Scenario::named(name).context("no such scenario")?;
    let mut arena = Arena::new(binary(), Model::Exact, scenario.nodes, scenario, SEED).await?;
    for round in 0..count {
        let drawn = Drawn::new(name, scenario.range, Model::Exact.name(), SEED, round);
        let played = play(&mut arena, scenario, drawn).await;
        let played = played.with_context(|| arena.cluster.logs())?;
        ensure!(
            played.violations.is_empty(),
            "round {round} ({}): {:?}\n{}",
            played.proof,
            played.violations,
            arena.cluster.logs()
        );
    }
    let leaks = arena.back_at_base().await;
    ensure!(leaks.is_empty(), "{leaks:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn under_full_load_nobody_is_suspected() -> Result<()> {
    rounds("full-load", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_killed_cost_no_token() -> Result<()> {
    rounds("kill-node", 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_four_nodes_that_are_killed_cost_no_token() -> Result<()> {
    rounds("kill-two", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_twice_costs_no_token() -> Result<()> {
    rounds("kill-worker-again", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_answers_costs_no_token() -> Result<()> {
    rounds("stop-worker", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn actors_that_panic_cost_no_token() -> Result<()> {
    rounds("panic-actor", 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_runs_in_circles_costs_no_token() -> Result<()> {
    rounds("hang-actor", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_group_that_is_killed_costs_no_token() -> Result<()> {
    rounds("group-kill-node", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_is_heard_no_more_costs_no_token() -> Result<()> {
    rounds("group-cut-one-way", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_for_a_moment_keeps_its_place() -> Result<()> {
    rounds("freeze-short", 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_for_a_while_costs_no_token() -> Result<()> {
    rounds("cut-one", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_network_costs_no_token() -> Result<()> {
    rounds("lossy", 1).await?;
    rounds("falsifying", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_costs_no_token() -> Result<()> {
    rounds("damage-store", 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_token() -> Result<()> {
    rounds("full-disk", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_s_trouble_costs_nothing() -> Result<()> {
    rounds("collector-down", 2).await?;
    rounds("collector-hangs", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_end_before_a_node_that_was_asked_to_stop_does() -> Result<()> {
    rounds("stop-asked", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_wiped_is_one_node() -> Result<()> {
    rounds("wiped-node", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_leave_nothing_behind() -> Result<()> {
    rounds("clients-leave", 2).await?;
    rounds("clients-leave-in-recovery", 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_identity_disturb_nobody() -> Result<()> {
    rounds("copied-folder", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_panics_costs_its_own_client_alone() -> Result<()> {
    rounds("panic-sequence", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_has_room_again_is_written_again() -> Result<()> {
    rounds("disk-returns", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_comes_back_on_a_node_with_few_descriptors() -> Result<()> {
    rounds("few-descriptors", 1).await
}
