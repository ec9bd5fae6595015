//! Models folders for tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Inventory, Sums};

/// Puts a made-up model `m` into a models folder, in place of one that may be there. It has no weights, and so
/// all of them are known.
pub(crate) fn fake_model(models: &Path, layers: u32) -> Inventory {
    let folder = models.join("m");
    fs::create_dir_all(&folder).unwrap();
    let config = format!(
        r#"{{"model_type": "planaria_fake", "num_hidden_layers": {layers}, "hidden_size": 8,
            "vocab_size": 100, "max_position_embeddings": 32}}"#
    );
    fs::write(folder.join("config.json.part"), config).unwrap();
    fs::rename(folder.join("config.json.part"), folder.join("config.json")).unwrap();
    let mut found = Inventory::look(&models.into(), &Inventory::default(), &BTreeSet::new());
    found.complete(&Sums::new());
    found
}
