//! What nodes built from 3f70f97 said and stored, as they did: it can be read for ever, and what this build
//! says in its place can be read by them.
//!
//! `tests/fixtures/3f70f97` holds one message of each variant, and a backup of a store with a row of each
//! table. A message counts as read if writing it again gives each field that was there, with its value: so
//! no field was renamed, dropped or given another type, for the reader of either build.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use planaria_config::{NodeId, SequenceId, Strategy};
use planaria_engine::model_dir::ModelDigest;
use planaria_engine::speed::{Accelerator, Device, Kernels};
use planaria_gateway::stored_answers::{Outcome, StoredAnswers};
use planaria_protocol::capabilities::{Capabilities, LinkSpeed};
use planaria_protocol::generation::{FinishReason, GenerationError};
use planaria_protocol::plan::Plan;
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::features::Features;
use planaria_protocol::wire::{Bulk, Control, DataHeader, NotPrepared};
use planaria_storage::Store;
use planaria_transport::{decode_message, encode_message};
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::ledger::{self, Memory};

/// Any message, as it lies in its bytes.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Nil,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Self>),
    /// Keys are of any type, and in any order.
    Map(Vec<(Self, Self)>),
}

impl Value {
    /// Whether everything in `self` is in `other` too, which may have more fields.
    fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Map(fields), Self::Map(others)) => fields.iter().all(|(key, value)| {
                others.iter().any(|(other, theirs)| key == other && value.is_within(theirs))
            }),
            (Self::List(items), Self::List(others)) => {
                items.len() == others.len()
                    && items.iter().zip(others).all(|(item, other)| item.is_within(other))
            }
            _ => self == other,
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Nil)
            }
            fn visit_bool<E>(self, it: bool) -> Result<Value, E> {
                Ok(Value::Bool(it))
            }
            fn visit_i64<E>(self, it: i64) -> Result<Value, E> {
                Ok(Value::Int(it.into()))
            }
            fn visit_u64<E>(self, it: u64) -> Result<Value, E> {
                Ok(Value::Int(it.into()))
            }
            fn visit_f64<E>(self, it: f64) -> Result<Value, E> {
                Ok(Value::Float(it))
            }
            fn visit_str<E>(self, it: &str) -> Result<Value, E> {
                Ok(Value::Text(it.to_owned()))
            }
            fn visit_bytes<E>(self, it: &[u8]) -> Result<Value, E> {
                Ok(Value::Bytes(it.to_vec()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
                let mut map = Vec::new();
                while let Some(field) = fields.next_entry()? {
                    map.push(field);
                }
                Ok(Value::Map(map))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn dir() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/3f70f97").into()
}

fn recorded(class: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir()).unwrap().map(|file| file.unwrap().path());
    let of_class = files.filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(class) && name.ends_with(".msgpack")
    });
    of_class
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

/// What is wrong with this build's reading of a message.
fn misread<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<String> {
    let message: T = match decode_message(bytes) {
        Ok(message) => message,
        Err(error) => return Some(error.to_string()),
    };
    let was: Value = decode_message(bytes).unwrap();
    let is: Value = decode_message(&encode_message(&message).unwrap()).unwrap();
    (!was.is_within(&is)).then(|| format!("it was {was:?}\nand is {is:?}"))
}

fn all_are_read<T: Serialize + DeserializeOwned>(class: &str, count: usize) {
    let recorded = recorded(class);
    assert_eq!(recorded.len(), count, "{class}");
    for (name, bytes) in recorded {
        assert_eq!(misread::<T>(&bytes), None, "{name}");
    }
}

#[test]
fn messages_are_read_for_ever() {
    all_are_read::<Control>("control-", 8);
    all_are_read::<Bulk>("bulk-", 1);
    all_are_read::<DataHeader>("data-", 21);
}

#[test]
fn a_report_that_lists_no_features_is_of_a_node_that_has_none() {
    let bytes = &recorded("control-report")["control-report"];
    let Ok(Control::Report(report)) = decode_message(bytes) else { panic!("it is a report") };
    assert_eq!(report.features, Features::default());
    assert_eq!((report.name.as_str(), report.pid, report.port), ("studio", 4242, 8421));
    assert_eq!(report.shards.len(), 4);
    assert!(report.leaving && report.desired.entries().count() == 4);
}

/// A field that was added is one that they skip, and its absence is what they say.
#[test]
fn kernels_are_told_to_all_and_by_newer_builds_alone() {
    #[derive(Serialize, Deserialize)]
    struct First {
        chip: String,
        device: Option<Device>,
        layer_seconds: BTreeMap<ModelDigest, f64>,
        links: BTreeMap<NodeId, LinkSpeed>,
    }
    let bytes = &recorded("control-report")["control-report"];
    let Ok(Control::Report(report)) = decode_message(bytes) else { panic!("it is a report") };
    let mut capabilities = report.capabilities.clone();
    assert!(capabilities.device.is_some() && capabilities.kernels.is_none());
    let names_kernels = |said: &Capabilities| {
        let Value::Map(fields) = decode_message(&encode_message(said).unwrap()).unwrap() else {
            panic!("it is a map");
        };
        fields.iter().any(|(key, _)| *key == Value::Text("kernels".to_owned()))
    };
    assert!(!names_kernels(&capabilities));

    let arithmetic = "x86_64-1".to_owned();
    capabilities.kernels = Some(Kernels { name: "avx512".to_owned(), threads: 2, arithmetic });
    assert!(names_kernels(&capabilities));
    let said = encode_message(&capabilities).unwrap();
    let first: First = decode_message(&said).unwrap();
    assert_eq!((&first.chip, first.device), (&capabilities.chip, capabilities.device));
    let first: Capabilities = decode_message(&encode_message(&first).unwrap()).unwrap();
    assert_eq!((first.links, first.kernels), (capabilities.links.clone(), None));
    assert_eq!(decode_message::<Capabilities>(&said).unwrap(), capabilities);
}

/// Enumerations within messages: a build of 3f70f97 closes its link over a value that it does not know. Whoever
/// adds one has this to compile, and sends it to peers that list a feature for it, or says it in a new field.
#[test]
fn what_is_enumerated_within_messages_is_what_the_first_build_knew() {
    let _of_reports = |state: ShardState, on: Accelerator, strategy: Strategy| {
        match state {
            ShardState::Loading
            | ShardState::Ready
            | ShardState::Restarting
            | ShardState::Failed => {}
        }
        match on {
            Accelerator::None | Accelerator::Metal | Accelerator::Cuda => {}
        }
        match strategy {
            Strategy::Latency | Strategy::RingMemoryWeighted | Strategy::Tensor => {}
        }
    };
    let _of_frames = |finish: FinishReason, error: GenerationError| {
        match finish {
            FinishReason::Stop | FinishReason::Length => {}
        }
        match error {
            GenerationError::NodeLost { .. }
            | GenerationError::StageFailed { .. }
            | GenerationError::NotReady { .. }
            | GenerationError::Rejected { .. }
            | GenerationError::NoRoom { .. }
            | GenerationError::TimedOut { .. }
            | GenerationError::ClientTooSlow
            | GenerationError::PlanLost { .. }
            | GenerationError::ShuttingDown => {}
        }
    };
    let _of_answers = |why: NotPrepared| match why {
        NotPrepared::StaleEpoch(_) | NotPrepared::Unable(_) => {}
    };
}

#[test]
fn what_differs_is_noticed() {
    let bytes = &recorded("data-check")["data-check"];
    let was: Value = decode_message(bytes).unwrap();
    let Value::Map(mut fields) = was.clone() else { panic!("{was:?}") };
    fields.push((Value::Text("new".to_owned()), Value::Nil));
    assert!(was.is_within(&Value::Map(fields.clone())));
    fields.remove(0);
    assert!(!was.is_within(&Value::Map(fields)));
    assert!(misread::<Control>(bytes).is_some());
}

#[tokio::test]
async fn a_store_is_read_for_ever() {
    let place = tempfile::tempdir().unwrap();
    let store = place.path().join("store");
    planaria_storage::restore(&dir().join("store.backup"), &store).unwrap();
    let store = Store::open(&store).unwrap().store;

    let mut plans = ledger::plans(&store);
    plans.sort_by_key(Plan::epoch);
    let counters: Vec<u64> = plans.iter().map(|plan| plan.epoch().counter).collect();
    assert_eq!(counters, [41, 44]);
    let shown = "org/model epoch 41@0101010101: 0101010101#7=0-13 0202020202#7=14-27";
    assert_eq!(plans[0].to_string(), shown);
    let measured = ledger::measured(&store);
    assert_eq!(measured.device.unwrap().speed.bytes_per_second, 400_000_000_000);
    assert_eq!(measured.kernels, None);
    assert_eq!(measured.layer_seconds.into_values().collect::<Vec<_>>(), [0.000_25]);
    let wanted: Vec<String> = ledger::wanted(&store).iter().map(ToString::to_string).collect();
    assert_eq!(wanted, ["open", "org/model", "other"]);

    let named = ["org/model".parse().unwrap(), "other".parse().unwrap()];
    let memory = Memory::recall(&store, &named, 1_900_000_000_000).unwrap();
    assert_eq!(memory.incarnation.node.short(), "de92e23508");
    assert_eq!(memory.incarnation.boot_count, 4);
    assert_eq!(memory.desired.wanted().count(), 3, "the settings had been asserted before");
    let model = memory.desired.get(&named[0]).unwrap().wanted.unwrap();
    assert_eq!((model.context, model.max_sequences), (Some(4096), Some(4)));
    assert_eq!(memory.desired.get(&"gone".parse().unwrap()).unwrap().wanted, None);

    let answers = StoredAnswers::open(store, 1 << 20).unwrap();
    let mut outcomes = Vec::new();
    for bits in 1..=5 {
        let answer = answers.read(SequenceId::from_bits(bits)).await.unwrap().unwrap();
        assert_eq!(answer.prompt, (0..12).collect::<Vec<u32>>());
        assert_eq!(answer.tokens.len(), 70);
        assert_eq!(answer.tokens[68].logprobs.as_ref().unwrap().top, [(7, -0.5), (8, -1.5)]);
        assert_eq!((answer.record.sampling.top_k, answer.record.sampling.seed), (40, u64::MAX));
        assert_eq!(answer.record.metadata["for"], "ever");
        outcomes.push(answer.record.outcome);
    }
    let (message, code) = ("in words".to_owned(), "node_lost".to_owned());
    let expected = [
        None,
        Some(Outcome::Finished(FinishReason::Stop)),
        Some(Outcome::Finished(FinishReason::Length)),
        Some(Outcome::Failed { message, code }),
        Some(Outcome::Cancelled),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(answers.claim().len(), 1);
}
