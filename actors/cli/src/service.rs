//! What a service manager hears of the node, where one started it: systemd, or whatever speaks its protocol.
//! Where none did, nothing happens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use planaria_control::cluster_view::ClusterView;
use planaria_node::watchdog;
use planaria_protocol::state::ModelState;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;

/// How often the words for people are looked at. They are for `systemctl status`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What comes after the time for answers: clients read the ends of theirs, and the parts of the node stop.
const AFTER_DRAIN: Duration = Duration::from_secs(30);

/// The node serves.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Keeps telling how the cluster is, and that this node is well if the manager wants to hear that. A node
/// that is stuck says nothing, and is started again. It ends when what this gives is dropped.
pub(super) fn keep_told(cluster: watch::Receiver<Arc<ClusterView>>) -> Telling {
    let often = sd_notify::watchdog_enabled().map(|patience| patience / 2);
    let status = Arc::new(Mutex::new(Status::default()));
    let (mut task, shared) = (JoinSet::new(), Arc::clone(&status));
    task.spawn(async move {
        // A time of nothing is none that could be kept.
        let every = often.filter(|often| !often.is_zero()).unwrap_or(STATUS_EVERY);
        let mut ticks = interval(every.min(STATUS_EVERY));
        loop {
            ticks.tick().await;
            let words = words(&cluster.borrow());
            // Told while it is locked: nothing comes between, and nothing behind that the node stops.
            if let Some(news) = lock(&shared).news(words) {
                tell(&[NotifyState::Status(news)]);
            }
            if often.is_some() && watchdog::all_go_on() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    });
    Telling { status, _task: task }
}

/// The task that tells.
pub(super) struct Telling {
    status: Arc<Mutex<Status>>,
    _task: JoinSet<()>,
}

impl Telling {
    /// The node was asked to stop, lets answers end and hands over what it holds: that may take as long as
    /// `drain`, whatever the manager would wait by itself.
    pub(super) fn stopping(&self, drain: Duration) {
        let mut status = lock(&self.status);
        status.stops = true;
        let longest = u32::try_from((drain + AFTER_DRAIN).as_micros()).unwrap_or(u32::MAX);
        tell(&[
            NotifyState::Stopping,
            NotifyState::ExtendTimeoutUsec(longest),
            NotifyState::Status("stopping: answers may end, others take over"),
        ]);
    }
}

/// What was told of the cluster.
#[derive(Debug, Default)]
struct Status {
    words: String,
    stops: bool,
}

impl Status {
    /// What is to be told, if it is anything else than before. How the cluster is no longer matters once the
    /// node stops.
    fn news(&mut self, words: String) -> Option<&str> {
        if self.stops || self.words == words {
            return None;
        }
        self.words = words;
        Some(&self.words)
    }
}

/// Whatever broke off while it was locked, it is whole.
fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
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
    use planaria_control::cluster_view::{ModelView, ThisNode};
    use planaria_protocol::state::SequenceCounts;

    use super::*;

    #[test]
    fn that_the_node_stops_is_the_last_word() {
        let telling = Telling { status: Arc::default(), _task: JoinSet::new() };
        let news = |words: &str| lock(&telling.status).news(words.to_owned()).map(str::to_owned);
        assert_eq!(news("2 nodes").as_deref(), Some("2 nodes"));
        assert_eq!(news("2 nodes"), None, "it is known");
        assert_eq!(news("1 node").as_deref(), Some("1 node"));
        telling.stopping(Duration::ZERO);
        assert_eq!(news("0 nodes"), None);
    }

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
