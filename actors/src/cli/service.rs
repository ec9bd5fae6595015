//! What a service manager hears of the node, where one started it: systemd, or whatever speaks its protocol.
//! Where none did, nothing happens.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::cluster_view::{ClusterView, ModelState};
use crate::watchdog;

/// How often the words for people are looked at. They are for `systemctl status`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// The node serves.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The node was asked to stop, and hands over what it holds.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: others take over")]);
}

/// Keeps telling how the cluster is, and that this node is well if the manager wants to hear that. A node
/// that is stuck says nothing, and is started again. It ends when what this gives is dropped.
pub(super) fn keep_told(cluster: watch::Receiver<Arc<ClusterView>>) -> JoinSet<()> {
    let often = sd_notify::watchdog_enabled().map(|patience| patience / 2);
    let mut telling = JoinSet::new();
    telling.spawn(async move {
        // A time of nothing is none that could be kept.
        let every = often.filter(|often| !often.is_zero()).unwrap_or(STATUS_EVERY);
        let mut ticks = interval(every.min(STATUS_EVERY));
        let mut told = String::new();
        loop {
            ticks.tick().await;
            let words = words(&cluster.borrow());
            if words != told {
                tell(&[NotifyState::Status(&words)]);
                told = words;
            }
            if often.is_some() && watchdog::all_go_on() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    });
    telling
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// The cluster in a line.
fn words(view: &ClusterView) -> String {
    let nodes = view.nodes.iter().filter(|node| !node.state.is_over()).count();
    let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
    let models = view.models.iter().map(|model| match model.state {
        ModelState::Ready => format!("{} is ready", model.name),
        ModelState::Loading => format!("{} is being loaded", model.name),
        ModelState::Unavailable => format!("{} is unavailable: {}", model.name, model.reason),
    });
    let parts: Vec<_> = std::iter::once(nodes).chain(models).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use planaria_config::{NodeId, Strategy};

    use super::*;
    use crate::cluster_view::{ModelView, SequenceCounts, ThisNode};

    #[test]
    fn a_cluster_in_a_line() {
        let node =
            ThisNode { id: NodeId::from_bytes([1; 32]), name: String::new(), incarnation: 1 };
        let mut view = ClusterView {
            node,
            nodes: Vec::new(),
            models: Vec::new(),
            sequences: SequenceCounts::default(),
            recoveries: Vec::new(),
        };
        assert_eq!(words(&view), "0 nodes");
        for (name, state) in
            [("a", ModelState::Ready), ("b", ModelState::Loading), ("c", ModelState::Unavailable)]
        {
            let model = ModelView::starting(&name.parse().unwrap(), Strategy::Latency);
            view.models.push(ModelView { state, reason: "no files".to_owned(), ..model });
        }
        let expected = "0 nodes, a is ready, b is being loaded, c is unavailable: no files";
        assert_eq!(words(&view), expected);
    }
}
