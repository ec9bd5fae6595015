//! The command line.

mod backup;
mod cluster;
mod config;
mod doctor;
#[cfg(feature = "failpoints")]
mod failpoints;
mod flags;
mod logging;
mod models;
mod node_api;
mod output;
mod plan;
mod run;
mod serve;
mod service;
mod status;
mod table;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use planaria_config::InvalidSettings;
use planaria_engine::processor::Processor;
use planaria_worker::child;

/// Bad configuration (`EX_USAGE`).
const EXIT_SETTINGS: u8 = 64;
/// The supervision tree melted down (`EX_SOFTWARE`).
const EXIT_MELTED: u8 = 70;

/// Serve one large language model from several machines.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Serve(flags::SettingFlags),
    /// Work with clusters.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show nodes, models, plans and sequences.
    Status(status::StatusFlags),
    /// Talk to a model from the terminal.
    Run(run::RunFlags),
    /// Show how a model would be divided and what that would cost; changes nothing.
    Plan(plan::PlanFlags),
    /// Write what a node remembers to a file.
    Backup(backup::BackupFlags),
    /// Make a node's memory of such a file; the node must not run.
    Restore(backup::RestoreFlags),
    /// Show and change which models the cluster serves.
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Show the effective settings and where each came from.
    Config(config::ConfigFlags),
    /// Say in words what would stop this node from working.
    Doctor(doctor::DoctorFlags),
    /// The process that computes a shard; started by `serve`.
    #[command(hide = true)]
    Worker(WorkerFlags),
}

/// What a node tells its workers beside how to log.
#[derive(Debug, Args)]
struct WorkerFlags {
    /// Threads to compute with on a processor.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Kernels to multiply with.
    #[arg(long)]
    kernels: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Write a fresh cluster key to a new file that only you can read.
    New(cluster::NewFlags),
}

/// Runs the command that the process was given.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| {
        // Help and version are not mistakes.
        let code = if error.use_stderr() { i32::from(EXIT_SETTINGS) } else { 0 };
        drop(error.print());
        std::process::exit(code)
    });
    let done = match arguments.command {
        Command::Serve(flags) => serve::run(&flags),
        Command::Cluster(ClusterCommand::New(flags)) => cluster::new(&flags),
        Command::Status(flags) => status::run(&flags),
        Command::Run(flags) => run::run(&flags),
        Command::Plan(flags) => plan::run(&flags),
        Command::Backup(flags) => backup::backup_store(&flags),
        Command::Restore(flags) => backup::restore_store(&flags),
        Command::Models(command) => models::run(&command),
        Command::Config(flags) => config::run(&flags),
        Command::Doctor(flags) => doctor::run(&flags),
        Command::Worker(flags) => {
            logging::start_worker();
            work(&flags)
        }
    };
    done.unwrap_or_else(|error| {
        complain(&error);
        let is_settings = error.downcast_ref::<InvalidSettings>().is_some();
        if is_settings { ExitCode::from(EXIT_SETTINGS) } else { ExitCode::FAILURE }
    })
}

fn work(flags: &WorkerFlags) -> anyhow::Result<ExitCode> {
    child::run(Processor::new(flags.threads, flags.kernels.as_deref())?)?;
    Ok(ExitCode::SUCCESS)
}

/// What a person reads when a command could not be carried out.
#[expect(clippy::print_stderr, reason = "the one place where the program says why it failed")]
fn complain(error: &anyhow::Error) {
    eprintln!("planaria: {error:#}");
}
