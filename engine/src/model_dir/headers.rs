//! The headers of safetensors files: which tensors a folder holds, and where.
//!
//! Only headers are read here. A header comes from outside, so every offset is checked against the
//! file and against the tensor's shape before anything is allocated for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::shown;
use super::json::{Section, parse_object, plain_file, read_bounded};
use super::{Made, ModelError};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The limit of the safetensors format itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The largest published index (405B parameters) has 0.2 MiB.
const MAX_INDEX_BYTES: u64 = 32 << 20;

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The file that holds it.
    pub file: Arc<Path>,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Where its numbers are, counted from the beginning of the file; or among those that are made.
    pub bytes: Range<u64>,
    /// How it is made, if no file holds it so. The file is that of its first source.
    pub made: Option<Arc<Made>>,
}

impl TensorInfo {
    /// Bytes of its numbers.
    #[must_use]
    pub const fn byte_count(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// The tensors of a folder.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// By name.
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    /// Why some are not there that an index lists. Harmless if nobody needs them.
    pub(crate) incomplete: Option<ModelError>,
}

/// Every tensor of the folder. `warnings` takes what an index gets wrong without harm.
pub(crate) fn read_tensors(
    folder: &Path,
    warnings: &mut Vec<String>,
) -> Result<Stored, ModelError> {
    let mut tensors = BTreeMap::new();
    let mut incomplete = None;
    let single = folder.join(SINGLE);
    let index = folder.join(INDEX);
    if single.exists() {
        add_file(&single, &mut tensors)?;
        if index.exists() {
            warnings.extend(stale(folder, &index, &single));
        }
    } else if index.exists() {
        let listed = read_index(folder, &index)?;
        let (there, gone): (Vec<&PathBuf>, Vec<&PathBuf>) =
            listed.keys().partition(|file| file.exists());
        for file in there {
            add_file(file, &mut tensors)?;
        }
        if !gone.is_empty() {
            find_elsewhere(folder, &listed, &mut tensors)?;
            let names = gone.iter().take(MOST_NAMED).filter_map(|file| file.file_name());
            let list: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            warnings.push(shown(format!(
                "{INDEX}: lists {} files that are not there, such as `{}`; all tensors that the \
                 model needs are in others",
                gone.len(),
                list.join("`, `")
            )));
        }
        incomplete = first_absent(&listed, &tensors, warnings);
    } else {
        let wanted = format!("a model has either this file or {INDEX}");
        return Err(ModelError::MissingFile { file: single, wanted });
    }
    Ok(Stored { tensors, incomplete })
}

/// What is wrong with an index beside a single file, which nobody has to read.
fn stale(folder: &Path, index: &Path, single: &Path) -> Option<String> {
    match read_index(folder, index) {
        Ok(listed) if listed.keys().all(|file| file == single) => None,
        Ok(_) => Some(format!("{INDEX}: lists other files than {SINGLE}, which is used")),
        Err(error) => Some(format!("{INDEX} is not used, but {SINGLE}: {error}")),
    }
}

/// More would not help a reader.
const MOST_NAMED: usize = 3;

type Listed = BTreeMap<PathBuf, Vec<String>>;

/// Takes what an index expects in files that are not there from files that it does not list: a model
/// that was divided anew under an old index.
fn find_elsewhere(
    folder: &Path,
    listed: &Listed,
    tensors: &mut BTreeMap<String, TensorInfo>,
) -> Result<(), ModelError> {
    let wanted: BTreeSet<&String> =
        listed.values().flatten().filter(|name| !tensors.contains_key(*name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|source| ModelError::io(folder, source))? {
        let file = entry.map_err(|source| ModelError::io(folder, source))?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // As mlx-lm, which never reads an index.
        let is_shard = name.starts_with("model") && name.ends_with(".safetensors");
        if is_shard && !listed.contains_key(&file) && file.exists() {
            add_file(&file, &mut found)?;
        }
    }
    tensors.extend(found.into_iter().filter(|(name, _)| wanted.contains(name)));
    Ok(())
}

/// The first tensor of an index that is nowhere. In which of the files one is matters to nobody.
fn first_absent(
    listed: &Listed,
    tensors: &BTreeMap<String, TensorInfo>,
    warnings: &mut Vec<String>,
) -> Option<ModelError> {
    let mut astray = 0;
    let mut absent = None;
    for (file, name) in listed.iter().flat_map(|(f, names)| names.iter().map(move |n| (f, n))) {
        match tensors.get(name) {
            Some(tensor) if *tensor.file == **file => {}
            Some(_) => astray += usize::from(file.exists()),
            None if absent.is_some() => {}
            None if file.exists() => {
                let problem = format!("does not hold `{name}`, but {INDEX} says so");
                absent = Some(ModelError::malformed(file, problem));
            }
            None => {
                let wanted = format!("{INDEX} lists it");
                absent = Some(ModelError::MissingFile { file: file.clone(), wanted });
            }
        }
    }
    if astray > 0 {
        warnings.push(format!("{INDEX}: {astray} tensors are in other files than it says"));
    }
    absent
}

/// The names that an index expects in each file.
fn read_index(folder: &Path, index: &Path) -> Result<Listed, ModelError> {
    let json = parse_object(index, &read_bounded(index, MAX_INDEX_BYTES)?)?;
    let root = Section::root(index, &json);
    let map =
        root.section("weight_map")?.ok_or_else(|| root.problem("weight_map", "is missing"))?;
    let mut files = Listed::new();
    for (name, _) in map.entries() {
        let file = map
            .text(name)?
            .and_then(|file| plain_file(folder, file))
            .ok_or_else(|| map.problem(name, "is not the name of a file in this folder"))?;
        files.entry(file).or_default().push(name.clone());
    }
    Ok(files)
}

fn add_file(file: &Path, tensors: &mut BTreeMap<String, TensorInfo>) -> Result<(), ModelError> {
    for tensor in read_header(file)? {
        if let Some(other) = tensors.get(&tensor.name) {
            let other = other.file.display();
            let problem = format!("holds `{}`, which is in {other} too", tensor.name);
            return Err(ModelError::malformed(file, problem));
        }
        tensors.insert(tensor.name.clone(), tensor);
    }
    Ok(())
}

fn read_header(path: &Path) -> Result<Vec<TensorInfo>, ModelError> {
    let io = |source| ModelError::io(path, source);
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(ModelError::malformed(path, "is not a file"));
    }
    let length = metadata.len();
    let truncated =
        |expected| ModelError::Truncated { file: path.to_owned(), expected, found: length };
    let mut file = File::open(path).map_err(io)?;
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(|_| truncated(8))?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        let problem = format!("has a header of {header_bytes} bytes: not a safetensors file");
        return Err(ModelError::malformed(path, problem));
    }
    let data_start = 8 + header_bytes;
    if data_start > length {
        return Err(truncated(data_start));
    }
    let mut header = Vec::new();
    file.take(header_bytes).read_to_end(&mut header).map_err(io)?;
    let Header(entries) = serde_json::from_slice(&header).map_err(|e| {
        ModelError::malformed(path, format!("has a header that is no safetensors header: {e}"))
    })?;
    let shared: Arc<Path> = Arc::from(path);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut end = data_start;
    for (name, entry) in entries {
        let bytes = place(&entry, data_start)
            .map_err(|problem| ModelError::malformed(path, format!("tensor `{name}` {problem}")))?;
        end = end.max(bytes.end);
        let (dtype, shape) = (entry.dtype, entry.shape);
        let file = Arc::clone(&shared);
        tensors.push(TensorInfo { name, file, dtype, shape, bytes, made: None });
    }
    if end > length {
        return Err(truncated(end));
    }
    refuse_overlap(path, &mut tensors)?;
    Ok(tensors)
}

/// Where a tensor lies in its file, if its offsets agree with its shape.
fn place(entry: &safetensors::tensor::TensorInfo, data_start: u64) -> Result<Range<u64>, String> {
    let (start, end) = entry.data_offsets;
    let size = entry
        .shape
        .iter()
        .try_fold(entry.dtype.bitsize(), |bits, dim| bits.checked_mul(*dim))
        .filter(|bits| bits.is_multiple_of(8))
        .map(|bits| bits / 8);
    if end.checked_sub(start).is_none_or(|length| Some(length) != size) {
        let (dtype, shape) = (entry.dtype, &entry.shape);
        return Err(format!("of type {dtype} and shape {shape:?} cannot lie at {start}..{end}"));
    }
    let absolute = |offset: usize| data_start.checked_add(offset as u64);
    absolute(start)
        .zip(absolute(end))
        .map(|(start, end)| start..end)
        .ok_or_else(|| format!("cannot lie at {start}..{end}"))
}

fn refuse_overlap(path: &Path, tensors: &mut [TensorInfo]) -> Result<(), ModelError> {
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    for pair in tensors.windows(2) {
        if let [before, after] = pair
            && after.bytes.start < before.bytes.end
        {
            let problem = format!("tensors `{}` and `{}` overlap", before.name, after.name);
            return Err(ModelError::malformed(path, problem));
        }
    }
    Ok(())
}

/// A header's tensors in their order; a name that comes twice is an error, which a plain map would
/// not notice.
struct Header(Vec<(String, safetensors::tensor::TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut names = std::collections::HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(serde::de::Error::custom(format!("`{name}` comes twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let entry = map.next_value()?;
                entries.push((name, entry));
            }
        }
        Ok(Header(entries))
    }
}
