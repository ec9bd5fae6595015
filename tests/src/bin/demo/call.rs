//! The last act: the call of a tool, in the middle of which a node is killed.

use anyhow::{Context as _, Result, ensure};
use planaria_chaos::dialect::{Kind, Listener};
use planaria_chaos::history::{Call, Heard};
use planaria_tests::api::{Api, Event};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use serde_json::{Value, json};

use crate::shown::{recovery, step, styled};
use crate::{CHAT, NODES, answer, start};

const QUESTION: &str = "What is the weather in Oslo?";

/// What the tool says. The tool is this program, which has never been to Oslo.
const RESULT: &str = "light rain, 9 degrees";

/// What its result refers to.
const CALL: &str = "call-1";

/// Brings back the node that was killed, and kills it again while the model calls a tool.
pub(crate) async fn third_act(cluster: &mut Cluster, api: &Api, lost: NodeSpec) -> Result<()> {
    let name = lost.name.clone();
    step(&format!("Starting {name} again; all three nodes serve the model as before"));
    start(cluster, lost).await?;
    cluster.ready("demo", NODES.len()).await?;
    let before = api.cluster().await?.recoveries.len();

    step("Asking something for which the model has a tool, and letting it think first");
    println!("  > {QUESTION}\n");
    let undisturbed = called(api, async |_| Ok(())).await?;
    println!("  thinks  {}", styled("2", &undisturbed.thought));
    println!("  calls   {}", undisturbed.shown());

    step(&format!("Asking the same again, and killing {name} in the middle of the call"));
    let mut victim = cluster.nodes.pop();
    ensure!(victim.as_ref().is_some_and(|node| node.spec.name == name), "{name} is not the last");
    let half = undisturbed.tokens / 2;
    let disturbed = called(api, async |tokens| {
        if tokens >= half
            && let Some(mut node) = victim.take()
        {
            node.process.kill().await?;
        }
        Ok(())
    })
    .await?;
    ensure!(victim.is_none(), "the call was over before {name} could be killed");
    println!("  calls   {}", disturbed.shown());
    println!("  {name} was killed after {half} of the {} tokens of this call.", disturbed.tokens);
    ensure!(disturbed == undisturbed, "the thought or the call is not what it was before");
    println!("  Thought and call are the same as when nobody died.");
    let told = wait_for("the recovery to be told", async || {
        let recoveries = api.cluster().await?.recoveries;
        Ok((recoveries.len() > before).then_some(recoveries))
    })
    .await?;
    for told in told.iter().skip(before) {
        println!("  {}", recovery(told));
    }

    step("Telling the model what the tool says");
    println!("  < {RESULT}\n");
    let Call { name, arguments } = &disturbed.call;
    let function = json!({"name": name, "arguments": arguments});
    let call = json!({"id": CALL, "type": "function", "function": function});
    let messages = [
        question(),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": CALL, "content": RESULT}),
    ];
    answer(api, &request(&messages, false), async |_| Ok("")).await?;
    Ok(())
}

fn question() -> Value {
    json!({"role": "user", "content": QUESTION})
}

fn request(messages: &[Value], thinks: bool) -> Value {
    let function = |name: &str, properties: Value| {
        let parameters = json!({"type": "object", "properties": properties});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    json!({
        "model": "demo", "messages": messages, "temperature": 0, "stream": true,
        "tools": [
            function("get_weather", json!({"city": {"type": "string"}})),
            function("add", json!({"a": {"type": "number"}, "b": {"type": "number"}})),
        ],
        "chat_template_kwargs": {"enable_thinking": thinks},
        // So that it is seen how a call grows, which is told when it is whole.
        "return_token_ids": true,
    })
}

/// A thought and a call.
#[derive(PartialEq)]
struct Called {
    thought: String,
    call: Call,
    /// Tokens behind the thought.
    tokens: usize,
}

impl Called {
    /// As a person reads it.
    fn shown(&self) -> String {
        format!("{}({})", self.call.name, self.call.arguments)
    }
}

/// Asks for a call. `on_tokens` hears how many tokens there are behind the thought whenever some more have come.
async fn called(api: &Api, mut on_tokens: impl AsyncFnMut(usize) -> Result<()>) -> Result<Called> {
    let mut events = api.events(CHAT, &request(&[question()], true)).await?;
    let (mut heard, mut listener, mut tokens) = (Heard::default(), Listener::of(Kind::Chat), 0);
    while let Some(event) = events.next().await? {
        let thought = heard.said.thoughts.len();
        listener.take_in(&event, &mut heard);
        if let Event::Chunk(chunk) = &event
            && heard.said.thoughts.len() == thought
        {
            let ids = chunk.pointer("/choices/0/token_ids").and_then(Value::as_array);
            tokens += ids.map_or(0, Vec::len);
        }
        on_tokens(tokens).await?;
    }
    let broken = heard.error.or(heard.misplaced);
    ensure!(heard.done && broken.is_none(), "the answer broke off: {broken:?}");
    let call = heard.said.calls.pop().with_context(|| format!("no call: {}", heard.said.text))?;
    Ok(Called { thought: heard.said.thoughts, call, tokens })
}
