//! The words for everything that can be seen.

use std::path::PathBuf;

use planaria_config::{Environment, Machine, Overrides};
use planaria_engine::geometry::{Geometry, WorkingSet};
use planaria_engine::model_dir::PassedOver;
use planaria_engine::speed::{Kernels, Speed};

use super::super::finding::{Verdict, is_well};
use super::super::seen::{Model, ModelsSeen};
use super::*;

fn settings(set: &[(&'static str, &str)]) -> Settings {
    let mut overrides: Overrides =
        [("data-dir", vec!["/data".to_owned()]), ("models-dir", vec!["/models".to_owned()])].into();
    overrides.extend(set.iter().map(|(key, value)| (*key, vec![(*value).to_owned()])));
    let machine = Machine {
        name: "here",
        kernels: &["avx2", "plain"],
        tool_formats: &[],
        reasoning_formats: &[],
    };
    Settings::resolve(&overrides, &Environment::new(), None, &machine).unwrap().0
}

fn probed(accelerator: Accelerator, kernels: Option<(&str, u32)>) -> Probed {
    let speed = Speed { bytes_per_second: 100 << 30, flops_per_second: 3_000_000_000_000 };
    let arithmetic = String::new();
    let kernels =
        kernels.map(|(name, threads)| Kernels { name: name.to_owned(), threads, arithmetic });
    Probed { device: Device { accelerator, speed }, kernels }
}

/// A machine on which nothing is wrong and no node runs.
fn well() -> Seen {
    Seen {
        folder: Folder::Open(0o700),
        free_disk: Some(1 << 40),
        lock: Lock::Free,
        store: StoreSeen::Whole,
        key_path: PathBuf::from("/data/cluster.key"),
        key: KeySeen::Usable,
        api_key: None,
        listen: Port::Free,
        api: Port::Free,
        node: NodeSeen::Nothing,
        models: Ok(ModelsSeen { usable: 2, ..ModelsSeen::default() }),
        wanted: Vec::new(),
        memory: Some(16 << 30),
        memory_available: Some(11 << 30),
        memory_allowed: None,
        cores: NonZeroUsize::new(8).unwrap(),
        probed: Ok(probed(Accelerator::Metal, None)),
        multicast: Some(Ok(())),
        joins: Vec::new(),
        clock: EARLIEST_CLOCK + 1,
        open_files: Some(4096),
    }
}

/// The machine on which a node with these settings runs.
fn running() -> Seen {
    Seen {
        lock: Lock::Held,
        store: StoreSeen::InUse,
        listen: Port::Taken,
        api: Port::Taken,
        node: NodeSeen::Node { problems: Vec::new(), reasons: Ok(Vec::new()) },
        ..well()
    }
}

/// The one finding that is not fine, in words.
fn only(settings: &Settings, seen: &Seen) -> (Verdict, String) {
    let findings = judge(settings, seen);
    let bad: Vec<_> = findings.into_iter().filter(|f| f.verdict != Verdict::Ok).collect();
    let [Finding { check, verdict, says, advice }] = &bad[..] else {
        panic!("not one: {bad:#?}");
    };
    (*verdict, format!("{check}: {says} -> {}", advice.as_deref().unwrap_or_default()))
}

/// A model of ten layers of 1 GiB.
fn ten_gib() -> Model {
    Model::Usable(Box::new(Geometry {
        bytes_per_layer: vec![1 << 30; 10],
        embed_bytes: 1 << 20,
        head_bytes: 1 << 20,
        tied: false,
        kv_bytes_per_token_per_layer: 0,
        kv_layers: Vec::new(),
        hidden_bytes: 4096,
        max_context: 4096,
        vocab: 1000,
        working: WorkingSet {
            always: 0,
            per_token: 0,
            per_pair: 0,
            per_sampled: 0,
            per_position: 0,
        },
        cut: None,
        whole: false,
    }))
}

fn io() -> String {
    "the system says no".to_owned()
}

#[test]
fn nothing_is_wrong_where_nothing_is_wrong() {
    for seen in [well(), running()] {
        let findings = judge(&settings(&[]), &seen);
        assert!(findings.iter().all(|f| f.verdict == Verdict::Ok), "{findings:#?}");
        assert!(is_well(&findings));
    }
    let fresh = Seen {
        folder: Folder::Absent(Ok(())),
        store: StoreSeen::Absent,
        key: KeySeen::Absent,
        ..well()
    };
    let (verdict, said) = only(&settings(&[]), &fresh);
    assert_eq!(verdict, Verdict::Warning);
    assert!(said.contains("will make /data/cluster.key") && said.contains("copy theirs"), "{said}");
}

#[test]
fn what_keeps_a_node_from_starting_is_a_problem() {
    let named = settings(&[("cluster-key", "/keys/cluster.key")]);
    let plain = settings(&[]);
    for (settings, seen, words) in [
        (&plain, Seen { folder: Folder::Other, ..well() }, ["/data is no folder", "--data-dir"]),
        (&plain, Seen { folder: Folder::Closed(io()), ..well() }, ["says no", "run as its owner"]),
        (
            &plain,
            Seen { folder: Folder::Absent(Err(io())), ..well() },
            ["cannot be made", "--data-dir"],
        ),
        (&plain, Seen { free_disk: Some(1 << 20), ..well() }, ["1 MiB are free", "make room"]),
        (&plain, Seen { lock: Lock::Unknown(io()), ..well() }, ["cannot be locked", "file system"]),
        (&plain, Seen { store: StoreSeen::Closed(io()), ..well() }, ["store", "says no"]),
        (&named, Seen { key: KeySeen::Absent, ..well() }, ["is not there", "planaria cluster new"]),
        (&plain, Seen { key: KeySeen::Unusable(io()), ..well() }, ["cluster key", "says no"]),
        (
            &plain,
            Seen { api_key: Some(Err(io())), ..well() },
            ["API key: the system", "first line"],
        ),
        (&plain, Seen { listen: Port::Taken, ..well() }, ["0.0.0.0:8421 is in use", "--listen"]),
        (
            &plain,
            Seen { listen: Port::Refused(io()), ..well() },
            ["cannot be listened on", "--listen"],
        ),
        (&plain, Seen { api: Port::Refused(io()), ..well() }, ["127.0.0.1:8420 cannot", "--api"]),
        (
            &plain,
            Seen { api: Port::Taken, node: NodeSeen::Stranger, ..well() },
            ["not by a node", "--api"],
        ),
        (
            &plain,
            Seen { api: Port::Taken, node: running().node, ..well() },
            ["another node", "--api"],
        ),
        (&plain, Seen { memory: None, ..well() }, ["memory", "does not say"]),
        (&plain, Seen { probed: Err(io()), ..well() }, ["does not compute", "MLX"]),
    ] {
        let (verdict, said) = only(settings, &seen);
        assert_eq!(verdict, Verdict::Problem, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    }
}

#[test]
fn what_only_makes_it_worse_is_a_warning() {
    let alone = settings(&[("mdns", "off")]);
    let greedy = settings(&[("memory-limit", "64GiB")]);
    let limited = settings(&[("memory-limit", "8GiB")]);
    let wanted = vec![("big".parse().unwrap(), ten_gib())];
    let reason = "rename it".to_owned();
    let passed = PassedOver { folder: "a b".to_owned(), reason };
    let passing = ModelsSeen { usable: 2, passed_over: vec![passed], ..ModelsSeen::default() };
    let plain = settings(&[]);
    let crowded = settings(&[("threads", "9")]);
    let join = ("two.local:8421".to_owned(), Err(io()));
    for (settings, seen, words) in [
        (&plain, Seen { folder: Folder::Open(0o755), ..well() }, ["mode 0755", "chmod 700 /data"]),
        (&plain, Seen { free_disk: Some(100 << 20), ..well() }, ["100 MiB", "stored-answers"]),
        (&plain, Seen { free_disk: None, ..well() }, ["disk", "cannot be told"]),
        (
            &plain,
            Seen { store: StoreSeen::Damaged(io()), ..well() },
            ["says no", "planaria restore"],
        ),
        (&plain, Seen { models: Err(io()), ..well() }, ["/models cannot be read", "make it"]),
        (&plain, Seen { models: Ok(ModelsSeen::default()), ..well() }, ["no model", "layout"]),
        (&plain, Seen { models: Ok(passing), ..well() }, ["folder a b", "rename it"]),
        (
            &limited,
            Seen { memory_available: Some(1 << 30), ..well() },
            ["only 1 GiB", "memory-limit"],
        ),
        (
            &plain,
            Seen { memory_available: Some(9 << 30), wanted, ..well() },
            ["only 9 GiB", "memory-limit"],
        ),
        (&greedy, well(), ["offers 16 GiB", "says 64 GiB"]),
        (&crowded, well(), ["9 are to compute, and the node may use 8 cores", "auto"]),
        (&plain, Seen { multicast: Some(Err(io())), ..well() }, ["not possible", "--join"]),
        (&alone, Seen { multicast: None, ..well() }, ["no other node is named", "--join"]),
        (&plain, Seen { joins: vec![join], ..well() }, ["join two.local:8421", "looked up again"]),
        (&plain, Seen { clock: 86_400, ..well() }, ["the year 1970", "set it"]),
        (&plain, Seen { clock: LATEST_CLOCK, ..well() }, ["the year 2100", "set it"]),
        (&plain, Seen { open_files: Some(256), ..well() }, ["open 256", "ulimit -Hn"]),
    ] {
        let (verdict, said) = only(settings, &seen);
        assert_eq!(verdict, Verdict::Warning, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    }
}

#[test]
fn a_running_node_says_itself_what_it_lacks() {
    let problems = vec!["demo: no plan".to_owned(), "here is short of memory".to_owned()];
    let reasons = Ok(vec!["demo: no plan".to_owned(), "other: loading".to_owned()]);
    let seen = Seen { node: NodeSeen::Node { problems, reasons }, ..running() };
    let findings = judge(&settings(&[]), &seen);
    let said = findings.iter().filter(|f| f.check == "running node");
    let said: Vec<_> = said.map(|finding| finding.says.as_str()).collect();
    assert_eq!(said, ["demo: no plan", "here is short of memory", "other: loading"]);
    assert!(is_well(&findings));

    let closed = NodeSeen::Node { problems: Vec::new(), reasons: Err("/ready answers 401".into()) };
    let (verdict, said) = only(&settings(&[]), &Seen { node: closed, ..running() });
    assert!(verdict == Verdict::Warning && said.contains("401") && said.contains("--api-key-file"));

    let elsewhere = Seen { node: NodeSeen::Nothing, api: Port::Free, ..running() };
    let (verdict, said) = only(&settings(&[]), &elsewhere);
    assert!(verdict == Verdict::Warning && said.contains("not with its API at"), "{said}");
    // Its models are in what is not available.
    let wanted = vec![("big".parse().unwrap(), ten_gib())];
    let full = Seen { memory_available: Some(1 << 30), wanted, ..running() };
    assert!(judge(&settings(&[]), &full).iter().all(|f| f.verdict == Verdict::Ok));
}

#[test]
fn what_a_worker_computes_with_is_named() {
    let says = |accelerator, kernels| {
        let seen = Seen { probed: Ok(probed(accelerator, kernels)), ..well() };
        let findings = judge(&settings(&[]), &seen);
        findings.into_iter().find(|finding| finding.check == "worker").unwrap().says
    };
    let speed = "100 GiB of weights a second, 3000 GFLOPS";
    for (accelerator, kernels, on) in [
        (Accelerator::None, Some(("avx2", 2)), "the processor (avx2, 2 threads)"),
        (Accelerator::None, Some(("plain", 1)), "the processor (plain, 1 thread)"),
        (Accelerator::None, None, "the processor"),
        (Accelerator::Metal, None, "Metal"),
        (Accelerator::Cuda, None, "CUDA"),
    ] {
        let said = says(accelerator, kernels);
        assert_eq!(said, format!("it starts, and computes on {on}: {speed}"));
    }
}

#[test]
fn a_limit_of_the_service_is_named() {
    let says = |set: &[(&'static str, &str)], allowed: u64| {
        let seen = Seen { memory_allowed: Some(allowed), ..well() };
        let findings = judge(&settings(set), &seen);
        findings.into_iter().find(|finding| finding.check == "memory").unwrap().says
    };
    let said = says(&[], 16 << 30);
    assert_eq!(said, "the node offers 16 GiB, the limit of the service or container around it");
    assert_eq!(says(&[], 17 << 30), "the node offers 16 GiB");
    assert_eq!(says(&[("memory-limit", "8GiB")], 16 << 30), "the node offers 8 GiB");
}

#[test]
fn models_that_are_asked_for_are_held_against_the_memory() {
    let of = |model: Model, limit: &str| {
        let probed = Ok(probed(Accelerator::None, Some(("avx2", 2))));
        let seen = Seen { wanted: vec![("big".parse().unwrap(), model)], probed, ..well() };
        let findings = judge(&settings(&[("memory-limit", limit)]), &seen);
        let finding = findings.into_iter().find(|f| f.check == "model big").unwrap();
        (finding.verdict, finding.says)
    };
    let (verdict, said) = of(ten_gib(), "16GiB");
    assert!(verdict == Verdict::Ok && said.contains("all of it"), "{said}");
    assert!(said.contains("of which up to 10.0 GiB stay in its files"), "{said}");
    let (verdict, said) = of(ten_gib(), "8GiB");
    assert!(verdict == Verdict::Ok && said.contains("6 of its 10 layers"), "{said}");
    let (verdict, said) = of(ten_gib(), "1GiB");
    assert!(verdict == Verdict::Warning && said.contains("none of its layers"), "{said}");
    let (verdict, said) = of(Model::Absent, "8GiB");
    assert!(verdict == Verdict::Warning && said.contains("not in /models"), "{said}");
    let (verdict, said) = of(Model::Unusable(io()), "8GiB");
    assert!(verdict == Verdict::Problem && said.contains("says no"), "{said}");
}
