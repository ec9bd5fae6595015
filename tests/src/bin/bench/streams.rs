//! Clients that ask over HTTP, as both servers understand it.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use planaria_tests::api::Api;
use serde_json::{Value, json};

/// The id of the token that ends an answer in models of `make_model.py`; nobody may say it, so that
/// all answers are equally long.
const END: &str = "1";

/// A prompt of that many tokens (the tokenizers of these models know single bytes), another one for
/// each `seed`.
pub(crate) fn prompt(seed: u64, tokens: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..tokens)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + u8::try_from((state >> 40) % 26).unwrap_or(0))
        })
        .collect()
}

/// A request for a completion that both servers understand.
pub(crate) fn request(model: &str, prompt: &str, tokens: usize) -> Value {
    json!({
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "logit_bias": {END: -100},
    })
}

/// Asks all at once; tokens of all answers per second, from the first request to the last answer.
pub(crate) async fn throughput(api: &Api, requests: &[Value]) -> Result<f64> {
    let start = Instant::now();
    let answers = requests.iter().map(|request| async {
        let (status, answer) = api.post("/v1/completions", request).await?;
        ensure!(status == 200, "{status}: {answer}");
        let tokens = answer.pointer("/usage/completion_tokens").and_then(Value::as_f64);
        tokens.with_context(|| answer.to_string())
    });
    let tokens: f64 = try_join_all(answers).await?.into_iter().sum();
    Ok(tokens / start.elapsed().as_secs_f64())
}

/// When each token of an answer came.
pub(crate) async fn arrivals(api: &Api, request: &Value) -> Result<Vec<Instant>> {
    let mut request = request.clone();
    if let Some(fields) = request.as_object_mut() {
        fields.insert("stream".to_owned(), json!(true));
        // Every token has an event of its own then, also one that is half a character.
        fields.insert("return_token_ids".to_owned(), json!(true));
    }
    let mut times = Vec::new();
    let streamed = api.stream("/v1/completions", &request, async |chunk| {
        let ids = chunk.pointer("/choices/0/token_ids").and_then(Value::as_array);
        times.extend(ids.into_iter().flatten().map(|_| Instant::now()));
        Ok(())
    });
    let streamed = streamed.await?;
    ensure!(streamed.done, "{:?}", streamed.error);
    Ok(times)
}
