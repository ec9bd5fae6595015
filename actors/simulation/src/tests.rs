use planaria_config::Strategy;

use super::*;

const SETUP: Setup = Setup {
    nodes: 4,
    faults: 4,
    kills: 0,
    requests: 4,
    models: 1,
    ample: false,
    standby: false,
    strategy: Strategy::RingMemoryWeighted,
    bug: None,
};

/// Three to five nodes, any strategy, up to seven faults, one or two models, with standby layers or without.
fn setup(seed: u64) -> Setup {
    let strategy = match seed / 3 % 3 {
        0 => Strategy::RingMemoryWeighted,
        1 => Strategy::Latency,
        _ => Strategy::Tensor,
    };
    let (nodes, faults) = ([3, 4, 5][(seed % 3) as usize], [3, 4, 5, 7][(seed / 6 % 4) as usize]);
    let (models, standby) = (1 + u8::from(seed / 24 % 2 == 1), seed / 48 % 2 == 1);
    // Groups that have memory for it keep each other's keys and values.
    let ample = strategy == Strategy::Tensor && seed / 9 % 2 == 1;
    Setup { nodes, faults, models, ample, standby, strategy, ..SETUP }
}

fn number(name: &str, default: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.map_or(default, |told| told.parse().unwrap_or_else(|_| panic!("{name}={told}")))
}

/// Plays seeds until one is violated; that one, with what happened in it, and how many were played.
fn violated(
    seeds: std::ops::Range<u64>,
    setup: impl Fn(u64) -> Setup,
) -> (Option<(u64, Outcome)>, u64, u64) {
    let (mut recoveries, mut tokens) = (0, 0);
    for seed in seeds {
        let outcome = World::play(seed, setup(seed));
        recoveries += u64::from(outcome.recoveries);
        tokens += outcome.tokens;
        if outcome.violation.is_some() {
            return (Some((seed, outcome)), recoveries, tokens);
        }
    }
    (None, recoveries, tokens)
}

#[test]
fn whatever_goes_wrong_what_is_always_true_stays_true() {
    let first = number("PLANARIA_SIMULATED_SEED", 0);
    let count = number("PLANARIA_SIMULATED_SEEDS", 100);
    let (found, recoveries, tokens) = violated(first..first + count, setup);
    if let Some((seed, outcome)) = found {
        panic!(
            "seed {seed}: {}\n{}\nto see it again: PLANARIA_SIMULATED_SEED={seed} \
             PLANARIA_SIMULATED_SEEDS=1 cargo test --release -p planaria-simulation",
            outcome.violation.unwrap_or_default(),
            outcome.log.join("\n"),
        );
    }
    println!("{count} seeds from {first} on: {recoveries} recoveries, {tokens} tokens compared");
    assert!(recoveries > 0 && tokens > 0, "nothing happened");
}

/// A group of three whose ranks keep each other's keys and values, and the one fault that they are kept for.
#[test]
fn a_group_that_loses_a_node_computes_no_position_again() {
    let (mut recoveries, mut seeds) = (0, 0);
    for seed in 0..60 {
        let strategy = Strategy::Tensor;
        let setup = Setup { nodes: 3, faults: 0, kills: 1, ample: true, strategy, ..SETUP };
        let outcome = World::play(seed, setup);
        assert_eq!(outcome.violation, None, "seed {seed}: {}", outcome.log.join("\n"));
        assert!(
            outcome.replayed.iter().all(|n| *n <= 1),
            "seed {seed}: {:?} {}",
            outcome.replayed,
            outcome.log.join("\n")
        );
        recoveries += outcome.replayed.len();
        seeds += u32::from(!outcome.replayed.is_empty());
    }
    println!("{recoveries} recoveries in {seeds} of 60 seeds");
    assert!(seeds > 10, "{recoveries} recoveries in {seeds} seeds");
}

#[test]
fn a_seed_is_one_run() {
    // One model, and two with standby layers.
    for seed in [3, 80] {
        let logs = [(); 2].map(|()| World::play(seed, setup(seed)).log);
        assert_eq!(logs[0], logs[1]);
    }
}

#[test]
fn every_planted_mistake_is_found() {
    for bug in [
        Bug::SkipEpochCheck,
        Bug::ReplayToken,
        Bug::ForgetLayer,
        Bug::LoseWrite,
        Bug::DeafClient,
        Bug::FencedRelease,
        Bug::RetireInForce,
        Bug::CutAnswers,
        Bug::StaleRelease,
        Bug::KeepUnwanted,
        Bug::DropStandby,
        Bug::SpoilSum,
        Bug::BoastRank,
    ] {
        let (found, ..) = violated(0..1000, |seed| Setup { bug: Some(bug), ..setup(seed) });
        let (seed, outcome) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {seed}: {}", outcome.violation.unwrap_or_default());
        let without = World::play(seed, setup(seed));
        assert_eq!(without.violation, None, "seed {seed} has a mistake of its own");
    }
}
