//! The way of data frames: between links, workers and sequences of this node.
//!
//! No actor: every frame of every token passes here, and a look into three small tables is all
//! that is needed. The actors that own a table's entries keep it up to date.
//!
//! Architecture invariant: a frame reaches a worker only under an epoch that this node has
//! prepared or adopted, none of whose incarnations is over, at the stage that the plan gives to this
//! node. Everything else is dropped and counted here.

pub(crate) mod routes;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bytes::Bytes;
use planaria_config::{Epoch, LayerRange, ModelName, NodeId};
use planaria_engine::model_dir::ModelDigest;
use planaria_transport::{Frame, Lane, LinkSender, encode_message};
use thiserror::Error;

use crate::membership::View;
use crate::plan::Plan;
use crate::sequence::SequencesHandle;
use crate::traces::Traces;
use crate::traces::spans::hop;
use crate::wall_clock::unix_micros;
use crate::wire::features::{NotUnderstood, ensure};
use crate::wire::received::Envelope;
use crate::wire::{DataBody, DataHeader, Forward};
use crate::worker::WorkerHandle;
use routes::{Routes, Way};

/// What tells one worker of a node from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerKey {
    /// The model.
    pub model: ModelName,
    /// Its files.
    pub digest: ModelDigest,
}

/// What tells one shard of a node from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardKey {
    /// Whose layers they are.
    pub worker: WorkerKey,
    /// The layers.
    pub layers: LayerRange,
}

impl WorkerKey {
    /// The worker that computes for a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self { model: plan.model().clone(), digest: plan.parts().digest }
    }
}

impl ShardKey {
    /// The shard that a plan wants of `node`.
    #[must_use]
    pub fn of(plan: &Plan, node: NodeId) -> Option<Self> {
        let (_, stage) = plan.stage_of(node)?;
        Some(Self { worker: WorkerKey::of(plan), layers: stage.layers })
    }
}

/// Why a frame went nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Undeliverable {
    /// There is no link to the node it is for.
    #[error("there is no link to {0:?}")]
    NoLink(NodeId),
    /// The node it is for would not understand it.
    #[error(transparent)]
    NotUnderstood(#[from] NotUnderstood),
    /// The link did not take it.
    #[error("{0}")]
    Refused(String),
}

impl Undeliverable {
    /// The link did not take it, for this reason.
    #[must_use]
    pub fn refused(reason: impl std::fmt::Display) -> Self {
        Self::Refused(reason.to_string())
    }
}

/// The tables.
#[derive(Debug)]
pub struct Router {
    me: NodeId,
    sequences: SequencesHandle,
    traces: Traces,
    tables: RwLock<Tables>,
    stale: AtomicU64,
}

#[derive(Debug)]
struct Tables {
    links: BTreeMap<NodeId, LinkSender>,
    routes: Routes,
    workers: BTreeMap<WorkerKey, WorkerHandle>,
}

impl Router {
    /// Empty tables. Frames for owners on this node go to `sequences`.
    #[must_use]
    pub fn new(me: NodeId, sequences: SequencesHandle, traces: Traces) -> Self {
        let (links, workers) = (BTreeMap::new(), BTreeMap::new());
        let tables = RwLock::new(Tables { links, routes: Routes::new(me), workers });
        Self { me, sequences, traces, tables, stale: AtomicU64::new(0) }
    }

    /// Frames that were dropped because their epoch is not in force here.
    pub fn stale_frames(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }

    /// Sends a frame to a node, this one included.
    ///
    /// # Errors
    /// When there is no link, it is gone or full, or the node would not understand the frame. Nothing was
    /// sent then.
    pub fn send(
        &self,
        to: NodeId,
        mut header: DataHeader,
        payload: Bytes,
    ) -> Result<(), Undeliverable> {
        if to == self.me {
            self.deliver(header, payload);
            return Ok(());
        }
        stamp(&mut header);
        let encoded = encode(&header)?;
        let (key, bytes) = (lane(&header), payload.len());
        // Held until the frame is with the link, so that no plan is retired meanwhile.
        let tables = self.read();
        let link = tables.links.get(&to).ok_or(Undeliverable::NoLink(to))?;
        ensure(link.peer(), header.body.feature())?;
        let sent = link.try_send(Lane::Activation(key), Frame { header: encoded, payload });
        if tables.routes.plan(header.epoch).is_none() {
            // Nobody would end this stream later, and there may be few.
            link.finish_lane(key);
        }
        sent.map_err(Undeliverable::refused)?;
        if header.sent.is_some() {
            let link = link.clone();
            drop(tables);
            self.trace(&header, &link, bytes);
        }
        Ok(())
    }

    /// Sends frames to another node one after the other, each as soon as there is room. Frames that are
    /// sent to it meanwhile may come before them.
    pub async fn send_all(
        &self,
        to: NodeId,
        frames: Vec<(DataHeader, Bytes)>,
    ) -> Result<(), Undeliverable> {
        for (mut header, payload) in frames {
            if to == self.me {
                self.deliver(header, payload);
                continue;
            }
            stamp(&mut header);
            let link = self.link(to).ok_or(Undeliverable::NoLink(to))?;
            ensure(link.peer(), header.body.feature())?;
            let bytes = payload.len();
            let frame = Frame { header: encode(&header)?, payload };
            let sent = link.send(Lane::Activation(lane(&header)), frame).await;
            sent.map_err(Undeliverable::refused)?;
            self.trace(&header, &link, bytes);
        }
        Ok(())
    }

    /// Sends to a sequence's owner; if even that fails the owner has noticed the same loss.
    pub fn send_to_owner(&self, header: DataHeader) {
        let owner = header.owner.node;
        if let Err(error) = self.send(owner, header, Bytes::new()) {
            tracing::debug!(peer = ?owner, %error, "a frame for a sequence's owner was not sent");
        }
    }

    /// Takes a frame that is for this node.
    pub fn deliver(&self, header: DataHeader, payload: Bytes) {
        let (way, worker) = {
            let tables = self.read();
            let way = tables.routes.way(&header);
            let worker = match &way {
                Way::Stage(plan) => tables.workers.get(&WorkerKey::of(plan)).cloned(),
                Way::Owner | Way::Nowhere(..) => None,
            };
            (way, worker)
        };
        match (way, worker) {
            (Way::Owner, _) => self.sequences.frame(header),
            (Way::Stage(plan), Some(worker)) => worker.take(plan, header, payload),
            (Way::Stage(plan), None) => {
                let stage = plan.stage_of(self.me);
                let (stage, layers) = stage.map(|(n, stage)| (n, stage.layers)).unzip();
                self.refuse(&header, stage.unwrap_or_default(), layers);
            }
            (Way::Nowhere(stage, layers), _) => self.refuse(&header, stage, layers),
        }
    }

    /// Takes note of a frame that this node does not understand. If it is a stage of the sequence, the owner
    /// is told, who would wait for what was to come of it.
    pub fn unread(&self, envelope: &Envelope) {
        let answer = self.read().routes.unread(envelope);
        if let Some(answer) = answer {
            self.send_to_owner(answer);
        }
    }

    /// The plan of an epoch, if frames may travel under it.
    #[must_use]
    pub fn plan(&self, epoch: Epoch) -> Option<Arc<Plan>> {
        self.read().routes.plan(epoch).map(|(plan, _)| Arc::clone(plan))
    }

    /// When this node heard of the plan of an epoch, if frames may travel under it.
    #[must_use]
    pub fn heard_of(&self, epoch: Epoch) -> Option<Instant> {
        self.read().routes.plan(epoch).map(|(_, at)| *at)
    }

    /// Lets frames travel under a plan.
    pub fn admit_plan(&self, plan: Arc<Plan>) {
        let mut tables = self.write();
        let retired = tables.routes.admit(Instant::now(), plan);
        tables.end_streams(&retired);
    }

    /// Fences every epoch that names an incarnation which is over.
    pub fn fence_dead(&self, view: &View) {
        let mut tables = self.write();
        let retired = tables.routes.fence_dead(view);
        tables.end_streams(&retired);
    }

    /// The plans under which frames may travel.
    #[must_use]
    pub fn plans(&self) -> Vec<Arc<Plan>> {
        self.read().routes.plans().cloned().collect()
    }

    /// Uses this link to its peer from now on.
    pub fn add_link(&self, link: LinkSender) {
        self.write().links.insert(link.peer().incarnation.node, link);
    }

    /// Forgets the link to a peer, if it is still one to this incarnation.
    pub fn remove_link(&self, link: &LinkSender) {
        let gone = link.peer().incarnation;
        if let Entry::Occupied(entry) = self.write().links.entry(gone.node)
            && entry.get().peer().incarnation == gone
        {
            entry.remove();
        }
    }

    /// The links to peers.
    #[must_use]
    pub fn links(&self) -> Vec<LinkSender> {
        self.read().links.values().cloned().collect()
    }

    /// The link to a peer.
    #[must_use]
    pub fn link(&self, node: NodeId) -> Option<LinkSender> {
        self.read().links.get(&node).cloned()
    }

    /// Hands frames for these layers to this worker.
    pub fn add_worker(&self, key: WorkerKey, worker: WorkerHandle) {
        self.write().workers.insert(key, worker);
    }

    /// The worker is gone.
    pub fn remove_worker(&self, key: &WorkerKey) {
        self.write().workers.remove(key);
    }

    /// All workers are gone.
    pub fn remove_workers(&self) {
        self.write().workers.clear();
    }

    /// Tells traces of a frame that was sent.
    fn trace(&self, header: &DataHeader, link: &LinkSender, bytes: usize) {
        let peer = link.peer();
        let to = (peer.incarnation.node, peer.name.as_str());
        if let Some(span) = hop(header, to, link.rtt(), bytes) {
            self.traces.take(span);
        }
    }

    fn refuse(&self, header: &DataHeader, stage: u16, layers: Option<LayerRange>) {
        let stale = self.stale.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(epoch = %header.epoch, sequence = %header.sequence, stage, stale,
            "dropped a frame of an epoch that is not in force here");
        let refusal = self.read().routes.refusal(header, stage, layers);
        if let Some(refusal) = refusal {
            self.send_to_owner(refusal);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// Ends the streams on which frames travelled under these plans.
    fn end_streams(&self, retired: &[Arc<Plan>]) {
        for plan in retired {
            let stages = u16::try_from(plan.stages().len()).unwrap_or(u16::MAX);
            for link in self.links.values() {
                let edges = (0..stages).map(Some).chain([None]);
                edges.for_each(|to| link.finish_lane(key(plan.epoch(), to)));
            }
        }
    }
}

/// Says on a frame that is traced when it is sent.
fn stamp(header: &mut DataHeader) {
    if header.trace.is_some() && header.forward().is_some() {
        header.sent = Some(unix_micros());
    }
}

fn encode(header: &DataHeader) -> Result<Bytes, Undeliverable> {
    encode_message(header).map_err(Undeliverable::refused)
}

fn lane(header: &DataHeader) -> u64 {
    match &header.body {
        DataBody::Forward(Forward { stage, .. })
        | DataBody::Release { stage }
        | DataBody::Recall { stage, .. }
        | DataBody::Resume { stage, .. }
        | DataBody::Check { stage, .. } => key(header.epoch, Some(*stage)),
        DataBody::Absorbed { .. }
        | DataBody::Accepted { .. }
        | DataBody::Recalled { .. }
        | DataBody::PrefixGone
        | DataBody::Failed(_) => key(header.epoch, None),
    }
}

/// One stream for each (edge, epoch): an edge leads to a stage, or to owners (`None`). FNV-1a.
fn key(epoch: Epoch, to: Option<u16>) -> u64 {
    let edge = to.map_or(u32::MAX, u32::from);
    epoch
        .planner
        .as_bytes()
        .iter()
        .copied()
        .chain(epoch.counter.to_be_bytes())
        .chain(edge.to_be_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
