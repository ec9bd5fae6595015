//! The worker process: one thread owns the stage, takes commands and computes; another waits for the node's end.
//!
//! Standard output is a pipe of frames to the node and back. Standard input brings nothing: it closes when the node is gone,
//! however it died, and that ends the process even in the middle of a step.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{LayerRange, LayerSet, SequenceId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::model_dir::{ModelDir, ModelError};
use planaria_engine::processor::Processor;
use planaria_engine::stage::{
    LoadProgress, Progress, SegmentError, SegmentOutput, Stage, StageError, Step,
};
use planaria_mlx::{open_stage, probe_device};
use planaria_pipeline::step_queue::{Next, Queue, Ticket, Work};
use planaria_protocol::pipe::{
    Command, Compute, Computed, FRAME_CAP, Files, GroupRank, Outcome, Status, StepTaken,
    WorkerEvent, tokens_from_bytes,
};
use planaria_transport::{
    ChildPipe, ChildReceiver, Frame, FrameError, decode_message, encode_message,
};

use crate::machine;
use crate::ranks::{RankEvent, Ranks, Run, Trouble};

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

    /// As [`Self::next_until`], for one that is to come at once: the processor does not sleep before it has looked for a while.
    fn next_soon(&mut self, deadline: Instant) -> io::Result<Option<(Command, Bytes)>> {
        self.0.recv_soon(deadline).and_then(understood).map_err(from_pipe)
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
    let (model_dir, files, rank) = match first {
        Command::Open(model_dir, files, rank) => (model_dir, files, rank),
        Command::Probe => {
            let probed = probe_device().map_err(|error| error.to_string());
            return say(output, &WorkerEvent::Probed(probed), Bytes::new());
        }
        _ => return Err(io::Error::other("the first command was not to open a model")),
    };
    let open = || {
        let units = rank.as_ref().map(own_units).transpose()?;
        open_stage(&open_same(&model_dir, &files)?, units)
    };
    let stage = match open() {
        Ok(stage) => stage,
        Err(error) => {
            say(output, &WorkerEvent::OpenFailed(error.to_string()), Bytes::new())?;
            std::process::exit(SAID_WHY);
        }
    };
    say(output, &WorkerEvent::Opened, Bytes::new())?;
    Worker::new(stage, rank.as_ref(), output, Instant::now).run(commands)
}

/// The units of a rank.
fn own_units(rank: &GroupRank) -> Result<RankUnits, ModelError> {
    let none = || {
        ModelError::Backend(format!("there is no {} in a group of {}", rank.me, rank.units.len()))
    };
    rank.own().ok_or_else(none)
}

/// Opens the model, if its files are those that the node knows: what is said of it holds for no others.
fn open_same(model_dir: &Path, files: &Files) -> Result<ModelDir, ModelError> {
    let dir = ModelDir::open(model_dir)?.with_kv_bits(files.kv_bits)?;
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
    /// If the stage is a rank of a group.
    ranks: Option<Ranks>,
    /// What the group does for this worker, which leads it.
    running: Option<Running>,
    /// Commands that wait until the stage may be touched again.
    deferred: VecDeque<(Command, Bytes)>,
    /// Whether the node knows that there is something of sequences here.
    follows: bool,
    output: W,
    clock: fn() -> Instant,
    status: Status,
    /// What the node knows of `status`, and since when.
    said: Status,
    said_at: Instant,
}

/// What a group does for the worker that leads it.
enum Running {
    Step(UnderWay),
    Recall { sequence: SequenceId, attempt: u16 },
}

/// A step that is being computed.
struct UnderWay {
    /// Of each segment, what it is a piece of, and its first position and their number.
    pieces: Vec<(Ticket, (u32, u32))>,
    answers: usize,
    prompt_tokens: usize,
    began: Instant,
}

impl<W: Write> Worker<W> {
    /// A thread that holds no layers yet, and computes a `rank` of a group or whole layers; `clock` tells the time.
    pub fn new(
        stage: Box<dyn Stage>,
        rank: Option<&GroupRank>,
        output: W,
        clock: fn() -> Instant,
    ) -> Self {
        let status = Status { memory: stage.memory(), ..Status::default() };
        Self {
            stage,
            wanted: Vec::new(),
            queue: Queue::default(),
            ranks: rank.and_then(Ranks::new),
            running: None,
            deferred: VecDeque::new(),
            follows: false,
            output,
            clock,
            status,
            said: status,
            said_at: clock(),
        }
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
                let status_at = Instant::now() + STATUS_EVERY;
                // What other ranks send comes at once.
                let next = match self.wake_at() {
                    Some(at) => commands.next_soon(at.min(status_at))?,
                    None => commands.next_until(status_at)?,
                };
                match next {
                    Some(first) => self.take(first)?,
                    None if self.wake_at().is_none() => {
                        self.check()?;
                        self.tell_status()?;
                        continue;
                    }
                    None => continue,
                }
            }
            while let Some(command) = commands.next_here()? {
                self.take(command)?;
            }
            if self.is_busy() {
                continue;
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

    /// When a rank is to have its turn though nothing came.
    pub fn wake_at(&self) -> Option<Instant> {
        self.ranks.as_ref().and_then(Ranks::wake_at)
    }

    /// Whether ranks are in the middle of something.
    fn is_busy(&self) -> bool {
        self.ranks.as_ref().is_some_and(Ranks::is_busy)
    }

    /// Computes a step of what waits, and loads one of the layers that lack. Whether there was
    /// anything to do.
    pub fn turn(&mut self) -> io::Result<bool> {
        if self.wake_at().is_some_and(|at| at <= (self.clock)()) {
            self.with_ranks(Ranks::tick)?;
            self.obey_deferred()?;
        }
        if self.is_busy() {
            return Ok(false);
        }
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
        let held = self.stage.hold(layers, &mut tell_loading(&mut self.output));
        self.loaded(held)?;
        self.say_holds()
    }

    /// What was to be loaded is, or nothing else is tried.
    fn loaded(&mut self, loaded: Result<(), ModelError>) -> io::Result<()> {
        let Err(error) = loaded else { return Ok(()) };
        self.wanted.clear();
        say(&mut self.output, &WorkerEvent::HoldFailed(error.to_string()), Bytes::new())
    }

    fn say_holds(&mut self) -> io::Result<()> {
        let (layers, memory) = (self.stage.held().clone(), self.stage.memory());
        let units = self.ranks.as_ref().map(Ranks::units);
        say(&mut self.output, &WorkerEvent::Holds { layers, memory, units }, Bytes::new())
    }

    /// Takes in a command.
    ///
    /// # Errors
    /// When an event cannot be written.
    pub fn take(&mut self, (command, payload): (Command, Bytes)) -> io::Result<()> {
        match command {
            Command::Exchange(header) => {
                self.with_ranks(|ranks, run| ranks.frame(run, &header, payload))?;
            }
            Command::Over(rank) => self.with_ranks(|ranks, run| ranks.over(run, rank))?,
            Command::Join(rank) => {
                // Nothing that its former group does can come to an end.
                self.with_ranks(|ranks, run| ranks.leave(run))?;
                self.obey_deferred()?;
                self.join(&rank)?;
            }
            // What waits to be computed touches nothing yet.
            Command::Compute(_) if self.is_busy() && self.deferred.is_empty() => {
                self.obey(command, payload)?;
            }
            _ if self.is_busy() => self.deferred.push_back((command, payload)),
            command => self.obey(command, payload)?,
        }
        self.obey_deferred()
    }

    /// Obeys what has waited until the stage may be touched.
    fn obey_deferred(&mut self) -> io::Result<()> {
        while !self.is_busy()
            && let Some((command, payload)) = self.deferred.pop_front()
        {
            self.obey(command, payload)?;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command, payload: Bytes) -> io::Result<()> {
        match command {
            Command::Compute(compute) => {
                let Compute { attempt, reuse, more, .. } = compute;
                let segment = compute.into_segment(payload);
                self.queue.push(Work { segment, attempt, reuse, more });
            }
            Command::Release(sequence) => {
                self.queue.release(sequence);
                self.stage.release(sequence);
                self.with_ranks(|ranks, run| ranks.release(run, sequence).map(|()| Vec::new()))?;
            }
            Command::StateQuery { sequence, attempt, params } => {
                self.queue.release(sequence);
                if self.ranks.is_some() {
                    self.running = Some(Running::Recall { sequence, attempt });
                    self.with_ranks(|ranks, run| ranks.recall(run, (sequence, &payload), &params))?;
                } else {
                    let tokens = tokens_from_bytes(&payload);
                    let progress = self.stage.recall(sequence, &tokens, &params);
                    self.say_progress(sequence, attempt, progress)?;
                }
            }
            Command::Rewind { sequence, to } => {
                for (layers, position) in &to {
                    self.stage.rewind(sequence, *layers, *position);
                }
                self.with_ranks(|ranks, run| ranks.rewind(run, sequence, to).map(|()| Vec::new()))?;
            }
            Command::ForgetUntouched(patience) => {
                self.with_ranks(|ranks, run| {
                    ranks.forget_untouched(run, patience);
                    Ok(Vec::new())
                })?;
            }
            Command::Retain(known) => {
                self.with_ranks(|ranks, run| {
                    run.keep_only(&known);
                    ranks.retain(run).map(|()| Vec::new())
                })?;
            }
            Command::Hold(layers) => {
                self.wanted = layers;
                let wanted: LayerSet = self.wanted.iter().copied().collect();
                let stays = self.stage.held().within(&wanted);
                if stays != *self.stage.held() {
                    self.hold(&stays)?;
                }
            }
            Command::Adopt { layers, stages, kv_bytes, lead } => {
                self.queue.adopt(layers, stages);
                match &mut self.ranks {
                    // Ranks keep nothing of former sequences: each would keep something else.
                    Some(ranks) => ranks.adopt(lead),
                    None => self.stage.set_kv_budget(kv_bytes),
                }
            }
            Command::Open(..)
            | Command::Probe
            | Command::Join(_)
            | Command::Exchange(_)
            | Command::Over(_) => {
                tracing::error!("asked to begin twice");
                std::process::exit(1);
            }
        }
        Ok(())
    }

    /// Becomes another rank.
    fn join(&mut self, rank: &GroupRank) -> io::Result<()> {
        let taken = own_units(rank)
            .and_then(|units| self.stage.take_units(units, &mut tell_loading(&mut self.output)));
        self.loaded(taken)?;
        let before = self.ranks.take();
        self.ranks = Ranks::new(rank).map(|ranks| ranks.after(before));
        self.say_holds()
    }

    /// Has the rank do something with the others, and does what follows.
    fn with_ranks(
        &mut self,
        act: impl FnOnce(&mut Ranks, &mut Run<'_>) -> Result<Vec<RankEvent>, Trouble>,
    ) -> io::Result<()> {
        let Some(ranks) = &mut self.ranks else { return Ok(()) };
        let mut run = Run { stage: &mut *self.stage, output: &mut self.output, clock: self.clock };
        let acted = act(ranks, &mut run);
        let leads = ranks.leads();
        let events = match acted {
            Ok(events) => events,
            Err(Trouble::Pipe(error)) => return Err(error),
            Err(Trouble::Stage(error)) => return self.fail(&error),
        };
        for event in events {
            match (event, self.running.take()) {
                (RankEvent::Stepped(results, exchanges, waited), Some(Running::Step(step))) => {
                    let exchange_micros = u32::try_from(waited.as_micros()).unwrap_or(u32::MAX);
                    let taken = StepTaken { exchanges, exchange_micros, ..StepTaken::default() };
                    self.stepped(step, taken, results)?;
                }
                (RankEvent::Recalled(progress), Some(Running::Recall { sequence, attempt })) => {
                    self.say_progress(sequence, attempt, progress)?;
                }
                (RankEvent::Over(reason), running) => self.group_over(&reason, running)?,
                (_, running) => self.running = running,
            }
        }
        if !leads {
            // A leader does with its results.
            self.tell_status_in_time()?;
        }
        let follows = !leads && !self.stage.sequences().is_empty();
        if std::mem::replace(&mut self.follows, follows) != follows {
            say(&mut self.output, &WorkerEvent::Follows(follows), Bytes::new())?;
        }
        Ok(())
    }

    /// The group is over, and with it what it did.
    fn group_over(&mut self, reason: &str, running: Option<Running>) -> io::Result<()> {
        let error = || SegmentError::GroupFailed(reason.to_owned());
        match running {
            Some(Running::Step(step)) => {
                for piece in step.pieces {
                    self.not_computed(piece, Outcome::Rejected(error()))?;
                }
            }
            Some(Running::Recall { sequence, attempt }) => {
                self.say_progress(sequence, attempt, Err(error()))?;
            }
            None => {}
        }
        say(&mut self.output, &WorkerEvent::GroupOver(reason.to_owned()), Bytes::new())
    }

    fn say_progress(
        &mut self,
        sequence: SequenceId,
        attempt: u16,
        progress: Result<Vec<Progress>, SegmentError>,
    ) -> io::Result<()> {
        let event = WorkerEvent::StageProgress { sequence, attempt, progress };
        say(&mut self.output, &event, Bytes::new())
    }

    fn compute(&mut self, next: Next) -> io::Result<()> {
        let prompt_tokens = next.prompt_tokens();
        let Next { reused, step, tickets, answers } = next;
        for ticket in reused {
            let place = (ticket.segment, 0);
            self.not_computed((ticket, place), Outcome::Reused)?;
        }
        let places = step
            .segments
            .iter()
            .map(|s| (s.start, u32::try_from(s.tokens.len()).unwrap_or(u32::MAX)));
        let pieces = tickets.into_iter().zip(places).collect();
        for segment in &step.segments {
            self.status.reused_positions += segment.prefix.len() as u64;
        }
        self.status.prompt_positions += prompt_tokens as u64;
        let under_way = UnderWay { pieces, answers, prompt_tokens, began: (self.clock)() };
        if self.ranks.is_some() {
            return self.lead(under_way, step);
        }
        match self.stage.step(step) {
            Ok(results) => self.stepped(under_way, StepTaken::default(), results),
            Err(error) => self.fail(&error),
        }
    }

    /// Has the group compute what is sound of a step.
    fn lead(&mut self, step: UnderWay, Step { segments }: Step) -> io::Result<()> {
        let checks = self.stage.check_segments(&segments);
        let (mut pieces, mut sound) = (Vec::new(), Vec::new());
        for ((piece, segment), check) in step.pieces.into_iter().zip(segments).zip(checks) {
            match check {
                Ok(()) => {
                    pieces.push(piece);
                    sound.push(segment);
                }
                Err(error) => self.not_computed(piece, Outcome::Rejected(error))?,
            }
        }
        if sound.is_empty() {
            return self.output.flush();
        }
        self.running = Some(Running::Step(UnderWay { pieces, ..step }));
        self.with_ranks(|ranks, run| ranks.step(run, Step { segments: sound }))
    }

    /// Says what came of a piece that took no step; it is not sent yet.
    fn not_computed(
        &mut self,
        (ticket, place): (Ticket, (u32, u32)),
        outcome: Outcome,
    ) -> io::Result<()> {
        let computed = of(ticket, place, outcome, StepTaken::default());
        write_event(&mut self.output, &WorkerEvent::Computed(computed), Bytes::new())
    }

    /// Tells what came of a step.
    fn stepped(
        &mut self,
        step: UnderWay,
        taken: StepTaken,
        results: Vec<Result<SegmentOutput, SegmentError>>,
    ) -> io::Result<()> {
        let UnderWay { pieces, answers, prompt_tokens, began } = step;
        let took = (self.clock)().duration_since(began);
        tracing::debug!(answers, prompt_tokens, ?took, "step");
        self.queue.took(answers, prompt_tokens, took);
        self.status.steps += 1;
        self.status.busy_micros += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let tokens = pieces.iter().map(|(_, (_, count))| count).sum();
        let segments = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut taken = StepTaken { micros, segments, tokens, is_first: true, ..taken };
        let mut to_come = results.iter().filter(|result| goes_on(result)).count();
        for ((ticket, place), result) in pieces.into_iter().zip(results) {
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
            taken.is_first = false;
        }
        self.output.flush()?;
        self.tell_status_in_time()
    }

    /// Tells the status if that is due: one that always has something to do tells it as well.
    fn tell_status_in_time(&mut self) -> io::Result<()> {
        if (self.clock)().duration_since(self.said_at) < STATUS_EVERY {
            return Ok(());
        }
        self.tell_status()
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
        if let Some((micros, part)) = self.ranks.as_ref().and_then(Ranks::plain_step) {
            // Whoever follows knows of no plan: all that it holds takes part in each step.
            self.status.step_layers = self.stage.held().runs().first().copied();
            (self.status.step_micros, self.status.step_rank) = (micros, Some(part));
        }
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

/// Says how far loading is.
fn tell_loading(output: &mut impl Write) -> impl FnMut(LoadProgress) {
    |LoadProgress { bytes_loaded, bytes_total }| {
        let event = WorkerEvent::Loading { done: bytes_loaded, total: bytes_total };
        // A node that does not listen any more is noticed by the thread that waits for its end.
        drop(say(output, &event, Bytes::new()));
    }
}

fn say(output: &mut impl Write, event: &WorkerEvent, payload: Bytes) -> io::Result<()> {
    write_event(output, event, payload)?;
    output.flush()
}

fn write_event(output: &mut impl Write, event: &WorkerEvent, payload: Bytes) -> io::Result<()> {
    let header = encode_message(event).map_err(io::Error::other)?;
    Frame { header, payload }.write_to(output, FRAME_CAP).map_err(io::Error::other)
}
