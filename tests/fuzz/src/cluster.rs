//! What other nodes say of themselves and want, and what membership and the scheduler decide
//! after it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, NodeId, SequenceId, Strategy};
use planaria_control::membership::{self, Members};
use planaria_control::scheduler::machine::{
    Message, Scheduler, SchedulerAction, SchedulerEvent, Timeouts,
};
use planaria_control::scheduler::placement::Sizing;
use planaria_engine::geometry::{Cut, Geometry, UnitSizes, WorkingSet};
use planaria_engine::model_dir::ModelDigest;
use planaria_engine::sampler::{Logprobs, SamplingParams};
use planaria_engine::speed::{Accelerator, Device, Kernels, Speed};
use planaria_engine::stage::Progress;
use planaria_pipeline::sequence::resume_plan;
use planaria_protocol::capabilities::{Capabilities, GroupSpeed, LinkSpeed, MemoryState};
use planaria_protocol::desired::clock::Clock;
use planaria_protocol::desired::{DesiredMap, DesiredSpec, Entry};
use planaria_protocol::generation::{FinishReason, GenerationError, Until};
use planaria_protocol::plan::{Assignment, Plan, PlanParts};
use planaria_protocol::resume::Kept;
use planaria_protocol::state::{NodeState, SequenceCounts, ShardState};
use planaria_protocol::trace_context::TraceContext;
use planaria_protocol::wire::features::Features;
use planaria_protocol::wire::{
    Control, DataBody, DataHeader, Forward, HeldModel, NotPrepared, Opening, Report, ShardReport,
    ShardWork,
};
use planaria_transport::{decode_message, encode_message};

use crate::decisions::Decisions;

const MODELS: [&str; 2] = ["a", "org/b"];
const NODES: u8 = 3;
const STATES: [NodeState; 4] =
    [NodeState::Alive, NodeState::Suspect, NodeState::Down, NodeState::Left];
const STRATEGIES: [Strategy; 2] = [Strategy::Latency, Strategy::RingMemoryWeighted];

fn node(id: u8) -> NodeId {
    NodeId::from_bytes([id; 32])
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000))
}

fn layers(decisions: &mut Decisions<'_>) -> LayerRange {
    let (first, count) = (decisions.up_to(8), decisions.up_to(4));
    let ends = [first, first + count].map(|end| u32::try_from(end).unwrap());
    LayerRange::inclusive(ends[0], ends[1]).unwrap()
}

fn model(decisions: &mut Decisions<'_>) -> ModelName {
    decisions.one_of(&MODELS).parse().unwrap()
}

pub(crate) fn digest() -> ModelDigest {
    "ab".repeat(32).parse().unwrap()
}

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let timeouts = Timeouts {
        settle: Duration::from_secs(1),
        resend: Duration::from_secs(1),
        load: Duration::from_secs(60),
        excluded: Duration::from_secs(30),
        dwell: Duration::from_secs(10),
        appraise: Duration::from_secs(5),
    };
    let sizing = Sizing {
        strategy: *decisions.one_of(&STRATEGIES),
        context: decisions.number32(),
        max_sequences: decisions.number32(),
        streams: decisions.number32(),
    };
    let me = Incarnation { node: node(0), boot_count: 1 };
    let mut members = Members::new(me, address());
    let mut scheduler = Scheduler::new(me.node, sizing, timeouts, &[]);
    let mut now = Instant::now();
    let mut steps = 0;
    while decisions.are_left() && steps < 40 {
        steps += 1;
        now += Duration::from_millis(decisions.up_to(5000) as u64);
        let event = match decisions.up_to(5) {
            0 => {
                let peer = incarnation(&mut decisions);
                let link = membership::MembersEvent::LinkUp(peer, address());
                members.on(now, link);
                let state = *decisions.one_of(&STATES);
                members.on(now, membership::MembersEvent::Became(peer, state));
                let report = report(&mut decisions);
                let said = membership::MembersEvent::Reported(peer, report);
                members.on(now, said).map(SchedulerEvent::Members)
            }
            1 => members
                .on(now, membership::MembersEvent::Own(report(&mut decisions)))
                .map(SchedulerEvent::Members),
            2 => members
                .on(now, membership::MembersEvent::LinkDown(incarnation(&mut decisions)))
                .map(SchedulerEvent::Members),
            3 => any_plan(&mut decisions).map(|plan| SchedulerEvent::Commit(Box::new(plan))),
            4 => any_plan(&mut decisions)
                .map(|plan| SchedulerEvent::Prepare { from: node(1), plan: Box::new(plan) }),
            _ => Some(SchedulerEvent::Tick),
        };
        let Some(event) = event else {
            continue;
        };
        let mut actions = scheduler.on(now, event);
        // This node answers itself at once.
        while let Some(action) = actions.pop() {
            if let SchedulerAction::Place(problem) = &action {
                actions.extend(scheduler.on(now, problem.placed()));
            }
            if let SchedulerAction::PlanFailovers(problem) = &action {
                actions.extend(scheduler.on(now, problem.failovers_planned(me.node)));
            }
            if let SchedulerAction::Send { message, .. } = &action
                && let Message::Prepare(plan) = &**message
            {
                let refusal =
                    [NotPrepared::Unable("no".to_owned()), NotPrepared::StaleEpoch(plan.epoch())];
                let refusal = decisions.one_of(&refusal).clone();
                let result = if decisions.rarely(4) { Err(refusal) } else { Ok(()) };
                let answer =
                    SchedulerEvent::Prepared { from: me.node, epoch: plan.epoch(), result };
                actions.extend(scheduler.on(now, answer));
            }
            assert!(actions.len() < 10_000, "decisions that do not end");
        }
        for name in MODELS {
            let name = name.parse().unwrap();
            let _state = scheduler.state(&name);
            assert!(scheduler.failovers(&name).count() <= usize::from(NODES) + 1);
        }
        for plan in scheduler.plans() {
            let mut next = 0;
            for stage in plan.stages() {
                assert_eq!(stage.layers.first(), next);
                next = stage.layers.last() + 1;
            }
        }
        let _at = scheduler.wake_at();
    }
}

fn incarnation(decisions: &mut Decisions<'_>) -> Incarnation {
    let id = u8::try_from(decisions.up_to(usize::from(NODES))).unwrap();
    Incarnation { node: node(id), boot_count: decisions.number() }
}

fn any_plan(decisions: &mut Decisions<'_>) -> Option<Plan> {
    let layers = 1 + u32::try_from(decisions.up_to(8)).unwrap();
    let cut = u32::try_from(decisions.up_to(8)).unwrap();
    let ranges = [LayerRange::half_open(0, cut.min(layers)), LayerRange::half_open(cut, layers)];
    let stages = ranges.into_iter().flatten();
    let parts = PlanParts {
        epoch: Epoch { counter: decisions.number(), planner: node(1) },
        model: model(decisions),
        digest: digest(),
        layers: if decisions.rarely(8) { decisions.number32() } else { layers },
        strategy: Strategy::RingMemoryWeighted,
        context: decisions.number32(),
        max_sequences: decisions.number32(),
        stages: stages.map(|layers| Assignment::alone(incarnation(decisions), layers)).collect(),
        content: None,
        takes_over: None,
    };
    // As it comes from a peer.
    decode_message(&encode_message(&parts).unwrap()).ok()
}

fn report(decisions: &mut Decisions<'_>) -> Report {
    Report {
        name: decisions.text(8),
        features: Features::understood(),
        pid: 1,
        port: 1,
        api: None,
        memory_bytes: decisions.number(),
        pins: (0..decisions.up_to(1)).map(|_| (model(decisions), layers(decisions))).collect(),
        desired: desired(decisions),
        models: (0..decisions.up_to(2))
            .map(|_| HeldModel {
                name: model(decisions),
                digest: digest(),
                geometry: Geometry {
                    bytes_per_layer: (0..=decisions.up_to(6)).map(|_| decisions.number()).collect(),
                    embed_bytes: decisions.number(),
                    head_bytes: decisions.number(),
                    tied: decisions.rarely(2),
                    kv_bytes_per_token_per_layer: decisions.number(),
                    kv_layers: Vec::new(),
                    hidden_bytes: decisions.number32(),
                    max_context: decisions.number32(),
                    vocab: decisions.number32(),
                    working: WorkingSet {
                        always: decisions.number(),
                        per_token: decisions.number(),
                        per_pair: decisions.number(),
                        per_sampled: decisions.number(),
                        per_position: decisions.number(),
                    },
                    whole: decisions.rarely(4),
                    cut: decisions.rarely(2).then(|| {
                        Cut::Units(UnitSizes {
                            count: u16::try_from(decisions.up_to(9)).unwrap_or(0) + 2,
                            shared_bytes: decisions.number(),
                            key_heads: decisions.number32(),
                        })
                    }),
                },
                content: None,
                unreadable: None,
            })
            .collect(),
        unusable: (0..decisions.up_to(1))
            .map(|_| (model(decisions), "broken".to_owned()))
            .collect(),
        shards: (0..decisions.up_to(2))
            .map(|_| ShardReport {
                model: model(decisions),
                held: LayerRange::inclusive(0, 0).unwrap().into(),
                state: *decisions.one_of(&[ShardState::Ready, ShardState::Failed]),
                reason: String::new(),
                pid: None,
                memory_bytes: decisions.number(),
                mapped_bytes: decisions.number(),
                ranks: Vec::new(),
                work: ShardWork::default(),
            })
            .collect(),
        plans: (0..decisions.up_to(2)).filter_map(|_| any_plan(decisions)).collect(),
        highest_epoch: any_plan(decisions).map(|plan| plan.epoch()),
        sequences: SequenceCounts::default(),
        neighbours: Vec::new(),
        capabilities: capabilities(decisions),
        leaving: decisions.rarely(8),
        restarts: BTreeMap::new(),
        generated_tokens: decisions.number(),
        running: Some(Vec::new()),
    }
}

fn capabilities(decisions: &mut Decisions<'_>) -> Capabilities {
    let link = |decisions: &mut Decisions<'_>| LinkSpeed {
        rtt_micros: decisions.number32(),
        bytes_per_second: decisions.rarely(2).then(|| decisions.number()),
    };
    Capabilities {
        chip: decisions.text(8),
        device: decisions.rarely(2).then(|| Device {
            accelerator: Accelerator::None,
            speed: Speed {
                bytes_per_second: decisions.number(),
                flops_per_second: decisions.number(),
            },
        }),
        kernels: decisions.rarely(2).then(|| Kernels {
            name: decisions.text(8),
            threads: decisions.number32(),
            arithmetic: decisions.text(8),
        }),
        memory: MemoryState {
            available_bytes: decisions.rarely(2).then(|| decisions.number()),
            pressure_percent: Some(200),
        },
        layer_seconds: (0..decisions.up_to(1))
            .map(|_| (digest(), f64::from(decisions.float())))
            .collect(),
        links: (0..NODES).map(|id| (node(id), link(decisions))).collect(),
        paths: BTreeMap::new(),
        groups: vec![GroupSpeed {
            members: (0..NODES).map(node).collect(),
            exchange_micros: decisions.number32(),
        }],
    }
}

/// As it comes from a peer.
fn desired(decisions: &mut Decisions<'_>) -> DesiredMap {
    let mut number = |most| (!decisions.rarely(2)).then(|| decisions.number32() % most);
    let (context, max_sequences) = (number(u32::MAX), number(u32::MAX));
    let wanted =
        DesiredSpec { strategy: Some(Strategy::RingMemoryWeighted), context, max_sequences };
    let models = (0..decisions.up_to(2)).map(|_| {
        let stamp = Clock::new(node(1)).tick(decisions.number(), None);
        let wanted = (!decisions.rarely(4)).then_some(wanted);
        (model(decisions), Entry { stamp, wanted })
    });
    models.collect()
}

/// A plan for one node.
pub(crate) fn plan(counter: u64) -> Plan {
    let incarnation = Incarnation { node: node(1), boot_count: 1 };
    Plan::new(PlanParts {
        epoch: Epoch { counter, planner: node(1) },
        model: "a".parse().unwrap(),
        digest: digest(),
        layers: 2,
        strategy: Strategy::RingMemoryWeighted,
        context: 64,
        max_sequences: 2,
        stages: vec![Assignment::alone(incarnation, LayerRange::inclusive(0, 1).unwrap())],
        content: None,
        takes_over: None,
    })
    .unwrap()
}

/// One message of each kind.
pub(crate) fn messages() -> Vec<Bytes> {
    let mut decisions = Decisions::new(&[7; 200]);
    let until = Until { eos: vec![2], max_tokens: 5 };
    let (sampling, prefix) = (SamplingParams::greedy(), vec![3; 64]);
    let trace = TraceContext::new(1, 2, true);
    let opening = Opening { sampling, until, reuse: true, prefix, trace, waits: true };
    let opening = Box::new(opening);
    let (tokens, open) = (vec![1, 2], Some(opening.clone()));
    let forward = Forward { stage: 0, tokens, open, sample: true, more: true };
    let layers = LayerRange::inclusive(0, 1).unwrap();
    let progress = Progress { layers, positions: 3, rewinds_to: 1 };
    let kept = Kept { behind: 1, start: 0, end: 3 };
    let logprobs = Logprobs { chosen: -0.5, top: vec![(1, -0.5)] };
    let controls = [
        Control::Report(Box::new(report(&mut decisions))),
        Control::Prepare(Box::new(plan(1))),
        Control::Prepared {
            epoch: plan(1).epoch(),
            result: Err(NotPrepared::StaleEpoch(plan(2).epoch())),
        },
        Control::Commit(Box::new(plan(2))),
        Control::Arrived { bytes: 1, micros: 0 },
        Control::Abort { epoch: plan(1).epoch() },
    ];
    let bodies = [
        DataBody::Forward(forward),
        DataBody::Release { stage: 1 },
        DataBody::Absorbed { end: 4, from_log: true },
        DataBody::StateQuery { stage: 1, open: opening },
        DataBody::StageProgress { stage: 1, progress: vec![progress], kept: vec![kept] },
        DataBody::Resume { stage: 1, resume_plan: resume_plan::work_out(9, &[]) },
        DataBody::Check { number: 1, stage: 1, round: 1 },
        DataBody::Accepted {
            token: 1,
            logprobs: Some(logprobs),
            finish: Some(FinishReason::Length),
            reused: 64,
        },
        DataBody::PrefixGone,
        DataBody::Waits,
        DataBody::Granted,
        DataBody::Failed(GenerationError::NoRoom { limit: 3 }),
    ];
    let headers = bodies.map(|body| DataHeader {
        epoch: plan(1).epoch(),
        sequence: SequenceId::from_bits(9),
        owner: Incarnation { node: node(1), boot_count: 1 },
        attempt: 1,
        position: u32::MAX,
        trace,
        sent: Some(u64::MAX),
        body,
    });
    let controls = controls.iter().map(|control| encode_message(control).unwrap());
    controls.chain(headers.iter().map(|header| encode_message(header).unwrap())).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let repeated: BTreeMap<u8, Vec<u8>> = (0..16).map(|byte| (byte, vec![byte; 300])).collect();
    repeated.into_values().collect()
}
