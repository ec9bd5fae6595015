//! The four layers, before anything is parsed.

use std::path::PathBuf;

use super::table::{SETTINGS, SettingDoc};
use super::{Environment, Mistake, Origin, Overrides, SettingValue};

/// The winning text of every setting and all mistakes so far.
pub(super) struct Layers {
    values: Vec<SettingValue>,
    mistakes: Vec<Mistake>,
}

impl Layers {
    pub(super) fn collect(
        flags: &Overrides,
        environment: &Environment,
        file: Option<(PathBuf, String)>,
        machine_name: &str,
    ) -> Self {
        let mut mistakes = Vec::new();
        let (file_path, file_table) = match file {
            Some((path, text)) => {
                let table = read_file(&path, &text, &mut mistakes);
                (path, table)
            }
            None => (PathBuf::new(), toml::Table::new()),
        };
        let values = SETTINGS
            .iter()
            .map(|doc| {
                let variable = variable_name(doc.key);
                let (value, origin) = if let Some(values) = flags.get(doc.key) {
                    (values.clone(), Origin::Flag(doc.key.to_owned()))
                } else if let Some(text) = environment.get(&variable).filter(|t| !t.is_empty()) {
                    (split(doc, text), Origin::Variable(variable))
                } else if let Some(value) = file_table.get(doc.key) {
                    let origin = Origin::File(file_path.clone());
                    let texts = texts(doc, value).unwrap_or_else(|problem| {
                        let key = doc.key.to_owned();
                        mistakes.push(Mistake { origin: origin.clone(), key, problem });
                        Vec::new()
                    });
                    (texts, origin)
                } else {
                    (default_value(doc, environment, machine_name), Origin::Default)
                };
                SettingValue { key: doc.key, value, origin }
            })
            .collect();
        Self { values, mistakes }
    }

    /// A setting that always has a value.
    pub(super) fn one<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        // An unreadable value in the file was reported when it was collected.
        self.many(key, parse)?.pop()
    }

    /// A setting that may be unset.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        self.many(key, parse).map(|mut values| values.pop())
    }

    /// A setting with any number of values; `None` when one of them is wrong.
    pub(super) fn many<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let found = self.values.iter().find(|value| value.key == key)?;
        let mut parsed = Vec::with_capacity(found.value.len());
        for text in &found.value {
            match parse(text) {
                Ok(value) => parsed.push(value),
                Err(problem) => self.mistakes.push(Mistake {
                    origin: found.origin.clone(),
                    key: key.to_owned(),
                    problem,
                }),
            }
        }
        (parsed.len() == found.value.len()).then_some(parsed)
    }

    pub(super) fn finish(self) -> (Vec<SettingValue>, Vec<Mistake>) {
        (self.values, self.mistakes)
    }
}

fn variable_name(key: &str) -> String {
    format!("PLANARIA_{}", key.replace('-', "_").to_ascii_uppercase())
}

fn split(doc: &SettingDoc, text: &str) -> Vec<String> {
    if doc.list {
        text.split(',').map(|part| part.trim().to_owned()).collect()
    } else {
        vec![text.to_owned()]
    }
}

fn default_value(doc: &SettingDoc, environment: &Environment, machine_name: &str) -> Vec<String> {
    match (doc.key, doc.default) {
        ("name", _) => vec![machine_name.to_owned()],
        (_, "") => Vec::new(),
        (_, text) => match (text.strip_prefix("~/"), environment.get("HOME")) {
            (Some(rest), Some(home)) => vec![format!("{home}/{rest}")],
            _ => vec![text.to_owned()],
        },
    }
}

fn read_file(path: &std::path::Path, text: &str, mistakes: &mut Vec<Mistake>) -> toml::Table {
    let origin = || Origin::File(path.to_owned());
    let table = text.parse::<toml::Table>().unwrap_or_else(|error| {
        let problem = format!("not valid TOML: {}", error.to_string().trim_end());
        mistakes.push(Mistake { origin: origin(), key: "file".to_owned(), problem });
        toml::Table::new()
    });
    for key in table.keys().filter(|key| SETTINGS.iter().all(|doc| doc.key != *key)) {
        mistakes.push(Mistake {
            origin: origin(),
            key: key.clone(),
            problem: format!("no such setting; the nearest is `{}`", nearest(key)),
        });
    }
    table
}

/// The known key with the fewest edits from `key`.
fn nearest(key: &str) -> &'static str {
    SETTINGS.iter().map(|doc| doc.key).min_by_key(|known| edits(known, key)).unwrap_or("")
}

/// Levenshtein distance, one row at a time.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, above) in b.bytes().zip(row.iter_mut().skip(1)) {
            let value = (diagonal + usize::from(x != y)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, value);
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// A file's value as texts, so that all layers are parsed by the same code.
fn texts(doc: &SettingDoc, value: &toml::Value) -> Result<Vec<String>, String> {
    match value {
        toml::Value::Array(values) if doc.list => values.iter().map(scalar).collect(),
        toml::Value::Array(_) => Err("takes one value, not a list".to_owned()),
        value => scalar(value).map(|text| vec![text]),
    }
}

fn scalar(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        other => Err(format!("takes text or a number, not {}", other.type_str())),
    }
}
