//! Breaks a real cluster from outside, and checks what clients see.
//!
//! From the bottom up: a [`Process`] is a running `planaria`, an [`Api`](api::Api) what any client sees
//! of it, a [`Cluster`] several of them, on loopback, connected by a [`network`] that does what it is told,
//! or on a [`Lan`] of their own. The scenarios of the integration tests stand on these as well.
//!
//! A [`scenario`] is a kind of fault. For each of its rounds everything is drawn beforehand ([`schedule`]): one seed
//! gives one schedule. A round is played in an [`arena`], a cluster that is whole before and made whole after it,
//! with a [`collector`] of traces if need be; clients ask in all dialects ([`dialect`]) and take down
//! what they hear ([`history`]); what must hold is checked ([`check`]); a [`report`] puts the rounds together.
//!
//! Whatever happens, processes end with who started them: every [`Process`] is killed when dropped, and
//! its workers end when it does.

pub mod api;
pub mod arena;
pub mod check;
pub mod cluster;
pub mod collector;
pub mod dialect;
pub mod history;
pub mod lan;
pub mod limits;
pub mod mixed;
pub mod network;
pub mod process;
pub mod report;
pub mod resources;
pub mod scenario;
pub mod schedule;
pub mod soak;
pub mod view;

pub use cluster::{Cluster, NodeSpec};
pub use lan::{Lan, Machine};
pub use process::Process;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

/// Longest wait for anything that should happen: generous, since machines are shared and slow. What
/// goes well never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let chaos = Path::new(env!("CARGO_MANIFEST_DIR"));
    chaos.parent().unwrap_or(chaos).to_owned()
}

/// Makes a model `name` in `folder` that computes nothing: `sizes` are those of its configuration
/// (see the engine's `fake`), its tokenizer is the demo model's.
///
/// # Errors
/// When files cannot be written.
pub fn write_fake_model(folder: &Path, name: &str, sizes: Value) -> Result<()> {
    let model = folder.join(name);
    std::fs::create_dir(&model)?;
    let mut config = sizes;
    if let Some(config) = config.as_object_mut() {
        config.insert("model_type".to_owned(), "planaria_fake".into());
    }
    std::fs::write(model.join("config.json"), config.to_string())?;
    let demo = repository().join("engine/models/demo");
    for file in ["tokenizer_config.json", TEMPLATE] {
        std::fs::copy(demo.join(file), model.join(file))?;
    }
    let mut tokenizer = std::fs::read_to_string(demo.join(TOKENIZER))?;
    for (number, marker) in MARKERS.iter().enumerate() {
        let (written, unused) = (format!("\"{marker}\""), format!("\"<|unused-{number}|>\""));
        tokenizer = tokenizer.replace(&written, &unused);
    }
    std::fs::write(model.join(TOKENIZER), tokenizer)?;
    Ok(())
}

/// The file of a model's tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// Tokens with which the demo model thinks and calls tools. A model that draws its tokens at random would begin to think
/// somewhere, and never end.
const MARKERS: [&str; 4] = ["<tool_call>", "</tool_call>", "<think>", "</think>"];

/// Writes a model below `folder` that makes its tokens up, has 32,768 positions, thinks and calls tools as Qwen's models
/// do. What it says is random, and of the form that is asked for.
///
/// # Errors
/// When files cannot be written.
pub fn write_tool_model(folder: &Path, name: &str, layers: u32) -> Result<()> {
    let sizes = serde_json::json!({
        "num_hidden_layers": layers, "hidden_size": 64, "vocab_size": 768, "max_position_embeddings": 32_768,
    });
    write_fake_model(folder, name, sizes)?;
    give_tools(folder, name)
}

/// Gives a model below `folder` a chat template with tools and thoughts.
///
/// # Errors
/// When the file cannot be written.
pub fn give_tools(folder: &Path, name: &str) -> Result<()> {
    std::fs::write(folder.join(name).join(TEMPLATE), TOOL_TEMPLATE)?;
    Ok(())
}

/// The file of a model's chat template.
const TEMPLATE: &str = "chat_template.jinja";

/// In the manner of Qwen's. The roles are tokens of the demo model's vocabulary.
const TOOL_TEMPLATE: &str = r#"{{- bos_token }}
{%- if tools %}
    {{- '<|system|>Tools: ' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
    {{- ' Call: <tool_call>{"name": ..., "arguments": ...}</tool_call><|end|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|' ~ ('user' if message.role == 'tool' else message.role) ~ '|>' }}
    {%- if message.reasoning_content %}{{- '<think>' ~ message.reasoning_content ~ '</think>' }}{%- endif %}
    {{- '<tool_response>' if message.role == 'tool' else '' }}{{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- (call.function.arguments | tojson) ~ '}</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"#;

/// Waits until `condition` gives something. `what` names it when it does not.
///
/// # Errors
/// When it does not within [`PATIENCE`], or `condition` fails for good.
pub async fn wait_for<T>(
    what: &str,
    condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_for_up_to(PATIENCE, what, condition).await
}

/// The same for what takes its time by design.
///
/// # Errors
/// When it does not come about within `patience`, or `condition` fails for good.
pub async fn wait_for_up_to<T>(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = condition().await? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {patience:?} in vain for {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
