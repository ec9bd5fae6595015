//! One `planaria serve` process and what it logs.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use crate::wait_for;

/// A running (or ended) process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts `binary` with these arguments and environment variables, logging JSON.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(binary: &Path, arguments: &[String], env: &[(String, String)]) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(arguments)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("PLANARIA_LOG_FORMAT", "json")
            // The tables by which a panic prints where it was stay in memory, a hundred megabytes of a debug build.
            .env("RUST_BACKTRACE", "0")
            .env_remove("PLANARIA_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} could not be started", binary.display()))?;
        let pid = child.id().context("the process ended at once")?;
        let stderr = child.stderr.take().context("the process has no standard error")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(keep_log(stderr, Arc::clone(&log), whole_log(pid)?));
        Ok(Self { child, pid, log })
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// What it and its workers wrote to standard error so far, line by line.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a log line that contains `text`.
    ///
    /// # Errors
    /// When none comes, or the process ends without it; with all that it logged.
    pub async fn logged(&mut self, text: &str) -> Result<String> {
        let found = wait_for(text, async || {
            // Looked at first, so that the last words of a process that ended are heard.
            let ended = self.child.try_wait()?;
            if let Some(line) = self.log().into_iter().find(|line| line.contains(text)) {
                return Ok(Some(line));
            }
            match ended {
                Some(status) => bail!("the process ended ({status})"),
                None => Ok(None),
            }
        });
        found.await.with_context(|| format!("no log line with {text:?} in:\n{}", self.shown()))
    }

    /// A field of the first log line that contains `text`.
    ///
    /// # Errors
    /// When there is no such line or field.
    pub async fn logged_field(&mut self, text: &str, field: &str) -> Result<String> {
        let line = self.logged(text).await?;
        let json: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let value = json.get("fields").and_then(|fields| fields.get(field));
        let value = value.with_context(|| format!("no field {field} in {line}"))?;
        Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let status = wait_for("the process to end", async || Ok(self.child.try_wait()?)).await?;
        Ok(status)
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill")
    }

    /// Asks it to stop, as `kill` does.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn terminate(&self) -> Result<()> {
        signal(self.pid, rustix::process::Signal::TERM)
    }

    /// The last lines of what it logged, for a person who wonders.
    #[must_use]
    pub fn shown(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(60);
        log.get(from..).unwrap_or_default().join("\n")
    }
}

/// Sends a signal to a process that a test started.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.context("no process id")?, signal).context("kill")
}

/// Whether a process still runs (one that has ended and was not waited for does not).
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    match stat {
        Ok(stat) => {
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            !state.starts_with(['Z', 'X'])
        }
        // Without /proc: a signal of nothing tells.
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()),
    }
}

/// Whether a process stands still (SIGSTOP). Without /proc nobody can tell, and it counts as if.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(!Path::new("/proc/self").exists(), |stat| {
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
    })
}

/// A file for all that a process logs, in the folder that `PLANARIA_TEST_LOGS` names, if it does.
fn whole_log(pid: u32) -> Result<Option<File>> {
    let Some(folder) = std::env::var_os("PLANARIA_TEST_LOGS") else {
        return Ok(None);
    };
    let path = Path::new(&folder).join(format!("{pid}.log"));
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    Ok(Some(file))
}

async fn keep_log(stderr: ChildStderr, log: Arc<Mutex<Vec<String>>>, mut whole: Option<File>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(file) = &mut whole {
            // A full disk must not stop the process that is read here.
            drop(writeln!(file, "{line}"));
        }
        log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
