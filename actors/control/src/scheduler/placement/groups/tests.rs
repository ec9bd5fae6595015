use std::collections::BTreeMap;
use std::sync::Arc;

use planaria_config::{Epoch, LayerRange, ModelName, Strategy};
use planaria_engine::geometry::{Cut, UnitSizes};
use planaria_engine::partition::group::take_over;
use planaria_protocol::capabilities::GroupSpeed;
use planaria_protocol::plan::{Plan, PlanParts};
use planaria_protocol::wire::features::{Feature, Features};
use planaria_protocol::wire::{HeldModel, Report};

use super::*;
use crate::membership::Member;
use crate::scheduler::machine::SchedulerEvent;
use crate::scheduler::placement::{Excluded, Layout, Placed, Situation, Sizing, place_all};
use crate::scheduler::problem::{Failovers, PlacementProblem};
use crate::testing::{id, model, sharing};

const TENSOR: Sizing =
    Sizing { strategy: Strategy::Tensor, context: 16, max_sequences: 1, streams: 1 };

const LATENCY: Sizing = Sizing { strategy: Strategy::Latency, ..TENSOR };

/// The memory in MiB of a member on which so many MiB may be taken, with something for the KV cache.
const fn room(mib: u64) -> u64 {
    mib * 5 / 4 + 1
}

/// All that a member could need.
const AMPLE: u64 = room(240);

fn report(member: &mut Member) -> &mut Report {
    Arc::make_mut(&mut member.report)
}

/// Three members, of which the second is the fastest and the last the slowest.
fn uneven() -> [Member; 3] {
    [sharing(1, AMPLE, 2.0), sharing(2, AMPLE, 1.0), sharing(3, AMPLE, 4.0)]
}

/// Has all of them cut the model so.
fn cut(members: &mut [Member], cut: &Cut) {
    for member in members {
        let models = report(member).models.iter_mut();
        models.for_each(|held: &mut HeldModel| held.geometry.cut = Some(cut.clone()));
    }
}

fn units(count: u16) -> Cut {
    Cut::Units(UnitSizes { count, shared_bytes: 0, key_heads: u32::from(count) })
}

/// Has each link of a node take so many microseconds there and back.
fn far(members: &mut [Member], byte: u8, rtt_micros: u32) {
    for member in members {
        let is_it = member.incarnation.node == id(byte);
        let links = report(member).capabilities.links.iter_mut();
        for (_, link) in links.filter(|(to, _)| is_it || **to == id(byte)) {
            link.rtt_micros = rtt_micros;
        }
    }
}

fn view(members: &[Member]) -> View {
    View::of(members.iter().cloned())
}

/// The view of these without some nodes.
fn view_without(members: &[Member], lost: &[u8]) -> View {
    lost.iter().fold(view(members), |view, byte| view.without(id(*byte)))
}

fn place(view: &View, sizing: Sizing, in_force: Option<&Plan>) -> Result<Placed, String> {
    let in_force: BTreeMap<ModelName, Plan> =
        in_force.map(|plan| (model(), plan.clone())).into_iter().collect();
    let (excluded, settled) = (Excluded::new(), BTreeMap::new());
    let situation =
        Situation { view, sizing, excluded: &excluded, in_force: &in_force, settled: &settled };
    place_all(situation).remove(&model()).unwrap()
}

fn found(members: &[Member], sizing: Sizing) -> Placed {
    place(&view(members), sizing, None).unwrap()
}

/// Each stage: its layers, and its node, or its ranks with the units of each.
fn show(layout: &Layout) -> Vec<String> {
    let byte = |node: NodeId| node.as_bytes()[0];
    let stage = |stage: &Assignment| {
        let rank = |r: &RankAssignment| format!("{}:{}", byte(r.incarnation.node), r.units);
        let ranks: Vec<_> = stage.ranks.iter().map(rank).collect();
        let leader = byte(stage.incarnation.node);
        let who = if ranks.is_empty() { leader.to_string() } else { ranks.join(" ") };
        format!("{} on {who}", stage.layers)
    };
    layout.stages.iter().map(stage).collect()
}

/// A layout in force.
fn plan(layout: &Layout) -> Plan {
    let Layout { digest, layers, strategy, context, max_sequences, content, .. } = *layout;
    let epoch = Epoch { counter: 7, planner: id(1) };
    let (stages, content) = (layout.stages.clone(), Some(content));
    let takes_over = None;
    let model = model();
    let parts = PlanParts {
        epoch,
        model,
        digest,
        layers,
        strategy,
        context,
        max_sequences,
        stages,
        content,
        takes_over,
    };
    Plan::new(parts).unwrap()
}

#[test]
fn tensor_deals_units_out_by_speed_and_the_fastest_leads() {
    let found = found(&uneven(), TENSOR);
    assert_eq!(show(&found.layout), ["0-11 on 2:0-4 1:5-6 3:7-7"]);
    assert_eq!(found.layout.stages[0].incarnation, uneven()[1].incarnation);
    assert_eq!((found.layout.strategy, found.layout.takes_over), (Strategy::Tensor, None));
    // A rank keeps what it would compute if a neighbour were lost.
    let ranks: Vec<RankUnits> = found.layout.stages[0].ranks.iter().map(|r| r.units).collect();
    for lost in 0..3 {
        let left: Vec<_> = (0..3).filter(|rank| *rank != lost).collect();
        for (rank, after) in left.into_iter().zip(take_over(&ranks, lost).unwrap()) {
            assert_eq!(after.kept(), ranks[rank].kept(), "{rank} without {lost}");
        }
    }
    let [bytes] = found.stage_bytes.as_slice() else { panic!("{:?}", found.stage_bytes) };
    let mib: Vec<u64> = bytes.iter().map(|bytes| bytes >> 20).collect();
    assert_eq!(mib, [5 * 15, 2 * 15, 15], "an eighth of 120 MiB for each unit");
    // There and back are 100 us, and the ends take 40.
    let exchange = found.exchange_seconds[0];
    assert!((90e-6..95e-6).contains(&exchange), "{exchange}");
}

#[test]
fn tensor_leaves_out_who_has_no_memory_for_a_part() {
    let mut members = uneven();
    members[0] = sharing(1, room(14), 2.0);
    assert_eq!(show(&found(&members, TENSOR).layout), ["0-11 on 2:0-6 3:7-7"]);
    members[0] = sharing(1, room(15), 2.0);
    assert_eq!(show(&found(&members, TENSOR).layout), ["0-11 on 2:0-5 1:6-6 3:7-7"]);
    let none = [1, 2].map(|byte| sharing(byte, room(30), 1.0));
    let error = place(&view(&none), TENSOR, None).unwrap_err();
    assert!(error.contains("bytes for its units"), "{error}");
}

#[test]
fn tensor_takes_the_fastest_where_there_are_more_nodes_than_units() {
    let mut members = uneven();
    cut(&mut members, &units(2));
    assert_eq!(show(&found(&members, TENSOR).layout), ["0-11 on 2:0-0 1:1-1"]);
}

#[test]
fn one_node_is_a_group_of_one() {
    let alone = found(&[sharing(1, AMPLE, 1.0)], TENSOR);
    assert_eq!(show(&alone.layout), ["0-11 on 1:0-7"]);
    assert_eq!(alone.exchange_seconds, [0.0]);
    let fastest = found(&[sharing(1, AMPLE, 1.0)], LATENCY);
    assert_eq!(show(&fastest.layout), ["0-11 on 1"], "nothing is gained by units alone");
}

#[test]
fn a_model_that_cannot_be_cut_is_refused_with_its_reason() {
    let mut members = uneven();
    let why = "`mixer.0` has 3 heads";
    cut(&mut members, &Cut::Whole(why.to_owned()));
    assert_eq!(place(&view(&members), TENSOR, None), Err(why.to_owned()));
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 2"]);
    // Members of older builds say nothing.
    for member in &mut members {
        report(member).models[0].geometry.cut = None;
    }
    let error = place(&view(&members), TENSOR, None).unwrap_err();
    assert!(error.contains("builds that do not say how"), "{error}");
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 2"]);
}

/// Two slow members, and one that does not know of groups.
fn with_older() -> [Member; 3] {
    let mut members = [1, 2, 3].map(|byte| sharing(byte, AMPLE, 10.0));
    report(&mut members[2]).features = [Feature::Abort, Feature::Queue].into_iter().collect();
    members
}

#[test]
fn while_a_member_does_not_know_of_groups_there_are_none() {
    let mut members = with_older();
    for sizing in [TENSOR, LATENCY] {
        let found = found(&members, sizing);
        assert_eq!(show(&found.layout), ["0-11 on 1"]);
        assert_eq!(found.layout.strategy, Strategy::Latency);
    }
    // A plan with a group that is in force all the same is not compared with.
    for sizing in [TENSOR, LATENCY] {
        let both = plan(&self::found(&members[..2], sizing).layout);
        assert!(both.has_groups(), "{both}");
        assert_eq!(place(&view(&members), sizing, Some(&both)).unwrap().in_force, None);
        let mut newer = members.clone();
        report(&mut newer[2]).features = Features::understood();
        assert!(place(&view(&newer), sizing, Some(&both)).unwrap().in_force.is_some());
    }
    // One that is over has no say.
    members[2].state = planaria_protocol::state::NodeState::Down;
    assert_eq!(show(&found(&members, TENSOR).layout), ["0-11 on 1:0-3 2:4-7"]);
}

#[test]
fn slow_nodes_with_a_fast_link_share_all_layers() {
    let members = [1, 2].map(|byte| sharing(byte, AMPLE, 10.0));
    let found = found(&members, LATENCY);
    assert_eq!(show(&found.layout), ["0-11 on 1:0-3 2:4-7"]);
    // Half of a layer, two exchanges of 90 us, and twice 80 us between products.
    let (expected, latency) = (12.0 * (5e-3 + 2.0 * 170e-6), found.cost.latency);
    assert!((latency / expected - 1.0).abs() < 0.01, "{latency} is not {expected}");
    let plan = plan(&found.layout);
    let again = place(&view(&members), LATENCY, Some(&plan)).unwrap();
    assert_eq!(again.in_force, Some(found.cost), "what is in force is priced alike");
}

#[test]
fn what_exchanges_took_counts_more_than_links() {
    let mut members = vec![sharing(1, AMPLE, 10.0), sharing(2, AMPLE, 10.0)];
    let mut say = |byte: usize, exchange_micros| {
        let group = GroupSpeed { members: [1, 2].map(id).into(), exchange_micros };
        report(&mut members[byte - 1]).capabilities.groups = vec![group];
        let cost = found(&members, TENSOR).cost;
        (cost.latency * 1e6 / 12.0 - 5e3).round() / 2.0 - 80.0
    };
    let links = say(1, 1_000);
    assert!(
        (80.0..100.0).contains(&links),
        "{links} us of links, as long as one of them knows no better"
    );
    // The faster rank waits for the other one besides.
    assert_eq!(say(2, 3_000), 1_000.0);
    members.push(sharing(3, AMPLE, 10.0));
    // It says nothing of other groups.
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 1:0-2 2:3-5 3:6-7"]);
}

#[test]
fn nodes_with_a_slow_link_do_not() {
    let mut members = [1, 2].map(|byte| sharing(byte, AMPLE, 10.0));
    far(&mut members, 2, 20_000);
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 1"]);
    // 5 + 2 * (2.29 + 0.08) ms for a layer are no gain that is worth a second node, 5 + 2 * (1.79 + 0.08) ms are.
    far(&mut members, 2, 4_500);
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 1"]);
    far(&mut members, 2, 3_500);
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 1:0-3 2:4-7"]);
    // Where one has no memory for all, two do it one after the other.
    let mut members = [1, 2].map(|byte| sharing(byte, room(70), 10.0));
    assert_eq!(show(&found(&members, LATENCY).layout), ["0-11 on 1:0-3 2:4-7"]);
    far(&mut members, 2, 20_000);
    let pipeline = show(&found(&members, LATENCY).layout);
    assert!(
        pipeline.len() == 2 && pipeline.iter().all(|stage| !stage.contains(':')),
        "{pipeline:?}"
    );
}

/// Two slow members with a fast link between them, and a fast one that has memory for some MiB, and links that take so
/// many microseconds there and back.
fn two_and_one(mib: u64, rtt_micros: u32) -> [Member; 3] {
    let slow = [1, 2].map(|byte| sharing(byte, room(60), 10.0));
    let [first, second] = slow;
    let mut members = [first, second, sharing(3, room(mib), 1.0)];
    far(&mut members, 3, rtt_micros);
    members
}

#[test]
fn a_group_and_a_node_are_a_pipeline_where_a_slow_link_and_memory_demand_it() {
    let members = two_and_one(60, 3_000);
    let found = found(&members, LATENCY);
    assert_eq!(show(&found.layout), ["0-5 on 1:0-3 2:4-7", "6-11 on 3"]);
    assert_eq!(found.stage_bytes.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    assert!(found.exchange_seconds[0] > 0.0 && found.exchange_seconds[1] <= 0.0);
    // Six layers on each, and a hop to the other and one back: 1.5 ms, and 0.1 ms at their ends.
    let expected = 6.0 * 1e-3 + 6.0 * (5e-3 + 2.0 * 170e-6) + 2.0 * 1.6e-3;
    let latency = found.cost.latency;
    assert!((latency / expected - 1.0).abs() < 0.01, "{latency} is not {expected}");
    let plan = plan(&found.layout);
    assert_eq!(place(&view(&members), LATENCY, Some(&plan)).unwrap().in_force, Some(found.cost));
    // A group is reached where its leader is: nothing of the pipeline goes from the other rank to the third node.
    let mut apart = members;
    for (byte, to) in [(2, 3), (3, 2)] {
        let links = &mut report(&mut apart[byte - 1]).capabilities.links;
        links.get_mut(&id(to)).unwrap().rtt_micros = 30_000;
    }
    let still = self::found(&apart, LATENCY);
    assert_eq!((show(&still.layout), still.cost.latency), (show(&found.layout), latency));
    // With a fast link it is one of the ranks, with memory for all it needs nobody.
    let close = self::found(&two_and_one(60, 100), LATENCY).layout;
    assert_eq!(show(&close), ["0-11 on 3:0-3 1:4-5 2:6-7"]);
    assert_eq!(show(&self::found(&two_and_one(120, 3_000), LATENCY).layout), ["0-11 on 3"]);
}

#[test]
fn a_pin_keeps_latency_from_groups_and_tensor_says_that_it_is_not_followed() {
    let mut members = [1, 2].map(|byte| sharing(byte, AMPLE, 10.0));
    report(&mut members[1]).pins.insert(model(), LayerRange::inclusive(4, 11).unwrap());
    let pinned = found(&members, LATENCY);
    assert_eq!(
        (show(&pinned.layout), pinned.unpinned),
        (vec!["0-3 on 1".to_owned(), "4-11 on 2".to_owned()], None)
    );
    let shared = found(&members, TENSOR);
    assert_eq!(show(&shared.layout), ["0-11 on 1:0-3 2:4-7"]);
    let reason = shared.unpinned.unwrap();
    assert!(reason.contains("node-2 to 4-11") && reason.contains("`tensor`"), "{reason}");
    report(&mut members[1]).pins.insert(model(), LayerRange::inclusive(0, 11).unwrap());
    assert_eq!(found(&members, TENSOR).unpinned, None, "it holds them");
}

/// What the ranks of the only group of `before` become without the one at `lost`.
fn taken_over(before: &Layout, lost: usize) -> Vec<Assignment> {
    let mut after = before.stages.clone();
    let group = after.iter_mut().find(|stage| !stage.ranks.is_empty()).unwrap();
    let units: Vec<RankUnits> = group.ranks.iter().map(|rank| rank.units).collect();
    group.ranks.remove(lost);
    for (rank, units) in group.ranks.iter_mut().zip(take_over(&units, lost).unwrap()) {
        rank.units = units;
    }
    group.incarnation = group.ranks[0].incarnation;
    after
}

#[test]
fn the_ranks_beside_a_lost_one_take_its_units_over() {
    for sizing in [TENSOR, LATENCY] {
        let members = [1, 2, 3].map(|byte| sharing(byte, AMPLE, 10.0 + f64::from(byte)));
        let before = found(&members, sizing).layout;
        let plan = plan(&before);
        assert_eq!(plan.nodes().collect::<Vec<_>>(), [1, 2, 3].map(id), "{plan}");
        for lost in 0..3_u8 {
            let without = view_without(&members, &[lost + 1]);
            let after = place(&without, sizing, Some(&plan)).unwrap();
            assert_eq!(after.layout.stages, taken_over(&before, lost.into()), "{lost}");
            assert_eq!(after.layout.takes_over, Some(plan.epoch()));
            assert_eq!((after.layout.strategy, after.in_force), (sizing.strategy, None));
        }
    }
}

#[test]
fn the_next_rank_leads_where_the_leader_is_lost() {
    let members = uneven();
    let plan = plan(&found(&members, TENSOR).layout);
    let after = place(&view_without(&members, &[2]), TENSOR, Some(&plan)).unwrap().layout;
    assert_eq!(show(&after), ["0-11 on 1:0-6 3:7-7"], "not as one would deal them out");
    assert_eq!(after.stages[0].incarnation, members[0].incarnation);
    // It is back, in a life that has nothing of the former one.
    let mut again = members;
    again[1].incarnation.boot_count += 1;
    assert_eq!(place(&view(&again), TENSOR, Some(&plan)).unwrap().layout, after);
}

#[test]
fn who_takes_over_needs_no_memory_for_what_it_holds_besides() {
    let members = [1, 2, 3].map(|byte| sharing(byte, room(75), 10.0));
    let before = found(&members, TENSOR).layout;
    assert_eq!(show(&before), ["0-11 on 1:0-2 2:3-5 3:6-7"]);
    let without = view_without(&members, &[2]);
    let after = place(&without, TENSOR, Some(&plan(&before))).unwrap();
    assert_eq!(show(&after.layout), ["0-11 on 1:0-4 3:5-7"]);
    assert!(after.fits_beside, "what it holds is a part of that");
    // Dealt anew, the first would need both 45 and 60 MiB.
    let anew = place(&without, LATENCY, Some(&plan(&before))).unwrap();
    assert_eq!(show(&anew.layout), ["0-11 on 1:0-3 3:4-7"]);
    assert_eq!((anew.layout.takes_over, anew.fits_beside), (None, false));
}

#[test]
fn after_two_losses_units_are_dealt_anew() {
    let members = [1, 2, 3, 4].map(|byte| sharing(byte, AMPLE, f64::from(byte)));
    let plan = plan(&found(&members, TENSOR).layout);
    let one = place(&view_without(&members, &[2]), TENSOR, Some(&plan)).unwrap().layout;
    assert_eq!(one.takes_over, Some(plan.epoch()));
    let two = place(&view_without(&members, &[2, 3]), TENSOR, Some(&plan)).unwrap().layout;
    assert_eq!((show(&two), two.takes_over), (vec!["0-11 on 1:0-6 4:7-7".to_owned()], None));
    // None is left of a group of one.
    let alone = [sharing(1, AMPLE, 1.0), sharing(2, AMPLE, 1.0)];
    let single = self::plan(&found(&alone[..1], TENSOR).layout);
    let other = place(&view_without(&alone, &[1]), TENSOR, Some(&single)).unwrap().layout;
    assert_eq!((show(&other), other.takes_over), (vec!["0-11 on 2:0-7".to_owned()], None));
}

#[test]
fn units_are_dealt_anew_where_there_is_no_memory_to_take_them_over() {
    let members =
        |second| [sharing(1, second, 2.0), sharing(2, AMPLE, 1.0), sharing(3, AMPLE, 4.5)];
    // The fastest is lost, and the one behind it would have seven units of 15 MiB.
    for (second, expected, takes_over) in [
        (room(105), "0-11 on 1:0-6 3:7-7", true),
        (room(104), "0-11 on 1:0-5 3:6-7", false),
        (room(75), "0-11 on 1:0-4 3:5-7", false),
    ] {
        let members = members(second);
        let before = found(&members, TENSOR).layout;
        assert_eq!(show(&before), ["0-11 on 2:0-4 1:5-6 3:7-7"]);
        let after = place(&view_without(&members, &[2]), TENSOR, Some(&plan(&before))).unwrap();
        assert_eq!(show(&after.layout), [expected]);
        assert_eq!(after.layout.takes_over.is_some(), takes_over);
    }
}

#[test]
fn another_strategy_or_another_context_deals_anew() {
    let members = uneven();
    let plan = plan(&found(&members, TENSOR).layout);
    let without = view_without(&members, &[2]);
    for sizing in [LATENCY, Sizing { context: 32, ..TENSOR }, Sizing { max_sequences: 2, ..TENSOR }]
    {
        let after = place(&without, sizing, Some(&plan)).unwrap().layout;
        assert_eq!(after.takes_over, None, "{sizing:?}");
    }
}

#[test]
fn the_stages_beside_a_group_stay_and_the_loss_of_one_of_them_is_no_matter_of_ranks() {
    let members = two_and_one(60, 3_000);
    let plan = plan(&found(&members, LATENCY).layout);
    let without =
        |lost| place(&view_without(&members, &[lost]), LATENCY, Some(&plan)).unwrap().layout;
    for (lost, left) in [(1, "0-5 on 2:0-7"), (2, "0-5 on 1:0-7")] {
        let after = without(lost);
        assert_eq!(show(&after), [left, "6-11 on 3"]);
        assert_eq!(after.takes_over, Some(plan.epoch()));
    }
    let after = without(3);
    assert_eq!((show(&after), after.takes_over), (vec!["0-11 on 1:0-3 2:4-7".to_owned()], None));
}

fn problem(members: &[Member], sizing: Sizing, plan: &Plan) -> PlacementProblem {
    PlacementProblem {
        number: 1,
        view: view(members),
        sizing,
        excluded: Excluded::new(),
        in_force: [(model(), plan.clone())].into_iter().collect(),
        settled: BTreeMap::new(),
    }
}

fn failovers(problem: &PlacementProblem, me: u8) -> (Failovers, usize) {
    match problem.failovers_planned(id(me)) {
        SchedulerEvent::FailoversPlanned { failovers, standby, .. } => (failovers, standby.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_loss_of_each_rank_is_thought_through_before_it_comes() {
    let members = uneven();
    let before = found(&members, TENSOR).layout;
    let plan = plan(&before);
    let (failovers, standby) = failovers(&problem(&members, TENSOR, &plan), 1);
    assert_eq!(failovers.len(), 3);
    for (lost, byte) in [2, 1, 3].into_iter().enumerate() {
        let layout = failovers[&id(byte)][&model()].as_ref().unwrap();
        assert_eq!(layout.stages, taken_over(&before, lost), "{byte}");
        assert_eq!(layout.takes_over, Some(plan.epoch()));
    }
    assert_eq!(standby, 0, "a rank takes over in its place, and loads nothing beside");
}

/// Nodes between which nobody has measured a link yet.
#[test]
fn nodes_without_a_link_between_them_form_no_group() {
    let mut members = [1, 2].map(|byte| sharing(byte, room(70), 10.0));
    for member in &mut members {
        report(member).capabilities.links.clear();
    }
    let error = place(&view(&members), LATENCY, None).map(|found| show(&found.layout));
    assert!(error.as_ref().is_err_and(|e| e.contains("not all connected")), "{error:?}");
}

#[test]
fn tensor_wants_links_between_all() {
    let mut members = [1, 2].map(|byte| sharing(byte, room(70), 10.0));
    for member in &mut members {
        report(member).capabilities.links.clear();
    }
    let error = place(&view(&members), TENSOR, None).map(|found| show(&found.layout));
    assert!(error.is_err(), "{error:?}");
}

/// A rank is lost and a member of an older build is there.
#[test]
fn no_group_takes_over_while_a_member_does_not_know_of_groups() {
    let members = with_older();
    for sizing in [LATENCY, TENSOR] {
        let both = plan(&found(&members[..2], sizing).layout);
        let after = place(&view_without(&members, &[1]), sizing, Some(&both)).unwrap().layout;
        assert_eq!(show(&after), ["0-11 on 2"], "{sizing:?}");
    }
}

/// Three nodes, two of which hold nine layers as a group.
#[test]
fn a_group_that_has_memory_for_some_layers_is_a_stage() {
    let mut members = [1, 2, 3].map(|byte| sharing(byte, room(45), 10.0));
    far(&mut members, 3, 20_000);
    let found = found(&members, LATENCY);
    assert!(show(&found.layout).iter().any(|s| s.contains(':')), "{:?}", show(&found.layout));
}

/// The same where embedding and head weigh more than a layer, which nobody shares, and of each layer ranks share the less the
/// more of it every rank has.
#[test]
fn a_group_has_fewer_layers_where_less_is_shared() {
    for shared in [0, 2_000_000, 4_000_000, 6_000_000] {
        let mut members = [1, 2, 3].map(|byte| sharing(byte, room(184), 9.0));
        far(&mut members, 3, 20_000);
        let sizes = UnitSizes { count: 8, shared_bytes: 22 * shared, key_heads: 8 };
        cut(&mut members, &Cut::Units(sizes));
        for member in &mut members {
            for held in &mut report(member).models {
                held.geometry.bytes_per_layer = vec![17_600_000; 22];
                (held.geometry.embed_bytes, held.geometry.head_bytes) = (26_200_000, 26_200_000);
            }
        }
        let found = found(&members, LATENCY);
        let stages = show(&found.layout);
        assert!(stages.len() == 2 && stages.iter().any(|s| s.contains(':')), "{shared} {stages:?}");
    }
}

/// The slow one has no memory for a unit; the fast one has memory for five.
#[test]
fn tensor_leaves_out_who_has_no_memory_and_not_who_would_have_most() {
    let members =
        [sharing(1, room(75), 1.0), sharing(2, room(75), 9.0), sharing(3, room(10), 10.0)];
    let found = place(&view(&members), TENSOR, None).map(|found| show(&found.layout));
    assert_eq!(found, Ok(vec!["0-11 on 1:0-4 2:5-7".to_owned()]));
}

/// `tensor` follows no pins; a pin is no reason to give up what ranks have, or not to compare with the plan in force.
#[test]
fn a_pin_that_tensor_does_not_follow_hinders_no_take_over() {
    let mut members = uneven();
    report(&mut members[2]).pins.insert(model(), LayerRange::inclusive(4, 11).unwrap());
    let before = found(&members, TENSOR);
    let plan = plan(&before.layout);
    let again = place(&view(&members), TENSOR, Some(&plan)).unwrap();
    assert_eq!(again.in_force, Some(before.cost), "the plan in force is not compared with");
}

#[test]
fn a_pin_that_tensor_does_not_follow_changes_nothing_of_what_is_left() {
    let mut members = uneven();
    report(&mut members[2]).pins.insert(model(), LayerRange::inclusive(4, 11).unwrap());
    let plan = plan(&found(&members, TENSOR).layout);
    let after = place(&view_without(&members, &[2]), TENSOR, Some(&plan)).unwrap().layout;
    assert_eq!(after.takes_over, Some(plan.epoch()));
}

/// A rank is counted with its units, not with whole layers, when room for standbys is looked for.
#[test]
fn a_rank_leaves_room_for_standbys_beside_its_units() {
    let other: ModelName = "n".parse().unwrap();
    let mut members = [1, 2, 3].map(|byte| sharing(byte, room(100), 10.0));
    for member in &mut members {
        let report = report(member);
        let mut held = report.models[0].clone();
        held.name = other.clone();
        held.digest = "22".repeat(32).parse().unwrap();
        held.geometry.bytes_per_layer.truncate(2);
        held.geometry.cut = None;
        report.capabilities.layer_seconds.insert(held.digest, 0.01);
        report.models.push(held);
        report.desired =
            planaria_protocol::desired::DesiredMap::granted(id(1), [model(), other.clone()]);
    }
    let shared = plan(&found(&members[..2], TENSOR).layout);
    let mut parts = shared.parts().clone();
    parts.model = other.clone();
    parts.digest = "22".repeat(32).parse().unwrap();
    parts.layers = 2;
    parts.strategy = Strategy::Latency;
    parts.stages =
        vec![Assignment::alone(members[2].incarnation, LayerRange::inclusive(0, 1).unwrap())];
    let alone = Plan::new(parts).unwrap();
    let mut problem = problem(&members, LATENCY, &shared);
    problem.in_force.insert(other, alone);
    let (failovers, one) = failovers(&problem, 1);
    let (_, two) = self::failovers(&problem, 2);
    let lost = failovers[&id(3)]
        .iter()
        .map(|(m, l)| (m.to_string(), l.as_ref().map(show)))
        .collect::<Vec<_>>();
    assert_eq!(one + two, 1, "{lost:?}");
}
