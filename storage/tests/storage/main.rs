//! What a store promises, checked from outside: the same suite over every backend, processes that
//! are killed, files that are damaged, disks that are full.

#![allow(clippy::disallowed_methods, reason = "processes are killed at some moment or other")]

#[cfg(test)]
mod backups;
#[cfg(test)]
mod child;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod corruption;
#[cfg(test)]
mod group_commit;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod opening;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod reopening;
