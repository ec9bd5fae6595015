//! Identifiers, units, the cluster key and layered settings.
//!
//! Everything here is a value: a type whose bad states cannot be written, parsed from what a
//! person typed or a peer sent. Apart from reading the settings file and key files nothing here
//! performs I/O, and nothing here knows what the other crates do with these values.

mod cluster_key;
mod ids;
mod layer_set;
mod layers;
mod model_name;
mod settings;
mod units;

pub use cluster_key::{ClusterKey, ClusterKeyError};
pub use ids::{Epoch, Incarnation, InvalidId, NodeId, SequenceId, parse_hex};
pub use layer_set::LayerSet;
pub use layers::{InvalidLayerRange, LayerRange, NotLayers};
pub use model_name::{InvalidModelName, ModelName};
pub use settings::{
    CONTEXT_TOKENS, CollectorUrl, Environment, FLAGS, InvalidSettings, KvBits, LogFormat, Machine,
    Mistake, Origin, Overrides, Parsers, PeerAddress, PerModel, SEQUENCES, SETTINGS, SettingDoc,
    SettingValue, Settings, Strategy, THREADS, TraceProtocol, TraceRatio,
};
pub use units::{ByteSize, InvalidByteSize};

/// The protocol that nodes speak, as it is negotiated in TLS and announced. Its number is the major version:
/// nodes of different major versions cannot link.
pub const PROTOCOL: &str = "planaria/1";
