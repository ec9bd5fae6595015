//! A collector of traces: a real Jaeger where `make test` could build one, or else a receiver of OTLP that
//! keeps what it hears. Both tell the same.

mod jaeger;
mod receiver;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use planaria_chaos::collector::settings;

use crate::wait_for;
use jaeger::Jaeger;
use receiver::Receiver;

/// A running collector; it ends with this value.
#[derive(Debug)]
pub struct Collector(Kind);

#[derive(Debug)]
enum Kind {
    Jaeger(Box<Jaeger>),
    Receiver(Receiver),
}

/// A span, as a collector tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanSeen {
    /// Its trace's id.
    pub trace: String,
    /// Of what service.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What it is a part of.
    pub parent: Option<String>,
    /// What else it came of.
    pub links: Vec<String>,
    /// When it began, since 1970.
    pub began: Duration,
    /// How long it lasted.
    pub took: Duration,
    /// Its fields, as text.
    pub fields: BTreeMap<String, String>,
    /// Whether it says that something went wrong.
    pub is_error: bool,
}

/// The field that names an answer.
const ANSWER: &str = "gen_ai.response.id";

impl SpanSeen {
    /// A field.
    ///
    /// # Errors
    /// When it has none of this name.
    pub fn field(&self, name: &str) -> Result<&str> {
        let field = self.fields.get(name).map(String::as_str);
        field.with_context(|| format!("{} has no {name}: {:?}", self.name, self.fields))
    }
}

impl Collector {
    /// Jaeger if `PLANARIA_TEST_JAEGER` names its program, or else a receiver.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start() -> Result<Self> {
        Ok(Self(match std::env::var_os("PLANARIA_TEST_JAEGER").filter(|path| !path.is_empty()) {
            Some(program) => Kind::Jaeger(Box::new(Jaeger::start(program.as_ref()).await?)),
            None => Kind::Receiver(Receiver::start().await?),
        }))
    }

    /// The Jaeger that `make jaeger` brings up on this machine, if it runs.
    pub async fn running() -> Option<Self> {
        Jaeger::running().await.map(|jaeger| Self(Kind::Jaeger(Box::new(jaeger))))
    }

    /// Where a person can look at a trace, if there is a page for it.
    #[must_use]
    pub fn page(&self, trace: &str) -> Option<String> {
        match &self.0 {
            Kind::Jaeger(jaeger) => Some(jaeger.page(trace)),
            Kind::Receiver(_) => None,
        }
    }

    /// Arguments with which a node sends traces here by HTTP.
    #[must_use]
    pub fn by_http(&self) -> [String; 4] {
        settings(
            "http",
            match &self.0 {
                Kind::Jaeger(jaeger) => &jaeger.http,
                Kind::Receiver(receiver) => &receiver.http,
            },
        )
    }

    /// The same by gRPC.
    #[must_use]
    pub fn by_grpc(&self) -> [String; 4] {
        settings(
            "grpc",
            match &self.0 {
                Kind::Jaeger(jaeger) => &jaeger.grpc,
                Kind::Receiver(receiver) => &receiver.grpc,
            },
        )
    }

    /// What is there now of the trace in which an answer with this id was given.
    ///
    /// # Errors
    /// When the collector does not answer.
    pub async fn look(&self, service: &str, id: &str) -> Result<Vec<SpanSeen>> {
        match &self.0 {
            Kind::Jaeger(jaeger) => jaeger.trace_with(service, ANSWER, id).await,
            Kind::Receiver(receiver) => Ok(receiver.trace_with(ANSWER, id)),
        }
    }

    /// The spans of the trace in which an answer with this id was given, once `complain` has nothing to say
    /// against them. Nodes send what they have every half a second.
    ///
    /// # Errors
    /// When that does not come about; with what it said last.
    pub async fn trace_of_answer(
        &self,
        service: &str,
        id: &str,
        complain: impl Fn(&[SpanSeen]) -> Result<()>,
    ) -> Result<Vec<SpanSeen>> {
        let mut lacks = None;
        let trace = wait_for("the trace of an answer", async || {
            let spans = self.look(service, id).await?;
            let said = if spans.is_empty() { Err(anyhow!("no span")) } else { complain(&spans) };
            lacks = said.err();
            if lacks.is_some() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(lacks.is_none().then_some(spans))
        });
        let found = trace.await;
        match lacks {
            Some(lacks) => found.context(lacks),
            None => found,
        }
    }
}
