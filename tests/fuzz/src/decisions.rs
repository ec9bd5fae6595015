//! An input as a list of decisions, and changes that are made by them.

use libfuzzer_sys::arbitrary::Unstructured;
use serde_json::{Map, Value, json};

/// Decisions that are left. When there are none, every answer is the first.
pub(crate) struct Decisions<'a>(Unstructured<'a>);

impl<'a> Decisions<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self(Unstructured::new(input))
    }

    /// A number up to `most`.
    pub(crate) fn up_to(&mut self, most: usize) -> usize {
        self.0.int_in_range(0..=most).unwrap_or(0)
    }

    /// Any number; small ones and powers of two are as likely as the others.
    pub(crate) fn number(&mut self) -> u64 {
        let near = |power: u64, offset: usize| power.wrapping_add(offset as u64).wrapping_sub(4);
        match self.up_to(3) {
            0 => self.up_to(64) as u64,
            1 => near(1 << self.up_to(63), self.up_to(8)),
            2 => near(0, self.up_to(8)),
            _ => self.0.arbitrary().unwrap_or(0),
        }
    }

    pub(crate) fn number32(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).unwrap()
    }

    pub(crate) fn float(&mut self) -> f32 {
        match self.up_to(2) {
            0 => *self.one_of(&[1.0, 0.0, -1.0, 0.5, 1e-45, -0.0, 2.0, f32::MAX]),
            1 => *self.one_of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE]),
            _ => f32::from_bits(self.number32()),
        }
    }

    pub(crate) fn one_of<'b, T>(&mut self, all: &'b [T]) -> &'b T {
        &all[self.up_to(all.len() - 1)]
    }

    pub(crate) fn word(&mut self, all: &[&'static str]) -> &'static str {
        self.one_of::<&'static str>(all)
    }

    /// One time in `times`, and never without decisions.
    pub(crate) fn rarely(&mut self, times: usize) -> bool {
        self.up_to(times - 1) == 1
    }

    pub(crate) fn are_left(&self) -> bool {
        !self.0.is_empty()
    }

    /// Some of what is left, as it is.
    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.up_to(most).min(self.0.len());
        self.0.bytes(length).map(<[u8]>::to_vec).unwrap_or_default()
    }

    pub(crate) fn text(&mut self, most: usize) -> String {
        String::from_utf8_lossy(&self.bytes(most)).into_owned()
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    /// A value that hardly any place expects. `words` are texts that mean something somewhere.
    pub(crate) fn json(&mut self, words: &[&str]) -> Value {
        match self.up_to(9) {
            0 => json!(self.number()),
            1 => json!(self.up_to(16)),
            2 => json!(*self.one_of(words)),
            3 => json!(f64::from(self.float())),
            4 => self
                .one_of(&[Value::Null, json!(true), json!(false), json!(-1), json!(1e300)])
                .clone(),
            5 => json!({ *self.one_of(words): self.up_to(16) }),
            6 => (0..self.up_to(4)).map(|_| json!(*self.one_of(words))).collect(),
            7 => (0..self.up_to(20)).map(|_| json!(self.up_to(9))).collect(),
            8 => json!(self.text(40)),
            _ => [json!([]), json!({}), json!(""), json!([[]])][self.up_to(3)].clone(),
        }
    }

    /// Changes something in `object` or in what is below it.
    pub(crate) fn change(&mut self, object: &mut Map<String, Value>, words: &[&str]) {
        if object.is_empty() || self.rarely(4) {
            let name = (*self.one_of(words)).to_owned();
            let value = self.json(words);
            object.insert(name, value);
            return;
        }
        let at = self.up_to(object.len() - 1);
        let (name, value) = object.iter_mut().nth(at).unwrap();
        let name = name.clone();
        if self.rarely(4) {
            object.remove(&name);
        } else {
            self.change_value(value, words);
        }
    }

    fn change_value(&mut self, value: &mut Value, words: &[&str]) {
        match value {
            Value::Object(inner) if !self.rarely(4) => self.change(inner, words),
            Value::Array(list) if !list.is_empty() && !self.rarely(4) => {
                let at = self.up_to(list.len() - 1);
                match self.up_to(3) {
                    0 => drop(list.remove(at)),
                    1 => list.insert(at, list[at].clone()),
                    _ => self.change_value(&mut list[at], words),
                }
            }
            other => *other = self.json(words),
        }
    }

    /// Changes a written text: what no value can be, such as a name twice or a broken end.
    pub(crate) fn scribble(&mut self, text: &mut Vec<u8>) {
        const SCRAPS: &[&[u8]] = &[
            b"NaN",
            b"-Infinity",
            b"{",
            b"}",
            b"[",
            b"]",
            b"\"",
            b",",
            b":",
            b"1e999",
            b"-",
            b"\\u",
            b"\xff",
            b"\0",
            b"\"a\":1,\"a\":1,",
            b"[[[[[[[[",
            b"null",
        ];
        let at = self.up_to(text.len());
        let end = (at + self.up_to(8)).min(text.len());
        let scrap = match self.up_to(2) {
            0 => self.one_of(SCRAPS).to_vec(),
            1 => self.bytes(8),
            _ => self.one_of(SCRAPS).repeat(200),
        };
        text.splice(at..end, scrap);
    }
}
