//! Asking a node, for the commands that do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::Method;

/// A node that takes longer than this to say how it is, is not well.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which node to ask.
#[derive(Debug, Args)]
pub(super) struct ApiFlags {
    /// The API of any node.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8420", env = "PLANARIA_URL")]
    pub(super) api: String,
    /// File with the API key, where one is needed.
    #[arg(long, value_name = "FILE", env = "PLANARIA_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
}

impl ApiFlags {
    /// What the node answers to `GET` of a path with these parameters.
    ///
    /// # Errors
    /// When nobody answers, or with an error; then with what it said.
    pub(super) fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<String> {
        self.ask(Method::GET, path, query)
    }

    /// What the node answers to an empty `POST` to a path.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn post(&self, path: &str) -> anyhow::Result<String> {
        self.ask(Method::POST, path, &[])
    }

    fn ask(&self, method: Method, path: &str, query: &[(&str, String)]) -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.exchange(method, path, query))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<String> {
        let url = format!("{}{path}", self.api.trim_end_matches('/'));
        let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
        let mut request = client.request(method, &url).query(query);
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            request = request.bearer_auth(text.lines().next().unwrap_or_default().trim());
        }
        let answer = request.send().await.with_context(|| {
            format!("no node answers at {}; is `planaria serve` running there?", self.api)
        })?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            bail!("{url} answered {status}: {}", said(&text));
        }
        Ok(text)
    }
}

/// The message of an error in the shape of the API, or all of it.
fn said(text: &str) -> String {
    let error: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let message = error.as_ref().and_then(|error| error.pointer("/error/message")?.as_str());
    message.unwrap_or(text.trim()).to_owned()
}
