//! Who is known, who is forgotten, and who is asked.

use serde_json::json;

use super::*;

const A: &str = "http://127.0.0.1:8420";

fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

/// What node 1 tells: of each other node its number, state, address and API.
fn told(own: &str, others: &[(u8, &str, &str, &str)]) -> Neighbours {
    let itself = (1, "alive", own, "127.0.0.1:8420");
    let nodes = [itself].into_iter().chain(others.iter().copied());
    let nodes: Vec<_> = nodes
        .map(|(number, state, address, api)| {
            json!({"id": id(number), "name": "n", "state": state, "address": address, "api": api})
        })
        .collect();
    serde_json::from_value(json!({"node": {"id": id(1), "name": "n"}, "nodes": nodes})).unwrap()
}

fn urls(nodes: &Nodes) -> Vec<&str> {
    nodes.known.iter().map(|known| known.url.as_str()).collect()
}

#[test]
fn urls_are_taken_as_people_write_them() {
    let given = ["http://a:1/", "b:2", "http://c:3/v1", " http://a:1"].map(ToOwned::to_owned);
    assert_eq!(urls(&Nodes::given(&given)), ["http://a:1", "http://b:2", "http://c:3"]);
}

#[test]
fn living_nodes_are_learnt_once() {
    let mut nodes = Nodes::given(&[A.to_owned()]);
    let view = told(
        "10.0.0.1:8421",
        &[
            (2, "alive", "10.0.0.2:8421", "10.0.0.2:8420"),
            (3, "suspect", "10.0.0.3:8421", "10.0.0.3:8420"),
            (4, "down", "10.0.0.4:8421", "10.0.0.4:8420"),
            (5, "left", "10.0.0.5:8421", "10.0.0.5:8420"),
            (6, "alive", "10.0.0.6:8421", "0.0.0.0:8420"),
        ],
    );
    nodes.learn(A, &view);
    nodes.learn(A, &view);
    assert_eq!(urls(&nodes), [A, "http://10.0.0.2:8420", "http://10.0.0.3:8420"]);
    // Started again, with another port.
    let moved = (2, "alive", "10.0.0.2:8421", "10.0.0.2:80");
    let still = (3, "alive", "10.0.0.3:8421", "10.0.0.3:8420");
    nodes.learn(A, &told("10.0.0.1:8421", &[moved, still]));
    assert_eq!(urls(&nodes), [A, "http://10.0.0.2:80", "http://10.0.0.3:8420"]);
}

#[test]
fn nodes_that_are_gone_are_forgotten() {
    let node = |number: u8, state: &'static str| match number {
        2 => (2, state, "10.0.0.2:8421", "10.0.0.2:8420"),
        _ => (3, state, "10.0.0.3:8421", "10.0.0.3:8420"),
    };
    let (two, three) = ("http://10.0.0.2:8420", "http://10.0.0.3:8420");
    let learnt = |views: &[&[(u8, &str, &str, &str)]]| {
        let mut nodes = Nodes::given(&[A.to_owned(), two.to_owned()]);
        for view in views {
            nodes.learn(A, &told("10.0.0.1:8421", view));
        }
        nodes.known.into_iter().map(|known| known.url).collect::<Vec<_>>()
    };
    let both = [node(2, "alive"), node(3, "alive")];
    assert_eq!(learnt(&[&both]), [A, two, three]);
    assert_eq!(learnt(&[&both, &[node(2, "alive"), node(3, "left")]]), [A, two]);
    assert_eq!(learnt(&[&both, &[node(2, "alive"), node(3, "down")]]), [A, two]);
    assert_eq!(learnt(&[&both, &[node(2, "alive")]]), [A, two]);
    // Whom the person named stays.
    assert_eq!(learnt(&[&both, &[node(2, "left"), node(3, "alive")]]), [A, two, three]);
    // A node that has just begun knows of nobody.
    assert_eq!(learnt(&[&both, &[]]), [A, two, three]);
}

#[test]
fn of_another_cluster_a_node_says_nothing() {
    let other = "http://10.9.0.1:8420";
    let mut nodes = Nodes::given(&[A.to_owned(), other.to_owned()]);
    let view = told("10.0.0.1:8421", &[(2, "alive", "10.0.0.2:8421", "10.0.0.2:8420")]);
    nodes.learn(A, &view);
    let mut elsewhere = told("10.9.0.1:8421", &[(8, "alive", "10.9.0.8:8421", "10.9.0.8:80")]);
    elsewhere.node.id = id(9);
    elsewhere.nodes[0].id = id(9);
    nodes.learn(other, &elsewhere);
    assert_eq!(urls(&nodes), [A, other, "http://10.0.0.2:8420", "http://10.9.0.8:80"]);
}

#[test]
fn where_only_those_that_were_named_are_wanted_nobody_is_learnt() {
    let mut nodes = Nodes::given(&[A.to_owned()]).only();
    let view = told("10.0.0.1:8421", &[(2, "alive", "10.0.0.2:8421", "10.0.0.2:8420")]);
    nodes.learn(A, &view);
    assert_eq!(urls(&nodes), [A]);
}

#[test]
fn a_node_that_does_not_tell_of_its_api_is_passed_over() {
    let view = json!({
        "node": {"id": id(1)},
        "nodes": [{"id": id(2), "state": "alive", "address": "10.0.0.2:8421"}],
    });
    let mut nodes = Nodes::given(&[A.to_owned()]);
    nodes.learn(A, &serde_json::from_value(view).unwrap());
    assert_eq!(urls(&nodes), [A]);
}

#[test]
fn a_loopback_is_used_only_on_its_own_machine() {
    let learnt = |asked: &str, own: &str, link: &str| {
        let mut nodes = Nodes::given(&[asked.to_owned()]);
        nodes.learn(asked, &told(own, &[(2, "alive", link, "127.0.0.1:9000")]));
        nodes.known.len() == 2
    };
    for asked in [A, "http://localhost:8420", "http://[::1]:8420"] {
        assert!(learnt(asked, "127.0.0.1:8421", "127.0.0.1:9421"), "{asked}");
        assert!(learnt(asked, "10.0.0.1:8421", "10.0.0.1:9421"), "{asked}");
        assert!(!learnt(asked, "10.0.0.1:8421", "10.0.0.2:9421"), "{asked}: another machine");
        assert!(!learnt(asked, "0.0.0.0:8421", "10.0.0.2:9421"), "{asked}: another machine");
    }
    assert!(!learnt("http://10.0.0.1:8420", "127.0.0.1:8421", "127.0.0.1:9421"));
    assert!(!learnt("http://studio.local:8420", "127.0.0.1:8421", "127.0.0.1:9421"));
}

#[test]
fn a_node_that_was_named_is_not_learnt_by_another_url_while_it_is_well() {
    let given = [A.to_owned(), "http://two.local:8420".to_owned()];
    let mut nodes = Nodes::given(&given);
    nodes.at("http://two.local:8420").unwrap().id = Some(id(2));
    let view = told("10.0.0.1:8421", &[(2, "alive", "10.0.0.2:8421", "10.0.0.2:80")]);
    nodes.learn(A, &view);
    assert_eq!(urls(&nodes), [A, "http://two.local:8420"]);
    nodes.failed(Instant::now(), "http://two.local:8420", None);
    nodes.learn(A, &view);
    assert_eq!(nodes.known.len(), 3);
}

#[test]
fn who_failed_least_is_asked_next_and_nobody_before_its_time() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut nodes = Nodes::given(&["http://a".to_owned(), "http://b".to_owned()]);
    let ask = |url: &str| Next::Ask(url.to_owned());
    assert_eq!(nodes.next(now), ask("http://a"));
    nodes.failed(now, "http://a", None);
    assert_eq!(nodes.next(now), ask("http://b"));
    nodes.failed(now, "http://b", Some(Duration::from_secs(5)));
    assert_eq!(nodes.next(now), Next::Wait(at(1)));
    assert_eq!(nodes.next(at(1)), ask("http://a"));
    nodes.failed(at(1), "http://a", None);
    assert_eq!(nodes.next(at(1)), Next::Wait(at(3)), "twice as long");
    assert_eq!(nodes.next(at(5)), ask("http://b"), "it has failed less often");
    // Who was well is asked first the next time.
    nodes.answers("http://b");
    nodes.begin();
    assert_eq!(nodes.next(now), ask("http://b"));
    nodes.refused("http://b");
    assert_eq!(nodes.next(now), ask("http://a"));
    nodes.refused("http://a");
    assert_eq!(nodes.next(now), Next::Nobody);
}

#[test]
fn pauses_are_bounded() {
    let now = Instant::now();
    let mut nodes = Nodes::given(&["http://a".to_owned()]);
    for _ in 0..40 {
        nodes.failed(now, "http://a", None);
    }
    assert_eq!(nodes.next(now), Next::Wait(now + LONGEST_PAUSE));
}
