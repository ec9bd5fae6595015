//! `chaos`: breaks real clusters on this machine, and says what clients saw of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use planaria_chaos::arena::{Arena, Model};
use planaria_chaos::report::{Report, table};
use planaria_chaos::scenario::{SCENARIOS, Scenario, play};
use planaria_chaos::schedule::Drawn;
use planaria_chaos::{mixed as mixed_builds, soak};

/// Breaks clusters of real `planaria` processes and checks what their clients see.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play scenarios; the exit code is 1 if something does not hold.
    Run(RunFlags),
    /// Hours of mixed use, with a blow now and then; the exit code is 1 if something does not hold.
    Soak(SoakFlags),
    /// Clusters of two builds; the exit code is 1 if they do not get along.
    Mixed(MixedFlags),
    /// List the scenarios.
    List,
}

#[derive(Debug, Args)]
struct SoakFlags {
    /// What everything is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long it lasts.
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// Requests in that time, about.
    #[arg(long, default_value_t = 22_000)]
    requests: u32,
    /// Seconds from one blow to the next.
    #[arg(long, default_value_t = 60)]
    blow_every: u32,
    /// The `planaria` to use (default: the one beside this program).
    #[arg(long, value_name = "FILE")]
    planaria: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct MixedFlags {
    /// The `planaria` under test (default: the one beside this program).
    #[arg(long, value_name = "FILE")]
    planaria: Option<PathBuf>,
    /// The other build.
    #[arg(long, value_name = "FILE")]
    other: PathBuf,
}

#[derive(Debug, Args)]
struct RunFlags {
    /// Scenario to play; may be given several times (default: all).
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// What everything is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of each scenario.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Begin with this round, to play one again.
    #[arg(long, default_value_t = 0)]
    first_round: u32,
    /// Nodes of each cluster (default: as many as the scenario needs).
    #[arg(long)]
    nodes: Option<usize>,
    /// Ask the demo model, with its rounding, in place of one of which every mistake shows.
    #[arg(long)]
    demo: bool,
    /// The `planaria` to break (default: the one beside this program).
    #[arg(long, value_name = "FILE")]
    planaria: Option<PathBuf>,
    /// Print the reports as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    match Cli::parse().command {
        Command::List => list(),
        Command::Run(flags) => runtime.block_on(run(&flags)),
        Command::Soak(flags) => runtime.block_on(soak_for(&flags)),
        Command::Mixed(flags) => runtime.block_on(mixed(&flags)),
    }
}

fn binary(given: Option<&PathBuf>) -> Result<PathBuf> {
    let binary = match given {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("planaria"),
    };
    ensure!(binary.exists(), "{} is not there: build it, or give --planaria", binary.display());
    Ok(binary)
}

async fn soak_for(flags: &SoakFlags) -> Result<ExitCode> {
    let plan = soak::Plan {
        seed: flags.seed,
        lasts: Duration::from_secs(60) * flags.minutes,
        requests: flags.requests,
        blow_every: Duration::from_secs(flags.blow_every.into()),
    };
    let soaked =
        soak::soak(&binary(flags.planaria.as_ref())?, plan, |line| drop(say(line))).await?;
    for violation in &soaked.violations {
        say(&format!("  {}: {}", violation.check, violation.what))?;
    }
    let requests: usize = soaked.parts.iter().flat_map(|part| part.requests.values()).sum();
    let mut out = std::io::stdout().lock();
    write!(out, "{}", soak::figures::table(&soaked.parts))?;
    let (seed, wrong) = (flags.seed, soaked.violations.len());
    writeln!(out, "\nSeed {seed}: {requests} requests, {wrong} times something did not hold.")?;
    writeln!(out, "Times in milliseconds. Figures are of the node that nothing is done to.")?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn mixed(flags: &MixedFlags) -> Result<ExitCode> {
    let builds = mixed_builds::builds(&binary(flags.planaria.as_ref())?, &flags.other)?;
    let met = mixed_builds::meet(&builds, |line| drop(say(line))).await?;
    let (tried, wrong) = (met.tried.len(), met.violations.len());
    say(&format!("{tried} things were tried with both builds, {wrong} times one did not hold"))?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for Scenario { name, number, about, .. } in SCENARIOS {
        writeln!(out, "{number:>2}  {name:<20} {about}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(flags: &RunFlags) -> Result<ExitCode> {
    let chosen = chosen(&flags.scenario)?;
    let binary = binary(flags.planaria.as_ref())?;
    let mut reports = Vec::new();
    for scenario in chosen {
        reports.push(rounds(&binary, scenario, flags).await?);
    }
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", serde_json::to_string(&reports)?)?;
    } else {
        write!(out, "{}", table(&reports))?;
        writeln!(out, "\nTimes in milliseconds: the middle one, where nothing else is said.")?;
    }
    let failed = reports.iter().any(|report| !report.failures.is_empty());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    let named = |name: &String| {
        Scenario::named(name).with_context(|| format!("no scenario `{name}`: see `chaos list`"))
    };
    names.iter().map(named).collect()
}

async fn rounds(binary: &Path, scenario: &Scenario, flags: &RunFlags) -> Result<Report> {
    let nodes = flags.nodes.unwrap_or(scenario.nodes).max(scenario.nodes);
    let model = if flags.demo { Model::Demo } else { Model::Exact };
    let mut arena = Arena::new(binary, model, nodes, scenario, flags.seed).await?;
    let mut played = Vec::new();
    for round in flags.first_round..flags.first_round.saturating_add(flags.rounds) {
        let asked = arena.main_model();
        let drawn = Drawn::new(scenario.name, scenario.range, asked, flags.seed, round);
        let round_again = format!(
            "chaos run --scenario {} --seed {} --nodes {nodes} --first-round {round}{}",
            scenario.name,
            flags.seed,
            if flags.demo { " --demo" } else { "" }
        );
        let result = play(&mut arena, scenario, drawn).await;
        let result = result.with_context(|| format!("{round_again}\n{}", arena.cluster.logs()))?;
        let pause = match result.pauses.iter().max() {
            Some(longest) => format!("longest pause {longest:?}"),
            None => "no pauses to be seen".to_owned(),
        };
        say(&format!("{} {round}: {}; {pause}", scenario.name, result.proof))?;
        for violation in &result.violations {
            say(&format!("  {}: {}", violation.check, violation.what))?;
        }
        if !result.violations.is_empty() {
            say(&format!("  again: {round_again}\n{}", arena.cluster.logs()))?;
        }
        played.push(result);
    }
    let after = arena.back_at_base().await;
    Ok(Report::of(scenario, flags.seed, nodes, &played, after))
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stderr().lock(), "{line}")?;
    Ok(())
}
