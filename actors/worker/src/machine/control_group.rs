//! What the control groups that this process is in leave it of the machine's memory.
//!
//! A service's limit (systemd's `MemoryMax=`, a container's) stands in the group that the process is in, or
//! in any group around that. So all of them are read, from the process's own up to the mounted root, in
//! both versions of the kernel's interface. Files that are not there or not numbers limit nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// What is left of the machine's memory by its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    /// The least limit of any group, in bytes. Past `memory.high` the kernel slows a process down until it
    /// stands still, so that is a limit too.
    pub(super) limit: u64,
    /// The least that any group has left of its own limit, in bytes; what the kernel can take back from
    /// the page cache counts as left, as it does in the machine's own figure.
    pub(super) available: u64,
}

/// What the groups of this process allow; `None` when none of them has a limit, or there are none. `root`
/// is `/`, except in tests.
pub(super) fn allowance(root: &Path) -> Option<Allowance> {
    let proc = root.join("proc/self");
    let groups = fs::read_to_string(proc.join("cgroup")).ok()?;
    let mounts = fs::read_to_string(proc.join("mountinfo")).ok()?;
    let limits = groups.lines().filter_map(Membership::parse).flat_map(|member| {
        let mount = mounts.lines().filter_map(Mount::parse).find(|m| m.version == member.version);
        mount.map_or_else(Vec::new, |mount| limits(root, &mount, &member))
    });
    limits.reduce(|a, b| Allowance {
        limit: a.limit.min(b.limit),
        available: a.available.min(b.available),
    })
}

fn limits(root: &Path, mount: &Mount, member: &Membership) -> Vec<Allowance> {
    // A container may see its own group as the mount's root, under a path of the machine.
    let below = member.path.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let top = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
    let own = top.join(below);
    let chain = own.ancestors().take_while(|group| group.starts_with(&top));
    chain.filter_map(|group| member.version.limit(group)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limit(self, group: &Path) -> Option<Allowance> {
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
        };
        let (limit, used, cached) = match self {
            Self::One => {
                // Without a limit it says the largest number of whole pages.
                let limit = number("memory.limit_in_bytes").filter(|limit| *limit < UNLIMITED)?;
                (limit, "memory.usage_in_bytes", ["total_inactive_file ", "total_active_file "])
            }
            Self::Two => {
                let limits = [number("memory.max"), number("memory.high")];
                let limit = limits.into_iter().flatten().min()?;
                (limit, "memory.current", ["inactive_file ", "active_file "])
            }
        };
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let value = stat.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let cached: u64 = cached.into_iter().map(field).fold(0, u64::saturating_add);
        let used = number(used).unwrap_or(0).saturating_sub(cached);
        Some(Allowance { limit, available: limit.saturating_sub(used) })
    }
}

/// More than any machine has, and less than what version one says of a group without a limit.
const UNLIMITED: u64 = 1 << 60;

/// The group of this process, as a line of `/proc/self/cgroup` says it: `0::/system.slice/planaria.service`
/// or `4:memory:/docker/0123`.
#[derive(Debug)]
struct Membership {
    version: Version,
    path: PathBuf,
}

impl Membership {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match (hierarchy, controllers) {
            ("0", "") => Version::Two,
            (_, controllers) if controllers.split(',').any(|name| name == "memory") => Version::One,
            _ => return None,
        };
        Some(Self { version, path: PathBuf::from(path) })
    }
}

/// Where groups are seen, as a line of `/proc/self/mountinfo` says it:
/// `35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory`.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The group that is seen at `point`.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mounted, about) = line.split_once(" - ")?;
        let mut about = about.split(' ');
        let version = match about.next()? {
            "cgroup2" => Version::Two,
            "cgroup" if about.nth(1)?.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        let mut mounted = mounted.split(' ').skip(3).map(unescaped);
        Some(Self { version, root: mounted.next()?.into(), point: mounted.next()?.into() })
    }
}

/// The kernel writes blanks in paths as `\040`, and the backslash itself as `\134`.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const V2: (&str, &str) =
        ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n");
    const V1: (&str, &str) = (
        "proc/self/mountinfo",
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
         32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 master:1 - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn a_services_limit_holds_and_so_does_that_of_the_slice_around_it() {
        let service = "sys/fs/cgroup/system.slice/planaria.service";
        let at = |name: &str| format!("{service}/{name}");
        let (max, current) = (at("memory.max"), at("memory.current"));
        let (high, stat) = (at("memory.high"), at("memory.stat"));
        let mut files = vec![
            V2,
            ("proc/self/cgroup", "0::/system.slice/planaria.service\n"),
            (&max, "4294967296\n"),
            (&high, "max\n"),
            (&current, "3221225472\n"),
            (&stat, "anon 1\ninactive_file 1073741824\nactive_file 536870912\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
        ];
        let allowed = |files: &[(&str, &str)]| allowance(machine(files).path()).unwrap();
        let of_the_service = Allowance { limit: 4 * GIB, available: 5 * GIB / 2 };
        assert_eq!(allowed(&files), of_the_service);

        files[6].1 = "2147483648\n";
        let current = "sys/fs/cgroup/system.slice/memory.current";
        files.push((current, "1073741824\n"));
        assert_eq!(allowed(&files), Allowance { limit: 2 * GIB, available: GIB });

        files[3].1 = "1073741824\n";
        assert_eq!(allowed(&files), Allowance { limit: GIB, available: 0 });
    }

    #[test]
    fn the_first_version_is_read_and_its_absent_limit_is_none() {
        let files = [
            V1,
            ("proc/self/cgroup", "4:memory:/a/b\n3:cpuset:/\n1:name=systemd:/x\n0::/\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "805306368\n"),
            ("sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file 268435456\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let allowed = allowance(machine(&files).path());
        assert_eq!(allowed, Some(Allowance { limit: GIB, available: GIB / 2 }));
        assert_eq!(allowance(machine(&files[..3]).path()), None);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mounts_root() {
        let mounts =
            "35 31 0:32 /docker/01 /sys/fs/cgroup/mem\\040ory ro - cgroup cgroup rw,memory";
        let files = [
            ("proc/self/mountinfo", mounts),
            ("proc/self/cgroup", "4:hugetlb,memory:/docker/01\n"),
            ("sys/fs/cgroup/mem ory/memory.limit_in_bytes", "1073741824\n"),
        ];
        let limit = |files: &[(&str, &str)]| allowance(machine(files).path()).map(|a| a.limit);
        assert_eq!(limit(&files), Some(GIB));
        // Its path may also be one that is not below what is mounted.
        let elsewhere = [files[0], ("proc/self/cgroup", "4:memory:/../01\n"), files[2]];
        assert_eq!(limit(&elsewhere), Some(GIB));
    }

    #[test]
    fn files_that_say_nothing_limit_nothing() {
        let group = ("proc/self/cgroup", "0::/a\nnonsense\n9:\n");
        let odd = ("sys/fs/cgroup/a/memory.max", "many\n");
        assert_eq!(allowance(machine(&[V2, group, odd]).path()), None);
        assert_eq!(allowance(machine(&[group]).path()), None);
        assert_eq!(allowance(machine(&[V2]).path()), None);
    }
}
