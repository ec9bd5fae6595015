//! What a node understands beyond the messages of the first build that could tell: a set of words, said
//! when a link is made and in every report, so that no peer is sent what it cannot read.
//!
//! A message that was added later names its [`Feature`] (`Control::feature` and so on), and whatever sends
//! messages asks [`ensure`] first. What arrives and is not known all the same is dropped and counted.

use planaria_config::NodeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// An addition to what nodes say to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// `Control::Abort`: what was prepared for a plan that its planner gave up is not needed.
    Abort,
    /// Stage 0 keeps an answer waiting that it has no place for, in place of a refusal.
    Queue,
    /// Stages of several nodes: their plans, and the lane of what their ranks exchange.
    Groups,
    /// `SamplingParams::constraint`: what an answer has to be. A build that does not know it would answer with anything.
    Constraints,
}

/// What this build understands: a feature gets into this list with the code that handles its messages.
const UNDERSTOOD: &[Feature] =
    &[Feature::Abort, Feature::Queue, Feature::Groups, Feature::Constraints];

/// A peer would not understand it. Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the node {} does not understand `{}`: it runs an older build", peer.short(), feature.word())]
pub struct NotUnderstood {
    /// The peer.
    pub peer: NodeId,
    /// What it does not list.
    pub feature: Feature,
}

impl Feature {
    /// All of them. Their order is their place in a [`Features`].
    const ALL: [Self; 4] = [Self::Abort, Self::Queue, Self::Groups, Self::Constraints];

    /// Its name between nodes, for ever.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Queue => "queue",
            Self::Groups => "groups",
            Self::Constraints => "constraints",
        }
    }

    /// Whether it is among the words that a node listed when its link was made.
    #[must_use]
    pub fn is_among(self, words: &[String]) -> bool {
        words.iter().any(|word| word == self.word())
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Fails where `peer`, which listed these `words`, does not list what a message needs.
///
/// # Errors
/// Naming the peer and the feature.
pub fn ensure(
    peer: NodeId,
    words: &[String],
    needed: Option<Feature>,
) -> Result<(), NotUnderstood> {
    match needed {
        Some(feature) if !feature.is_among(words) => Err(NotUnderstood { peer, feature }),
        _ => Ok(()),
    }
}

/// Some features. Words that this build does not know are left out: they are about messages that it would
/// neither send nor read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u32);

impl Features {
    /// Those of this build.
    #[must_use]
    pub fn understood() -> Self {
        UNDERSTOOD.iter().copied().collect()
    }

    /// Whether a feature is among them.
    #[must_use]
    pub const fn lists(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// They as words.
    #[must_use]
    pub fn words(self) -> Vec<String> {
        let listed = Feature::ALL.into_iter().filter(|feature| self.lists(*feature));
        listed.map(|feature| feature.word().to_owned()).collect()
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        Self(features.into_iter().fold(0, |bits, feature| bits | feature.bit()))
    }
}

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.words().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As many as the cap of a message lets in, and none of them is kept.
        let words = Vec::<String>::deserialize(deserializer)?;
        let known = |word: &String| Feature::ALL.into_iter().find(|known| known.word() == word);
        Ok(words.iter().filter_map(known).collect())
    }
}

#[cfg(test)]
mod tests {
    use rmp_serde::{from_slice, to_vec_named};

    use super::*;

    #[test]
    fn words_are_different_and_in_the_order_of_their_bits() {
        for (place, feature) in Feature::ALL.into_iter().enumerate() {
            assert_eq!(feature as usize, place);
            let word = feature.word();
            assert_eq!(Feature::ALL.into_iter().filter(|other| other.word() == word).count(), 1);
        }
    }

    #[test]
    fn a_peer_is_sent_what_it_lists_and_nothing_else() {
        let peer = NodeId::from_bytes([7; 32]);
        assert_eq!(ensure(peer, &[], None), Ok(()));
        let refused = ensure(peer, &[], Some(Feature::Abort)).unwrap_err();
        assert_eq!(refused, NotUnderstood { peer, feature: Feature::Abort });
        assert!(refused.to_string().contains("`abort`"), "{refused}");
        let newer = ["of-tomorrow", "abort"].map(str::to_owned);
        assert_eq!(ensure(peer, &newer, Some(Feature::Abort)), Ok(()));
        assert!(ensure(peer, &newer, Some(Feature::Queue)).is_err());
    }

    #[test]
    fn a_set_travels_as_words_and_unknown_ones_are_left_out() {
        let set: Features = [Feature::Queue].into_iter().collect();
        let words: Vec<String> = from_slice(&to_vec_named(&set).unwrap()).unwrap();
        assert_eq!(words, ["queue"]);
        let said = to_vec_named(&["of-tomorrow", "queue", "queue", ""]).unwrap();
        let read: Features = from_slice(&said).unwrap();
        assert_eq!(read, set);
        assert!(read.lists(Feature::Queue) && !read.lists(Feature::Abort));
    }
}
