//! Whether there is memory for what the node offers, and for the models that are asked for.

use planaria_config::{ByteSize, ModelName, Settings};
use planaria_engine::geometry::Geometry;
use planaria_engine::partition::{layers_that_fit, usable};
use planaria_engine::speed::Accelerator;

use super::super::finding::Finding;
use super::super::seen::{Lock, Model, Seen};

pub(super) fn judge(settings: &Settings, seen: &Seen) -> Vec<Finding> {
    let offered = offered(settings, seen);
    let models =
        seen.wanted.iter().map(|(name, model)| wanted(settings, seen, name, model, offered));
    std::iter::once(memory(settings, seen, offered)).chain(models).collect()
}

/// Memory that the node would offer, in bytes.
fn offered(settings: &Settings, seen: &Seen) -> Option<u64> {
    let limit = settings.memory_limit.map_or(u64::MAX, |limit| limit.bytes());
    seen.memory.map(|memory| memory.min(limit))
}

fn memory(settings: &Settings, seen: &Seen, offered: Option<u64>) -> Finding {
    let check = "memory";
    let (Some(memory), Some(offered)) = (seen.memory, offered) else {
        return Finding::problem(check, "the system does not say how much there is".to_owned());
    };
    // A large limit of a group limits nothing.
    let allowed = seen.memory_allowed.filter(|allowed| *allowed == memory);
    let because = match allowed {
        Some(allowed) if allowed == offered => ", the limit of the service or container around it",
        Some(_) | None => "",
    };
    let says = format!("the node offers {}{because}", ByteSize(offered));
    if let Some(limit) = settings.memory_limit.filter(|limit| limit.bytes() > memory) {
        let says = format!("{says}, all there is: memory-limit says {limit}");
        return Finding::warning(check, says).advise("lower memory-limit to leave some to others");
    }
    // Some is always in use: what matters is what somebody promised, or what the models will need of it.
    let needed = settings.memory_limit.map_or_else(|| needed(settings, seen, offered), |_| offered);
    match seen.memory_available {
        // A running node's models may be in what is not available (weights that are mapped are not).
        Some(available) if available < needed && seen.lock != Lock::Held => {
            let says = format!("{says}, and only {} are available now", ByteSize(available));
            Finding::warning(check, says).advise("stop other programs, or lower memory-limit")
        }
        _ => Finding::ok(check, says),
    }
}

/// Memory that the models which are asked for may take on this node, in bytes.
fn needed(settings: &Settings, seen: &Seen, offered: u64) -> u64 {
    let usable = seen.wanted.iter().filter_map(|(_, model)| match model {
        Model::Usable(geometry) => Some(all_bytes(settings, geometry)),
        Model::Absent | Model::Unusable(_) => None,
    });
    usable.fold(0_u64, u64::saturating_add).min(offered)
}

/// Memory that all layers of a model take, in bytes.
fn all_bytes(settings: &Settings, geometry: &Geometry) -> u64 {
    let context = settings.context.min(geometry.max_context);
    geometry.peak_bytes(geometry.all_layers(), context, settings.max_sequences)
}

fn wanted(
    settings: &Settings,
    seen: &Seen,
    name: &ModelName,
    model: &Model,
    offered: Option<u64>,
) -> Finding {
    let check = format!("model {name}");
    match model {
        Model::Absent => {
            let says = format!("it is asked for, and not in {}", settings.models_dir.display());
            Finding::warning(check, says)
                .advise("copy its files there to have this node take part in serving it")
        }
        Model::Unusable(why) => {
            Finding::problem(check, format!("it is asked for, and cannot be used: {why}"))
                .advise("copy its files again")
        }
        Model::Usable(geometry) => {
            // Our own kernels read weights where they are.
            let mapped = seen.probed.as_ref().is_ok_and(|probed| {
                probed.kernels.is_some() && probed.device.accelerator == Accelerator::None
            });
            fits(settings, check, geometry, mapped, offered.unwrap_or(u64::MAX))
        }
    }
}

fn fits(
    settings: &Settings,
    check: String,
    geometry: &Geometry,
    mapped: bool,
    offered: u64,
) -> Finding {
    let all = all_bytes(settings, geometry);
    if u128::from(all) <= usable(offered) {
        let weights = ByteSize(geometry.weight_bytes(geometry.all_layers()));
        let of_which =
            mapped.then(|| format!(", of which up to {weights} stay in its files, mapped"));
        let says = format!(
            "it can be used, and this node has memory for all of it ({}{})",
            ByteSize(all),
            of_which.unwrap_or_default()
        );
        return Finding::ok(check, says);
    }
    let layers = geometry.layers();
    let context = settings.context.min(geometry.max_context);
    let fitting = layers_that_fit(geometry, offered, context, settings.max_sequences);
    if fitting == 0 {
        let says = "it can be used, and this node has memory for none of its layers".to_owned();
        return Finding::warning(check, says)
            .advise("raise memory-limit, or lower context or max-sequences");
    }
    if geometry.whole {
        let says = format!(
            "its layers cannot be cut from each other, and this node has memory for {fitting} of {layers}"
        );
        return Finding::warning(check, says).advise(
            "raise memory-limit, or lower context or max-sequences, or leave it to another node",
        );
    }
    let says = format!(
        "it can be used, and this node has memory for {fitting} of its {layers} layers; others must \
         hold the rest"
    );
    Finding::ok(check, says)
}
