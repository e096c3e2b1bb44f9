//! Checks of the machine: its ports, folders, memory, limits and programs.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::Access;
use rustix::process::Resource;

use super::{Finding, Setup};
use crate::cli::backend::python::check_pip;

/// What a compiled app and copies of its models need at least.
const LITTLE_DISK: u64 = 100 << 20;
/// What a few apps with models of some size need.
const ENOUGH_DISK: u64 = 2 << 30;
/// Descriptors that the host opens beside those of its connections.
const OWN_FILES: u64 = 256;
/// The kernel's own default; a lower one was set by somebody.
const MAPS: u64 = 65_530;

/// Everything that can be said of the machine.
pub(super) fn check(setup: &Setup<'_>) -> Vec<Finding> {
    let config = setup.config;
    let mut findings = vec![port("listen.http", "functions", config.listen.http)];
    findings.extend(config.listen.admin.map(|admin| port("listen.admin", "metrics and readiness", admin)));
    match config.cache_dir() {
        Ok(dir) => {
            findings.push(private(&dir, rustix::process::geteuid().as_raw()));
            let free = free_bytes(&dir);
            findings.extend(free.map(|free| disk(&dir, free)));
        }
        Err(error) => findings.push(Finding::problem(error.to_string(), "export HOME=/path/to/home")),
    }
    let budget_mib = config.models.memory_budget_mib;
    findings.push(memory(budget_mib, config.limits.memory_mib, config.limits.concurrency, physical_bytes()));
    findings.push(files(rustix::process::getrlimit(Resource::Nofile), config.limits.connections as u64));
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    findings.extend(maps.ok().and_then(|text| text.trim().parse().ok()).map(map_count));
    findings.push(pagemap((setup.pagemap)()));
    let native = setup.backends.iter().filter(|backend| matches!(backend.name(), "onnxruntime" | "openvino"));
    let absent: Vec<_> = native.filter(|b| b.status().available.is_err()).map(|b| b.name()).collect();
    findings.push(python(&absent, || check_pip(setup.python)));
    findings
}

/// Whether the address can be listened on.
fn port(key: &str, what: &str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(format!("address {address} for {what}")),
        Err(error) => {
            let mend = match error.kind() {
                ErrorKind::AddrInUse => format!(
                    "stop what listens there (ss -ltnp 'sport = :{}'), or set `{key}` in host.toml",
                    address.port()
                ),
                ErrorKind::PermissionDenied => format!("set `{key}` in host.toml to a port above 1023"),
                _ => format!("set `{key}` in host.toml to an address of this machine"),
            };
            Finding::problem(format!("{address} for {what} cannot be listened on: {error}"), mend)
        }
    }
}

/// Whether the folder can be written by us and by nobody else: native code is kept there.
fn private(dir: &Path, user: u32) -> Finding {
    let shown = dir.display();
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let Ok(metadata) = there.metadata() else {
        return Finding::problem(format!("cache folder `{shown}` cannot be looked at"), choose_cache());
    };
    if !metadata.is_dir() || rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Finding::problem(
            format!("cache folder `{shown}`: `{}` cannot be written", there.display()),
            choose_cache(),
        );
    }
    if there == dir && metadata.uid() != user {
        let text = format!("cache folder `{shown}` belongs to another user");
        return Finding::problem(text, choose_cache());
    }
    if there == dir && metadata.mode() & 0o022 != 0 {
        let text = format!(
            "cache folder `{shown}` can be written by others, who could make the host run their code"
        );
        return Finding::problem(text, format!("chmod go-w {shown}"));
    }
    Finding::good(format!("cache folder `{shown}`"))
}

fn choose_cache() -> &'static str {
    "set `dir` under `[cache]` in host.toml to a folder of your own"
}

/// The bytes that we may still write where `dir` is or will be.
fn free_bytes(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|dir| dir.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn disk(dir: &Path, free: u64) -> Finding {
    let text = format!("{} MiB free for the cache folder `{}`", free >> 20, dir.display());
    let mend = "free some space, or set `dir` under `[cache]` in host.toml to a folder on another disk";
    match free {
        0..LITTLE_DISK => Finding::problem(format!("only {text}"), mend),
        LITTLE_DISK..ENOUGH_DISK => Finding::note(format!("only {text}"), mend),
        _ => Finding::good(text),
    }
}

fn physical_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the width of the C type differs by platform")]
    u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit))
}

/// Whether models and instances fit into memory together.
fn memory(budget_mib: u64, instance_mib: u64, concurrency: usize, physical: u64) -> Finding {
    let physical = physical >> 20;
    let budget = if budget_mib == 0 { physical / 2 } else { budget_mib };
    if budget > physical {
        let text = format!("models may take {budget} MiB, and the machine has {physical}");
        return Finding::problem(text, "lower `models.memory_budget_mib` in host.toml");
    }
    // Hardly ever do all instances take all that they may: only far too much is worth a word.
    let instances = instance_mib.saturating_mul(concurrency as u64);
    if budget.saturating_add(instances) > physical.saturating_mul(2) {
        let text = format!(
            "models may take {budget} MiB and {concurrency} instances at once up to {instance_mib} MiB each: more \
             than the machine's {physical} MiB if all of them take all"
        );
        return Finding::note(text, "lower `limits.concurrency` or `limits.memory_mib` in host.toml");
    }
    Finding::good(format!("memory: {budget} of {physical} MiB for models"))
}

fn files(limit: rustix::process::Rlimit, connections: u64) -> Finding {
    let wanted = connections + OWN_FILES;
    match limit.current {
        Some(current) if current < wanted => {
            let text =
                format!("{current} files may be open at once, and {connections} connections need {wanted}");
            let may_raise = limit.maximum.is_none_or(|maximum| maximum >= wanted);
            let mend = match may_raise {
                true => format!("ulimit -n {wanted}"),
                false => "raise the hard limit (`LimitNOFILE` of a systemd unit, limits.conf)".to_owned(),
            };
            if current < OWN_FILES { Finding::problem(text, mend) } else { Finding::note(text, mend) }
        }
        current => {
            let current = current.map_or("any number of".to_owned(), |current| current.to_string());
            Finding::good(format!("{current} files may be open at once"))
        }
    }
}

fn map_count(count: u64) -> Finding {
    let text = format!("{count} memory maps allowed (vm.max_map_count)");
    match count {
        0..MAPS => Finding::note(
            format!("only {text}; pooled instances and mapped models may need more"),
            format!("sudo sysctl -w vm.max_map_count={MAPS}"),
        ),
        _ => Finding::good(text),
    }
}

fn pagemap(resets: Result<(), &'static str>) -> Finding {
    match resets {
        Ok(()) => Finding::good("pooled memory is reset by the page map"),
        // Either has its reasons; the host works without.
        Err(reason) => Finding::note(
            format!("pooled memory is reset the slower way: {reason}"),
            "nothing needs to be done; Linux 6.7 or later without swap starts instances faster",
        ),
    }
}

/// Python is needed only to install a backend.
fn python(absent: &[&str], pip: impl Fn() -> Result<(), String>) -> Finding {
    match (absent, pip()) {
        (_, Ok(())) => Finding::good("Python and pip to install backends"),
        ([], Err(_)) => Finding::good("no Python with pip, and no backend to install"),
        (absent, Err(reason)) => {
            let text = format!("{} cannot be installed: {reason}", absent.join(" and "));
            Finding::note(text, "only if you want them: the built-in backend needs no library")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::process::Rlimit;

    use super::super::Level::{Good, Note, Problem};
    use super::super::{Level, *};
    use super::*;

    fn check(found: &Finding, level: Level, expected: &str) {
        assert_eq!(found.level, level, "{found:?}");
        assert!(format!("{} -> {}", found.text, found.mend).contains(expected), "{found:?}");
        assert!(level != Problem || !found.mend.is_empty(), "{found:?}");
    }

    #[test]
    fn ports() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        check(&port("listen.http", "functions", address), Problem, "or set `listen.http` in host.toml");
        check(&port("listen.http", "functions", "127.0.0.1:0".parse().unwrap()), Good, "127.0.0.1:0");
        // An address of the range for documentation is nobody's.
        check(
            &port("listen.admin", "x", "192.0.2.1:0".parse().unwrap()),
            Problem,
            "an address of this machine",
        );
    }

    #[test]
    fn folders() {
        let dir = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        check(&private(dir.path(), user), Good, "cache folder");
        check(&private(&dir.path().join("a/b"), user), Good, "cache folder");
        check(&private(dir.path(), user + 1), Problem, "belongs to another user");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        check(&private(dir.path(), user), Problem, "chmod go-w ");
        std::fs::write(dir.path().join("file"), "").unwrap();
        check(&private(&dir.path().join("file/x"), user), Problem, "cannot be written");
        assert!(free_bytes(&dir.path().join("a/b")).is_some());
    }

    #[test]
    fn quantities() {
        let gib = |gib: u64| gib << 30;
        check(&disk(Path::new("/c"), gib(3)), Good, "3072 MiB free");
        check(&disk(Path::new("/c"), gib(1)), Note, "only 1024 MiB free");
        check(&disk(Path::new("/c"), 1 << 20), Problem, "only 1 MiB free");
        check(&memory(0, 256, 16, gib(16)), Good, "8192 of 16384 MiB");
        check(&memory(0, 256, 64, gib(16)), Good, "8192 of 16384 MiB");
        check(&memory(0, 256, 128, gib(16)), Note, "128 instances");
        check(&memory(20_000, 1, 1, gib(16)), Problem, "lower `models.memory_budget_mib`");
        let limit = |current, maximum| Rlimit { current, maximum };
        check(&files(limit(Some(4096), None), 1024), Good, "4096 files");
        check(&files(limit(None, None), 1024), Good, "any number of files");
        check(&files(limit(Some(1024), Some(4096)), 1024), Note, "ulimit -n 1280");
        check(&files(limit(Some(1024), Some(1024)), 1024), Note, "LimitNOFILE");
        check(&files(limit(Some(64), None), 1024), Problem, "ulimit -n 1280");
        check(&map_count(65_530), Good, "65530");
        check(&map_count(1000), Note, "sysctl");
        assert!(physical_bytes() > 1 << 20);
    }

    #[test]
    fn programs_and_kernel() {
        check(&pagemap(Ok(())), Good, "page map");
        check(&pagemap(Err("the system has swap")), Note, "the system has swap");
        check(&python(&[], || Err("no pip".to_owned())), Good, "no backend to install");
        check(
            &python(&["openvino"], || Err("no pip".to_owned())),
            Note,
            "openvino cannot be installed: no pip",
        );
        check(&python(&["openvino"], || Ok(())), Good, "pip");
    }
}
