//! A collector of traces that takes no interest in them, and can be told to be in trouble.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// How it is in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Trouble {
    /// Nobody listens.
    Down,
    /// It takes its time.
    Slow,
    /// It takes everything and never answers.
    Hangs,
}

/// So long a slow one takes: nodes have something new to send long before.
const SLOWLY: Duration = Duration::from_secs(2);

/// It ends with this value.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    state: Arc<Shared>,
    /// A runtime of its own, so that with it all connections end. Taken when it is dropped.
    serving: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    trouble: watch::Sender<Option<Trouble>>,
    /// Messages that came while all was well, and while it was not.
    well: AtomicU64,
    disturbed: AtomicU64,
}

impl Collector {
    /// One that is well.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let state = Shared {
            trouble: watch::Sender::new(None),
            well: AtomicU64::new(0),
            disturbed: AtomicU64::new(0),
        };
        let address = listener.local_addr()?;
        let mut collector = Self { address, state: Arc::new(state), serving: None };
        collector.serve(listener)?;
        Ok(collector)
    }

    /// Settings of a node that sends its traces here.
    #[must_use]
    pub fn settings(&self) -> [String; 4] {
        settings("http", &format!("http://{}", self.address))
    }

    /// Messages that it took while all was well.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.state.well.load(Ordering::Relaxed)
    }

    /// Messages that came while it was in trouble.
    #[must_use]
    pub fn disturbed(&self) -> u64 {
        self.state.disturbed.load(Ordering::Relaxed)
    }

    /// Gets into trouble.
    pub fn fail(&mut self, trouble: Trouble) {
        self.state.trouble.send_replace(Some(trouble));
        if trouble == Trouble::Down {
            self.stop();
        }
    }

    /// Gets out of it. Whoever waits for an answer gets one.
    ///
    /// # Errors
    /// When somebody else has taken its port meanwhile.
    pub fn mend(&mut self) -> Result<()> {
        self.state.trouble.send_replace(None);
        if self.serving.is_none() {
            self.serve(TcpListener::bind(self.address)?)?;
        }
        Ok(())
    }

    fn serve(&mut self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        let routes =
            Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&self.state));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, routes).await
        });
        self.serving = Some(runtime);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.shutdown_background();
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Settings of a node that sends its traces to this URL by this protocol.
#[must_use]
pub fn settings(protocol: &str, url: &str) -> [String; 4] {
    let set = || "--set".to_owned();
    [set(), format!("traces={url}"), set(), format!("trace-protocol={protocol}")]
}

async fn take(State(state): State<Arc<Shared>>) -> StatusCode {
    let mut trouble = state.trouble.subscribe();
    let now = *trouble.borrow_and_update();
    let count = if now.is_some() { &state.disturbed } else { &state.well };
    count.fetch_add(1, Ordering::Relaxed);
    match now {
        None => {}
        Some(Trouble::Slow) => tokio::time::sleep(SLOWLY).await,
        // Until it is mended; who asked may have given up by then.
        Some(Trouble::Down | Trouble::Hangs) => drop(trouble.wait_for(Option::is_none).await),
    }
    StatusCode::OK
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn send(collector: &Collector) -> reqwest::Result<u16> {
        let url = format!("http://{}/v1/traces", collector.address);
        Ok(reqwest::Client::new().post(url).body("spans").send().await?.status().as_u16())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_answers_late_never_or_not_at_all_and_is_well_again() {
        let mut collector = Collector::start().unwrap();
        assert_eq!(send(&collector).await.unwrap(), 200);
        collector.fail(Trouble::Down);
        assert!(send(&collector).await.is_err());
        collector.mend().unwrap();
        assert_eq!(send(&collector).await.unwrap(), 200);
        collector.fail(Trouble::Hangs);
        tokio::select! {
            answer = send(&collector) => panic!("{answer:?}"),
            () = async {
                while collector.disturbed() == 0 {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        collector.mend().unwrap();
        assert_eq!(send(&collector).await.unwrap(), 200);
        assert_eq!((collector.taken(), collector.disturbed()), (3, 1));
    }
}
