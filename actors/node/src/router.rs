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
use planaria_collectives::{GroupId, Header, Part, Rank};
use planaria_config::{Epoch, Incarnation, LayerRange, NodeId};
use planaria_control::membership::View;
use planaria_pipeline::routes::{Routes, Way};
use planaria_protocol::pipe::Command;
use planaria_protocol::plan::{Assignment, Plan, RankAssignment, WorkerKey};
use planaria_protocol::wire::features::{Feature, NotUnderstood, ensure};
use planaria_protocol::wire::{DataBody, DataHeader, Envelope};
use planaria_telemetry::metrics::{DroppedFrame, Metrics};
use planaria_telemetry::rare_log::RareLog;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::traces::spans::hop;
use planaria_telemetry::wall_clock::unix_micros;
use planaria_transport::{Frame, HostSender, Lane, LinkSender, decode_message, encode_message};
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
    /// The way into worker processes that are ranks: what ranks exchange passes no actor.
    ranks: BTreeMap<WorkerKey, RankProcess>,
}

/// A worker process that is a rank.
#[derive(Debug)]
struct RankProcess {
    commands: HostSender,
    /// The latest group of which a frame passed.
    latest: Mutex<Option<GroupId>>,
}

impl RankProcess {
    /// A frame of this group passes.
    fn passes(&self, group: GroupId) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (*latest).max(Some(group));
    }

    fn latest(&self) -> Option<GroupId> {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let (links, workers, ranks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let tables = RwLock::new(Tables { links, routes: Routes::new(me), workers, ranks });
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
            let of = |plan| tables.workers.get(&WorkerKey::of(plan, self.me)?);
            let worker = match &way {
                Way::Stage(plan) => of(plan).cloned(),
                Way::Holder(Some(plan)) => {
                    // A rank may have another name by now.
                    let of_model = tables.workers.iter().filter(|(key, _)| key.is_of(plan));
                    of_model.for_each(|(_, worker)| worker.release(&header));
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
                let stage = plan.led_by(self.me);
                let (stage, layers) = stage.map(|(n, stage)| (n, stage.layers)).unzip();
                self.refuse(&header, stage.unwrap_or_default(), layers);
            }
            (Way::Nowhere(stage, layers), _) => self.refuse(&header, stage, layers),
            (Way::Holder(_), _) => {}
        }
    }

    /// Takes what a rank on another node, in this life, sent to a rank here.
    pub fn exchange(&self, from: Incarnation, header: &Header, encoded: Bytes, payload: Bytes) {
        let tables = self.read();
        let Some((me, plan, stage)) = tables.routes.receiver(from, header) else {
            self.metrics.frame_dropped(DroppedFrame::Stale);
            return;
        };
        if let Part::GaveUp(culprits) = header.part
            && culprits.contains(me)
            && let Some(worker) = tables.workers.get(&WorkerKey::of_stage(plan, stage))
        {
            worker.accuse();
        }
        // Looked for without a key of its own: this is the hot path of a group.
        let rank = tables.ranks.iter().find(|(key, _)| key.is_of_stage(plan, stage));
        let taken = rank.is_some_and(|(_, rank)| {
            rank.passes(header.group);
            self.command(&rank.commands, &Command::Exchange(encoded), payload)
        });
        if !taken && !matches!(header.part, Part::GaveUp(_)) {
            // Its worker is being started: nobody is to wait for it.
            tables.give_up(stage, &Header { from: me, ..*header });
        }
    }

    /// Sends what a rank here has for another one. If that cannot be done, the other one is over for it.
    pub fn send_exchange(&self, to: Rank, encoded: &Bytes, payload: Bytes) {
        let header = match decode_message::<Header>(encoded) {
            Ok(header) => header,
            Err(error) => {
                tracing::error!(%error, "a rank's header makes no sense");
                return;
            }
        };
        let tables = self.read();
        let Some((plan, stage)) = tables.routes.group(&header.group) else {
            self.metrics.frame_dropped(DroppedFrame::Stale);
            return;
        };
        let frame = Frame { header: encoded.clone(), payload };
        if let Err(error) = tables.send_to_rank(stage, to, frame) {
            tracing::debug!(%error, "nothing can be sent to {to}");
            if let Some(rank) = tables.ranks.get(&WorkerKey::of_stage(plan, stage)) {
                self.command(&rank.commands, &Command::Over(to), Bytes::new());
            }
        }
    }

    /// The worker of a rank here has ended, which said this last: the others need not wait for more.
    pub fn rank_ended(&self, last: &Bytes) {
        let Ok(header) = decode_message::<Header>(last) else { return };
        let tables = self.read();
        let Some((plan, stage)) = tables.routes.group(&header.group) else { return };
        // Others may have begun anew meanwhile.
        let process = tables.ranks.get(&WorkerKey::of_stage(plan, stage));
        let latest = process.and_then(RankProcess::latest).filter(|latest| {
            latest.epoch == header.group.epoch && latest.attempt > header.group.attempt
        });
        tables.give_up(stage, &Header { group: latest.unwrap_or(header.group), ..header });
    }

    /// Whether the process took it.
    fn command(&self, rank: &HostSender, command: &Command, payload: Bytes) -> bool {
        let sent = match encode_message(command) {
            Ok(header) => rank.try_send(Frame { header, payload }).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            // It is stuck or gone, and its group notices.
            self.metrics.frame_dropped(DroppedFrame::Unsent);
            tracing::debug!(%error, "a rank does not take what others send");
            return false;
        }
        true
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

    /// Whether some sequence may run under a plan with this group.
    #[must_use]
    pub fn knows_group(&self, ranks: &[RankAssignment]) -> bool {
        self.read().routes.knows_group(ranks)
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

    /// Hands what ranks exchange to this worker.
    pub fn add_rank(&self, key: WorkerKey, commands: HostSender) {
        let latest = Mutex::default();
        self.write().ranks.insert(key, RankProcess { commands, latest });
    }

    /// The worker of a rank goes by another name from now on.
    pub fn rename_worker(&self, from: &WorkerKey, to: &WorkerKey) {
        let mut tables = self.write();
        if let Some(worker) = tables.workers.remove(from) {
            tables.workers.insert(to.clone(), worker);
        }
        if let Some(rank) = tables.ranks.remove(from) {
            tables.ranks.insert(to.clone(), rank);
        }
    }

    /// The worker is gone.
    pub fn remove_worker(&self, key: &WorkerKey) {
        let mut tables = self.write();
        tables.workers.remove(key);
        tables.ranks.remove(key);
    }

    /// All workers are gone.
    pub fn remove_workers(&self) {
        let mut tables = self.write();
        tables.workers.clear();
        tables.ranks.clear();
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

impl Tables {
    /// Tells the others of a group that a rank here, which this header is of, does not take part any more.
    fn give_up(&self, stage: &Assignment, header: &Header) {
        let part = Part::GaveUp([header.from].into_iter().collect());
        let Ok(encoded) = encode_message(&Header { part, ..*header }) else { return };
        for to in (0..).map(Rank).take(stage.ranks.len()).filter(|to| *to != header.from) {
            // Whoever cannot be reached finds out.
            drop(self.send_to_rank(stage, to, Frame::message(encoded.clone())));
        }
    }

    fn send_to_rank(
        &self,
        stage: &Assignment,
        to: Rank,
        frame: Frame,
    ) -> Result<(), Undeliverable> {
        let rank = stage.ranks.get(to.index());
        let rank = rank.ok_or_else(|| Undeliverable::refused(format!("there is no {to}")))?;
        let node = rank.incarnation.node;
        let link = self.links.get(&node).ok_or(Undeliverable::NoLink(node))?;
        if link.peer().incarnation != rank.incarnation {
            return Err(Undeliverable::NoLink(node));
        }
        ensure(node, &link.peer().features, Some(Feature::Groups))?;
        link.try_send(Lane::Exchange, frame).map_err(Undeliverable::refused)
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
