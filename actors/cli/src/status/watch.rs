//! The cluster as it changes: drawn in place on a terminal, printed at every change elsewhere.

use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers, poll, read};
use crossterm::style::Print;
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
    EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use crossterm::{execute, queue};
use planaria_control::cluster_view::{ClusterView, SHORT_OF_MEMORY};
use planaria_protocol::capabilities::LinkSpeed;
use planaria_protocol::wire::ShardWork;
use planaria_telemetry::wall_clock::unix_millis;

use super::describe::{Look, describe};
use super::{look, view};
use crate::node_api::NodeApi;
use crate::output;

/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long a key that was pressed waits at most for news of the node to be looked at, and the other way round.
const LOOK: Duration = Duration::from_millis(100);

/// What the node answered, or why it did not.
type Answer = anyhow::Result<ClusterView>;

/// Shows the cluster until the person has seen enough.
pub(super) fn watch(node: &NodeApi, first: ClusterView, links: bool) -> anyhow::Result<ExitCode> {
    let (tell, answers) = sync_channel(1);
    let asked = node.clone();
    thread::Builder::new().name("watch".to_owned()).spawn(move || {
        loop {
            #[expect(clippy::disallowed_methods, reason = "this thread does nothing else")]
            thread::sleep(EVERY);
            // Nobody looks any more otherwise.
            if tell.send(view(&asked)).is_err() {
                return;
            }
        }
    })?;
    let shown = if io::stdout().is_terminal() {
        draw(node, first, &answers, links)
    } else {
        print(first, &answers, links)
    };
    match shown {
        // Whoever read it has read enough.
        Err(error) if output::is_broken_pipe(&error) => {}
        shown => shown?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the view each time that it changes.
fn print(first: ClusterView, answers: &Receiver<Answer>, links: bool) -> anyhow::Result<()> {
    let mut next = Some(Ok(first));
    let (mut printed, mut complaint) = (None, String::new());
    while let Some(answer) = next {
        match answer {
            Ok(view) => {
                let look = look(links);
                let gist = gist(&view, &look);
                if printed.as_ref() != Some(&gist) {
                    let mut out = io::stdout().lock();
                    let gap = if printed.is_some() { "\n" } else { "" };
                    write!(out, "{gap}{}", describe(&view, unix_millis(), &look))?;
                    out.flush()?;
                    printed = Some(gist);
                }
                complaint.clear();
            }
            Err(error) => {
                let said = format!("{error:#}");
                if complaint != said {
                    writeln!(io::stderr().lock(), "{said}")?;
                    complaint = said;
                }
            }
        }
        next = answers.recv().ok();
    }
    bail!("nothing asks the node any more");
}

/// What of the text is worth another one when it changes: all but what is measured anew all the time, and how
/// long ago something was.
fn gist(view: &ClusterView, look: &Look) -> String {
    let mut gist = view.clone();
    for node in &mut gist.nodes {
        node.memory_free_bytes = 0;
        // That a node is short of memory is news, and how short it is is not.
        let short = node.memory.pressure_percent.filter(|percent| *percent >= SHORT_OF_MEMORY);
        node.memory.pressure_percent = short.map(|_| SHORT_OF_MEMORY);
        for link in &mut node.links {
            link.speed = LinkSpeed { rtt_micros: 0, bytes_per_second: None };
            for path in &mut link.paths {
                // Whether it answers at all is shown as well.
                path.rtt_micros = path.rtt_micros.map(|_| 1);
                path.bytes_per_second = None;
            }
        }
    }
    for stage in gist.models.iter_mut().flat_map(|model| &mut model.stages) {
        stage.work = ShardWork::default();
        stage.hop_micros = None;
    }
    describe(&gist, 0, look)
}

/// Draws the view in place until a key ends it.
fn draw(
    node: &NodeApi,
    first: ClusterView,
    answers: &Receiver<Answer>,
    links: bool,
) -> anyhow::Result<()> {
    let (mut view, mut since, mut problem) = (first, Instant::now(), None);
    let mut screen = Screen::enter()?;
    loop {
        let footer = match &problem {
            None => format!("{} - q leaves", node.url()),
            Some(problem) => {
                let age = since.elapsed().as_secs();
                format!("This is {age} s old: {problem} - q leaves")
            }
        };
        screen.draw(&view, &look(links), &footer)?;
        loop {
            if poll(LOOK)? {
                match read()? {
                    Event::Key(key) if leaves(key) => return Ok(()),
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
            match answers.try_recv() {
                Ok(Ok(seen)) => (view, since, problem) = (seen, Instant::now(), None),
                Ok(Err(error)) => problem = Some(error.to_string()),
                Err(TryRecvError::Empty) => continue,
                Err(TryRecvError::Disconnected) => bail!("nothing asks the node any more"),
            }
            break;
        }
    }
}

/// Whether a key means that the person has seen enough.
fn leaves(KeyEvent { code, modifiers, .. }: KeyEvent) -> bool {
    let control = modifiers.contains(KeyModifiers::CONTROL);
    match code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c' | 'd') => control,
        _ => false,
    }
}

/// The terminal's other screen. Dropping it gives back what was there before.
struct Screen(Stdout);

impl Screen {
    fn enter() -> io::Result<Self> {
        enable_raw_mode()?;
        let mut screen = Self(io::stdout());
        execute!(screen.0, EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    /// Draws over what was drawn before, so that nothing flickers.
    fn draw(&mut self, view: &ClusterView, look: &Look, footer: &str) -> io::Result<()> {
        let (_, rows) = size()?;
        let text = describe(view, unix_millis(), look);
        let lines = fitted(&text, rows.saturating_sub(2).into());
        queue!(self.0, BeginSynchronizedUpdate, MoveTo(0, 0))?;
        for line in lines {
            queue!(self.0, Print(line), Clear(ClearType::UntilNewLine), Print("\r\n"))?;
        }
        queue!(self.0, Clear(ClearType::FromCursorDown), MoveTo(0, rows.saturating_sub(1)))?;
        queue!(self.0, Print(footer), EndSynchronizedUpdate)?;
        self.0.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Without a terminal there is nothing to give back.
        drop(execute!(self.0, EnableLineWrap, Show, LeaveAlternateScreen));
        drop(disable_raw_mode());
    }
}

/// As many lines as there are rows for. The last one says how many are left out.
fn fitted(text: &str, rows: usize) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    if lines.len() > rows {
        let kept = rows.saturating_sub(1);
        let left = lines.len() - kept;
        lines.truncate(kept);
        lines.push(format!("... {left} lines more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use planaria_protocol::state::NodeState;

    use super::super::describe::tests::view;
    use super::*;

    #[test]
    fn the_same_text_is_not_printed_twice() {
        let (first, look) = (view(), Look { links: true, ..Look::default() });
        let gist_of = |change: fn(&mut ClusterView)| {
            let mut view = first.clone();
            change(&mut view);
            gist(&view, &look)
        };
        for measured in [
            |view: &mut ClusterView| view.nodes[0].sequences.running += 1,
            |view: &mut ClusterView| view.nodes[0].generated_tokens += 1,
            |view: &mut ClusterView| view.nodes[0].memory_free_bytes -= 1 << 20,
            |view: &mut ClusterView| view.models[0].stages[0].work.step_micros += 1000,
            |view: &mut ClusterView| view.models[0].stages[0].hop_micros = Some(500),
        ] {
            assert_eq!(gist_of(measured), gist_of(|_| {}));
        }
        for news in [
            |view: &mut ClusterView| view.nodes[0].memory.pressure_percent = Some(90),
            |view: &mut ClusterView| view.nodes[1].state = NodeState::Alive,
            |view: &mut ClusterView| view.sequences.running += 1,
        ] {
            assert_ne!(gist_of(news), gist_of(|_| {}));
        }
        let short = |percent| {
            let mut view = first.clone();
            view.nodes[0].memory.pressure_percent = Some(percent);
            gist(&view, &look)
        };
        assert_eq!(short(90), short(91));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(fitted("a\nb\nc\n", 3), ["a", "b", "c"]);
        assert_eq!(fitted("a\nb\nc\nd\n", 3), ["a", "b", "... 2 lines more"]);
        assert_eq!(fitted("a\nb\n", 0), ["... 2 lines more"]);
    }

    #[test]
    fn keys_that_people_try_leave() {
        let key = |code, modifiers| leaves(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!key(KeyCode::Up, KeyModifiers::NONE));
    }
}
