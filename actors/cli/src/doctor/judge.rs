//! What that which was seen means for a node with these settings. Pure.

mod memory;

use std::num::NonZeroUsize;

use planaria_config::{ByteSize, ModelName, Settings};
use planaria_engine::speed::{Accelerator, Device, Probed};

use super::finding::Finding;
use super::seen::{Folder, KeySeen, Lock, NodeSeen, Port, Seen, StoreSeen};

/// Below this nothing can be relied on to be written.
const LEAST_DISK: u64 = 16 << 20;

/// A node opens a file for each connection (512), the store some, each worker three.
const ENOUGH_FILES: u64 = 1024;

/// 1 January 2025: nobody had this program before.
const EARLIEST_CLOCK: u64 = 1_735_689_600;

/// 1 January 2100.
const LATEST_CLOCK: u64 = 4_102_444_800;

/// All findings, in the order in which a node meets their causes.
pub(super) fn judge(settings: &Settings, seen: &Seen) -> Vec<Finding> {
    let runs = seen.lock == Lock::Held;
    let mut findings = vec![folder(settings, seen), disk(settings, seen)];
    findings.extend(lock(settings, seen));
    findings.extend(store(settings, &seen.store));
    findings.push(key(settings, seen));
    findings.extend(seen.api_key.as_ref().map(api_key));
    findings.push(listen(settings, &seen.listen, runs));
    findings.push(api(settings, seen, runs));
    findings.extend(node(settings, &seen.node, runs));
    findings.extend(models(settings, seen));
    findings.extend(memory::judge(settings, seen));
    findings.push(worker(&seen.probed));
    findings.extend(threads(settings, seen.cores));
    findings.extend(others(settings, seen));
    findings.push(clock(seen.clock));
    findings.push(open_files(seen.open_files));
    findings
}

fn folder(settings: &Settings, seen: &Seen) -> Finding {
    let (check, path) = ("data folder", settings.data_dir.display());
    match &seen.folder {
        Folder::Open(mode) if mode & 0o077 == 0 => {
            Finding::ok(check, format!("{path} can be written to"))
        }
        Folder::Open(mode) => {
            let says = format!(
                "{path}: mode {mode:04o} lets other users look into it, where the \
                                node's own key is"
            );
            Finding::warning(check, says).advise(format!("chmod 700 {path}"))
        }
        Folder::Absent(Ok(())) => Finding::ok(check, format!("{path} will be made")),
        Folder::Absent(Err(why)) => {
            Finding::problem(check, format!("{path} cannot be made: {why}"))
                .advise("give a folder that can be written to with --data-dir")
        }
        Folder::Other => Finding::problem(check, format!("{path} is no folder"))
            .advise("move it away, or give another folder with --data-dir"),
        Folder::Closed(why) => {
            Finding::problem(check, format!("{path} cannot be written to: {why}"))
                .advise("run as its owner, or give another folder with --data-dir")
        }
    }
}

fn disk(settings: &Settings, seen: &Seen) -> Finding {
    let check = "disk";
    let Some(free) = seen.free_disk else {
        return Finding::warning(check, "how much is free cannot be told".to_owned());
    };
    let says = format!("{} are free for the data folder", ByteSize(free));
    // Twice: what is replaced stays for a while.
    let enough = settings.stored_answers.bytes().saturating_mul(2).saturating_add(LEAST_DISK);
    if free < LEAST_DISK {
        Finding::problem(check, says).advise("make room: a node that cannot write does not start")
    } else if free < enough {
        let advice = format!(
            "make room, or lower stored-answers: stored answers may take {}",
            settings.stored_answers
        );
        Finding::warning(check, says).advise(advice)
    } else {
        Finding::ok(check, says)
    }
}

fn lock(settings: &Settings, seen: &Seen) -> Option<Finding> {
    let check = "lock";
    match &seen.lock {
        Lock::Free if matches!(seen.node, NodeSeen::Node { .. }) => None,
        Lock::Free => Some(Finding::ok(check, "no node runs with this data folder".to_owned())),
        Lock::Held if matches!(seen.node, NodeSeen::Node { .. }) => {
            Some(Finding::ok(check, "a node runs with this data folder".to_owned()))
        }
        Lock::Held => {
            let says = format!(
                "a node runs with this data folder, and not with its API at {}",
                settings.api
            );
            let advice = "it was started with other settings, or is just starting or stopping";
            Some(Finding::warning(check, says).advise(advice))
        }
        Lock::Unknown(why) => Some(
            Finding::problem(check, format!("the data folder cannot be locked: {why}"))
                .advise("a file system that knows no locks does not do"),
        ),
    }
}

fn store(settings: &Settings, seen: &StoreSeen) -> Option<Finding> {
    let check = "store";
    match seen {
        StoreSeen::Absent => None,
        StoreSeen::Whole => Some(Finding::ok(check, "it opens, and nothing is missing".to_owned())),
        StoreSeen::InUse => {
            Some(Finding::ok(check, "not looked into: a node has it open".to_owned()))
        }
        StoreSeen::Damaged(why) => {
            let advice = format!(
                "the node would put it aside and begin as another node; `planaria restore FILE \
                 --data-dir {}` brings back what a backup holds, once the folder is moved away",
                settings.data_dir.display()
            );
            Some(Finding::warning(check, why.clone()).advise(advice))
        }
        StoreSeen::Closed(why) => Some(Finding::problem(check, why.clone())),
    }
}

fn key(settings: &Settings, seen: &Seen) -> Finding {
    let (check, path) = ("cluster key", seen.key_path.display());
    match &seen.key {
        KeySeen::Usable => {
            Finding::ok(check, format!("{path} is one, and nobody else can read it"))
        }
        KeySeen::Absent if settings.cluster_key.is_some() => {
            Finding::problem(check, format!("{path} is not there")).advise(
                "copy it from another machine, or make the first one with `planaria cluster new \
                 --out FILE`",
            )
        }
        KeySeen::Absent => {
            let says = format!("there is none yet; the node will make {path}");
            Finding::warning(check, says)
                .advise("where other nodes run already, copy theirs there: nodes share one key")
        }
        // Says what to do as well.
        KeySeen::Unusable(why) => Finding::problem(check, why.clone()),
    }
}

fn api_key(seen: &Result<(), String>) -> Finding {
    match seen {
        Ok(()) => Finding::ok("API key", "it can be read".to_owned()),
        Err(why) => Finding::problem("API key", why.clone())
            .advise("write the key into the first line of that file"),
    }
}

fn listen(settings: &Settings, port: &Port, runs: bool) -> Finding {
    let (check, address) = ("UDP port", settings.listen);
    match port {
        Port::Free => Finding::ok(check, format!("{address} is free")),
        Port::Taken if runs => Finding::ok(check, format!("{address} is the running node's")),
        Port::Taken => Finding::problem(check, format!("{address} is in use"))
            .advise("stop what listens there, or choose another address with --listen"),
        Port::Refused(why) => refused(check, &address.to_string(), why, "--listen"),
    }
}

fn api(settings: &Settings, seen: &Seen, runs: bool) -> Finding {
    let (check, address) = ("API port", settings.api);
    match (&seen.api, &seen.node) {
        (Port::Free, _) => Finding::ok(check, format!("{address} is free")),
        (Port::Refused(why), _) => refused(check, &address.to_string(), why, "--api"),
        (Port::Taken, NodeSeen::Node { .. }) if runs => {
            Finding::ok(check, format!("{address} is the running node's"))
        }
        (Port::Taken, NodeSeen::Node { .. }) => {
            let says = format!("{address} is another node's, with another data folder");
            Finding::problem(check, says)
                .advise("stop that one, or choose another address with --api")
        }
        (Port::Taken, NodeSeen::Nothing | NodeSeen::Stranger) => {
            Finding::problem(check, format!("{address} is in use, and not by a node that answers"))
                .advise("stop what listens there, or choose another address with --api")
        }
    }
}

fn refused(check: &str, address: &str, why: &str, flag: &str) -> Finding {
    Finding::problem(check, format!("{address} cannot be listened on: {why}"))
        .advise(format!("choose an address of this machine, and a port from 1024 on, with {flag}"))
}

fn node(settings: &Settings, seen: &NodeSeen, runs: bool) -> Vec<Finding> {
    let NodeSeen::Node { problems, reasons } = seen else {
        return Vec::new();
    };
    if !runs {
        return Vec::new();
    }
    let check = "running node";
    let mut findings: Vec<_> =
        problems.iter().map(|problem| Finding::warning(check, problem.clone())).collect();
    match reasons {
        Ok(reasons) => {
            // /health says these too.
            let more = reasons.iter().filter(|reason| !problems.contains(reason));
            findings.extend(more.map(|reason| Finding::warning(check, reason.clone())));
        }
        Err(why) => findings.push(
            Finding::warning(check, format!("it does not say whether it is ready: {why}"))
                .advise("give the key of its API with --api-key-file"),
        ),
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, format!("it is well and ready, at {}", settings.api)));
    }
    findings
}

fn models(settings: &Settings, seen: &Seen) -> Vec<Finding> {
    let (check, path) = ("models folder", settings.models_dir.display());
    let models = match &seen.models {
        Ok(models) => models,
        Err(why) => {
            return vec![Finding::warning(check, format!("{path} cannot be read: {why}")).advise(
                "make it, and put models into it: without any, the node computes nothing",
            )];
        }
    };
    let first = match models.usable {
        0 => Finding::warning(check, format!("no model in {path} can be used"))
            .advise("put a model in Hugging Face or MLX layout there, as a folder of its name"),
        1 => Finding::ok(check, format!("a model in {path} can be used")),
        number => Finding::ok(check, format!("{number} models in {path} can be used")),
    };
    let is_wanted = |name: &ModelName| seen.wanted.iter().any(|(wanted, _)| wanted == name);
    let broken = models.unusable.iter().filter(|(name, _)| !is_wanted(name));
    let broken = broken.map(|(name, why)| {
        Finding::warning(format!("model {name}"), why.clone())
            .advise("other nodes may serve it; copy its files again to have this one take part")
    });
    let odd = models.warnings.iter().map(|(name, what)| {
        Finding::warning(format!("model {name}"), what.clone())
            .advise("it is used all the same; see whether its answers are what they should be")
    });
    let passed_over = models.passed_over.iter().map(|passed| {
        Finding::warning(format!("folder {}", passed.folder), "it is passed over".to_owned())
            .advise(passed.reason.clone())
    });
    std::iter::once(first).chain(broken).chain(odd).chain(passed_over).collect()
}

fn worker(probed: &Result<Probed, String>) -> Finding {
    let check = "worker";
    match probed {
        Ok(Probed { device: Device { accelerator, speed }, kernels }) => {
            let on = match (accelerator, kernels) {
                (Accelerator::None, Some(kernels)) => format!("the processor ({kernels})"),
                (Accelerator::None, None) => "the processor".to_owned(),
                (Accelerator::Metal, _) => "Metal".to_owned(),
                (Accelerator::Cuda, _) => "CUDA".to_owned(),
            };
            let gigaflops = speed.flops_per_second as f64 / 1e9;
            let digits = usize::from(gigaflops < 10.0);
            let says = format!(
                "it starts, and computes on {on}: {} of weights a second, {gigaflops:.digits$} GFLOPS",
                ByteSize(speed.bytes_per_second),
            );
            Finding::ok(check, says)
        }
        Err(why) => Finding::problem(check, format!("it does not compute: {why}"))
            .advise("is MLX where it was when planaria was built? Its log above may say more"),
    }
}

fn threads(settings: &Settings, cores: NonZeroUsize) -> Option<Finding> {
    let threads = settings.threads.filter(|threads| *threads > cores)?;
    let says = format!("{threads} are to compute, and the node may use {cores} cores");
    let advice = "lower the setting threads, or leave it at auto: threads wait for each other";
    Some(Finding::warning("threads", says).advise(advice))
}

/// How the node would find others.
fn others(settings: &Settings, seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &seen.multicast {
        Some(Ok(())) => findings.push(Finding::ok("mDNS", "multicast is possible".to_owned())),
        Some(Err(why)) => findings.push(
            Finding::warning("mDNS", format!("multicast is not possible: {why}"))
                .advise("name another node with --join, and give --no-mdns"),
        ),
        None if settings.join.is_empty() => findings.push(
            Finding::warning("mDNS", "it is off, and no other node is named".to_owned())
                .advise("unless this is the only node, or others name it, give --join"),
        ),
        None => {}
    }
    for (address, resolved) in &seen.joins {
        let check = format!("join {address}");
        findings.push(match resolved {
            Ok(0) => Finding::warning(check, "the name has no address".to_owned()),
            Ok(_) => Finding::ok(check, "it is an address".to_owned()),
            Err(why) => Finding::warning(check, format!("it has no address now: {why}"))
                .advise("it is looked up again for as long as the node runs"),
        });
    }
    findings
}

fn clock(seconds: u64) -> Finding {
    let check = "clock";
    if (EARLIEST_CLOCK..LATEST_CLOCK).contains(&seconds) {
        return Finding::ok(check, "its year can be right".to_owned());
    }
    // As good as exact: it is about decades.
    let year = 1970 + seconds / 31_556_952;
    Finding::warning(check, format!("it says that this is the year {year}"))
        .advise("set it: what is asked for on this node would lose against, or outlast, all others")
}

/// A node raises its limit to the highest that it is allowed.
fn open_files(limit: Option<u64>) -> Finding {
    let check = "open files";
    match limit {
        Some(limit) if limit < ENOUGH_FILES => {
            let says = format!(
                "a node that is started from this shell may open {limit}: half are for clients, and idle \
                 ones are kept waiting sooner"
            );
            Finding::warning(check, says)
                .advise("ulimit -Hn 4096 as root, or LimitNOFILE=4096 in the service")
        }
        Some(limit) => Finding::ok(check, format!("{limit} are allowed")),
        None => Finding::ok(check, "any number is allowed".to_owned()),
    }
}

#[cfg(test)]
mod tests;
