//! Mutually authenticated links between nodes, over QUIC.
//!
//! From the bottom up: an [`Identity`] is a node's key, [`Credentials`] are what it proves itself
//! with, an [`Endpoint`] is its socket, a [`Link`] is a connected peer, a [`Lane`] is an ordered
//! stream of [`Frame`]s on a link, and beside the lanes it carries datagrams, which may be lost.
//!
//! A link exists only between two nodes whose certificates the same authority signed, that speak
//! the same major version, and that have greeted each other; everybody else gets a [`Refusal`]
//! that says why. Of two processes with one identity the one that is linked stays while it answers. What a
//! hostile or broken peer sends ends its own link and nothing else.
//!
//! The same frames go between a process and its child through a [`local_pipe`], which is shared memory.
//!
//! This crate knows nothing of models, requests or plans. It is the only one that names quinn.

mod authority;
mod credentials;
mod datagram;
mod endpoint;
mod frame;
mod frame_codec;
mod frame_reader;
mod gate;
mod handshake;
mod hello;
mod identity;
mod lane;
mod lane_table;
mod link;
mod link_core;
mod local_pipe;
mod memory;
mod message;
mod path_socket;
mod paths;
mod peer_text;
mod probe;
mod queue;
mod quic_config;
mod quic_link;
mod refusal;
mod shared_ring;
mod twins;

pub use credentials::{CERTIFICATE_NAME, Credentials, CredentialsError};
pub use datagram::{DATAGRAM_CAP, DatagramError, DatagramReceiver};
pub use endpoint::{BindError, Endpoint, EndpointConfig};
pub use frame::{Frame, FrameError};
pub use frame_codec::FrameCodec;
pub use hello::{InvalidHello, LocalHello, MAX_FEATURE, MAX_FEATURES, MAX_INFO, MAX_NAME};
pub use identity::{Identity, IdentityError};
pub use lane::{ACTIVATION_CAP, BULK_CAP, CONTROL_CAP, Lane, MAX_ACTIVATION_STREAMS};
pub use link::{
    CloseReason, Inbound, LaneReceiver, Link, LinkReceiver, LinkSender, Peer, SendError,
};
pub use local_pipe::{
    ChildPipe, ChildReceiver, ChildSender, HostReceiver, HostSender, PipeError, local_pipe,
};
pub use memory::memory_pair;
pub use message::{Malformed, Unencodable, decode_message, encode_message};
pub use paths::Path;
pub use quic_config::{InvalidLimits, Limits};
pub use refusal::{DialError, Party, Refusal, Refused};
