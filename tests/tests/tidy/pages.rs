//! Pages for people: what they link to is there, and the first one is short.

use crate::workspace::{Finding, check, root};

/// Lines of the README that somebody reads before closing it.
const README_LINES: usize = 150;

fn is_page(path: &str) -> bool {
    path.ends_with(".md")
}

/// Targets of `[text](target)` in a line, without anchors.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?;
        target.split('#').next().filter(|target| !target.is_empty())
    })
}

/// Where a link of the page at `path` leads, from the root; `None` for addresses.
fn target(path: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn links_lead_somewhere(path: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().enumerate();
    let all = lines.flat_map(|(at, line)| links(line).map(move |link| (at + 1, link)));
    let broken = all
        .filter(|(_, link)| target(path, link).is_some_and(|target| !root().join(target).exists()));
    let what = |link| format!("`{link}` leads nowhere; say where it is now");
    broken.map(|(line, link)| Finding { line, what: what(link) }).collect()
}

fn first_page_is_short(_: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().count();
    let what = || format!("{lines} lines; what is more than {README_LINES} belongs into `docs`");
    (lines > README_LINES)
        .then(|| Finding { line: README_LINES, what: what() })
        .into_iter()
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    check("links", links_lead_somewhere, is_page);
}

#[test]
fn the_readme_is_short() {
    check("readme", first_page_is_short, |path| path == "README.md");
}

#[test]
fn rules_find_planted_violations() {
    let page = "[a](../README.md#top) and\n[b](https://example.org) [c](nowhere.md) [d](.)";
    let found = links_lead_somewhere("docs/page.md", page);
    assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2]);
    assert!(found.iter().all(|finding| finding.what.contains("nowhere.md")));
    assert!(first_page_is_short("README.md", &"\n".repeat(150)).is_empty());
    assert_eq!(first_page_is_short("README.md", &"\n".repeat(151)).len(), 1);
}
