//! The architecture as a test: who may import what, how files are named and how long they get,
//! what may lie at the root, and what pages link to.
//!
//! `workspace` finds the files, `source` tells code from comments and strings, `manifest` reads
//! dependencies; the rules are in `imports`, `shape` and `pages`. A rule is a function from a path and its
//! text to findings, and each is itself tested with a planted violation.

#[cfg(test)]
mod imports;
#[cfg(test)]
mod manifest;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod shape;
#[cfg(test)]
mod source;
#[cfg(test)]
mod workspace;
