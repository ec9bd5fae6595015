//! Where a span stands in a trace: what travels between clients, nodes and workers. Pure.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserializer, Serializer};

/// The version of the form between nodes.
const VERSION: u8 = 0;
/// Version, trace, span, flags.
const BYTES: usize = 1 + 16 + 8 + 1;
/// The flag of a trace that is recorded, in W3C's numbers.
const SAMPLED: u8 = 1;

/// A span of a trace.
///
/// Between nodes it is 26 bytes: version, trace id, span id, flags. Over HTTP it is W3C's `traceparent`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl TraceContext {
    /// `None` when one of the ids is zero, which W3C forbids.
    #[must_use]
    pub const fn new(trace: u128, span: u64, sampled: bool) -> Option<Self> {
        if trace == 0 || span == 0 { None } else { Some(Self { trace, span, sampled }) }
    }

    /// Reads W3C's `traceparent`. What cannot be read is none: the trace begins here then, as W3C wants.
    #[must_use]
    pub fn from_traceparent(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_known = version == "00";
        // Later versions may have more parts, this one may not.
        if version == "ff" || (is_known && parts.next().is_some()) {
            return None;
        }
        hex(version, 2)?;
        let (trace, span, flags) = (hex(trace, 32)?, hex(span, 16)?, hex(flags, 2)?);
        let (span, flags) = (u64::try_from(span).ok()?, u8::try_from(flags).ok()?);
        Self::new(trace, span, flags & SAMPLED != 0)
    }

    /// The trace's id.
    #[must_use]
    pub const fn trace_id(self) -> u128 {
        self.trace
    }

    /// The span's id.
    #[must_use]
    pub const fn span_id(self) -> u64 {
        self.span
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub const fn is_sampled(self) -> bool {
        self.sampled
    }

    /// A span below this one. Its id follows from this one's, `name` and `number`, so whoever knows these
    /// can name a span that somebody else records, or would have recorded if it had not died.
    #[must_use]
    pub fn child(self, name: &str, number: u64) -> Self {
        let bytes = name.bytes().chain(number.to_be_bytes());
        // FNV-1a over what names it, from where its parent is; then SplitMix64's last step, so that
        // neighbours have nothing in common.
        let mut id = bytes.fold(self.span ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        id ^= id >> 31;
        Self { span: id.max(1), ..self }
    }

    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let parts = [VERSION]
            .into_iter()
            .chain(self.trace.to_be_bytes())
            .chain(self.span.to_be_bytes())
            .chain([u8::from(self.sampled) * SAMPLED]);
        for (to, byte) in bytes.iter_mut().zip(parts) {
            *to = byte;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (trace, rest) = rest.split_first_chunk::<16>()?;
        let (span, rest) = rest.split_first_chunk::<8>()?;
        let (&flags, rest) = rest.split_first()?;
        if version != VERSION || !rest.is_empty() {
            return None;
        }
        Self::new(u128::from_be_bytes(*trace), u64::from_be_bytes(*span), flags & SAMPLED != 0)
    }
}

/// `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != digits || !text.bytes().all(is_hex) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// As `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, sampled } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(*sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The field of a frame's header. What an other version of this program says there is none, never an error:
/// no trace is worth an answer.
pub(crate) mod field {
    use serde::de::{IgnoredAny, MapAccess, SeqAccess};

    use super::{BYTES, Deserializer, Serializer, TraceContext, Visitor, fmt};

    pub(crate) fn serialize<S: Serializer>(
        context: &Option<TraceContext>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match context {
            Some(context) => serializer.serialize_bytes(&context.to_bytes()),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<TraceContext>, D::Error> {
        deserializer.deserialize_any(Lenient)
    }

    struct Lenient;

    impl<'de> Visitor<'de> for Lenient {
        type Value = Option<TraceContext>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{BYTES} bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(TraceContext::from_bytes(bytes))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
            while parts.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
            while parts.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }
}

/// The name of the span of a frame's way to another node.
pub const HOP: &str = "hop";

/// The name of the span of a piece of a sequence on a stage.
pub const FORWARD: &str = "stage.forward";

/// The span `hop` of a piece to a stage, whoever recorded it.
#[must_use]
pub fn hop_to(phase: TraceContext, stage: u16, attempt: u16, position: u32) -> TraceContext {
    phase.child(HOP, piece_number(stage, attempt, position))
}

/// The span `stage.forward` of a piece on a stage, if it was recorded.
#[must_use]
pub fn forward_on(phase: TraceContext, stage: u16, attempt: u16, position: u32) -> TraceContext {
    phase.child(FORWARD, piece_number(stage, attempt, position))
}

/// Names a piece among those of its phase.
#[must_use]
pub fn piece_number(stage: u16, attempt: u16, position: u32) -> u64 {
    (u64::from(stage) << 48) | (u64::from(attempt) << 32) | u64::from(position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmp_serde::{from_slice, to_vec_named};
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Header {
        #[serde(default, skip_serializing_if = "Option::is_none", with = "field")]
        trace: Option<TraceContext>,
        position: u32,
    }

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn context() -> TraceContext {
        TraceContext::from_traceparent(TRACEPARENT).unwrap()
    }

    #[test]
    fn w3c_s_example_is_read_and_written() {
        let context = context();
        assert_eq!(context.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.span_id(), 0x00f0_67aa_0ba9_02b7);
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), TRACEPARENT);
    }

    #[test]
    fn what_w3c_forbids_begins_a_new_trace_and_what_it_foresees_does_not() {
        let zero = "0".repeat(32);
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("00-{zero}-00f067aa0ba902b7-01"),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::from_traceparent(wrong), None, "{wrong}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        assert!(!TraceContext::from_traceparent(later).unwrap().is_sampled());
    }

    #[test]
    fn another_version_or_a_zero_id_in_a_header_is_no_trace_and_no_error() {
        let good = context().to_bytes();
        let mut other_version = good;
        other_version[0] = 1;
        let mut no_span = good;
        no_span[17..25].fill(0);
        for bytes in [other_version.as_slice(), &no_span, &good[..25], &[]] {
            assert_eq!(TraceContext::from_bytes(bytes), None);
        }
        assert_eq!(TraceContext::from_bytes(&good), Some(context()));
    }

    #[test]
    fn a_header_without_a_trace_is_no_longer_than_before() {
        let without = Header { trace: None, position: 7 };
        let bytes = to_vec_named(&without).unwrap();
        assert_eq!(from_slice::<Header>(&bytes).unwrap(), without);
        let with = Header { trace: Some(context()), position: 7 };
        let longer = to_vec_named(&with).unwrap();
        assert_eq!(from_slice::<Header>(&longer).unwrap(), with);
        // Its name, and the bytes with their length.
        assert_eq!(longer.len() - bytes.len(), 6 + 2 + BYTES);
    }

    #[test]
    fn what_a_later_version_may_say_there_is_no_trace_and_no_error() {
        #[derive(Serialize)]
        struct Later<T> {
            trace: T,
            position: u32,
        }
        let position = 7;
        let later = [
            to_vec_named(&Later { trace: "00-4bf9", position }),
            to_vec_named(&Later { trace: 5, position }),
            to_vec_named(&Later { trace: [5], position }),
            to_vec_named(&Later { trace: Header { trace: None, position }, position }),
            to_vec_named(&Later { trace: true, position }),
        ];
        for bytes in later {
            let read = from_slice::<Header>(&bytes.unwrap()).unwrap();
            assert_eq!(read, Header { trace: None, position });
        }
    }

    #[test]
    fn children_have_names_of_their_own_that_all_agree_on() {
        let mut ids: Vec<_> = ["hop", "stage.forward"]
            .into_iter()
            .flat_map(|name| (0..1000).map(move |number| context().child(name, number)))
            .map(TraceContext::span_id)
            .collect();
        assert_eq!(context().child("hop", 3), context().child("hop", 3));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 2000);
        assert_eq!(context().child("hop", 0).trace_id(), context().trace_id());
    }

    proptest! {
        #[test]
        fn every_context_survives_both_forms(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let context = TraceContext::new(trace, span, sampled).unwrap();
            prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
            prop_assert_eq!(TraceContext::from_traceparent(&context.to_string()), Some(context));
        }

        #[test]
        fn no_text_and_no_bytes_break_it(text in ".{0,80}", bytes: Vec<u8>) {
            let read = [TraceContext::from_traceparent(&text), TraceContext::from_bytes(&bytes)];
            for context in read.into_iter().flatten() {
                prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
            }
        }
    }
}
