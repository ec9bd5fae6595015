//! The way of data frames: between links, workers and sequences of this node.
//!
//! No actor: every frame of every token passes here, and a look into three small tables is all
//! that is needed. The actors that own a table's entries keep it up to date.
//!
//! Architecture invariant: a frame that is to be computed reaches a worker only under an epoch that
//! this node has prepared or adopted, none of whose incarnations is over, at the stage that the plan
//! gives to this node. Everything else is dropped and counted here. A `Release` reaches whoever holds the sequence, whatever
//! epoch it names; `Check` and `StateQuery` pass under a plan that is known, also if a node of it is over.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bytes::Bytes;
use planaria_config::{Epoch, LayerRange, NodeId};
use planaria_control::membership::View;
use planaria_pipeline::routes::{Routes, Way};
use planaria_protocol::plan::{Plan, WorkerKey};
use planaria_protocol::wire::features::{NotUnderstood, ensure};
use planaria_protocol::wire::{DataBody, DataHeader, Envelope};
use planaria_telemetry::metrics::{DroppedFrame, Metrics};
use planaria_telemetry::rare_log::RareLog;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::traces::spans::hop;
use planaria_telemetry::wall_clock::unix_micros;
use planaria_transport::{Frame, Lane, LinkSender, encode_message};
use thiserror::Error;

use crate::sequence::SequencesHandle;
use crate::worker::WorkerHandle;

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
    metrics: Arc<Metrics>,
    tables: RwLock<Tables>,
    /// Frames for owners that links did not take: there may be many in a row.
    unsent: Mutex<RareLog>,
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
    pub fn new(
        me: NodeId,
        sequences: SequencesHandle,
        traces: Traces,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (links, workers) = (BTreeMap::new(), BTreeMap::new());
        let tables = RwLock::new(Tables { links, routes: Routes::new(me), workers });
        Self { me, sequences, traces, metrics, tables, unsent: Mutex::default() }
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
        let bytes = payload.len();
        let (link, lane) = self.way_to(to, &header)?;
        let sent = link.try_send(lane, Frame { header: encoded, payload });
        sent.map_err(Undeliverable::refused)?;
        if header.sent.is_some() {
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
            let (link, lane) = self.way_to(to, &header)?;
            let bytes = payload.len();
            let frame = Frame { header: encode(&header)?, payload };
            let sent = link.send(lane, frame).await;
            sent.map_err(Undeliverable::refused)?;
            self.trace(&header, &link, bytes);
        }
        Ok(())
    }

    /// Sends to a sequence's owner; if even that fails the owner has noticed the same loss.
    pub fn send_to_owner(&self, header: DataHeader) {
        let (owner, sequence) = (header.owner.node, header.sequence);
        match self.send(owner, header, Bytes::new()) {
            Ok(()) => {}
            Err(error @ Undeliverable::NoLink(_)) => {
                tracing::debug!(peer = ?owner, %error, "a frame for a sequence's owner was not sent");
            }
            Err(error) => {
                self.metrics.frame_dropped(DroppedFrame::Unsent);
                let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(count) = unsent.another(Instant::now()) {
                    tracing::warn!(peer = ?owner, %sequence, count, %error,
                        "frames for owners of sequences were not sent");
                }
            }
        }
    }

    /// Takes a frame that is for this node.
    pub fn deliver(&self, header: DataHeader, payload: Bytes) {
        let (way, worker) = {
            let tables = self.read();
            let way = tables.routes.way(&header);
            let of = |plan| tables.workers.get(&WorkerKey::of(plan));
            let worker = match &way {
                Way::Stage(plan) => of(plan).cloned(),
                Way::Holder(Some(plan)) => {
                    of(plan).into_iter().for_each(|worker| worker.release(&header));
                    return;
                }
                Way::Holder(None) => {
                    // Who does not know the sequence has nothing to forget.
                    tables.workers.values().for_each(|worker| worker.release(&header));
                    return;
                }
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
            (Way::Holder(_), _) => {}
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
        self.read().routes.plan(epoch).map(|(_, at)| at)
    }

    /// Lets frames travel under a plan that is being prepared.
    pub fn prepare(&self, plan: &Arc<Plan>) {
        self.write().routes.prepare(Instant::now(), plan);
    }

    /// These plans, and no others, are in force.
    pub fn follow<'a>(&self, in_force: impl Iterator<Item = &'a Plan>) {
        self.write().routes.follow(Instant::now(), in_force);
    }

    /// A plan that was prepared will not come into force.
    pub fn abort(&self, epoch: Epoch) {
        self.write().routes.abort(epoch);
    }

    /// Fences every plan that names an incarnation which is over, and retires those under which no
    /// sequence runs any more.
    pub fn members(&self, view: &View) {
        self.write().routes.look(Instant::now(), view);
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

    /// The link to a node, and the lane on which this frame travels there.
    fn way_to(&self, to: NodeId, header: &DataHeader) -> Result<(LinkSender, Lane), Undeliverable> {
        let tables = self.read();
        let link = tables.links.get(&to).ok_or(Undeliverable::NoLink(to))?;
        let peer = link.peer();
        ensure(peer.incarnation.node, &peer.features, header.body.feature())?;
        Ok((link.clone(), lane(header, tables.routes.known(header.epoch))))
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
        self.metrics.frame_dropped(DroppedFrame::Stale);
        tracing::debug!(epoch = %header.epoch, sequence = %header.sequence, stage,
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

/// Says on a frame that is traced when it is sent.
fn stamp(header: &mut DataHeader) {
    if header.trace.is_some() && header.forward().is_some() {
        header.sent = Some(unix_micros());
    }
}

fn encode(header: &DataHeader) -> Result<Bytes, Undeliverable> {
    encode_message(header).map_err(Undeliverable::refused)
}

/// Frames keep their order on the way to a stage of a model, and on the way to owners: one lane for each,
/// whatever the epoch, so that what an owner sends under its next plan comes behind what it sent before.
/// Those of a plan that is not known here, which are late, have lanes of their own.
fn lane(header: &DataHeader, plan: Option<&Arc<Plan>>) -> Lane {
    let to_stage = match &header.body {
        DataBody::Forward(_)
        | DataBody::Release { .. }
        | DataBody::StateQuery { .. }
        | DataBody::Resume { .. }
        | DataBody::Check { .. } => true,
        DataBody::Absorbed { .. }
        | DataBody::Accepted { .. }
        | DataBody::StageProgress { .. }
        | DataBody::PrefixGone
        | DataBody::Waits
        | DataBody::Granted
        | DataBody::Failed(_) => false,
    };
    let name = match plan {
        Some(plan) => plan.model().as_str().as_bytes(),
        None => header.epoch.planner.as_bytes(),
    };
    // FNV-1a.
    let key = name
        .iter()
        .copied()
        .chain([u8::from(to_stage)])
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Lane::Activation(key)
}
