//! The responses that this node remembers, so that they can be read again, gone on with, and followed while they
//! grow.
//!
//! They are bounded by number and by bytes; the oldest that have ended go first, and those that grow stay. Those whose
//! request says `store: true` are on disk too, and come back when they are asked for.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::items::{self, Item};
use super::kept;
use super::reply::Reply;
use crate::error::ApiError;

/// Responses that are remembered: a working day of an agent.
const MOST_RESPONSES: usize = 1024;
/// Bytes of their items and events. An event is some 200 bytes, so a long answer of 32k tokens is 6 MiB.
const MOST_BYTES: usize = 64 << 20;
/// Responses in the background that have not ended; past it 429. As many as a small cluster takes in hours.
const MOST_IN_BACKGROUND: usize = 256;

/// All that are remembered, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<VecDeque<Arc<Entry>>>);

impl Memory {
    /// The response of this name.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries().iter().find(|entry| entry.id == id).cloned()
    }

    /// Remembers one more, whose client waits for it, or who goes on in place of a former one of its name.
    pub(super) fn insert(&self, entry: Arc<Entry>) {
        let mut entries = self.entries();
        entries.retain(|other| other.id != entry.id);
        entries.push_back(entry);
        drop(entries);
        self.trim();
    }

    /// Remembers one that comes from the disk, unless it is here already; gives the one that is.
    pub(super) fn recall(&self, entry: Arc<Entry>) -> Arc<Entry> {
        let mut entries = self.entries();
        if let Some(known) = entries.iter().find(|other| other.id == entry.id) {
            return Arc::clone(known);
        }
        entries.push_back(Arc::clone(&entry));
        drop(entries);
        self.trim();
        entry
    }

    /// Remembers one more, whose client does not wait for it.
    ///
    /// # Errors
    /// When as many as may are under way.
    pub(super) fn insert_in_background(&self, entry: Arc<Entry>) -> Result<(), ApiError> {
        let running = |other: &&Arc<Entry>| other.is_background && !other.is_over();
        let mut entries = self.entries();
        if entries.iter().filter(running).count() >= MOST_IN_BACKGROUND {
            return Err(ApiError::overloaded(format!(
                "{MOST_IN_BACKGROUND} responses are under way in the background: try again later"
            )));
        }
        entries.push_back(entry);
        drop(entries);
        self.trim();
        Ok(())
    }

    /// Forgets one; gives what was known of it.
    pub(super) fn remove(&self, id: &str) -> Option<Arc<Entry>> {
        let mut entries = self.entries();
        let at = entries.iter().position(|entry| entry.id == id)?;
        entries.remove(at)
    }

    /// Forgets what there is no room for.
    pub(super) fn trim(&self) {
        let mut entries = self.entries();
        let sizes: Vec<_> = entries.iter().map(|entry| entry.size()).collect();
        let mut leaves = surplus(&sizes, MOST_RESPONSES, MOST_BYTES).into_iter();
        entries.retain(|_| !leaves.next().unwrap_or(false));
    }

    /// All items of all responses, by name.
    fn items(&self) -> HashMap<String, Arc<Item>> {
        let entries: Vec<_> = self.entries().iter().cloned().collect();
        let items = entries.iter().filter_map(|entry| entry.conversation()).flatten();
        items.map(|item| (item.id.clone(), item)).collect()
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request may refer to.
#[derive(Debug)]
pub(super) struct Known<'a> {
    memory: &'a Memory,
    /// One that need not be in memory.
    last: Option<&'a Arc<Entry>>,
    uses_last: Cell<bool>,
    /// Read once, when it is first asked for.
    items: OnceCell<HashMap<String, Arc<Item>>>,
    /// The first response that is not here.
    lacking: RefCell<Option<String>>,
}

impl<'a> Known<'a> {
    /// What is in memory, and `last`.
    pub(super) const fn of(memory: &'a Memory, last: Option<&'a Arc<Entry>>) -> Self {
        Self {
            memory,
            last,
            uses_last: Cell::new(false),
            items: OnceCell::new(),
            lacking: RefCell::new(None),
        }
    }

    /// Notes that the request goes on with the response of this name, whatever else becomes of it.
    pub(super) fn goes_on_with(&self, id: &str) {
        self.uses_last.set(self.last.is_some_and(|last| last.id == id));
    }

    /// The response of this name.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Entry>> {
        if let Some(last) = self.last.filter(|last| last.id == id) {
            return Some(Arc::clone(last));
        }
        let entry = self.memory.get(id);
        if entry.is_none() {
            self.lacks(id.to_owned());
        }
        entry
    }

    /// The item of this name.
    pub(super) fn item(&self, id: &str) -> Option<Arc<Item>> {
        let all = || {
            let mut items = self.memory.items();
            let last = self.last.and_then(|last| last.conversation()).unwrap_or_default();
            items.extend(last.into_iter().map(|item| (item.id.clone(), item)));
            items
        };
        let item = self.items.get_or_init(all).get(id).cloned();
        if item.is_none()
            && let Some(response) = kept::source_of(id)
        {
            self.lacks(response);
        }
        item
    }

    /// Whether the request goes on with the last one.
    pub(super) fn uses_last(&self) -> bool {
        self.uses_last.get()
    }

    /// What was asked for first in vain.
    pub(super) fn lacking(self) -> Option<String> {
        self.lacking.into_inner()
    }

    fn lacks(&self, response: String) {
        self.lacking.borrow_mut().get_or_insert(response);
    }
}

/// How much room something takes.
#[derive(Debug, Clone, Copy)]
struct Size {
    bytes: usize,
    is_over: bool,
}

/// Which of these, the oldest first, have to go: as few as possible, and none that is not over.
fn surplus(sizes: &[Size], most: usize, most_bytes: usize) -> Vec<bool> {
    let mut count = sizes.len();
    let mut bytes: usize = sizes.iter().map(|size| size.bytes).sum();
    let mut leaves = Vec::with_capacity(sizes.len());
    for size in sizes {
        let goes = size.is_over && (count > most || bytes > most_bytes);
        if goes {
            count -= 1;
            bytes -= size.bytes;
        }
        leaves.push(goes);
    }
    leaves
}

/// A response, and what it answers.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    /// Whether it is computed without its client.
    pub(super) is_background: bool,
    /// What it answers: the conversation up to it.
    pub(super) input: Vec<Arc<Item>>,
    input_bytes: usize,
    /// What came of it, once it is over and was asked for.
    output: OnceLock<Vec<Arc<Item>>>,
    state: Mutex<State>,
    /// Marked whenever there is more.
    grown: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    reply: Reply,
    /// In the order of their numbers, from 0 on.
    events: Vec<Bytes>,
    bytes: usize,
    keeps_events: bool,
    /// What computes it without a client.
    task: Option<AbortHandle>,
}

impl Entry {
    /// One that nothing is written of yet. Its events are kept if others than its client may ask for them.
    pub(super) fn new(
        id: String,
        reply: Reply,
        input: Vec<Arc<Item>>,
        is_background: bool,
        keeps_events: bool,
    ) -> Arc<Self> {
        let input_bytes = input.iter().map(|item| item.bytes).sum();
        let state = State { reply, events: Vec::new(), bytes: 0, keeps_events, task: None };
        let grown = watch::Sender::new(());
        let (output, state) = (OnceLock::new(), Mutex::new(state));
        Arc::new(Self { id, is_background, input, input_bytes, output, state, grown })
    }

    /// Writes more of it; gives the events that tell so. Nothing is added to what is over.
    pub(super) fn write(&self, more: impl FnOnce(&mut Reply) -> Vec<Bytes>) -> Vec<Bytes> {
        let mut state = self.state();
        if state.reply.is_over() {
            return Vec::new();
        }
        let events = more(&mut state.reply);
        if state.keeps_events {
            state.bytes += events.iter().map(Bytes::len).sum::<usize>();
            state.events.extend(events.iter().cloned());
        }
        drop(state);
        self.grown.send_replace(());
        events
    }

    /// The numbers that are used where the request left them open.
    pub(super) fn fill(&self, numbers: &[(&str, f32)]) {
        let mut state = self.state();
        for (key, number) in numbers {
            state.reply.asked.fill(key, *number);
        }
    }

    /// From here on clients are told why it is not on disk.
    pub(super) fn warn(&self, why: &str) {
        self.state().reply.asked.warn(why);
    }

    /// What it is computed by, without a client.
    pub(super) fn computed_by(&self, task: AbortHandle) {
        self.state().task = Some(task);
    }

    /// Nobody wants it: what computes it ends, and there is no more of it.
    pub(super) fn cancel(&self) {
        self.write(|reply| {
            reply.cancelled();
            Vec::new()
        });
        let task = self.state().task.take();
        if let Some(task) = task {
            task.abort();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().reply.is_over()
    }

    /// Whether it waits for its turn.
    pub(super) fn is_queued(&self) -> bool {
        self.state().reply.is_queued()
    }

    /// Whether all of it is there, as far as its request let it grow.
    pub(super) fn has_succeeded(&self) -> bool {
        self.state().reply.has_succeeded()
    }

    /// Waits until it is over.
    pub(super) async fn over(&self) {
        let mut grown = self.watch();
        while !self.is_over() {
            // It holds the other end itself.
            if grown.changed().await.is_err() {
                return;
            }
        }
    }

    /// When it began, in seconds since 1970.
    pub(super) fn created(&self) -> u64 {
        self.state().reply.created
    }

    /// As it is now.
    pub(super) fn value(&self) -> Value {
        self.state().reply.value()
    }

    /// What came of it, as JSON.
    pub(super) fn text(&self) -> String {
        self.value().to_string()
    }

    /// The events from this number on, and whether they are the last.
    pub(super) fn events_from(&self, number: usize) -> (Vec<Bytes>, bool) {
        let state = self.state();
        let events = state.events.get(number..).unwrap_or_default().to_vec();
        (events, state.reply.is_over())
    }

    /// Who hears when there is more.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// What it answers and what came of it; nothing as long as it grows.
    pub(super) fn conversation(&self) -> Option<Vec<Arc<Item>>> {
        if !self.is_over() {
            return None;
        }
        let output = self.output.get_or_init(|| {
            let output = self.state().reply.output();
            // All that a response puts out can be put in.
            let items = output.iter().filter_map(|value| items::of_shown(value).ok());
            items.map(Arc::new).collect()
        });
        Some(self.input.iter().chain(output).cloned().collect())
    }

    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.size().bytes
    }

    fn size(&self) -> Size {
        let state = self.state();
        Size { bytes: self.input_bytes + state.bytes, is_over: state.reply.is_over() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(list: &[(usize, bool)]) -> Vec<Size> {
        list.iter().map(|(bytes, is_over)| Size { bytes: *bytes, is_over: *is_over }).collect()
    }

    #[test]
    fn the_oldest_that_are_over_go_first() {
        let all = sizes(&[(10, true), (10, false), (10, true), (10, true)]);
        assert_eq!(surplus(&all, 4, 40), [false; 4]);
        assert_eq!(surplus(&all, 3, 40), [true, false, false, false]);
        assert_eq!(surplus(&all, 4, 25), [true, false, true, false]);
        assert_eq!(surplus(&all, 0, 0), [true, false, true, true], "what grows stays");
    }
}
