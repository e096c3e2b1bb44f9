//! How much memory this host may use: that of the machine, or less where its control groups say so.

use std::path::{Path, PathBuf};

/// Memory in bytes that this process may use at most.
pub fn physical_memory() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit(&groups, |path| std::fs::read_to_string(path).ok());
    limit.map_or(machine, |limit| machine.min(limit))
}

/// The lowest limit of the groups in `groups`, which has the form of `/proc/self/cgroup`, and of all above them.
///
/// Within a container the path of a group is often that of the machine, while only the container's own group is
/// there to be read: at the top, which is looked at last.
fn limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let files = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = Path::new(path.trim_start_matches('/'));
        Some(group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect::<Vec<PathBuf>>())
    });
    // `max` is no number, and no limit.
    files.flatten().filter_map(|file| read(&file)?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_counts() {
        let check = |groups: &str, files: &[(&str, &str)], expected: Option<u64>| {
            let read = |path: &Path| {
                let file = files.iter().find(|(name, _)| Path::new(name) == path);
                file.map(|(_, content)| format!("{content}\n"))
            };
            assert_eq!(limit(groups, read), expected, "{groups} {files:?}");
        };
        let v2 = "0::/system.slice/tenon.service\n";
        let own = "/sys/fs/cgroup/system.slice/tenon.service/memory.max";
        let slice = "/sys/fs/cgroup/system.slice/memory.max";
        check(v2, &[], None);
        check(v2, &[(own, "max"), (slice, "max")], None);
        check(v2, &[(own, "1000"), (slice, "max")], Some(1000));
        check(v2, &[(own, "max"), (slice, "2000")], Some(2000));
        check(v2, &[(own, "3000"), (slice, "2000")], Some(2000));
        // A container that sees its own group as the root, and one that does not.
        check("0::/\n", &[("/sys/fs/cgroup/memory.max", "5")], Some(5));
        check("0::/docker/1f\n", &[("/sys/fs/cgroup/memory.max", "5")], Some(5));
        let v1 = "5:cpu,cpuacct:/a\n4:memory:/a/b:c\n1:name=systemd:/a\n0::/\n";
        check(v1, &[("/sys/fs/cgroup/memory/a/b:c/memory.limit_in_bytes", "7")], Some(7));
        let above = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        check(v1, &[(above, "9223372036854771712")], Some(9_223_372_036_854_771_712));
        check(v1, &[(above, "8"), ("/sys/fs/cgroup/memory.max", "6")], Some(6));
        check("4:cpu:/a\n", &[(above, "8")], None);
        check("nothing\n::\n", &[("/sys/fs/cgroup/memory.max", "x")], None);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(physical_memory() > 1 << 20);
    }
}
