//! What there is on a machine, as far as a node depends on it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use planaria_config::ModelName;
use planaria_engine::geometry::Geometry;
use planaria_engine::model_dir::PassedOver;
use planaria_engine::speed::Probed;

/// All that was looked at.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) folder: Folder,
    /// Bytes that can be written where the data folder is, or will be.
    pub(super) free_disk: Option<u64>,
    pub(super) lock: Lock,
    pub(super) store: StoreSeen,
    /// Where the cluster key is, or would be.
    pub(super) key_path: PathBuf,
    pub(super) key: KeySeen,
    /// Of the API; `None` when the settings name none.
    pub(super) api_key: Option<Result<(), String>>,
    pub(super) listen: Port,
    pub(super) api: Port,
    /// What answers at the API's address.
    pub(super) node: NodeSeen,
    /// The models folder: how many models in it can be used, and which cannot. `Err` when it cannot be read.
    pub(super) models: Result<ModelsSeen, String>,
    /// The models that are asked for, each with its sizes if it can be used, or why not.
    pub(super) wanted: Vec<(ModelName, Model)>,
    /// All memory that a node may use, in bytes, and what programs could have of it now.
    pub(super) memory: Option<u64>,
    /// What control groups allow, where that is less than the machine has.
    pub(super) memory_allowed: Option<u64>,
    pub(super) memory_available: Option<u64>,
    /// Cores that a node may use.
    pub(super) cores: NonZeroUsize,
    /// What a worker measured, or why none could.
    pub(super) probed: Result<Probed, String>,
    /// Whether a socket can join the group of mDNS; `None` when it is off.
    pub(super) multicast: Option<Result<(), String>>,
    /// The addresses to find the cluster by, each with what it resolves to.
    pub(super) joins: Vec<(String, Result<usize, String>)>,
    /// Seconds since 1970.
    pub(super) clock: u64,
    /// Files that a node may have open once it has raised its limit; `None` for any number.
    pub(super) open_files: Option<u64>,
}

/// The data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Folder {
    /// It will be made; `Err` says why it could not be.
    Absent(Result<(), String>),
    /// There is something else.
    Other,
    /// It cannot be written to.
    Closed(String),
    /// It can be written to; with its mode.
    Open(u32),
}

/// The lock that a node holds on its data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lock {
    Free,
    Held,
    Unknown(String),
}

/// The store in the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoreSeen {
    /// None yet.
    Absent,
    /// It opens, and is whole.
    Whole,
    /// A node has it open.
    InUse,
    /// It does not hold what was written.
    Damaged(String),
    /// It does not open.
    Closed(String),
}

/// The cluster key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeySeen {
    Usable,
    Absent,
    Unusable(String),
}

/// A port to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    /// It can be had, or any will do.
    Free,
    /// Somebody has it.
    Taken,
    /// It cannot be had.
    Refused(String),
}

/// What answers at the API's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeSeen {
    /// Nothing.
    Nothing,
    /// Something that is no node.
    Stranger,
    /// A node.
    Node {
        /// What `/health` complains of.
        problems: Vec<String>,
        /// Why `/ready` says that it is not, if it does; `Err` when it does not tell.
        reasons: Result<Vec<String>, String>,
    },
}

/// What is in the models folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ModelsSeen {
    pub(super) usable: usize,
    pub(super) unusable: Vec<(ModelName, String)>,
    /// What is odd about those that can be used.
    pub(super) warnings: Vec<(ModelName, String)>,
    /// Folders that look like models and are none for a node.
    pub(super) passed_over: Vec<PassedOver>,
}

/// A model that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Model {
    /// Its files are not here.
    Absent,
    /// They cannot be used.
    Unusable(String),
    /// They can.
    Usable(Box<Geometry>),
}
