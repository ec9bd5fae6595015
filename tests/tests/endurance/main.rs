//! What takes a machine for itself: clusters of a hundred processes, and mixed use for a while. A binary of its own,
//! so that these run after the scenarios and not beside them, and one at a time.

mod many;
mod soak;

use std::path::Path;

use tokio::sync::Mutex;

/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The binary under test.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_planaria-under-test"))
}
