//! What is drawn for a round. One seed gives one schedule: nothing here depends on what happens.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use crate::dialect::Kind;
use crate::history::Ask;

/// Whom it hits: a node by its place in the pipeline, or the one that plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The node of stage 0.
    First,
    /// The node of a stage between.
    Middle,
    /// The node of the last stage.
    Last,
    /// The living node with the lowest id.
    Planner,
}

/// What the answers are doing when it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing was asked yet; it is, at once.
    Idle,
    /// Their prompts are computed.
    Prefill,
    /// Tokens come.
    Decode,
}

/// What a scenario leaves to chance.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The phases that it can hit.
    pub phases: &'static [Phase],
    /// How long it lasts, in milliseconds: at least, at most.
    pub millis: (u64, u64),
}

/// A round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drawn {
    /// Whom it hits.
    pub role: Role,
    /// When.
    pub phase: Phase,
    /// In decode: after so many tokens of each answer whose tokens are seen as they come.
    pub after: usize,
    /// How long it lasts, or the pause between two harms.
    pub lasts: Duration,
    /// For whatever else there is to choose.
    pub choice: usize,
    /// What is asked, all at once.
    pub asks: Vec<Ask>,
}

/// Answers at once, in half of the rounds.
const MANY: usize = 8;

impl Drawn {
    /// The round of a scenario with this number under this seed.
    #[must_use]
    pub fn new(scenario: &str, range: Range, model: &str, seed: u64, round: u32) -> Self {
        let mut dice = StdRng::seed_from_u64(mixed(scenario, seed, round));
        let roles = [Role::First, Role::Middle, Role::Last, Role::Planner];
        let phase = *pick(&mut dice, range.phases).unwrap_or(&Phase::Decode);
        let streams = if dice.random_bool(0.5) { 1 } else { MANY };
        let draws = dice.random_bool(0.5);
        let prompt_tokens = match phase {
            Phase::Prefill => dice.random_range(300..400),
            Phase::Idle | Phase::Decode => dice.random_range(4..40),
        };
        let tokens = if streams == 1 { 400 } else { 150 };
        let asks = (0..streams).map(|_| Ask {
            kind: Kind::Tokens,
            model: model.to_owned(),
            prompt: (0..prompt_tokens).map(|_| dice.random_range(10..700)).collect(),
            draws,
            seed: dice.random_range(0..1000),
            tokens,
        });
        let asks = asks.collect();
        let (least, most) = range.millis;
        let drawn = Self {
            role: *pick(&mut dice, &roles).unwrap_or(&Role::First),
            phase,
            after: dice.random_range(5..60),
            lasts: Duration::from_millis(dice.random_range(least..=most.max(least))),
            choice: dice.random_range(0..1 << 16),
            asks,
        };
        drawn.in_all_dialects(dice.random_range(0..Kind::MIX.len()))
    }

    /// Gives each answer a kind: of eight at once each dialect has one.
    fn in_all_dialects(mut self, first: usize) -> Self {
        let kinds = Kind::MIX.iter().cycle().skip(first);
        for (ask, kind) in self.asks.iter_mut().zip(kinds) {
            ask.kind = *kind;
        }
        self
    }
}

fn pick<'a, T>(dice: &mut StdRng, of: &'a [T]) -> Option<&'a T> {
    of.get(dice.random_range(0..of.len().max(1)))
}

/// FNV-1a, so that every scenario and every round has dice of its own.
fn mixed(scenario: &str, seed: u64, round: u32) -> u64 {
    let bytes = scenario.bytes().chain(seed.to_be_bytes()).chain(round.to_be_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range { phases: &[Phase::Prefill, Phase::Decode], millis: (10, 20) };

    #[test]
    fn one_seed_gives_one_schedule() {
        let drawn = |name, seed, round| Drawn::new(name, RANGE, "demo", seed, round);
        assert_eq!(drawn("kill-node", 1, 3), drawn("kill-node", 1, 3));
        let others = [drawn("kill-node", 2, 3), drawn("kill-node", 1, 4), drawn("flap", 1, 3)];
        assert!(others.iter().all(|other| *other != drawn("kill-node", 1, 3)));
    }

    #[test]
    fn everything_is_drawn_sometimes_and_nothing_else() {
        let rounds: Vec<Drawn> =
            (0..200).map(|round| Drawn::new("x", RANGE, "demo", 5, round)).collect();
        for role in [Role::First, Role::Middle, Role::Last, Role::Planner] {
            assert!(rounds.iter().any(|drawn| drawn.role == role), "{role:?}");
        }
        assert!(rounds.iter().all(|drawn| drawn.phase != Phase::Idle));
        assert!(rounds.iter().any(|drawn| drawn.phase == Phase::Prefill));
        assert!(rounds.iter().any(|drawn| drawn.asks.len() == MANY && drawn.asks[0].draws));
        assert!(rounds.iter().any(|drawn| drawn.asks.len() == 1 && !drawn.asks[0].draws));
        for kind in Kind::MIX {
            let has = |drawn: &Drawn| drawn.asks.iter().any(|ask| ask.kind == kind);
            assert!(rounds.iter().any(|drawn| drawn.asks.len() == 1 && has(drawn)), "{kind:?}");
            assert!(rounds.iter().all(|drawn| drawn.asks.len() == 1 || has(drawn)), "{kind:?}");
        }
        let millis = rounds.iter().map(|drawn| drawn.lasts.as_millis());
        assert!(millis.clone().all(|millis| (10..=20).contains(&millis)));
        // They fit the context that nodes are started with.
        let longest = rounds.iter().flat_map(|drawn| &drawn.asks);
        assert!(longest.map(|ask| ask.prompt.len() + ask.tokens as usize).max() < Some(900));
    }
}
