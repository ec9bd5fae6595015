//! What a person reads.

use planaria_config::NodeId;
use serde_json::json;

use super::*;

/// Two nodes and a model, as `/cluster` tells of them.
pub(in crate::status) fn view() -> ClusterView {
    let id = |byte| NodeId::from_bytes([byte; 32]);
    let node = |byte, name: &str, state: &str| {
        json!({
            "id": id(byte), "name": name, "state": state, "address": format!("10.0.0.{byte}:8421"),
            "memory_bytes": 512 << 20, "memory_free_bytes": 500 << 20, "pid": 1, "worker_pids": [2],
        })
    };
    let stage = |byte, name: &str, first: u32, last: u32| {
        json!({
            "node": id(byte), "name": name, "first_layer": first, "last_layer": last, "state": "ready",
            "work": {"predicted_bytes": 0, "peak_bytes": 0, "busy_micros": 0, "steps": 0,
                     "prompt_tokens": 0, "reused_tokens": 0, "step_micros": 610},
            "hop_micros": null,
        })
    };
    let recovery = |at: u64, cause: &str| {
        json!({
            "at": at, "cause": cause, "model": "demo", "from_epoch": null, "to_epoch": null,
            "detect_ms": 437, "plan_ms": 12, "load_ms": 15, "rebuild_ms": 36, "resume_ms": 501,
            "sequences": 1, "replayed": 124, "label": "equivalent",
        })
    };
    let view = json!({
        "node": {"id": id(1), "name": "mini", "incarnation": 3},
        "nodes": [node(1, "mini", "alive"), node(2, "studio", "down")],
        "models": [{
            "name": "demo", "state": "ready", "reason": "", "strategy": "latency", "epoch": null,
            "stages": [stage(1, "mini", 0, 4), stage(2, "studio", 5, 11)], "n_minus_1_safe": false,
            "failover": {"mini": null, "studio": []},
        }],
        "sequences": {"running": 2, "queued": 1},
        "recoveries": [
            recovery(0, "the node gone, which computed layers 5-11, was lost"),
            recovery(100_000, "the worker of mini ended"),
        ],
    });
    serde_json::from_value(view).unwrap()
}

#[test]
fn a_cluster_is_shown_with_all_that_matters() {
    let text = describe(&view(), 130_000, &Look::default());
    let expected = "\
NODE         STATE  ADDRESS        MEMORY   FREE     ID
mini (this)  alive  10.0.0.1:8421  512 MiB  500 MiB  0101010101
studio       down   10.0.0.2:8421  512 MiB  500 MiB  0202020202

demo (latency): ready
STAGE  NODE    LAYERS  STATE  STEP     HOP
0      mini    0-4     ready  0.61 ms  -
1      studio  5-11    ready  0.61 ms  -
Not N-1 safe: without mini there is no plan.

Sequences of mini: 2 running, 1 waiting

Recoveries
30 s ago   demo: the worker of mini ended
           noticed 437 ms, planned 12 ms, loaded 15 ms, computed again 36 ms (124 positions)
           1 answer went on after 501 ms, equivalent
2 min ago  demo: the node gone, which computed layers 5-11, was lost
           noticed 437 ms, planned 12 ms, loaded 15 ms, computed again 36 ms (124 positions)
           1 answer went on after 501 ms, equivalent
";
    assert_eq!(text, expected);
}

#[test]
fn sentences_are_broken_where_the_terminal_ends() {
    let look = Look { width: Some(60), ..Look::default() };
    let text = describe(&view(), 130_000, &look);
    let recoveries = text.split("Recoveries").nth(1).unwrap();
    assert!(recoveries.lines().all(|line| line.chars().count() <= 60), "{recoveries}");
}

#[test]
fn colours_are_for_those_who_want_them() {
    let colored = describe(&view(), 0, &Look { colored: true, ..Look::default() });
    let plain = describe(&view(), 0, &Look::default());
    assert!(!plain.contains('\x1b'), "{plain}");
    assert!(
        colored.lines().any(|line| line.contains("\x1b[") && line.contains("down")),
        "{colored}"
    );
    assert_eq!(colored.lines().count(), plain.lines().count());
}

#[test]
fn only_the_last_recoveries_are_shown() {
    let mut view = view();
    view.recoveries = (0..9).map(|_| view.recoveries[0].clone()).collect();
    view.nodes[0].memory.pressure_percent = Some(90);
    let text = describe(&view, 0, &Look::default());
    assert!(text.contains("Recoveries (4 before these)"), "{text}");
    assert_eq!(text.matches("was lost").count(), RECOVERIES, "{text}");
    assert!(text.contains("Warning: mini is short of memory"), "{text}");
}
