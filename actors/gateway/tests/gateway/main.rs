//! The HTTP API over real connections, with a scripted generator behind it and a real tokenizer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod access;
mod answers;
mod anthropic;
mod bodies;
mod catalog;
mod client;
mod cluster;
mod compaction;
mod connections;
mod double;
mod events;
mod fields;
mod harmony;
mod kept;
mod model;
mod ollama;
mod openapi;
mod page;
mod refusals;
mod responses;
mod server;
mod stored;
mod streaming;
mod tokenize;
mod tools;
mod websocket;
