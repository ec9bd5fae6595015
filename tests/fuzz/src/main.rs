//! Hostile bytes for every parser of bytes from outside: `make fuzz`.
//!
//! libFuzzer makes inputs and keeps those that reach new code; a target in [`TARGETS`] turns one
//! into files, frames or requests and hands them to the product through its public interface. It
//! fails by panicking, by taking too long or by taking too much memory. What is asked of an input
//! beyond that stands in the targets: what was accepted has to hold together.
//!
//! Most targets read their input as a list of decisions (see [`decisions`]): which sound thing to
//! begin with and what to change in it. When the input ends, nothing more is changed.
//!
//! Two variables say what to do: `PLANARIA_FUZZ_TARGET` names the target, or is `list`, and
//! `PLANARIA_FUZZ_SEEDS` is a folder that takes inputs to begin with. `run.sh` sets them. To see
//! what an input does, give its file as the only argument.

#![no_main]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a target fails by panicking, and this program is a tool"
)]

mod announcements;
mod checkpoint;
mod cluster;
mod decisions;
mod events;
mod folder;
mod frames;
mod gateway;
mod kernels;
mod model_seeds;
mod settings;
mod stage;
mod storage;
mod swim;
mod template;
mod tokenizer;
mod vocabulary;
mod worker;

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// A parser and what to begin with.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: &[Target] = &[
    Target { name: "announcements", run: announcements::run, seeds: announcements::seeds },
    Target { name: "checkpoint", run: checkpoint::run, seeds: checkpoint::seeds },
    Target { name: "cluster", run: cluster::run, seeds: cluster::seeds },
    Target { name: "events", run: events::run, seeds: events::seeds },
    Target { name: "frames", run: frames::run, seeds: frames::seeds },
    Target { name: "gateway", run: gateway::run, seeds: gateway::seeds },
    Target { name: "kernels", run: kernels::run, seeds: kernels::seeds },
    Target { name: "settings", run: settings::run, seeds: settings::seeds },
    Target { name: "stage", run: stage::run, seeds: checkpoint::seeds },
    Target { name: "storage", run: storage::run, seeds: storage::seeds },
    Target { name: "swim", run: swim::run, seeds: swim::seeds },
    Target { name: "template", run: template::run, seeds: template::seeds },
    Target { name: "tokenizer", run: tokenizer::run, seeds: tokenizer::seeds },
    Target { name: "vocabulary", run: vocabulary::run, seeds: vocabulary::seeds },
    Target { name: "worker", run: worker::run, seeds: worker::seeds },
];

static TARGET: OnceLock<&Target> = OnceLock::new();

/// Chooses the target and writes its seeds.
fn begin() {
    let name = std::env::var("PLANARIA_FUZZ_TARGET").unwrap_or_default();
    if name == "list" {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("PLANARIA_FUZZ_TARGET is a target's name or `list`");
    if let Some(folder) = std::env::var_os("PLANARIA_FUZZ_SEEDS").map(PathBuf::from) {
        std::fs::create_dir_all(&folder).unwrap();
        for (index, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(folder.join(format!("{index:03}")), seed).unwrap();
        }
    }
    if name == "tokenizer" {
        // libFuzzer's hook ends the process before the product can catch what a library of its
        // own panics over. Panics that nobody catches still end it.
        drop(std::panic::take_hook());
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: begin(), |input: &[u8]| (TARGET.get().unwrap().run)(input));
