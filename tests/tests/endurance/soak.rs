//! A minute of what `make soak` does for an hour.

use std::time::Duration;

use anyhow::{Result, ensure};
use planaria_chaos::soak::{Plan, figures, soak};

use crate::{ALONE, binary};

const PLAN: Plan = Plan {
    seed: 1,
    lasts: Duration::from_secs(60),
    requests: 330,
    blow_every: Duration::from_secs(12),
};

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_mixed_use_ends_where_it_began() -> Result<()> {
    let _alone = ALONE.lock().await;
    let soaked = soak(binary(), PLAN, |line| println!("{line}")).await?;
    let table = figures::table(&soaked.parts);
    ensure!(soaked.violations.is_empty(), "{:#?}\n{table}", soaked.violations);
    let requests: usize = soaked.parts.iter().flat_map(|part| part.requests.values()).sum();
    ensure!(requests >= 100, "only {requests} requests: the rest proves nothing\n{table}");
    let blows = soaked.parts.last().map_or(0, |part| part.blows);
    ensure!(blows >= 2, "only {blows} blows fell");
    Ok(())
}
