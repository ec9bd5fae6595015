//! Clients that never stop asking, while something happens to the cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use planaria_tests::api::Api;
use planaria_tests::wait_for;
use tokio::task::JoinHandle;

/// Answers that are asked for one after the other.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    /// Every answer must have these tokens.
    pub(crate) fn on(api: Api, model: &'static str, tokens: Vec<u64>) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (asked, counted) = (Arc::clone(&stop), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            while !asked.load(Ordering::Relaxed) {
                let answer = api.greedy(model, &[5, 6, 7], tokens.len()).await?;
                ensure!(answer == tokens, "{answer:?}, not {tokens:?}");
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, answered, task }
    }

    /// Waits for so many more answers.
    pub(crate) async fn answers(&self, more: usize) -> Result<()> {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        wait_for("answers", async || {
            let enough = self.answered.load(Ordering::Relaxed) >= wanted || self.task.is_finished();
            Ok(enough.then_some(()))
        })
        .await
    }

    pub(crate) async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
