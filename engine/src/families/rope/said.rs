//! Where a configuration describes rotary positions, and which of its keys are understood there.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{EVERYWHERE, NEARBY};
use crate::model_dir::ModelError;
use crate::model_dir::json::{Section, brief};

const NEWER: &str = "rope_parameters";
const OLDER: &str = "rope_scaling";

/// What a file says of rotary positions, in the one place or the other.
pub(super) struct Said<'a> {
    config: Section<'a>,
    section: Option<Section<'a>>,
    layers: Option<&'static str>,
}

impl<'a> Said<'a> {
    /// `layers` are those that are meant, in a family whose layers differ: there the newer place has
    /// an object for each kind of them, and the older one describes those that see everything.
    pub(super) fn find(
        config: &Section<'a>,
        layers: Option<&'static str>,
    ) -> Result<Self, ModelError> {
        let newer = match config.section(NEWER)? {
            None => None,
            Some(all) => match layers {
                None => Some(all),
                Some(layers) => {
                    only_kinds_of_layers(&all)?;
                    all.section(layers)?
                }
            },
        };
        let older = match layers {
            Some(NEARBY) => None,
            _ => config.section(OLDER)?,
        };
        if let (Some(newer), Some(older)) = (&newer, &older) {
            say_the_same(newer, older)?;
        }
        Ok(Self { config: config.clone(), section: newer.or(older), layers })
    }

    /// The object that describes how positions are stretched.
    pub(super) const fn section(&self) -> Option<&Section<'a>> {
        self.section.as_ref()
    }

    /// What the base is called outside of that object.
    pub(super) fn theta_key(&self) -> &'static str {
        // The other is Gemma 3's.
        if self.layers == Some(NEARBY) { "rope_local_base_freq" } else { "rope_theta" }
    }

    /// A number that may stand in the object as `within` or beside it as `beside`; in both, if they
    /// are equal.
    pub(super) fn number(
        &self,
        within: &str,
        beside: &str,
        allowed: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ModelError> {
        let outer = self.config.optional_number(beside, allowed.clone())?;
        let inner = match &self.section {
            None => None,
            Some(section) => section.optional_number(within, allowed)?,
        };
        match (inner, outer) {
            (Some(inner), Some(outer)) if inner.to_bits() != outer.to_bits() => {
                let problem = format!("is {inner}, but beside it `{beside}` is {outer}");
                Err(self.problem(within, problem))
            }
            (inner, outer) => Ok(inner.or(outer)),
        }
    }

    /// An error about `key`, named where it stands.
    pub(super) fn problem(&self, key: &str, problem: impl Into<String>) -> ModelError {
        match self.section.as_ref().filter(|section| section.value(key).is_some()) {
            Some(section) => section.problem(key, problem),
            None => self.config.problem(key, problem),
        }
    }
}

/// The key that names the kind of stretching, and the kind by the name used here.
pub(super) fn kind_of<'a>(section: &Section<'a>) -> Result<(&'static str, &'a str), ModelError> {
    let known = |kind| match kind {
        "deepseek_yarn" => "yarn",
        "su" => "longrope",
        kind => kind,
    };
    let newer = section.text("rope_type")?.map(known);
    let older = section.text("type")?.map(known);
    match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            let older: String = older.chars().take(40).collect();
            Err(section.problem("rope_type", format!("is another than `type`, `{older}`")))
        }
        (Some(newer), _) => Ok(("rope_type", newer)),
        (None, older) => Ok(("type", older.unwrap_or("default"))),
    }
}

/// Refuses what else is said of positions than the keys of this kind of stretching: whatever it
/// means, tokens would be in other places than in training. `of_pictures` says that positions may have three parts.
pub(super) fn expect_keys(
    section: &Section<'_>,
    own: &[&str],
    of_pictures: bool,
) -> Result<(), ModelError> {
    const OF_PICTURES: &[&str] = &["mrope_section", "mrope_interleaved"];
    // Of every kind. The last says how a model was trained, not how it computes.
    const COMMON: &[&str] = &[
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "finetuned",
    ];
    for (key, value) in section.entries() {
        let is_part = of_pictures && OF_PICTURES.contains(&key.as_str());
        let is_known = is_part || COMMON.contains(&key.as_str()) || own.contains(&key.as_str());
        // A factor of one stretches nothing.
        let is_idle = value.is_null() || (key == "factor" && value.as_f64() == Some(1.0));
        if !is_known && !is_idle {
            let (_, kind) = kind_of(section)?;
            let kind: String = kind.chars().take(40).collect();
            let problem = format!(
                "is {}, which is not understood here for positions of the kind `{kind}`",
                brief(value)
            );
            return Err(section.problem(key, problem));
        }
    }
    Ok(())
}

fn only_kinds_of_layers(section: &Section<'_>) -> Result<(), ModelError> {
    for (key, value) in section.entries() {
        let is_kind = key == EVERYWHERE || key == NEARBY;
        if !is_kind && !value.is_null() {
            let problem = format!("is not understood here; expected `{EVERYWHERE}` and `{NEARBY}`");
            return Err(section.problem(key, problem));
        }
    }
    Ok(())
}

/// A file that describes positions in both places, for old readers and new ones.
fn say_the_same(newer: &Section<'_>, older: &Section<'_>) -> Result<(), ModelError> {
    let differs = |key: &str| {
        let problem = format!("says something else than `{OLDER}`");
        Err(newer.problem(key, problem))
    };
    if kind_of(newer)?.1 != kind_of(older)?.1 {
        return differs("rope_type");
    }
    // Each may have these to itself; `Said::number` and `original_context` compare them.
    const APART: &[&str] =
        &["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
    let both = newer.entries().chain(older.entries()).map(|(key, _)| key.as_str());
    // The kinds were compared under all of their names.
    for key in both.filter(|key| !["rope_type", "type"].contains(key)) {
        let (new, old) = (newer.value(key), older.value(key));
        let may_be_apart = APART.contains(&key) && (new.is_none() || old.is_none());
        if !is_same(new, old) && !may_be_apart {
            return differs(key);
        }
    }
    Ok(())
}

fn is_same(one: Option<&Value>, other: Option<&Value>) -> bool {
    match (one.and_then(Value::as_f64), other.and_then(Value::as_f64)) {
        (Some(one), Some(other)) => one.to_bits() == other.to_bits(),
        _ => one == other,
    }
}
