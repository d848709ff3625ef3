//! What the machine is: the name of its CPU, and the memory that is left.

use std::fs;

/// Returns the CPU's name, or its architecture where the system doesn't tell.
pub fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

/// Returns the bytes that this process may still take: what the system has, and what its cgroup
/// allows. `None` where the system doesn't tell.
pub fn memory_available() -> Option<u64> {
    let system = available_of(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let cgroups = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ];
    let of_cgroup =
        cgroups.iter().find_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)));
    Some(of_cgroup.map_or(system, |bytes| bytes.min(system)))
}

fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let text = "MemTotal:       24660000 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(available_of(text), Some(23_000_000 * 1024));
        assert_eq!(available_of("MemFree: 1 kB\n"), None);
        assert!(!cpu_name().is_empty());
    }
}
