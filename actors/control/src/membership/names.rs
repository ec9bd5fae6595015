//! Names that tell nodes apart. Pure.

use std::collections::BTreeMap;

use planaria_config::NodeId;

/// Names in which no two nodes are alike, from those in their settings. One that several have gets each one's
/// short id: so every member comes to the same names, and none changes when another of that name leaves and
/// comes back while it is listed.
pub(super) fn unique<'a>(
    nodes: impl Iterator<Item = (NodeId, &'a str)>,
) -> BTreeMap<NodeId, String> {
    let given: BTreeMap<NodeId, &str> = nodes.collect();
    let mut bearers: BTreeMap<&str, usize> = BTreeMap::new();
    for name in given.values() {
        *bearers.entry(name).or_default() += 1;
    }
    let name = |(node, name): (&NodeId, &&str)| {
        if bearers.get(name) == Some(&1) {
            return (*node, (*name).to_owned());
        }
        let told_apart = format!("{name}-{}", node.short());
        // Somebody may be called just that.
        let is_free = !bearers.contains_key(told_apart.as_str());
        (*node, if is_free { told_apart } else { format!("{name}-{node}") })
    };
    given.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_are_alike_and_those_that_were_not_stay_as_they_are() {
        let node = |byte| NodeId::from_bytes([byte; 32]);
        let named = |given: &[(u8, &'static str)]| {
            let names = unique(given.iter().map(|(byte, name)| (node(*byte), *name)));
            names.into_values().collect::<Vec<_>>()
        };
        assert_eq!(named(&[(1, "studio"), (2, "mini")]), ["studio", "mini"]);
        assert_eq!(
            named(&[(1, "studio"), (2, "mini"), (3, "studio")]),
            ["studio-0101010101", "mini", "studio-0303030303"]
        );
        let sly = named(&[(1, "studio"), (2, "studio"), (3, "studio-0101010101")]);
        assert_eq!(sly[0], format!("studio-{}", node(1)));
        assert_eq!(sly[1..], ["studio-0202020202", "studio-0101010101"]);
    }
}
