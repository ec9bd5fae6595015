//! What the effects of a node's workers are: one interpreter of them, for nodes and for simulated ones.

use std::time::Duration;

use planaria_config::{Epoch, LayerRange, LayerSet};
use planaria_control::membership::View;
use planaria_protocol::plan::{Plan, WorkerKey};
use planaria_protocol::wire::ShardReport;

/// The node around its workers.
pub trait WorkersRuntime {
    /// Whether the files of a worker are what a plan was made for: those that it was started with, or without a worker
    /// those on the disk.
    ///
    /// # Errors
    /// In words, when there are none that the plan could be computed with.
    fn files_for(&mut self, worker: &WorkerKey, plan: &Plan) -> Result<FilesMatch, String>;

    /// Starts the host of a worker, which is known by this number in what is told of it. If it dies while it starts,
    /// that is told as any other death.
    ///
    /// # Errors
    /// In words, when the files that it would load are not there.
    fn start_host(
        &mut self,
        worker: &WorkerKey,
        number: u64,
        layers: Vec<LayerRange>,
    ) -> Result<(), String>;

    /// Ends the host of a worker, if it has one, and forgets its files.
    fn stop_host(&mut self, worker: &WorkerKey);

    /// The host of a worker is dead: no frame is for it any more.
    fn forget_host(&mut self, worker: &WorkerKey);

    /// Has a host hold these layers, those first that are needed first.
    fn hold(&mut self, worker: &WorkerKey, layers: Vec<LayerRange>);

    /// The worker of a rank is to be that of another one, `to`, and to hold these layers: its host goes by that name from now
    /// on.
    fn join(&mut self, from: &WorkerKey, to: &WorkerKey, layers: Vec<LayerRange>);

    /// Has a host try again what it has given up.
    fn try_again(&mut self, worker: &WorkerKey);

    /// Tells a host of the members.
    fn members(&mut self, worker: &WorkerKey, view: &View);

    /// Tells [`StartAgain`](super::WorkersEvent::StartAgain) after this long.
    fn start_after(&mut self, wait: Duration, worker: &WorkerKey);

    /// The layers of a plan are loaded, or cannot be, for this reason.
    fn loaded(&mut self, epoch: Epoch, result: Result<(), String>);

    /// What the node tells of its shards.
    fn reports(&mut self, shards: Vec<ShardReport>);

    /// Sequences pass through some worker, or through none.
    fn busy(&mut self, busy: bool);

    /// A host is started again.
    fn restarted(&mut self);

    /// The models' files are to be looked at: they may not be what they were.
    fn look_for_files(&mut self);

    /// When it is after this long, for people.
    fn time_after(&self, wait: Duration) -> String;

    /// Something happened to a worker that people may want to know.
    fn note(&mut self, worker: &WorkerKey, note: WorkerNote<'_>);
}

/// What a node's files of a model are to a plan that was made for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesMatch {
    /// The same.
    Same,
    /// The same, but what is loaded comes from others, which they replaced.
    Replaced,
}

/// What happened to a worker.
#[derive(Debug, Clone, Copy)]
pub enum WorkerNote<'a> {
    /// It is to hold other layers than before.
    Holds {
        /// Those before; none for a worker that is new.
        from: &'a LayerSet,
        /// Those from now on.
        layers: &'a LayerSet,
    },
    /// Its files were replaced: what was loaded is let go.
    FilesReplaced,
    /// A rank takes over units of one that its group has lost.
    TakesOver,
    /// Its host died and is started again.
    HostDied(&'a str),
    /// Its host died so often that it is given up for so long.
    GivenUp(&'a str, Duration),
    /// Nothing of it is needed any more.
    Unwanted,
}
