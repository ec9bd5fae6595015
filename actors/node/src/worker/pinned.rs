//! The files that a worker's layers are loaded from, in all its lives. Pure.
//!
//! A worker that is started again under the same plan computes on what its former life began: it may load
//! nothing else. So the host keeps what the files were when it began, and the worker loads from these or not
//! at all.

use std::sync::Arc;

use planaria_config::{KvBits, ModelName};
use planaria_engine::model_dir::{Content, ModelDigest, Stamps};
use planaria_protocol::pipe::Files;
use planaria_protocol::plan::{Plan, WorkerKey};

use crate::inventory::Inventory;

/// What a model's files were when a host began.
#[derive(Debug, Clone, PartialEq)]
pub struct PinnedFiles {
    model: ModelName,
    stamps: Arc<Stamps>,
    content: Content,
}

impl PinnedFiles {
    /// The files that there are now.
    ///
    /// # Errors
    /// In words, when there are none, or others than those that are meant.
    pub fn now(inventory: &Inventory, key: &WorkerKey) -> Result<Self, String> {
        let model = &key.model;
        let known = inventory.get(model).zip(inventory.stamps(model));
        let (held, stamps) = known.ok_or_else(|| format!("the files of `{model}` are not here"))?;
        if held.digest != key.digest {
            return Err(format!("the files of `{model}` here are others than the plan's"));
        }
        let content = held.content.unwrap_or_default();
        Ok(Self { model: model.clone(), stamps: Arc::clone(stamps), content })
    }

    /// Takes in what has become known of them, and follows them to where they lie now, if these are the
    /// same bytes: others have other stamps, and are known to hold the same or are not followed.
    pub fn follow(&mut self, inventory: &Inventory) {
        let known = inventory.get(&self.model).zip(inventory.stamps(&self.model));
        let Some((held, stamps)) = known else { return };
        let content = held.content.unwrap_or_default();
        let is_known_alike = |one: Content, other: Content| {
            one.weights.is_some() && one.weights == other.weights && one.config == other.config
        };
        if *stamps == self.stamps || is_known_alike(self.content, content) {
            self.stamps = Arc::clone(stamps);
            self.content = content;
        }
    }

    /// The setting that they are computed with.
    fn kv_bits(&self) -> Option<KvBits> {
        self.content.kv_bits.and_then(KvBits::of_count)
    }

    /// What a worker is told of them.
    #[must_use]
    pub fn of(&self, digest: ModelDigest) -> Files {
        Files { digest, stamps: Stamps::clone(&self.stamps), kv_bits: self.kv_bits() }
    }

    /// Whether they are what a plan was made for, as far as is known.
    ///
    /// # Errors
    /// In words, when they are not.
    pub fn suit(&self, plan: &Plan) -> Result<(), String> {
        let planned = plan.parts().content.unwrap_or_default();
        if self.kv_bits().is_some() && planned.kv_bits.is_none() {
            let model = &self.model;
            return Err(format!(
                "the planner's build knows no setting kv-bits, which `{model}` has here"
            ));
        }
        let differs = planned.differences(&self.content);
        // Words are the business of whoever is asked.
        let differs = differs.into_iter().find(|part| part.is_computed_with());
        differs.map_or(Ok(()), |part| {
            Err(format!("its {} of `{}` are others than the plan's", part.name(), self.model))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::testing::fake_model;

    fn key(inventory: &Inventory) -> WorkerKey {
        let model: ModelName = "m".parse().unwrap();
        let digest = inventory.get(&model).unwrap().digest;
        WorkerKey::whole(model, digest)
    }

    #[test]
    fn files_are_followed_to_where_the_same_bytes_lie_and_no_further() {
        let models = tempfile::tempdir().unwrap();
        let first = fake_model(models.path(), 4);
        let pinned = PinnedFiles::now(&first, &key(&first)).unwrap();
        let mut followed = pinned.clone();

        let copied = fake_model(models.path(), 4);
        followed.follow(&copied);
        assert_ne!(followed, pinned);
        assert_eq!(followed, PinnedFiles::now(&copied, &key(&copied)).unwrap());

        let other = fake_model(models.path(), 5);
        let before = followed.clone();
        followed.follow(&other);
        assert_eq!(followed, before, "these are others");
        assert!(PinnedFiles::now(&other, &key(&first)).unwrap_err().contains("others than"));
        assert!(PinnedFiles::now(&Inventory::default(), &key(&first)).is_err());
    }
}
