//! Datagrams of members: whatever they say, membership stays bounded and goes on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId};
use planaria_control::membership::swim::{Swim, SwimAction, SwimEvent};

use crate::decisions::Decisions;

/// This node, then its peers.
const LIVES: u8 = 4;

fn life(id: u8) -> Incarnation {
    Incarnation { node: NodeId::from_bytes([id; 32]), boot_count: 1 }
}

/// What members send each other in the first second, to change and replay.
fn genuine(start: Instant) -> Vec<(u8, Bytes)> {
    let mut swims: Vec<Swim> = (0..LIVES).map(|id| Swim::new(start, life(id), id.into())).collect();
    let mut events = Vec::new();
    for here in 0..LIVES {
        for there in (0..LIVES).filter(|there| *there != here) {
            events.push((here, SwimEvent::LinkUp(life(there), Duration::ZERO)));
        }
    }
    let mut sent = Vec::new();
    for step in 0..200 {
        let now = start + Duration::from_millis(step * 5);
        events.extend((0..LIVES).map(|id| (id, SwimEvent::Tick)));
        for (at, event) in std::mem::take(&mut events) {
            // One of them falls silent.
            if at == 3 && step > 50 {
                continue;
            }
            for action in swims[usize::from(at)].on(now, event) {
                if let SwimAction::Send { to, datagram } = action {
                    sent.push((at, datagram.clone()));
                    events.push((to.as_bytes()[0], SwimEvent::Datagram(life(at), datagram)));
                }
            }
        }
    }
    sent
}

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let mut now = Instant::now();
    let genuine = genuine(now);
    let mut swim = Swim::new(now, life(0), 9);
    let mut steps = 0;
    while decisions.are_left() && steps < 100 {
        steps += 1;
        now += Duration::from_millis(decisions.up_to(400) as u64);
        let peer = life(u8::try_from(decisions.up_to(usize::from(LIVES))).unwrap());
        let event = match decisions.up_to(6) {
            0 => SwimEvent::LinkUp(peer, Duration::from_millis(decisions.up_to(2000) as u64)),
            1 => SwimEvent::LinkDown(peer),
            2 => SwimEvent::Hint(peer.node),
            3 => SwimEvent::Datagram(peer, decisions.bytes(1200).into()),
            4 | 5 => {
                let (from, datagram) = decisions.one_of(&genuine);
                let mut datagram = datagram.to_vec();
                for _ in 0..decisions.up_to(3) {
                    let at = decisions.up_to(datagram.len().saturating_sub(1));
                    let byte = u8::try_from(decisions.up_to(255)).unwrap();
                    if let Some(there) = datagram.get_mut(at) {
                        *there = byte;
                    }
                }
                SwimEvent::Datagram(life(*from), datagram.into())
            }
            _ => SwimEvent::Tick,
        };
        let actions = swim.on(now, event);
        assert!(actions.len() < 1000, "an event that does not end");
        assert!(swim.wake_at().is_some(), "it would sleep for ever");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    (0..16).map(|byte| vec![byte * 16 + byte; 400]).collect()
}
