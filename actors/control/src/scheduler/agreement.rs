//! Which files the members take a model to be, and who has others under its name. Pure.
//!
//! What most members hold is the model; of equally many, what the plan in force was made for, then what
//! the member with the lowest id holds. Parts are compared where both sides say them, so a member that
//! still reads its weights, or of a build that says nothing, agrees with everybody.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use planaria_config::{ModelName, NodeId};
use planaria_engine::geometry::Geometry;
use planaria_engine::model_dir::{Content, ModelDigest, Part};
use planaria_protocol::plan::Plan;
use planaria_protocol::wire::HeldModel;

use crate::membership::View;

/// What a model is.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// The digest of its files.
    pub digest: ModelDigest,
    /// Its sizes.
    pub geometry: Geometry,
    /// What is known of their parts.
    pub content: Content,
    /// Who has others, and which.
    pub odd: BTreeMap<NodeId, Vec<Part>>,
}

impl Agreement {
    /// What the living members say; `None` if none has the model. `in_force` is the model's plan.
    #[must_use]
    pub fn of(view: &View, model: &ModelName, in_force: Option<&Plan>) -> Option<Self> {
        let held = view.alive().filter_map(|member| {
            let held = member.report.models.iter().find(|held| held.name == *model)?;
            Some((member.incarnation.node, held))
        });
        let held: Vec<(NodeId, &HeldModel)> = held.collect();
        let plan = in_force.map(Plan::parts);
        let digest = elect(held.iter().map(|(_, held)| held.digest), |digest| {
            plan.is_some_and(|plan| plan.digest == *digest)
        })?;
        let same: Vec<&HeldModel> =
            held.iter().map(|(_, held)| *held).filter(|held| held.digest == digest).collect();
        let planned = plan.filter(|plan| plan.digest == digest).and_then(|plan| plan.content);
        let content = elect_content(&same, planned);
        // Sizes follow from files; a member of another build may see them otherwise.
        let agreeing = same.iter().filter(|held| said(held, &content).agrees_with(&content));
        let geometry = elect(agreeing.map(|held| &held.geometry), |_| false)?.clone();
        let odd = held.iter().filter_map(|(node, held)| {
            let differs = differences(held, digest, &content, &geometry);
            (!differs.is_empty()).then_some((*node, differs))
        });
        let odd = odd.collect();
        Some(Self { digest, geometry, content, odd })
    }

    /// The same for people: the parts in which a node's files differ.
    #[must_use]
    pub fn describe(parts: &[Part]) -> String {
        parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
    }
}

/// What is said most often; of equally often said, what is `preferred`, then what was said first.
fn elect<T: PartialEq>(said: impl Iterator<Item = T>, preferred: impl Fn(&T) -> bool) -> Option<T> {
    let mut votes: Vec<(T, usize)> = Vec::new();
    for one in said {
        match votes.iter_mut().find(|(known, _)| *known == one) {
            Some((_, votes)) => *votes += 1,
            None => votes.push((one, 1)),
        }
    }
    let ranked = votes.into_iter().enumerate();
    let first = ranked.max_by_key(|(at, (one, votes))| (*votes, preferred(one), Reverse(*at)));
    first.map(|(_, (one, _))| one)
}

/// The same for contents, of which some may be known in parts only: each is completed by those that agree
/// with it, and whoever agrees with the result has voted for it.
fn elect_content(held: &[&HeldModel], planned: Option<Content>) -> Content {
    let said: Vec<Content> = held.iter().map(|held| held.content.unwrap_or_default()).collect();
    let candidates = said.iter().enumerate().map(|(at, seed)| {
        let agreeing = |whole: Content, one: &Content| {
            if whole.agrees_with(one) { whole.with(one) } else { whole }
        };
        let whole = said.iter().fold(*seed, agreeing);
        let votes = said.iter().filter(|one| whole.agrees_with(one)).count();
        let is_planned = planned.is_some_and(|planned| whole.agrees_with(&planned));
        ((votes, is_planned, Reverse(at)), whole)
    });
    candidates.max_by_key(|(rank, _)| *rank).map(|(_, whole)| whole).unwrap_or_default()
}

/// What a member says of its files. Of a setting that it does not know it says nothing, and computes without it: that is no
/// agreement with others that compute with it.
fn said(held: &HeldModel, agreed: &Content) -> Content {
    let own = held.content.unwrap_or_default();
    let silent = agreed.kv_bits.filter(|bits| *bits > 0).map(|_| 0);
    Content { kv_bits: own.kv_bits.or(silent), ..own }
}

fn differences(
    held: &HeldModel,
    digest: ModelDigest,
    content: &Content,
    geometry: &Geometry,
) -> Vec<Part> {
    let mut differs = said(held, content).differences(content);
    let named = differs.contains(&Part::Config) || differs.contains(&Part::Weights);
    if held.digest != digest && !named {
        differs.push(Part::Weights);
    }
    let shape = |of: &Geometry| (of.layers(), of.hidden_bytes, of.vocab);
    if held.digest == digest && shape(&held.geometry) != shape(geometry) {
        // It says that the same files are another model.
        differs.push(Part::Config);
    }
    differs
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use planaria_config::{Epoch, Incarnation, LayerRange, Strategy};
    use planaria_engine::model_dir::PartDigest;
    use planaria_protocol::plan::{Assignment, PlanParts};

    use super::*;
    use crate::testing::{id, member, model};

    fn digest(of: &str) -> Option<PartDigest> {
        Some(PartDigest::of([of.as_bytes()]))
    }

    fn content(tokenizer: &str, weights: Option<&str>) -> Content {
        Content {
            tokenizer: digest(tokenizer),
            weights: weights.and_then(digest),
            ..Content::default()
        }
    }

    fn view(said: &[(u8, Option<Content>)]) -> View {
        View::of(said.iter().map(|(byte, content)| {
            let mut member = member(*byte, 1, 100);
            Arc::make_mut(&mut member.report).models[0].content = *content;
            member
        }))
    }

    fn plan_of(node: u8, content: Content) -> Plan {
        let incarnation = Incarnation { node: id(node), boot_count: 1 };
        let layers = LayerRange::inclusive(0, 11).unwrap();
        Plan::new(PlanParts {
            epoch: Epoch { counter: 1, planner: id(node) },
            model: model(),
            digest: "11".repeat(32).parse().unwrap(),
            layers: 12,
            strategy: Strategy::Latency,
            context: 16,
            max_sequences: 1,
            stages: vec![Assignment::alone(incarnation, layers)],
            content: Some(content),
            takes_over: None,
        })
        .unwrap()
    }

    fn odd(view: &View, in_force: Option<&Plan>) -> Vec<(NodeId, Vec<Part>)> {
        Agreement::of(view, &model(), in_force).unwrap().odd.into_iter().collect()
    }

    #[test]
    fn the_one_that_differs_from_most_is_odd() {
        let (usual, other) = (content("a", Some("w")), content("b", Some("w")));
        let three = view(&[(1, Some(other)), (2, Some(usual)), (3, Some(usual))]);
        assert_eq!(odd(&three, None), [(id(1), vec![Part::Tokenizer])]);
        let weights = content("a", Some("v"));
        let three = view(&[(1, Some(usual)), (2, Some(weights)), (3, Some(usual))]);
        assert_eq!(odd(&three, None), [(id(2), vec![Part::Weights])]);
    }

    #[test]
    fn of_two_the_one_that_the_plan_was_made_for_holds_then_the_lowest() {
        let (one, other) = (content("a", None), content("b", None));
        let two = view(&[(1, Some(one)), (2, Some(other))]);
        assert_eq!(odd(&two, None), [(id(2), vec![Part::Tokenizer])]);
        let plan = plan_of(2, other);
        assert_eq!(odd(&two, Some(&plan)), [(id(1), vec![Part::Tokenizer])]);
    }

    #[test]
    fn who_does_not_say_a_part_agrees_with_everybody() {
        let (unread, known) = (content("a", None), content("a", Some("w")));
        let other = content("a", Some("v"));
        assert_eq!(odd(&view(&[(1, None), (2, Some(unread)), (3, Some(known))]), None), []);
        // It does not count for the first who says something.
        let four = [(1, Some(unread)), (2, Some(other)), (3, Some(known)), (4, Some(known))];
        assert_eq!(odd(&view(&four), None), [(id(2), vec![Part::Weights])]);
    }

    #[test]
    fn a_member_with_another_setting_is_odd_and_has_no_say_about_sizes() {
        let set = |bits| Some(Content { kv_bits: Some(bits), ..content("a", Some("w")) });
        let mut members: Vec<_> = [(1, 8), (2, 0), (3, 0)]
            .map(|(byte, bits)| {
                let mut member = member(byte, 1, 100);
                Arc::make_mut(&mut member.report).models[0].content = set(bits);
                member
            })
            .into();
        assert_eq!(odd(&View::of(members.clone()), None), [(id(1), vec![Part::KvBits])]);
        // Of two, what the plan was made for holds, sizes too.
        let own = &mut Arc::make_mut(&mut members[1].report).models[0];
        own.geometry.kv_bytes_per_token_per_layer = 7;
        let two = View::of(members.into_iter().take(2));
        let plan = plan_of(2, set(0).unwrap());
        let agreed = Agreement::of(&two, &model(), Some(&plan)).unwrap();
        assert_eq!(agreed.geometry.kv_bytes_per_token_per_layer, 7);
        assert_eq!(agreed.odd, BTreeMap::from([(id(1), vec![Part::KvBits])]));
    }

    #[test]
    fn a_member_that_knows_no_packed_caches_is_odd_among_those_that_have_them() {
        let set = |bits| Some(Content { kv_bits: bits, ..content("a", Some("w")) });
        let mixed = |bits| view(&[(1, set(None)), (2, set(bits)), (3, None), (4, set(bits))]);
        let both = [(id(1), vec![Part::KvBits]), (id(3), vec![Part::KvBits])];
        assert_eq!(odd(&mixed(Some(8)), None), both);
        assert_eq!(odd(&mixed(Some(0)), None), []);
    }

    #[test]
    fn a_member_that_says_another_shape_for_the_same_files_is_odd() {
        let mut members: Vec<_> = [1, 2, 3].map(|byte| member(byte, 1, 100)).into();
        Arc::make_mut(&mut members[0].report).models[0].geometry.bytes_per_layer.pop();
        let view = View::of(members);
        assert_eq!(odd(&view, None), [(id(1), vec![Part::Config])]);
        let agreed = Agreement::of(&view, &model(), None).unwrap();
        assert_eq!(agreed.geometry.layers().get(), 12);
    }
}
