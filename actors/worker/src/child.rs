//! The worker process: one thread owns the stage, takes commands and computes; another waits for the node's end.
//!
//! Standard output is a pipe of frames to the node and back. Standard input brings nothing: it closes when the node is gone,
//! however it died, and that ends the process even in the middle of a step.

use std::io::{self, Read as _, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{LayerRange, LayerSet};
use planaria_engine::model_dir::{ModelDir, ModelError};
use planaria_engine::processor::Processor;
use planaria_engine::stage::{LoadProgress, SegmentError, SegmentOutput, Stage, StageError};
use planaria_mlx::{open_stage, probe_device};
use planaria_pipeline::step_queue::{Next, Queue, Ticket, Work};
use planaria_protocol::pipe::{
    Command, Compute, Computed, FRAME_CAP, Files, Outcome, Status, StepTaken, WorkerEvent,
    tokens_from_bytes,
};
use planaria_transport::{
    ChildPipe, ChildReceiver, Frame, FrameError, decode_message, encode_message,
};

use crate::machine;

/// How long a step waits for what was computed together with what is here: it was sent at once,
/// so it comes soon or its sequence has ended.
const TOGETHER: Duration = Duration::from_millis(2);

/// How often the node is told what the stage holds and has done, while that changes.
const STATUS_EVERY: Duration = Duration::from_millis(500);

/// Exit code of a worker that said why it ends.
const SAID_WHY: i32 = 3;

/// Runs a worker on this process's standard input and output until the node closes them, computing on
/// `processor`. Whatever else writes to standard output from here on reaches standard error instead.
///
/// # Errors
/// When standard output is no pipe to a node, or the node went away before its first word.
pub fn run(processor: Processor) -> io::Result<()> {
    processor
        .choose()
        .map_err(|other| io::Error::other(format!("it computes as {other:?} already")))?;
    thread::Builder::new().name("life-line".to_owned()).spawn(end_with_the_node)?;
    // No process that a library starts gets it, and keeps the node from hearing of this one's end.
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 0)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    let (commands, mut output) = ChildPipe::attach(socket, FRAME_CAP)?.split();
    match work(&mut Commands(commands), &mut output) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error),
    }
}

/// Never returns while the node lives.
fn end_with_the_node() {
    let mut byte = [0];
    let ended = io::stdin().lock().read_exact(&mut byte);
    if !matches!(&ended, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof) {
        tracing::error!(?ended, "the life line brought something");
    }
    end_at_once();
}

/// What the node says.
struct Commands(ChildReceiver);

impl Commands {
    /// The next command, as soon as it comes; `None` when it did not until then.
    fn next_until(&mut self, deadline: Instant) -> io::Result<Option<(Command, Bytes)>> {
        self.0.recv_until(deadline).and_then(understood).map_err(from_pipe)
    }

    /// The next command, if it is here.
    fn next_here(&mut self) -> io::Result<Option<(Command, Bytes)>> {
        self.0.try_recv().and_then(understood).map_err(from_pipe)
    }
}

fn understood(frame: Option<Frame>) -> Result<Option<(Command, Bytes)>, FrameError> {
    let Some(frame) = frame else { return Ok(None) };
    let command = decode_message::<Command>(&frame.header).map_err(io::Error::other)?;
    Ok(Some((command, frame.payload)))
}

fn from_pipe(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// Ends the process and nothing else. An orderly exit runs MLX's destructors, which wait for threads
/// that may wait for this one: orphans were found that never ended.
fn end_at_once() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    // It cannot fail; if it did, this would end the process as well.
    kill_process(getpid(), Signal::KILL).ok();
    std::process::abort()
}

fn work(commands: &mut Commands, output: &mut impl Write) -> io::Result<()> {
    let first = loop {
        if let Some((first, _)) = commands.next_until(Instant::now() + STATUS_EVERY)? {
            break first;
        }
    };
    let (model_dir, files) = match first {
        Command::Open(model_dir, files) => (model_dir, files),
        Command::Probe => {
            let probed = probe_device().map_err(|error| error.to_string());
            return say(output, &WorkerEvent::Probed(probed), Bytes::new());
        }
        _ => return Err(io::Error::other("the first command was not to open a model")),
    };
    let stage = match open_same(&model_dir, &files).and_then(|dir| open_stage(&dir)) {
        Ok(stage) => stage,
        Err(error) => {
            say(output, &WorkerEvent::OpenFailed(error.to_string()), Bytes::new())?;
            std::process::exit(SAID_WHY);
        }
    };
    say(output, &WorkerEvent::Opened, Bytes::new())?;
    Worker::new(stage, output, Instant::now).run(commands)
}

/// Opens the model, if its files are those that the node knows: what is said of it holds for no others.
fn open_same(model_dir: &Path, files: &Files) -> Result<ModelDir, ModelError> {
    let dir = ModelDir::open(model_dir)?;
    let now = dir.stamps();
    let other = files.stamps.iter().find(|(file, stamp)| now.get(*file) != Some(*stamp));
    let other = other.or_else(|| now.iter().find(|(file, _)| !files.stamps.contains_key(*file)));
    match other {
        Some((file, _)) => Err(ModelError::Changed { file: file.clone() }),
        None if dir.digest() != files.digest => {
            Err(ModelError::Changed { file: model_dir.to_owned() })
        }
        None => Ok(dir),
    }
}

/// The computing thread once the model is open: it takes commands, and writes events to `output`.
pub struct Worker<W> {
    stage: Box<dyn Stage>,
    /// The layers that it is to hold, in the order in which they are to be loaded.
    wanted: Vec<LayerRange>,
    queue: Queue,
    output: W,
    clock: fn() -> Instant,
    status: Status,
    /// What the node knows of `status`, and since when.
    said: Status,
    said_at: Instant,
}

impl<W: Write> Worker<W> {
    /// A thread that holds no layers yet; `clock` tells the time.
    pub fn new(stage: Box<dyn Stage>, output: W, clock: fn() -> Instant) -> Self {
        let status = Status { memory: stage.memory(), ..Status::default() };
        let (wanted, queue, said_at) = (Vec::new(), Queue::default(), clock());
        Self { stage, wanted, queue, output, clock, status, said: status, said_at }
    }

    /// The layers that its stage holds.
    #[must_use]
    pub fn held(&self) -> &LayerSet {
        self.stage.held()
    }

    /// What its stage takes.
    #[must_use]
    pub fn memory(&self) -> planaria_engine::stage::MemoryUse {
        self.stage.memory()
    }

    /// Until the node is gone.
    fn run(mut self, commands: &mut Commands) -> io::Result<()> {
        loop {
            // Between two steps whatever has come is taken in, and with nothing to do the first of it
            // is waited for.
            if !self.turn()? {
                match commands.next_until(Instant::now() + STATUS_EVERY)? {
                    Some(first) => self.take(first)?,
                    None => {
                        self.check()?;
                        self.tell_status()?;
                        continue;
                    }
                }
            }
            while let Some(command) = commands.next_here()? {
                self.take(command)?;
            }
            let until = Instant::now() + TOGETHER;
            while self.queue.expects_more() {
                match commands.next_until(until)? {
                    Some(command) => self.take(command)?,
                    None => self.queue.expect_no_more(),
                }
            }
        }
    }

    /// Computes a step of what waits, and loads one of the layers that lack. Whether there was
    /// anything to do.
    pub fn turn(&mut self) -> io::Result<bool> {
        let reusable = |layers, tokens: &[u32]| self.stage.reusable(layers, tokens);
        let next = self.queue.next(reusable);
        let computes = next.is_some();
        if let Some(next) = next {
            self.compute(next)?;
        }
        Ok(self.gain_layer()? || computes)
    }

    /// Loads one of the layers that lack. Whether there was one.
    fn gain_layer(&mut self) -> io::Result<bool> {
        let held = self.stage.held();
        let lacking = |layer: &u32| !held.contains(*layer);
        let Some(layer) = self.wanted.iter().flat_map(|run| run.range()).find(lacking) else {
            return Ok(false);
        };
        let Some(layer) = LayerRange::half_open(layer, layer + 1) else {
            return Ok(false);
        };
        let more = held.with(layer);
        self.hold(&more)?;
        Ok(true)
    }

    fn hold(&mut self, layers: &LayerSet) -> io::Result<()> {
        let output = &mut self.output;
        let held = self.stage.hold(layers, &mut |LoadProgress { bytes_loaded, bytes_total }| {
            let event = WorkerEvent::Loading { done: bytes_loaded, total: bytes_total };
            // A node that does not listen any more is noticed by the thread that waits for its end.
            drop(say(output, &event, Bytes::new()));
        });
        if let Err(error) = held {
            self.wanted.clear();
            say(&mut self.output, &WorkerEvent::HoldFailed(error.to_string()), Bytes::new())?;
        }
        let (layers, memory) = (self.stage.held().clone(), self.stage.memory());
        say(&mut self.output, &WorkerEvent::Holds { layers, memory }, Bytes::new())
    }

    /// Takes in a command.
    ///
    /// # Errors
    /// When an event cannot be written.
    pub fn take(&mut self, (command, payload): (Command, Bytes)) -> io::Result<()> {
        match command {
            Command::Compute(compute) => {
                let Compute { attempt, reuse, more, .. } = compute;
                let segment = compute.into_segment(payload);
                self.queue.push(Work { segment, attempt, reuse, more });
            }
            Command::Release(sequence) => {
                self.queue.release(sequence);
                self.stage.release(sequence);
            }
            Command::StateQuery { sequence, attempt, params } => {
                self.queue.release(sequence);
                let tokens = tokens_from_bytes(&payload);
                let progress = self.stage.recall(sequence, &tokens, &params);
                let event = WorkerEvent::StageProgress { sequence, attempt, progress };
                say(&mut self.output, &event, Bytes::new())?;
            }
            Command::Rewind { sequence, to } => {
                for (layers, position) in to {
                    self.stage.rewind(sequence, layers, position);
                }
            }
            Command::Hold(layers) => {
                self.wanted = layers;
                let wanted: LayerSet = self.wanted.iter().copied().collect();
                let stays = self.stage.held().within(&wanted);
                if stays != *self.stage.held() {
                    self.hold(&stays)?;
                }
            }
            Command::Adopt { layers, stages, kv_bytes } => {
                self.queue.adopt(layers, stages);
                self.stage.set_kv_budget(kv_bytes);
            }
            Command::Open(..) | Command::Probe => {
                tracing::error!("asked to begin twice");
                std::process::exit(1);
            }
        }
        Ok(())
    }

    fn compute(&mut self, next: Next) -> io::Result<()> {
        let prompt_tokens = next.prompt_tokens();
        let Next { reused, step, tickets, answers } = next;
        for ticket in reused {
            let (start, count) = (ticket.segment, 0);
            let computed = of(ticket, (start, count), Outcome::Reused, StepTaken::default());
            write_event(&mut self.output, &WorkerEvent::Computed(computed), Bytes::new())?;
        }
        let places: Vec<(u32, u32)> = step
            .segments
            .iter()
            .map(|s| (s.start, u32::try_from(s.tokens.len()).unwrap_or(u32::MAX)))
            .collect();
        for segment in &step.segments {
            self.status.reused_positions += segment.prefix.len() as u64;
        }
        self.status.prompt_positions += prompt_tokens as u64;
        let began = (self.clock)();
        let results = match self.stage.step(step) {
            Ok(results) => results,
            Err(error) => self.fail(&error)?,
        };
        let took = (self.clock)().duration_since(began);
        tracing::debug!(answers, prompt_tokens, ?took, "step");
        self.queue.took(answers, prompt_tokens, took);
        self.status.steps += 1;
        self.status.busy_micros += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let tokens = places.iter().map(|(_, count)| count).sum();
        let segments = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let taken = StepTaken { micros, segments, tokens };
        let mut to_come = results.iter().filter(|result| goes_on(result)).count();
        for ((ticket, place), result) in tickets.into_iter().zip(places).zip(results) {
            to_come -= usize::from(goes_on(&result));
            if self.queue.is_whole() && matches!(result, Ok(SegmentOutput::Sampled(_))) {
                self.queue.expect_back(ticket.sequence);
            }
            let more = goes_on(&result) && to_come > 0;
            let (outcome, payload) = match result {
                Ok(SegmentOutput::Hidden(hidden)) => (Outcome::Hidden, hidden),
                Ok(SegmentOutput::Sampled(sampled)) => (Outcome::Sampled(sampled), Bytes::new()),
                Ok(SegmentOutput::Absorbed) => (Outcome::Absorbed, Bytes::new()),
                Err(error) => (Outcome::Rejected(error), Bytes::new()),
            };
            let computed = Computed { more, ..of(ticket, place, outcome, taken) };
            write_event(&mut self.output, &WorkerEvent::Computed(computed), payload)?;
        }
        self.output.flush()?;
        if (self.clock)().duration_since(self.said_at) >= STATUS_EVERY {
            self.tell_status()?;
        }
        Ok(())
    }

    fn check(&mut self) -> io::Result<()> {
        let Err(error) = self.stage.check() else { return Ok(()) };
        self.fail(&error)
    }

    /// Says why, and ends the process.
    fn fail<T>(&mut self, error: &StageError) -> io::Result<T> {
        say(&mut self.output, &WorkerEvent::Failed(error.to_string()), Bytes::new())?;
        std::process::exit(SAID_WHY);
    }

    fn tell_status(&mut self) -> io::Result<()> {
        self.status.memory = self.stage.memory();
        self.status.peak_bytes = machine::peak_bytes().unwrap_or(self.status.memory.peak);
        let step_micros = self.queue.plain_step().map_or(0, |step| step.as_micros());
        self.status.step_micros = u32::try_from(step_micros).unwrap_or(u32::MAX);
        self.status.step_layers = self.queue.layers();
        self.said_at = (self.clock)();
        if self.status == self.said {
            return Ok(());
        }
        self.said = self.status;
        tracing::debug!(status = ?self.status, "status");
        say(&mut self.output, &WorkerEvent::Status(self.status), Bytes::new())
    }
}

/// What came of a piece at this place.
const fn of(
    ticket: Ticket,
    (start, count): (u32, u32),
    outcome: Outcome,
    step: StepTaken,
) -> Computed {
    let Ticket { sequence, attempt, layer, segment } = ticket;
    Computed { sequence, attempt, layer, segment, start, count, outcome, more: false, step }
}

/// Whether something for the next stage comes of it, or the next token.
fn goes_on(result: &Result<SegmentOutput, SegmentError>) -> bool {
    matches!(result, Ok(SegmentOutput::Hidden(_) | SegmentOutput::Sampled(_)))
}

fn say(output: &mut impl Write, event: &WorkerEvent, payload: Bytes) -> io::Result<()> {
    write_event(output, event, payload)?;
    output.flush()
}

fn write_event(output: &mut impl Write, event: &WorkerEvent, payload: Bytes) -> io::Result<()> {
    let header = encode_message(event).map_err(io::Error::other)?;
    Frame { header, payload }.write_to(output, FRAME_CAP).map_err(io::Error::other)
}
