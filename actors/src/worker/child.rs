//! The worker process: one thread owns the stage and computes; another reads commands.
//!
//! The reader notices at once when the node is gone, since its end of the pipe closes with it
//! however it died, and ends the process even in the middle of a step.

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;
use planaria_engine::model_dir::ModelDir;
use planaria_engine::stage::{Segment, SegmentOutput, Stage};
use planaria_engine::{LoadProgress, load_stage};
use planaria_transport::{Frame, decode_message, encode_message};

use super::batch::{Next, Queue, Work};
use super::protocol::{Command, Event, FRAME_CAP, Outcome};

/// Commands that may wait between the reader and the computing thread. The host bounds what is
/// under way (see `host`), so this only has to be no smaller.
const WAITING_COMMANDS: usize = 4096;

/// Exit code of a worker that said why it ends.
const SAID_WHY: i32 = 3;

/// Runs a worker on this process's standard input and output until the node closes them.
/// Whatever else writes to standard output from here on reaches standard error instead.
///
/// # Errors
/// When standard output cannot be taken over, or the node went away before its first word.
pub fn run() -> io::Result<()> {
    let output = rustix::io::dup(io::stdout())?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    let mut output = BufWriter::new(std::fs::File::from(output));
    let (sender, receiver) = sync_channel(WAITING_COMMANDS);
    thread::Builder::new().name("commands".to_owned()).spawn(move || read_commands(&sender))?;
    match work(&receiver, &mut output) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error),
    }
}

/// Never returns while the node lives.
fn read_commands(sender: &SyncSender<(Command, Bytes)>) {
    let mut input = io::stdin().lock();
    loop {
        let frame = match Frame::read_from(&mut input, FRAME_CAP) {
            Ok(Some(frame)) => frame,
            Ok(None) => std::process::exit(0),
            Err(error) => {
                tracing::error!(%error, "a command could not be read");
                std::process::exit(1);
            }
        };
        match decode_message::<Command>(&frame.header) {
            Ok(command) => {
                // Without a receiver the computing thread has ended, and the process with it.
                if sender.send((command, frame.payload)).is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "a command could not be understood");
                std::process::exit(1);
            }
        }
    }
}

fn work(commands: &Receiver<(Command, Bytes)>, output: &mut impl Write) -> io::Result<()> {
    let Ok((Command::Load { model_dir, layers }, _)) = commands.recv() else {
        return Err(io::Error::other("the first command was not to load"));
    };
    let loaded = ModelDir::open(&model_dir).and_then(|dir| {
        load_stage(&dir, layers, &mut |LoadProgress { bytes_loaded: done, bytes_total: total }| {
            // A node that does not listen any more is noticed by the reader.
            drop(say(output, &Event::Loading { done, total }, Bytes::new()));
        })
    });
    let mut stage = match loaded {
        Ok(stage) => stage,
        Err(error) => {
            say(output, &Event::LoadFailed(error.to_string()), Bytes::new())?;
            std::process::exit(SAID_WHY);
        }
    };
    let mut memory = stage.memory();
    say(output, &Event::Loaded { shape: stage.shape(), memory }, Bytes::new())?;
    let mut queue = Queue::default();
    while let Ok(first) = commands.recv() {
        queue.push(to_work(first));
        while let Some(next) = {
            commands.try_iter().for_each(|command| queue.push(to_work(command)));
            queue.next()
        } {
            match next {
                Next::Release(sequence) => stage.release(sequence),
                Next::Step(step) => compute(&mut *stage, step.segments, output)?,
            }
            if stage.memory() != memory {
                memory = stage.memory();
                say(output, &Event::Memory(memory), Bytes::new())?;
            }
        }
    }
    Ok(())
}

fn to_work((command, payload): (Command, Bytes)) -> Work {
    match command {
        Command::Compute { sequence, start, tokens, open, sample } => {
            let hidden = (!payload.is_empty()).then_some(payload);
            Work::Compute(Segment { sequence, start, tokens, hidden, open, sample })
        }
        Command::Release(sequence) => Work::Release(sequence),
        Command::Load { .. } => {
            tracing::error!("asked to load twice");
            std::process::exit(1);
        }
    }
}

fn compute(
    stage: &mut dyn Stage,
    segments: Vec<Segment>,
    output: &mut impl Write,
) -> io::Result<()> {
    let names: Vec<_> = segments.iter().map(|s| (s.sequence, s.start)).collect();
    let results = match stage.step(planaria_engine::stage::Step { segments }) {
        Ok(results) => results,
        Err(error) => {
            say(output, &Event::Failed(error.to_string()), Bytes::new())?;
            std::process::exit(SAID_WHY);
        }
    };
    for ((sequence, start), result) in names.into_iter().zip(results) {
        let (outcome, payload) = match result {
            Ok(SegmentOutput::Hidden(hidden)) => (Outcome::Hidden, hidden),
            Ok(SegmentOutput::Sampled(sampled)) => (Outcome::Sampled(sampled), Bytes::new()),
            Ok(SegmentOutput::Absorbed) => (Outcome::Absorbed, Bytes::new()),
            Err(error) => (Outcome::Rejected(error), Bytes::new()),
        };
        write_event(output, &Event::Computed { sequence, start, outcome }, payload)?;
    }
    output.flush()
}

fn say(output: &mut impl Write, event: &Event, payload: Bytes) -> io::Result<()> {
    write_event(output, event, payload)?;
    output.flush()
}

fn write_event(output: &mut impl Write, event: &Event, payload: Bytes) -> io::Result<()> {
    let header = encode_message(event).map_err(io::Error::other)?;
    Frame { header, payload }.write_to(output, FRAME_CAP).map_err(io::Error::other)
}
