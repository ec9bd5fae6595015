//! The process of a rank that has partial sums.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use planaria_collectives::{
    ExchangeError, Group, Member, MemberAction, MemberEvent, Operation, Outcome, Rank, Route,
};
use planaria_kernels::{FoldTree, Span};
use planaria_transport::{
    ChildPipe, ChildReceiver, ChildSender, Frame, decode_message, encode_message,
};

use crate::group::{CAP, PATIENCE, ToHost, ToWorker, group_id};
use crate::host::p50_and_p99;

struct Worker {
    member: Member,
    receiver: ChildReceiver,
    sender: ChildSender,
    /// How long an operation may take.
    patience: Duration,
}

/// Does a job: `NUMBERS:ROUTE:ROUNDS` is measured, `for-ever:MILLISECONDS` goes on until
/// the group fails, which is to be noticed within that time. `bulk` jobs are the host's.
pub(crate) fn run(ranks: u8, rank: u8, job: &str) -> Result<()> {
    let socket = rustix::io::dup(std::io::stdout())?;
    rustix::stdio::dup2_stdout(std::io::stderr())?;
    std::thread::spawn(|| {
        // The host is gone when this ends.
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(0);
    });
    let (receiver, sender) = ChildPipe::attach(socket, CAP)?.split();
    let group = Group::new(group_id(), Rank(rank), ranks).context("no such group")?;
    let mut worker = Worker { member: Member::new(group), receiver, sender, patience: PATIENCE };
    let patience = Instant::now() + Duration::from_secs(30);
    let first = worker.receiver.recv_until(patience)?.context("the host says nothing")?;
    ensure!(matches!(decode_message(&first.header)?, ToWorker::Begin), "it begins in the middle");
    match job.strip_prefix("for-ever:") {
        Some(patience) => {
            worker.patience = Duration::from_millis(patience.parse()?);
            worker.go_on_for_ever(ranks, rank)
        }
        None => worker.measure(ranks, rank, job),
    }
}

/// One unit for each rank, all numbers of which are those of its rank.
fn operation(ranks: u8, rank: u8, numbers: usize, route: Route) -> Result<Operation> {
    let tree = FoldTree::new(ranks.into()).context("a group of none")?;
    let unit = |rank: u16| Span { start: rank, end: rank + 1 };
    let holders: Arc<[Vec<Span>]> = (0..u16::from(ranks)).map(|rank| vec![unit(rank)]).collect();
    let own = vec![vec![f32::from(rank) + 0.5; numbers]];
    Ok(Operation::AllReduce { tree, holders, numbers, own, route })
}

impl Worker {
    fn measure(&mut self, ranks: u8, rank: u8, job: &str) -> Result<()> {
        let [numbers, route, rounds] = *job.split(':').collect::<Vec<_>>() else {
            bail!("no job: {job}");
        };
        let (numbers, rounds): (usize, usize) = (numbers.parse()?, rounds.parse()?);
        let route = if route == "direct" { Route::Direct } else { Route::Scattered };
        let operation = operation(ranks, rank, numbers, route)?;
        let expected: f32 = (0..ranks).map(|rank| f32::from(rank) + 0.5).sum();
        let mut times = Vec::new();
        for _ in 0..rounds + rounds / 5 {
            let operation = operation.clone();
            let start = Instant::now();
            let Outcome::Reduced(sum) = self.exchange(operation)?? else { bail!("no sum") };
            times.push(start.elapsed());
            ensure!(sum.len() == numbers && sum.iter().all(|sum| *sum == expected), "{sum:?}");
        }
        self.say(&p50_and_p99(times.split_off(rounds / 5)))?;
        // Others may still need what this one has sent.
        while self.receiver.recv_until(Instant::now() + PATIENCE).is_ok() {}
        Ok(())
    }

    /// Sums of different sizes, one after the other, until the group fails.
    fn go_on_for_ever(&mut self, ranks: u8, rank: u8) -> Result<()> {
        for round in 0_usize.. {
            let (numbers, route) = match round % 4 {
                0 | 1 => (2048, Route::Direct),
                2 => (300_000, Route::Scattered),
                _ => (100_000, Route::Direct),
            };
            let operation = operation(ranks, rank, numbers, route)?;
            let start = Instant::now();
            if let Err(error) = self.exchange(operation)? {
                let named: Vec<String> =
                    error.culprits().iter().map(|rank| rank.0.to_string()).collect();
                self.say(&format!(
                    "failed {} {} {error}",
                    start.elapsed().as_millis(),
                    named.join(",")
                ))?;
                return Ok(());
            }
            if round == 3 {
                self.say("goes on")?;
            }
        }
        Ok(())
    }

    fn exchange(&mut self, operation: Operation) -> Result<Result<Outcome, ExchangeError>> {
        let mut actions = self.member.begin(Instant::now(), operation, self.patience);
        loop {
            let mut ended = None;
            for action in actions {
                match action {
                    MemberAction::Send { to, header, payload } => {
                        let header = encode_message(&ToHost::Send(to, encode_message(&header)?))?;
                        Frame { header, payload }.write_to(&mut self.sender, CAP)?;
                    }
                    MemberAction::Done(outcome) => ended = Some(Ok(outcome)),
                    MemberAction::Failed(error) => ended = Some(Err(error)),
                    MemberAction::Dropped => {}
                }
            }
            self.sender.flush()?;
            if let Some(ended) = ended {
                return Ok(ended);
            }
            let deadline = self.member.deadline().context("it neither runs nor has ended")?;
            let event = match self.receiver.recv_soon(deadline)? {
                None => MemberEvent::Tick,
                Some(frame) => match decode_message(&frame.header)? {
                    ToWorker::Frame(header) => {
                        MemberEvent::Frame(decode_message(&header)?, frame.payload)
                    }
                    ToWorker::Over(rank) => MemberEvent::Over(rank),
                    ToWorker::Begin => bail!("asked to begin twice"),
                },
            };
            actions = self.member.on(Instant::now(), event);
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let header = encode_message(&ToHost::Say(line.to_owned()))?;
        Frame::message(header).write_to(&mut self.sender, CAP)?;
        Ok(self.sender.flush()?)
    }
}
