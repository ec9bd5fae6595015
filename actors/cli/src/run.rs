//! `planaria run`: talk to a model from the terminal.
//!
//! [`failover_client`] decides which node is asked, what of its answer is new and when to give up, by what [`nodes`]
//! and [`shown`] know; [`http_client`] carries that out. [`conversation`] is what was said so far, [`console`] shows
//! it. What people type is kept in memory alone.

mod console;
mod conversation;
mod failover_client;
mod http_client;
mod nodes;
mod shown;

use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Behavior, Config, Editor};
use serde_json::{Value, json};

use self::console::Console;
use self::conversation::{Conversation, HELP, Line};
use self::failover_client::{Ended, FailoverClient};
use self::http_client::{Answered, Client};
use self::nodes::Nodes;
use super::{node_api, output};

/// Ended by Ctrl-C, as shells say it.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
pub(super) struct RunFlags {
    /// The model to talk to.
    model: String,
    /// What to ask; without it, what comes on standard input, or a conversation in the terminal.
    prompt: Option<String>,
    /// The API of any node; may be given several times. Others of its cluster are found by themselves.
    #[arg(
        long,
        value_name = "URL",
        default_value = node_api::DEFAULT_URL,
        env = node_api::URL_VARIABLE,
        value_delimiter = ','
    )]
    api: Vec<String>,
    /// Asks nobody but the nodes that --api names.
    #[arg(long)]
    only_these: bool,
    /// File with the API key, where one is needed.
    #[arg(long, value_name = "FILE", env = node_api::KEY_VARIABLE)]
    api_key_file: Option<PathBuf>,
    /// What the model is told beforehand.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// How freely tokens are drawn; 0 takes the likeliest one. The model's own unless given.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Longest answer, in tokens.
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    /// What tokens are drawn by: the same seed, the same answer. Another one for each answer unless given.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

pub(super) fn run(flags: &RunFlags) -> anyhow::Result<ExitCode> {
    let key = flags.api_key_file.as_deref().map(node_api::read_key).transpose()?;
    let nodes = Nodes::given(&flags.api);
    let nodes = if flags.only_these { nodes.only() } else { nodes };
    let mut talk = Talk {
        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        http: Client::new(key)?,
        client: FailoverClient::new(nodes, Instant::now()),
        conversation: Conversation::new(&flags.model, flags.system.as_deref(), options(flags)),
        console: Console::new(),
        seed: flags.seed,
    };
    let ended = match prompt(flags)? {
        Some(prompt) => talk.once(&prompt),
        None => talk.converse(),
    };
    match ended {
        // Whoever read the answer has read enough.
        Err(error) if output::is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        ended => ended,
    }
}

fn options(flags: &RunFlags) -> Vec<(&'static str, Value)> {
    let temperature = flags.temperature.map(|value| ("temperature", json!(value)));
    let max_tokens = flags.max_tokens.map(|value| ("max_tokens", json!(value)));
    temperature.into_iter().chain(max_tokens).collect()
}

/// What is to be answered once; `None` when a person sits there.
fn prompt(flags: &RunFlags) -> anyhow::Result<Option<String>> {
    if flags.prompt.is_some() || io::stdin().is_terminal() {
        return Ok(flags.prompt.clone());
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text).context("the prompt on standard input")?;
    if text.trim().is_empty() {
        bail!("no prompt: give one behind the model's name, or on standard input");
    }
    Ok(Some(text))
}

/// Everything that talking takes.
struct Talk {
    runtime: tokio::runtime::Runtime,
    http: Client,
    client: FailoverClient,
    conversation: Conversation,
    console: Console,
    seed: Option<u64>,
}

impl Talk {
    /// One question, one answer.
    fn once(&mut self, prompt: &str) -> anyhow::Result<ExitCode> {
        match self.answer(prompt)? {
            Answered::Ended(Ended::Whole(_)) => Ok(ExitCode::SUCCESS),
            Answered::Ended(Ended::Failed(why)) => bail!("{why}"),
            Answered::Interrupted => Ok(ExitCode::from(EXIT_INTERRUPTED)),
        }
    }

    /// Questions and answers until the person ends it.
    fn converse(&mut self) -> anyhow::Result<ExitCode> {
        // The person's lines go to and from the terminal, also when the answers are kept in a file.
        let config =
            Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let mut editor = Editor::<(), MemHistory>::with_history(config, MemHistory::new())?;
        self.console.say("Type a message, or /help; Ctrl-D ends.")?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                // As in a shell: the line is given up, the program is not.
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
                Err(error) => return Err(error.into()),
            };
            match Line::of(&line) {
                Line::Blank => {}
                Line::Quit => return Ok(ExitCode::SUCCESS),
                Line::Help => self.console.say(HELP)?,
                Line::Clear => self.conversation.clear(),
                Line::Unknown(word) => {
                    self.console.say(&format!("no command {word}; see /help"))?;
                }
                Line::Prompt(prompt) => {
                    if let Answered::Ended(Ended::Failed(why)) = self.answer(&prompt)? {
                        self.console.say(&why)?;
                    }
                }
            }
        }
    }

    /// Has the model answer, and remembers what it said.
    fn answer(&mut self, prompt: &str) -> anyhow::Result<Answered> {
        let body = self.conversation.ask(prompt, self.seed.unwrap_or_else(rand::random));
        let answer = self.http.answer(&mut self.client, &body, &mut self.console);
        let answered = self.runtime.block_on(answer)?;
        self.console.end()?;
        self.conversation.answered(self.client.text());
        if let Answered::Ended(Ended::Whole(Some(reason))) = &answered
            && reason == "length"
        {
            self.console.say("(the answer ends here because it may not be longer)")?;
        }
        Ok(answered)
    }
}
