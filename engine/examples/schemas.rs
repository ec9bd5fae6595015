//! Forms beside the JSON Schema Test Suite: which of its schemas are compiled, and what is answered to them.
//!
//! `cargo run -p planaria-engine --example schemas -- FOLDER` takes the suite's folder `tests`. Each schema of two drafts is
//! compiled; those of `optional` and of `refRemote.json` are left out, since formats are a client's choice and nothing is fetched.
//! A model that chooses at random among what it may writes some answers to each. Those that end come to standard output as lines of
//! JSON (`draft`, `place`, `schema`, `answer`), for a validator that is not ours: `engine/examples/validate.py`. What the suite says
//! of its own instances is compared with the masks. Standard error gets the counts.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "lines and counts are what it is for"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs, io};

use planaria_engine::grammar::{Constraint, Form, GrammarError, Grammars, Matcher};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

/// A draft's folder, and what a schema says that is written in it.
const DRAFTS: [(&str, &str); 2] = [
    ("draft2020-12", "https://json-schema.org/draft/2020-12/schema"),
    ("draft7", "http://json-schema.org/draft-07/schema#"),
];

/// Nothing is fetched, so nothing is in there for us.
const LEFT_OUT: &str = "refRemote.json";

/// Ends an answer: tokens are bytes.
const END: u32 = 256;

/// Random answers to each schema.
const ANSWERS: u64 = 5;

/// Longer ones do not count.
const MOST_TOKENS: usize = 300;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = env::args_os().nth(1).ok_or("which folder is that of the suite's tests?")?;
    let grammars = Grammars::of_bytes(END + 1)?;
    for (draft, dialect) in DRAFTS {
        let mut counts = Counts::default();
        for (file, groups) in groups_of(&Path::new(&folder).join(draft))? {
            for group in &groups {
                counts.add(&grammars, draft, dialect, &file, group);
            }
        }
        counts.tell(draft);
    }
    Ok(())
}

/// The groups of each file of a draft, by its name.
fn groups_of(folder: &Path) -> io::Result<BTreeMap<String, Vec<Value>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && name.ends_with(".json") && name != LEFT_OUT {
            files.insert(name, serde_json::from_slice(&fs::read(entry.path())?)?);
        }
    }
    Ok(files)
}

#[derive(Debug, Default)]
struct Counts {
    schemas: usize,
    compiled: usize,
    /// By kind.
    refused: BTreeMap<&'static str, usize>,
    walks: usize,
    ended: usize,
    /// Answers that came to a place where nothing may follow, or that took too much.
    stuck: usize,
    /// Instances of schemas that are compiled: how many the suite calls valid, and of them those that can be answered.
    valid: usize,
    valid_possible: usize,
    invalid: usize,
    invalid_possible: usize,
}

impl Counts {
    fn add(&mut self, grammars: &Grammars, draft: &str, dialect: &str, file: &str, group: &Value) {
        let mut schema = group.get("schema").cloned().unwrap_or_default();
        if let Value::Object(schema) = &mut schema {
            // The suite's runner knows the draft by the folder.
            schema.entry("$schema").or_insert_with(|| dialect.into());
        }
        let place = format!("{file}: {}", text_of(group, "description"));
        self.schemas += 1;
        let form = Form::JsonSchema(schema.to_string());
        let asked = Constraint { form, thinking: None, ends: vec![END] };
        if let Err(error) = grammars.compile(&asked) {
            *self.refused.entry(kind(&error)).or_default() += 1;
            eprintln!("{draft}, {place}: refused: {error}");
            return;
        }
        self.compiled += 1;
        for seed in 0..ANSWERS {
            self.walks += 1;
            match grammars.compile(&asked).and_then(|matcher| walk(matcher, seed)) {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    self.ended += 1;
                    let line = json!({"draft": draft, "place": &place, "schema": &schema,
                                      "answer": String::from_utf8_lossy(&answer)});
                    println!("{line}");
                }
                Err(error) => {
                    self.stuck += 1;
                    eprintln!("{draft}, {place}: stuck: {error}");
                }
            }
        }
        let tests = group.get("tests").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for test in tests {
            let instance = test.get("data").cloned().unwrap_or_default();
            let Ok(matcher) = grammars.compile(&asked) else { continue };
            let possible = may_answer(matcher, &instance.to_string());
            if test.get("valid") == Some(&Value::Bool(true)) {
                self.valid += 1;
                self.valid_possible += usize::from(possible);
            } else {
                self.invalid += 1;
                self.invalid_possible += usize::from(possible);
                if possible {
                    let what = text_of(test, "description");
                    eprintln!("{draft}, {place}: {what}: {instance} may be answered");
                }
            }
        }
    }

    fn tell(&self, draft: &str) {
        let Self { schemas, compiled, refused, walks, ended, stuck, .. } = self;
        let refused: Vec<_> =
            refused.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        eprintln!(
            "{draft}: {compiled} of {schemas} schemas compiled; refused: {}",
            refused.join(", ")
        );
        eprintln!(
            "{draft}: {ended} of {walks} random answers ended within {MOST_TOKENS} bytes, {stuck} got stuck"
        );
        let Self { valid, valid_possible, invalid, invalid_possible, .. } = self;
        eprintln!(
            "{draft}: {valid_possible} of {valid} valid instances and {invalid_possible} of {invalid} others may be answered"
        );
    }
}

fn text_of<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

const fn kind(error: &GrammarError) -> &'static str {
    match error {
        GrammarError::Invalid(_) => "invalid",
        GrammarError::Unsupported(_) => "unsupported",
        GrammarError::TooComplex(_) => "too complex",
        GrammarError::Vocabulary(_) => "vocabulary",
        GrammarError::OffForm(_) => "off form",
        GrammarError::DeadEnd => "without any answer",
    }
}

/// An answer of a model that chooses at random, and likes to come to an end; `None` if it has not.
fn walk(mut matcher: Matcher, seed: u64) -> Result<Option<Vec<u8>>, GrammarError> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut text = Vec::new();
    for _ in 0..MOST_TOKENS {
        let mask = matcher.mask()?;
        if mask.allows(END) && (random.random_bool(0.5) || mask.tokens().nth(1).is_none()) {
            return Ok(Some(text));
        }
        let closes = |token: &u32| [b'"', b'}', b']'].map(u32::from).contains(token);
        let mut tokens: Vec<u32> = mask.tokens().filter(|token| *token != END).collect();
        if tokens.iter().any(closes) && random.random_bool(0.3) {
            tokens.retain(closes);
        }
        let Some(token) = tokens.get(random.random_range(0..tokens.len().max(1))) else {
            return Err(GrammarError::DeadEnd);
        };
        text.extend(u8::try_from(*token));
        matcher.accept(*token)?;
    }
    Ok(None)
}

/// Whether a model may write this, and end.
fn may_answer(mut matcher: Matcher, text: &str) -> bool {
    for byte in text.bytes() {
        if !matcher.mask().is_ok_and(|mask| mask.allows(byte.into())) {
            return false;
        }
        if matcher.accept(byte.into()).is_err() {
            return false;
        }
    }
    matcher.mask().is_ok_and(|mask| mask.allows(END))
}
