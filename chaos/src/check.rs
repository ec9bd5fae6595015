//! What must hold after every fault, as functions of what was seen from outside. Each has a planted
//! violation in its test: a check that cannot fail is worth nothing.

mod answers;

use std::time::Duration;

use serde::Serialize;

use crate::history::Heard;
use crate::resources::Resources;
use crate::view::{NodeSeen, View};

pub use answers::{as_asked, in_order, in_time, same_answer, same_as_far};

/// Something that must hold and does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which check found it.
    pub check: &'static str,
    /// What was seen.
    pub what: String,
}

fn violation(check: &'static str, what: String) -> Violation {
    Violation { check, what }
}

/// A node that said it was ready for a model answered at once, and rightly. `whom` names both.
#[must_use]
pub fn ready_means(
    whom: &str,
    expected: &Heard,
    heard: &Heard,
    deadline: Duration,
) -> Vec<Violation> {
    let mut found = same_answer(expected, heard);
    found.extend(in_time(heard, deadline));
    found.truncate(1);
    found
        .into_iter()
        .map(|v| violation("ready", format!("{whom}: {}: {}", v.check, v.what)))
        .collect()
}

/// Nobody was turned away for want of places, though there must have been some.
#[must_use]
pub fn places_free<'a>(when: &str, heard: impl IntoIterator<Item = &'a Heard>) -> Vec<Violation> {
    let refused = heard.into_iter().filter(|heard| heard.refused == Some(429));
    let first: Vec<&Heard> = refused.collect();
    let Some(one) = first.first() else { return Vec::new() };
    let words = one.error.as_deref().unwrap_or_default();
    vec![violation("places", format!("{when}: {} were refused: {words}", first.len()))]
}

/// No message was logged more often than so. `what` is a part of it.
#[must_use]
pub fn logged_at_most<'a>(
    most: usize,
    what: &str,
    log: impl IntoIterator<Item = &'a str>,
) -> Vec<Violation> {
    let count = log.into_iter().filter(|line| line.contains(what)).count();
    let found = (count > most).then(|| violation("log", format!("{count} lines with {what:?}")));
    found.into_iter().collect()
}

/// Every plan that is said to be ready covers each layer exactly once, and each unit of a layer that several nodes share, on
/// nodes that are not over.
#[must_use]
pub fn plans_cover(view: &View, layers: u32) -> Vec<Violation> {
    let mut found = Vec::new();
    for model in view.models.iter().filter(|model| model.is_ready()) {
        let mut next = 0;
        for stage in &model.stages {
            if stage.layers.first() != next {
                let what = format!("{} begins with layer {}, not {next}", stage.name, stage.layers);
                found.push(violation("coverage", what));
            }
            next = stage.layers.last() + 1;
            for member in stage.members() {
                let node = view.nodes.iter().find(|node| node.id == member);
                if node.is_none_or(NodeSeen::is_over) {
                    let name = node.map_or(&stage.name, |node| &node.name);
                    let what = format!("{name} holds {} and is over", stage.layers);
                    found.push(violation("coverage", what));
                }
            }
            let (mut unit, mut units) = (0, 0);
            for rank in &stage.ranks {
                if rank.first_unit != unit {
                    let what =
                        format!("{:?} begins with unit {}, not {unit}", rank.node, rank.first_unit);
                    found.push(violation("coverage", what));
                }
                (unit, units) = (rank.last_unit + 1, rank.units);
            }
            if unit != units {
                let what = format!("{} ends before unit {unit} of {units}", stage.name);
                found.push(violation("coverage", what));
            }
        }
        if next != layers {
            found.push(violation("coverage", format!("it ends before layer {next} of {layers}")));
        }
    }
    found
}

/// All nodes say the same of all nodes and of the plans.
#[must_use]
pub fn views_agree(views: &[View]) -> Vec<Violation> {
    let said = |view: &View| {
        // Who is over is forgotten sooner or later, and newcomers never hear of it.
        let there = view.nodes.iter().filter(|node| !node.is_over());
        let mut nodes: Vec<_> = there.map(|node| (node.id, node.state.clone())).collect();
        nodes.sort_unstable();
        (nodes, view.models.clone())
    };
    let mut found = Vec::new();
    for pair in views.windows(2) {
        if let [a, b] = pair
            && said(a) != said(b)
        {
            let what =
                format!("{:?} and {:?} differ: {:?} {:?}", a.node.id, b.node.id, said(a), said(b));
            found.push(violation("agreement", what));
        }
    }
    found
}

/// After the last fault a node takes about what it took before the first.
#[must_use]
pub fn back_at_base(name: &str, base: Resources, now: Resources) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut judge = |what: &str, base: u64, now: u64, room: u64| {
        if now > base + room {
            found.push(violation("resources", format!("{name} has {now} {what}, and had {base}")));
        }
    };
    // A link, a worker's pipes, a blocking thread may be there or not at any moment.
    judge("threads", base.threads, now.threads, 12);
    judge("descriptors", base.descriptors, now.descriptors, 24);
    judge("bytes of memory", base.memory, now.memory, base.memory / 2 + (48 << 20));
    judge("bytes on disk", base.disk, now.disk, base.disk + (8 << 20));
    found
}

/// Nobody was suspected: what all nodes have logged of that.
#[must_use]
pub fn nobody_suspected<'a>(log: impl IntoIterator<Item = &'a str>) -> Vec<Violation> {
    let is_one = |line: &&str| {
        line.contains(r#""message":"member""#)
            && [r#""state":"Suspect""#, r#""state":"Down""#]
                .iter()
                .any(|state| line.contains(state))
    };
    let lines = log.into_iter().filter(is_one);
    lines.map(|line| violation("suspicion", line.to_owned())).collect()
}

/// A disk that took nothing was not taken for a damaged store: what a node has logged since it was started
/// again.
#[must_use]
pub fn nothing_set_aside<'a>(log: impl IntoIterator<Item = &'a str>) -> Vec<Violation> {
    let lines = log.into_iter().filter(|line| line.contains("the store was damaged"));
    lines.map(|line| violation("memory", line.to_owned())).collect()
}

/// Nobody was taken for dead.
#[must_use]
pub fn nobody_removed(before: &View, after: &View) -> Option<Violation> {
    let epoch = |view: &View| view.models.first().and_then(|model| model.epoch);
    (epoch(before) != epoch(after))
        .then(|| violation("suspicion", "the plan was changed though nobody had died".to_owned()))
}

#[cfg(test)]
mod tests {
    use planaria_config::NodeId;
    use serde_json::json;

    use super::answers::tests::{heard, named};
    use super::*;
    use crate::view::RankSeen;

    #[test]
    fn a_node_that_was_not_ready_after_all_is_found() {
        let right = heard(0..4);
        let deadline = Duration::from_secs(2);
        assert_eq!(ready_means("m through n", &right, &right, deadline), []);
        let refused = Heard { error: Some("503".to_owned()), ..Heard::default() };
        let late = Heard { took: Duration::from_secs(3), ..right.clone() };
        for wrong in [refused, late, heard([0, 1, 2, 4])] {
            let found = ready_means("m through n", &right, &wrong, deadline);
            assert!(named(&found, "ready", "m through n"), "{found:?}");
        }
    }

    #[test]
    fn somebody_who_was_turned_away_is_found() {
        let refused = Heard { refused: Some(429), error: Some("full".to_owned()), ..heard(0..0) };
        let other = Heard { refused: Some(503), ..heard(0..0) };
        assert_eq!(places_free("x", [&heard(0..4), &other]), []);
        assert!(named(&places_free("x", [&heard(0..4), &refused]), "places", "x: 1 were refused"));
    }

    #[test]
    fn a_log_that_repeats_itself_is_found() {
        assert_eq!(logged_at_most(2, "no room", ["no room", "no room", ""]), []);
        assert_eq!(logged_at_most(1, "no room", ["no room here", "no room", ""]).len(), 1);
    }

    fn id(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    fn view(stages: &[(u8, u32, u32)], states: &[&str]) -> View {
        let nodes = (1_u8..).zip(states).map(|(byte, state)| {
            json!({"id": id(byte), "name": format!("n{byte}"), "state": state, "pid": 1,
                "worker_pids": []})
        });
        let stages = stages.iter().map(|(byte, first, last)| {
            json!({"node": id(*byte), "name": format!("n{byte}"), "first_layer": first,
                "last_layer": last})
        });
        let epoch = json!({"counter": stages.len(), "planner": id(1)});
        let model = json!({"name": "m", "state": "ready", "reason": "", "epoch": epoch,
            "stages": stages.collect::<Vec<_>>()});
        let view = json!({"node": {"id": id(1)}, "nodes": nodes.collect::<Vec<_>>(),
            "models": [model], "recoveries": []});
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn a_plan_that_lacks_a_layer_or_names_the_dead_is_found() {
        let alive = ["alive", "alive"];
        assert_eq!(plans_cover(&view(&[(1, 0, 5), (2, 6, 11)], &alive), 12), []);
        let gap = plans_cover(&view(&[(1, 0, 5), (2, 7, 11)], &alive), 12);
        assert!(named(&gap, "coverage", "not 6"));
        let overlap = plans_cover(&view(&[(1, 0, 6), (2, 6, 11)], &alive), 12);
        assert!(named(&overlap, "coverage", "not 7"));
        let short = plans_cover(&view(&[(1, 0, 5)], &alive), 12);
        assert!(named(&short, "coverage", "before layer 6 of 12"));
        let dead = plans_cover(&view(&[(1, 0, 5), (2, 6, 11)], &["alive", "down"]), 12);
        assert!(named(&dead, "coverage", "n2"));
        assert!(!plans_cover(&view(&[(3, 0, 11)], &alive), 12).is_empty(), "nobody knows it");
    }

    #[test]
    fn a_group_that_lacks_a_unit_or_names_the_dead_is_found() {
        let group = |units: &[(u8, u16, u16)], states: &[&str]| {
            let mut view = view(&[(1, 0, 11)], states);
            let rank = |(node, first_unit, last_unit)| RankSeen {
                node: NodeId::from_bytes([node; 32]),
                first_unit,
                last_unit,
                units: 8,
            };
            view.models[0].stages[0].ranks = units.iter().copied().map(rank).collect();
            plans_cover(&view, 12)
        };
        let alive = ["alive", "alive"];
        assert_eq!(group(&[(1, 0, 4), (2, 5, 7)], &alive), []);
        assert!(named(&group(&[(1, 0, 4), (2, 6, 7)], &alive), "coverage", "not 5"));
        assert!(named(&group(&[(1, 0, 4), (2, 5, 6)], &alive), "coverage", "before unit 7 of 8"));
        let dead = group(&[(1, 0, 4), (2, 5, 7)], &["alive", "down"]);
        assert!(named(&dead, "coverage", "n2"));
    }

    #[test]
    fn views_that_differ_are_found() {
        let one = view(&[(1, 0, 11)], &["alive", "alive"]);
        assert_eq!(views_agree(&[one.clone(), one.clone(), one.clone()]), []);
        let suspects = view(&[(1, 0, 11)], &["alive", "suspect"]);
        assert_eq!(views_agree(&[one.clone(), suspects]).len(), 1);
        let other = view(&[(2, 0, 11)], &["alive", "alive"]);
        assert_eq!(views_agree(&[one.clone(), one, other]).len(), 1);
    }

    #[test]
    fn what_leaks_is_found() {
        let base = Resources { threads: 20, descriptors: 40, memory: 100 << 20, disk: 1 << 20 };
        assert_eq!(back_at_base("n", base, base), []);
        for leaked in [
            Resources { threads: 40, ..base },
            Resources { descriptors: 80, ..base },
            Resources { memory: 300 << 20, ..base },
            Resources { disk: 20 << 20, ..base },
        ] {
            assert_eq!(back_at_base("n", base, leaked).len(), 1, "{leaked:?}");
        }
    }

    #[test]
    fn a_suspicion_in_a_log_is_found() {
        let line = |state| format!(r#"{{"fields":{{"message":"member","state":"{state}"}}}}"#);
        assert_eq!(nobody_suspected([line("Alive").as_str(), "Suspect", ""]), []);
        assert_eq!(nobody_suspected([line("Suspect").as_str(), line("Down").as_str()]).len(), 2);
    }

    #[test]
    fn a_store_that_was_set_aside_is_found() {
        assert_eq!(nothing_set_aside(["planaria serves", ""]), []);
        let aside = r#"{"fields":{"message":"the store was damaged: it was set aside"}}"#;
        assert_eq!(nothing_set_aside([aside]).len(), 1);
    }

    #[test]
    fn a_change_of_plan_without_a_death_is_found() {
        let before = view(&[(1, 0, 5), (2, 6, 11)], &["alive", "alive"]);
        assert_eq!(nobody_removed(&before, &before), None);
        let after = view(&[(1, 0, 11)], &["alive", "down"]);
        assert!(nobody_removed(&before, &after).is_some());
    }
}
