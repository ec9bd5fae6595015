//! The API of a node, as the commands ask it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

/// A node that takes longer than this is not well. Storing a change may take most of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// The API of a node on this machine, with default settings.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:8420";

/// The variables behind the flags.
pub(super) const URL_VARIABLE: &str = "PLANARIA_URL";
pub(super) const KEY_VARIABLE: &str = "PLANARIA_API_KEY_FILE";

/// Which node, and how to be let in.
#[derive(Debug, Clone, Args)]
pub(super) struct NodeApi {
    /// The API of any node.
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL, env = URL_VARIABLE)]
    api: String,
    /// File with the API key, where one is needed.
    #[arg(long, value_name = "FILE", env = KEY_VARIABLE)]
    api_key_file: Option<PathBuf>,
}

/// The API key in a file: its first line.
pub(super) fn read_key(path: &Path) -> anyhow::Result<String> {
    let file = format!("API key file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(|| file.clone())?;
    match text.lines().next().unwrap_or_default().trim() {
        "" => bail!("{file}: there is no key in its first line"),
        key => Ok(key.to_owned()),
    }
}

/// A request with the API key, where one is known.
pub(super) fn signed(request: RequestBuilder, key: Option<&str>) -> RequestBuilder {
    match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

impl NodeApi {
    /// The URL that the person gave.
    pub(super) fn url(&self) -> &str {
        &self.api
    }

    /// Asks for what is at `path`, with these parameters.
    pub(super) fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<String> {
        self.ask(Method::GET, path, query, None)
    }

    /// Asks for what is at `path` to be done.
    pub(super) fn post(&self, path: &str) -> anyhow::Result<String> {
        self.ask(Method::POST, path, &[], None)
    }

    /// Puts `body` at `path`.
    pub(super) fn put(&self, path: &str, body: &Value) -> anyhow::Result<String> {
        self.ask(Method::PUT, path, &[], Some(body))
    }

    /// Removes what is at `path`.
    pub(super) fn delete(&self, path: &str) -> anyhow::Result<String> {
        self.ask(Method::DELETE, path, &[], None)
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.send(method, path, query, body))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> anyhow::Result<String> {
        let url = format!("{}{path}", self.api.trim_end_matches('/'));
        let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
        let key = self.api_key_file.as_deref().map(read_key).transpose()?;
        let mut request = signed(client.request(method, &url).query(query), key.as_deref());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| {
            format!("no node answers at {}; is `planaria serve` running there?", self.api)
        })?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            // What the node says for people, if it is a node.
            let error: Option<Value> = serde_json::from_str(&text).ok();
            let message = error.as_ref().and_then(|e| e.pointer("/error/message")?.as_str());
            match message {
                Some(message) => bail!("{message}"),
                None => bail!("{url} answered {status}: {}", text.trim()),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_key(&path).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read("sesame\n"), Ok("sesame".to_owned()));
        assert_eq!(read(" sesame \r\nnot this\n"), Ok("sesame".to_owned()));
        for empty in ["", "\n", " \nsesame\n"] {
            let error = read(empty).unwrap_err();
            assert!(error.contains("/key: there is no key in its first line"), "{error}");
        }
    }
}
