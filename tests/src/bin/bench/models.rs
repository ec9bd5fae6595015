//! The models that are measured: random ones, of a few shapes and types.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::repository;
use tokio::process::Command;

/// All of them. Parts that measure one model take the first.
pub(crate) const MODELS: [Model; 10] = [
    Model { shape: &SMALL, kind: "f32", prompt: 256 },
    // A prompt as short as mlx-lm needs, which takes a product with packed weights on one thread.
    Model { shape: &SMALL, kind: "f32 4-bit", prompt: 64 },
    Model { shape: &SMALL, kind: "bf16", prompt: 256 },
    Model { shape: &SMALL, kind: "bf16 4-bit", prompt: 256 },
    Model { shape: &MIDDLE, kind: "f32", prompt: 256 },
    Model { shape: &MIDDLE, kind: "bf16", prompt: 256 },
    Model { shape: &MIDDLE, kind: "bf16 4-bit", prompt: 256 },
    Model { shape: &LARGE, kind: "f32", prompt: 256 },
    Model { shape: &LARGE, kind: "bf16", prompt: 256 },
    Model { shape: &LARGE, kind: "bf16 4-bit", prompt: 256 },
];

const SMALL: Shape = Shape {
    name: "43M",
    hidden: 512,
    intermediate: 1344,
    layers: 12,
    heads: 8,
    kv_heads: 4,
    vocab: 8192,
};

const MIDDLE: Shape = Shape {
    name: "350M",
    hidden: 1024,
    intermediate: 2688,
    layers: 24,
    heads: 16,
    kv_heads: 8,
    vocab: 32000,
};

/// `TinyLlama`'s.
const LARGE: Shape = Shape {
    name: "1.1B",
    hidden: 2048,
    intermediate: 5632,
    layers: 22,
    heads: 32,
    kv_heads: 4,
    vocab: 32000,
};

/// A model, made when it is first wanted.
pub(crate) struct Model {
    shape: &'static Shape,
    /// The type of its numbers, and how its matrices are packed if they are.
    kind: &'static str,
    /// Tokens of the prompt that it is measured with.
    pub(crate) prompt: usize,
}

/// Sizes as in `config.json`. The head is a matrix of its own.
struct Shape {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
}

impl Model {
    /// Its folder, made if it is missing.
    pub(crate) async fn folder(&self, python: &Path, models: &Path) -> Result<PathBuf> {
        let folder = models.join(self.file_name());
        if !folder.join("config.json").exists() {
            std::fs::create_dir_all(models)?;
            let mut make = Command::new(python);
            make.arg(repository().join("tests/bench/make_model.py")).arg(&folder);
            for (flag, number) in self.shape.flags() {
                make.arg(flag).arg(number.to_string());
            }
            if self.kind.starts_with("bf16") {
                make.args(["--dtype", "bfloat16"]);
            }
            if self.kind.ends_with("4-bit") {
                make.args(["--bits", "4"]);
            }
            done(make).await?;
        }
        Ok(folder)
    }

    /// The same weights as a file for llama.cpp, made if it is missing.
    pub(crate) async fn gguf(&self, python: &Path, models: &Path) -> Result<PathBuf> {
        let file = gguf(&self.folder(python, models).await?, python).await?;
        file.with_context(|| format!("llama.cpp does not know {self}"))
    }

    fn file_name(&self) -> String {
        self.to_string().replace(' ', "-")
    }

    /// What share of all weights a decoded token takes: all but the embedding, of which it takes one row. It is
    /// the same share of the bytes, since all matrices are packed alike.
    pub(crate) fn read_share(&self) -> f64 {
        let (layers, head) = self.shape.weights();
        (layers + head) as f64 / (layers + 2 * head) as f64
    }

    /// Multiply-adds with weights that a prompt takes: all layers for each token, the head for the last one.
    /// Attention is not counted.
    pub(crate) fn prefill_multiply_adds(&self) -> f64 {
        let (layers, head) = self.shape.weights();
        (self.prompt * layers + head) as f64
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.shape.name, self.kind)
    }
}

impl Shape {
    /// For `make_model.py`.
    const fn flags(&self) -> [(&'static str, usize); 6] {
        [
            ("--hidden", self.hidden),
            ("--intermediate", self.intermediate),
            ("--layers", self.layers),
            ("--heads", self.heads),
            ("--kv-heads", self.kv_heads),
            ("--vocab", self.vocab),
        ]
    }

    /// Weights in the matrices of all layers, and in the head, which is as large as the embedding.
    const fn weights(&self) -> (usize, usize) {
        let kv = self.hidden / self.heads * self.kv_heads;
        let attention = 2 * self.hidden * (self.hidden + kv);
        let feed_forward = 3 * self.hidden * self.intermediate;
        (self.layers * (attention + feed_forward), self.hidden * self.vocab)
    }
}

/// The folder of a model of that family, made if it is missing: in bf16 with 4 bits, or a large one in bf16.
pub(crate) async fn family(
    name: &str,
    size: Size,
    python: &Path,
    models: &Path,
) -> Result<PathBuf> {
    let (prefix, arguments): (_, &[&str]) = match size {
        Size::Small => ("family", &["--bits", "4"]),
        Size::Large => ("large", &["--large"]),
    };
    let folder = models.join(format!("{prefix}-{name}"));
    if !folder.join("read.json").exists() {
        std::fs::create_dir_all(models)?;
        let mut make = Command::new(python);
        make.arg(repository().join("tests/bench/make_model.py")).arg(&folder);
        make.args(["--family", name, "--dtype", "bfloat16"]).args(arguments);
        done(make).await?;
    }
    Ok(folder)
}

/// How large a model of a family is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// To measure speed with.
    Small,
    /// To measure memory with.
    Large,
}

/// The weights in a folder as a file for llama.cpp beside it, made if it is missing; `None` if llama.cpp does not know
/// such models.
pub(crate) async fn gguf(folder: &Path, python: &Path) -> Result<Option<PathBuf>> {
    /// What `make_gguf.py` ends with where it has no counterpart for a model.
    const UNKNOWN: i32 = 2;
    let mut name = folder.as_os_str().to_owned();
    name.push(".gguf");
    let file = PathBuf::from(name);
    if !file.exists() {
        let mut make = Command::new(python);
        make.arg(repository().join("tests/bench/make_gguf.py")).arg(folder).arg(&file);
        let output = make.kill_on_drop(true).output().await?;
        if output.status.code() == Some(UNKNOWN) {
            return Ok(None);
        }
        succeeded(&output)?;
    }
    Ok(Some(file))
}

async fn done(mut command: Command) -> Result<()> {
    succeeded(&command.kill_on_drop(true).output().await?)
}

fn succeeded(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
