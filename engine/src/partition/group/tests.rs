use proptest::prelude::*;

use super::*;
use crate::geometry::{Cut, UnitSizes, WorkingSet};

const CONTEXT: u32 = 100;
const SEQUENCES: u32 = 2;

fn node(id: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(id).unwrap(); 32])
}

fn rank(id: usize, memory: u64, layer_seconds: f64) -> RankCandidate {
    RankCandidate { id: node(id), memory, layer_seconds }
}

/// Ranks with memory for everything.
fn ranks(layer_seconds: &[f64]) -> Vec<RankCandidate> {
    layer_seconds.iter().enumerate().map(|(id, seconds)| rank(id, 1 << 40, *seconds)).collect()
}

/// Memory of which four fifths are so many bytes.
fn memory(usable: u64) -> u64 {
    (usable * 5).div_ceil(4)
}

/// Two layers of 1600 bytes together, of which 800 are shared, between ends of 50 and 30. Keys and values of all units are 1600 bytes,
/// and while those of a layer are moved they take 400 more.
fn geometry(count: u16, key_heads: u32) -> Geometry {
    Geometry {
        bytes_per_layer: vec![800; 2],
        embed_bytes: 50,
        head_bytes: 30,
        tied: false,
        kv_bytes_per_token_per_layer: 2,
        kv_layers: Vec::new(),
        hidden_bytes: 8,
        max_context: 1000,
        vocab: 10,
        working: WorkingSet::default(),
        cut: Some(Cut::Units(UnitSizes { count, shared_bytes: 800, key_heads })),
        whole: false,
    }
}

fn dealt(
    geometry: &Geometry,
    ranks: &[RankCandidate],
    replicate: bool,
) -> Result<Vec<RankUnits>, NoGroup> {
    deal(geometry, geometry.all_layers(), CONTEXT, SEQUENCES, ranks, replicate)
}

fn bytes(geometry: &Geometry, units: RankUnits) -> u64 {
    rank_bytes(geometry, geometry.all_layers(), units, CONTEXT, SEQUENCES).unwrap()
}

fn units(own: Range<u16>, kept: Range<u16>) -> RankUnits {
    RankUnits::new(&own, &kept).unwrap()
}

fn counts(units: &[RankUnits]) -> Vec<usize> {
    units.iter().map(|units| units.own().len()).collect()
}

/// How many units each rank has.
fn shares(layer_seconds: &[f64], count: u16) -> Vec<usize> {
    counts(&dealt(&geometry(count, 0), &ranks(layer_seconds), false).unwrap())
}

#[test]
fn ranks_have_units_by_their_speed() {
    assert_eq!(shares(&[1.0, 1.0, 1.0], 8), [3, 3, 2]);
    assert_eq!(shares(&[1.0, 2.0], 9), [6, 3]);
    assert_eq!(shares(&[3.0, 1.0, 2.0], 11), [2, 6, 3]);
    assert_eq!(shares(&[1.0], 8), [8]);
    // The last one has one unit, as everybody has, and all wait for it; the others are still not busier than need be.
    assert_eq!(shares(&[1.0, 1.0, 20.0], 8), [4, 3, 1]);
}

#[test]
fn absurd_times_are_slower_than_any() {
    for absurd in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        assert_eq!(shares(&[absurd, 1e9, 1.0], 8), [1, 1, 6]);
        let ranks = ranks(&[absurd, 1.0]);
        let units = dealt(&geometry(8, 0), &ranks, false).unwrap();
        assert_eq!(group_layer_seconds(&geometry(8, 0), &ranks, &units, 0.0), f64::INFINITY);
        assert_eq!(best(&geometry(8, 0), &ranks, true), None);
    }
}

#[test]
fn ranks_keep_what_they_go_on_with_for_a_lost_neighbour() {
    let replicated = |ranks: &[RankCandidate]| dealt(&geometry(8, 8), ranks, true).unwrap();
    let same = [1.0; 4];
    assert_eq!(replicated(&ranks(&same[..1])), [units(0..8, 0..8)]);
    assert_eq!(replicated(&ranks(&same[..2])), [units(0..4, 0..8), units(4..8, 0..8)]);
    // The rank in the middle has three units: two go to the left.
    let three = [units(0..3, 0..5), units(3..6, 0..8), units(6..8, 5..8)];
    assert_eq!(replicated(&ranks(&same[..3])), three);
    let four = [units(0..2, 0..3), units(2..4, 0..5), units(4..6, 3..8), units(6..8, 5..8)];
    assert_eq!(replicated(&ranks(&same)), four);
}

#[test]
fn the_units_of_a_lost_rank_go_to_its_neighbours() {
    let before = [units(0..3, 0..5), units(3..6, 0..8), units(6..8, 5..8)];
    assert_eq!(take_over(&before, 0).unwrap(), [units(0..6, 0..8), units(6..8, 5..8)]);
    assert_eq!(take_over(&before, 1).unwrap(), [units(0..5, 0..5), units(5..8, 5..8)]);
    let two = take_over(&before, 2).unwrap();
    assert_eq!(two, [units(0..3, 0..5), units(3..8, 0..8)]);
    // Not kept by the first one: it has to compute keys and values again.
    assert_eq!(take_over(&two, 1).unwrap(), [units(0..8, 0..8)]);

    assert_eq!(take_over(&before, 3), None);
    assert_eq!(take_over(&before[..1], 0), None);
    assert_eq!(take_over(&[], 0), None);
    assert_eq!(take_over(&[before[0], before[2], before[1]], 1), None);
}

#[test]
fn a_rank_takes_what_is_shared_and_its_part_of_the_rest() {
    let geometry = geometry(8, 4);
    let rank = |own, kept| bytes(&geometry, units(own, kept));
    let every = 800 + 80 + 400;
    assert_eq!(rank(0..2, 0..2), every + 200 + 400);
    // It keeps all of a key head that it shares with others.
    assert_eq!(rank(1..3, 1..3), every + 200 + 800);
    assert_eq!(rank(0..2, 0..5), every + 200 + 1200);
    // A third of a byte is a whole one.
    assert_eq!(bytes(&self::geometry(3, 3), units(0..1, 0..1)), every + 267 + 534);
    let first = LayerRange::half_open(0, 1).unwrap();
    let of_first = rank_bytes(&geometry, first, units(0..2, 0..2), CONTEXT, SEQUENCES);
    assert_eq!(of_first, Some(400 + 50 + 400 + 100 + 200));

    assert_eq!(rank_bytes(&geometry, first, units(0..2, 0..9), CONTEXT, SEQUENCES), None);
    let whole = Geometry { cut: None, ..geometry };
    assert_eq!(rank_bytes(&whole, first, units(0..2, 0..2), CONTEXT, SEQUENCES), None);
}

#[test]
fn memory_limits_what_a_rank_has() {
    let geometry = geometry(8, 8);
    let room = |own, kept| memory(bytes(&geometry, units(own, kept)));
    // The first one is the fastest, and has memory for two units.
    let ranks = [rank(1, room(0..2, 0..2), 1.0), rank(2, 1 << 40, 2.0), rank(3, 1 << 40, 2.0)];
    assert_eq!(counts(&dealt(&geometry, &ranks, false).unwrap()), [2, 3, 3]);
    // It keeps half of its neighbour's, too.
    let ranks = [rank(1, room(0..2, 0..4), 1.0), rank(2, 1 << 40, 2.0), rank(3, 1 << 40, 2.0)];
    assert_eq!(counts(&dealt(&geometry, &ranks, false).unwrap()), [3, 3, 2]);
    assert_eq!(counts(&dealt(&geometry, &ranks, true).unwrap()), [2, 3, 3]);
    let ranks = [rank(1, room(0..2, 0..3), 1.0), ranks[1], ranks[2]];
    // A group of 2, 2 and 4 is as fast; of what takes the same time, the last one has less.
    assert_eq!(counts(&dealt(&geometry, &ranks, true).unwrap()), [1, 4, 3]);
}

#[test]
fn who_cannot_share_layers_is_told_why() {
    let geometry = geometry(8, 8);
    let same = ranks(&[1.0; 9]);
    let refused = |geometry: &Geometry, ranks: &[RankCandidate], replicate| {
        dealt(geometry, ranks, replicate).unwrap_err()
    };
    assert_eq!(refused(&geometry, &same, false), NoGroup::TooMany { ranks: 9, units: 8 });
    assert!(dealt(&geometry, &same[..8], false).is_ok());
    assert_eq!(refused(&geometry, &[], false), NoGroup::Empty);

    // A half takes 1280 with half of the weights and of the keys and values; in a replicated pair all of these.
    let halves = [rank(1, memory(2480), 1.0), rank(2, memory(2479), 1.0)];
    let lacking = |needed, usable| NoGroup::TooLarge { node: node(2), needed, usable };
    assert_eq!(refused(&geometry, &halves, false), lacking(2480, 2479));
    assert_eq!(refused(&geometry, &halves, true), lacking(3280, 2479));
    assert_eq!(
        lacking(2480, 2479).to_string(),
        "node 0202020202 needs 2480 bytes for its units, and 2479 may be taken of its memory"
    );

    let cut = |cut| Geometry { cut, ..geometry.clone() };
    let why = "they have 7 heads".to_owned();
    let whole = cut(Some(Cut::Whole(why.clone())));
    assert_eq!(refused(&whole, &same[..2], false), NoGroup::Uncuttable(why));
    assert_eq!(
        refused(&cut(None), &same[..2], false).to_string(),
        "no group can serve these layers: its members run builds that do not say how"
    );
}

#[test]
fn absurd_geometry_is_refused() {
    for count in [0, 65, u16::MAX] {
        let geometry = geometry(count, 8);
        assert!(matches!(dealt(&geometry, &ranks(&[1.0, 1.0]), true), Err(NoGroup::Uncuttable(_))));
        assert_eq!(best(&geometry, &ranks(&[1.0, 1.0]), true), None);
    }
    let absurd = Geometry {
        bytes_per_layer: vec![u64::MAX; 3],
        embed_bytes: u64::MAX,
        kv_bytes_per_token_per_layer: u64::MAX,
        kv_layers: Vec::new(),
        cut: Some(Cut::Units(UnitSizes { count: 64, shared_bytes: u64::MAX, key_heads: u32::MAX })),
        ..geometry(8, 8)
    };
    let all = units(0..64, 0..64);
    let bytes = rank_bytes(&absurd, absurd.all_layers(), all, u32::MAX, u32::MAX);
    assert_eq!(bytes, Some(u64::MAX));
    let ranks = [rank(1, u64::MAX, 1.0), rank(2, u64::MAX, 1.0)];
    let refused = deal(&absurd, absurd.all_layers(), u32::MAX, u32::MAX, &ranks, true);
    assert!(matches!(refused, Err(NoGroup::TooLarge { needed: u64::MAX, .. })), "{refused:?}");
}

#[test]
fn a_layer_takes_the_slowest_share_and_two_exchanges() {
    let geometry = geometry(8, 8);
    let ranks = ranks(&[1e-3, 4e-3]);
    let seconds = |ranks: &[RankCandidate], units: &[RankUnits]| {
        group_layer_seconds(&geometry, ranks, units, 2e-4)
    };
    let same = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and not {b}");
    let all = units(0..8, 0..8);
    same(seconds(&ranks, &[units(0..6, 0..6), units(6..8, 6..8)]), 1e-3 + 2.0 * (2e-4 + 80e-6));
    same(seconds(&ranks, &[units(0..7, 0..7), units(7..8, 7..8)]), 0.875e-3 + 2.0 * 280e-6);
    same(seconds(&ranks[1..], &[all]), 4e-3 + 2.0 * 80e-6);
    assert_eq!(seconds(&ranks, &[all]), f64::INFINITY);
    assert_eq!(seconds(&ranks[1..], &[units(0..9, 0..9)]), f64::INFINITY);
}

#[test]
fn what_a_rank_took_says_what_a_layer_takes() {
    let geometry = geometry(8, 8);
    let all = geometry.all_layers();
    let layers = f64::from(all.count());
    let head = latency::work(&geometry, all).unwrap() - layers;
    let own = units(4..6, 3..7);
    let group = [rank(1, memory(1 << 20), 0.2), rank(2, memory(1 << 20), 0.4)];
    let step = layers * group_layer_seconds(&geometry, &group, &[units(0..4, 0..4), own], 0.0);
    let follower = rank_layer_seconds(&geometry, all, own, 8, step).unwrap();
    assert!((follower - 0.4).abs() < 1e-9, "{follower}");
    // The leader has the head besides.
    let leader = units(0..4, 0..4);
    let leader = rank_layer_seconds(&geometry, all, leader, 8, step + head * 0.2).unwrap();
    assert!((leader - 0.2).abs() < 1e-9, "{leader}");
    let middle = LayerRange::inclusive(0, 0).unwrap();
    let step = 0.05 + 2.0 * STEP_SECONDS;
    let alone = rank_layer_seconds(&geometry, middle, units(0..4, 0..4), 8, step).unwrap();
    let expected = 0.05 / 0.5 / latency::work(&geometry, middle).unwrap();
    assert!((alone - expected).abs() < 1e-9, "{alone}");
    let beyond = LayerRange::inclusive(0, 99).unwrap();
    assert_eq!(rank_layer_seconds(&geometry, beyond, own, 8, step), None);
}

/// The places of the best group and its shares, if an exchange takes no time.
fn best(
    geometry: &Geometry,
    candidates: &[RankCandidate],
    replicate: bool,
) -> Option<(Vec<usize>, Vec<usize>)> {
    best_with(geometry, candidates, replicate, &|_| 0.0)
}

fn best_with(
    geometry: &Geometry,
    candidates: &[RankCandidate],
    replicate: bool,
    exchange: &dyn Fn(&[usize]) -> f64,
) -> Option<(Vec<usize>, Vec<usize>)> {
    let best = best_group(geometry, CONTEXT, SEQUENCES, candidates, exchange, replicate);
    best.map(|(places, units, _)| (places, counts(&units)))
}

#[test]
fn the_best_group_has_those_who_are_worth_their_exchange() {
    let geometry = geometry(8, 8);
    let candidates = ranks(&[1e-3, 9e-3, 1e-3, 1e-3]);
    // A unit of the slow one takes 1.125 ms; three others take 0.375 ms, and two 0.5 ms.
    assert_eq!(best(&geometry, &candidates, true), Some((vec![0, 2, 3], vec![3, 3, 2])));
    let by_count = |each: f64| move |places: &[usize]| (places.len() - 1) as f64 * each;
    let with = |each| best_with(&geometry, &candidates, true, &by_count(each)).unwrap().0;
    assert_eq!(with(60e-6), [0, 2, 3]);
    // Two exchanges with one more rank cost more than the 0.125 ms that it saves.
    assert_eq!(with(65e-6), [0, 2]);
    // Nobody reaches the first one.
    let apart = |places: &[usize]| if places.contains(&0) { f64::INFINITY } else { 1e-3 };
    assert_eq!(best_with(&geometry, &candidates, true, &apart).unwrap().0, [2, 3]);
    assert_eq!(best_with(&geometry, &candidates, true, &|_| f64::NAN), None);
    assert_eq!(best(&geometry, &candidates[..1], true), None);
    assert_eq!(best(&Geometry { cut: None, ..geometry }, &candidates, true), None);
}

#[test]
fn of_equal_groups_the_smallest_with_the_smallest_ids_is_best() {
    // Any two have a unit each.
    let geometry = geometry(2, 2);
    let candidates = [rank(3, 1 << 40, 1.0), rank(1, 1 << 40, 1.0), rank(2, 1 << 40, 1.0)];
    assert_eq!(best(&geometry, &candidates, true).unwrap().0, [1, 2]);
    // The first one, with a unit, takes as long as the others with two: they need not wait for it, nor it for them.
    let candidates = ranks(&[2.0, 1.0, 1.0, 1.0]);
    let six = self::geometry(6, 6);
    assert_eq!(best(&six, &candidates, true), Some((vec![1, 2, 3], vec![2, 2, 2])));
}

#[test]
fn a_group_that_cannot_replicate_does_not() {
    let geometry = geometry(8, 8);
    let half = memory(bytes(&geometry, units(0..4, 0..4)));
    let candidates = [rank(1, half, 1e-3), rank(2, half, 1e-3)];
    let (_, units, _) =
        best_group(&geometry, CONTEXT, SEQUENCES, &candidates, &|_| 0.0, true).unwrap();
    assert_eq!(units, [self::units(0..4, 0..4), self::units(4..8, 4..8)]);
    let less = [rank(1, half - 2, 1e-3), candidates[1]];
    assert!(best(&geometry, &less, true).is_none());
}

#[test]
fn of_many_candidates_the_fastest_are_looked_at() {
    let geometry = geometry(8, 8);
    // From slow to fast; the fastest one has memory for nothing.
    let mut candidates: Vec<RankCandidate> =
        (0..20).map(|id| rank(id, 1 << 40, 1e-3 * (20 - id) as f64)).collect();
    candidates[19].memory = 100;
    let (places, shares) = best(&geometry, &candidates, true).unwrap();
    assert_eq!((places, shares), (vec![14, 15, 16, 17, 18], vec![1, 1, 1, 2, 3]));
}

fn any_ranks(most: usize) -> impl Strategy<Value = Vec<RankCandidate>> {
    // Of the 3680 bytes that a worker with everything takes, 1280 are for every rank.
    let one = (1200_u64..4000, 1_u32..12);
    prop::collection::vec(one, 1..=most).prop_map(|list| {
        let rank = |(id, (usable, seconds))| rank(id, memory(usable), f64::from(seconds));
        list.into_iter().enumerate().map(rank).collect()
    })
}

/// All ways to deal `count` units out among ranks.
fn all_divisions(count: u16, ranks: usize) -> Vec<Vec<Range<u16>>> {
    fn extend(start: u16, count: u16, ranks: usize) -> Vec<Vec<Range<u16>>> {
        if ranks == 1 {
            return if start < count {
                vec![std::iter::once(start..count).collect()]
            } else {
                Vec::new()
            };
        }
        let ends = start + 1..count;
        ends.flat_map(|end| {
            let rest = extend(end, count, ranks - 1).into_iter();
            rest.map(move |rest| std::iter::once(start..end).chain(rest).collect())
        })
        .collect()
    }
    extend(0, count, ranks)
}

/// What ranks keep, by what each takes over if any other is lost.
fn kept(own: &[Range<u16>], replicate: bool) -> Vec<RankUnits> {
    let bare: Vec<RankUnits> = own.iter().map(|own| units(own.clone(), own.clone())).collect();
    let mut kept = own.to_vec();
    for lost in (0..own.len()).filter(|_| replicate && own.len() > 1) {
        let after = take_over(&bare, lost).unwrap();
        let survivors = (0..own.len()).filter(|rank| *rank != lost);
        for (rank, after) in survivors.zip(after) {
            kept[rank].start = kept[rank].start.min(after.own().start);
            kept[rank].end = kept[rank].end.max(after.own().end);
        }
    }
    own.iter().zip(kept).map(|(own, kept)| units(own.clone(), kept)).collect()
}

fn fits(geometry: &Geometry, ranks: &[RankCandidate], units: &[RankUnits]) -> bool {
    let fits = |(rank, units): (&RankCandidate, &RankUnits)| bytes(geometry, *units) <= room(rank);
    ranks.iter().zip(units).all(fits)
}

fn slowest(ranks: &[RankCandidate], units: &[RankUnits]) -> f64 {
    let share =
        |(rank, units): (&RankCandidate, &RankUnits)| rank.layer_seconds * units.own().len() as f64;
    ranks.iter().zip(units).map(share).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_division_that_fits_is_faster(
        count in 2_u16..10,
        key_heads in 0_u32..20,
        ranks in any_ranks(5),
        replicate: bool,
    ) {
        let geometry = geometry(count, key_heads);
        let divisions = all_divisions(count, ranks.len()).into_iter();
        let possible = divisions
            .map(|own| kept(&own, replicate))
            .filter(|units| fits(&geometry, &ranks, units))
            .map(|units| slowest(&ranks, &units))
            .min_by(f64::total_cmp);
        match dealt(&geometry, &ranks, replicate) {
            Ok(units) => {
                let own: Vec<Range<u16>> = units.iter().map(|units| units.own()).collect();
                prop_assert_eq!(&units, &kept(&own, replicate));
                prop_assert!(fits(&geometry, &ranks, &units));
                prop_assert_eq!(Some(slowest(&ranks, &units)), possible);
            }
            Err(NoGroup::TooMany { .. }) => prop_assert!(ranks.len() > usize::from(count)),
            Err(NoGroup::TooLarge { node, needed, usable }) => {
                prop_assert_eq!(possible, None);
                let lacking = ranks.iter().find(|rank| rank.id == node).unwrap();
                prop_assert!(room(lacking) == usable && needed > usable);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn every_unit_has_one_rank_and_every_rank_a_unit(
        count in 2_u16..=64,
        seconds in prop::collection::vec(1e-5_f64..1e-2, 1..=16),
        replicate: bool,
    ) {
        prop_assume!(seconds.len() <= usize::from(count));
        let units = dealt(&geometry(count, 8), &ranks(&seconds), replicate).unwrap();
        prop_assert_eq!(units.len(), seconds.len());
        prop_assert!(units.iter().all(|units| !units.own().is_empty()));
        let all: Vec<u16> = units.iter().flat_map(|units| units.own()).collect();
        prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn a_lost_rank_of_a_replicated_group_loses_no_keys_and_values(
        count in 2_u16..=64,
        seconds in prop::collection::vec(1e-5_f64..1e-2, 2..=16),
        lost: prop::sample::Index,
    ) {
        prop_assume!(seconds.len() <= usize::from(count));
        let before = dealt(&geometry(count, 8), &ranks(&seconds), true).unwrap();
        let lost = lost.index(before.len());
        let after = take_over(&before, lost).unwrap();
        let all: Vec<u16> = after.iter().flat_map(|units| units.own()).collect();
        prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
        let survivors = before.iter().enumerate().filter(|(rank, _)| *rank != lost);
        let kept: Vec<Range<u16>> = survivors.map(|(_, units)| units.kept()).collect();
        prop_assert_eq!(after.iter().map(|units| units.kept()).collect::<Vec<_>>(), kept);
    }

    #[test]
    fn a_rank_with_all_units_takes_what_a_worker_does(
        bytes_per_layer in prop::collection::vec(0_u64..1 << 60, 1..6),
        ends in (0_u64..1 << 60, 0_u64..1 << 60, any::<bool>()),
        kv_bytes_per_token_per_layer in 0_u64..1 << 20,
        cut in (2_u16..=64, any::<u64>(), 0_u32..1 << 20),
        layers in (0_u32..6, 0_u32..6),
        context in 1_u32..1 << 20,
        sequences in 1_u32..64,
    ) {
        let (embed_bytes, head_bytes, tied) = ends;
        let (count, shared_bytes, key_heads) = cut;
        let geometry = Geometry {
            bytes_per_layer,
            embed_bytes,
            head_bytes,
            tied,
            kv_bytes_per_token_per_layer,
            kv_layers: Vec::new(),
            working: WorkingSet { always: 7, per_token: 3, per_pair: 2, per_sampled: 40, per_position: 0 },
            cut: Some(Cut::Units(UnitSizes { count, shared_bytes, key_heads })),
            ..geometry(8, 8)
        };
        let last = geometry.layers().get() - 1;
        let (first, end) = (layers.0.min(layers.1).min(last), layers.0.max(layers.1).min(last));
        let layers = LayerRange::inclusive(first, end).unwrap();
        let all = units(0..count, 0..count);
        let peak = geometry.peak_bytes(layers, context, sequences);
        prop_assert_eq!(rank_bytes(&geometry, layers, all, context, sequences), Some(peak));
    }

    #[test]
    fn no_group_is_faster_than_the_best(
        count in 2_u16..10,
        candidates in any_ranks(5),
        links in prop::collection::vec(prop::option::weighted(0.8, 0_u32..100), 32),
        replicate: bool,
    ) {
        let geometry = geometry(count, 8);
        let bits = |places: &[usize]| places.iter().map(|place| 1 << place).sum::<usize>();
        let exchange = |places: &[usize]| links[bits(places)].map_or(f64::INFINITY, |link| f64::from(link) / 50.0);
        let group = |bits: usize| {
            let places: Vec<usize> = (0..candidates.len()).filter(|place| bits >> place & 1 == 1).collect();
            let ranks: Vec<RankCandidate> = places.iter().map(|place| candidates[*place]).collect();
            let units = dealt(&geometry, &ranks, replicate).or_else(|_| dealt(&geometry, &ranks, false));
            let units = units.ok().filter(|_| places.len() > 1)?;
            let seconds = group_layer_seconds(&geometry, &ranks, &units, exchange(&places));
            seconds.is_finite().then_some((places, units, seconds))
        };
        let all: Vec<_> = (0..1 << candidates.len()).filter_map(group).collect();
        let least = all.iter().map(|(_, _, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        match best_group(&geometry, CONTEXT, SEQUENCES, &candidates, &exchange, replicate) {
            None => prop_assert!(all.is_empty()),
            Some(best) => {
                prop_assert!(best.2 <= least * (1.0 + 1e-9));
                prop_assert!(all.contains(&best));
            }
        }
    }
}
