//! What was found out about one thing.

use serde::Serialize;

/// One line of the doctor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: String,
    /// What it means for the node.
    pub(super) verdict: Verdict,
    /// How it is, in words.
    pub(super) says: String,
    /// What to do about it.
    pub(super) advice: Option<String>,
}

/// What something means for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Nothing.
    Ok,
    /// The node works, and not as well as it could, or not as somebody may expect.
    Warning,
    /// The node does not start, or does not answer.
    Problem,
}

impl Verdict {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, says: String) -> Self {
        Self { check: check.into(), verdict: Verdict::Ok, says, advice: None }
    }

    pub(super) fn warning(check: impl Into<String>, says: String) -> Self {
        Self { verdict: Verdict::Warning, ..Self::ok(check, says) }
    }

    pub(super) fn problem(check: impl Into<String>, says: String) -> Self {
        Self { verdict: Verdict::Problem, ..Self::ok(check, says) }
    }

    pub(super) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Whether nothing stops the node.
pub(super) fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict < Verdict::Problem)
}

/// All findings in a sentence.
pub(super) fn summary(findings: &[Finding]) -> String {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let plural = |number, word| {
        if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
    };
    let warnings = match count(Verdict::Warning) {
        0 => String::new(),
        number => format!("; {}", plural(number, "warning")),
    };
    match count(Verdict::Problem) {
        0 => format!("Nothing stops this node{warnings}."),
        number => format!("{} would stop this node{warnings}.", plural(number, "problem")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts() {
        let ok = || Finding::ok("a", String::new());
        let warning = || Finding::warning("a", String::new());
        let problem = || Finding::problem("a", String::new());
        for (findings, said, well) in [
            (vec![ok(), ok()], "Nothing stops this node.", true),
            (vec![ok(), warning()], "Nothing stops this node; 1 warning.", true),
            (vec![problem(), ok()], "1 problem would stop this node.", false),
            (
                vec![problem(), problem(), warning(), warning()],
                "2 problems would stop this node; 2 warnings.",
                false,
            ),
        ] {
            assert_eq!((summary(&findings).as_str(), is_well(&findings)), (said, well));
        }
    }
}
