//! Groups of ranks as real processes. `make ranks` kills a thousand of them.

use std::process::Command;

/// Every survivor of each kill hears which rank is dead, and waits no longer than agreed.
#[test]
fn a_rank_that_is_killed_in_an_exchange_is_named_and_nobody_hangs() {
    // Long enough for processes that share two cores with all other tests: the kill is noticed sooner.
    let arguments = ["kills", "6", "3", "20000"];
    let run = Command::new(env!("CARGO_BIN_EXE_ranks")).args(arguments).output().unwrap();
    let (said, error) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && said.contains("6 kills"), "{said}{error}");
}
