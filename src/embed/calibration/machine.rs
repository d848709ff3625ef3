//! What the machine is: the name of its CPU, and the memory that is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Returns the CPU's name, or its architecture and what else there is to tell it from others.
pub fn cpu_name() -> String {
    name_of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn name_of(cpuinfo: &str) -> String {
    let values = |key: &'static str| {
        cpuinfo
            .lines()
            .filter_map(move |line| Some(line.strip_prefix(key)?.split_once(": ")?.1.trim()))
    };
    if let Some(name) = values("model name").next() {
        return name.into();
    }
    // Arm's have no name there, and numbers of their makers and designs instead.
    let designs: BTreeSet<&str> = values("CPU implementer").chain(values("CPU part")).collect();
    let words = std::iter::once(std::env::consts::ARCH).chain(designs);
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the bytes that this process may still take: what the system has, and what its cgroups
/// allow. `None` where the system doesn't tell.
pub fn memory_available() -> Option<u64> {
    let system = available_of(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_cgroups = Hierarchy::ALL
        .iter()
        .filter_map(|hierarchy| hierarchy.available(Path::new(hierarchy.root), &cgroups))
        .min();
    Some(of_cgroups.map_or(system, |bytes| bytes.min(system)))
}

/// How a version of cgroups tells of memory.
struct Hierarchy {
    root: &'static str,
    /// What stands in the line of `/proc/self/cgroup`.
    controller: &'static str,
    limit: &'static str,
    used: &'static str,
    /// The lines of `memory.stat` with what files take, and give back when there is need.
    files: [&'static str; 2],
}

impl Hierarchy {
    const ALL: [Hierarchy; 2] = [
        Hierarchy {
            root: "/sys/fs/cgroup",
            controller: "",
            limit: "memory.max",
            used: "memory.current",
            files: ["active_file ", "inactive_file "],
        },
        Hierarchy {
            root: "/sys/fs/cgroup/memory",
            controller: "memory",
            limit: "memory.limit_in_bytes",
            used: "memory.usage_in_bytes",
            files: ["total_active_file ", "total_inactive_file "],
        },
    ];

    /// Returns what the process's cgroup and those around it leave, the least of them. A container
    /// may be told a path that is the host's, and see its own cgroup at the root alone.
    fn available(&self, root: &Path, cgroups: &str) -> Option<u64> {
        let path = cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == self.controller).then_some(path)
        })?;
        let path = Path::new(path.trim_start_matches('/'));
        path.ancestors().filter_map(|path| self.left_in(&root.join(path))).min()
    }

    fn left_in(&self, folder: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let stat = read("memory.stat").unwrap_or_default();
        let of_files = |line: &str| {
            let number = self.files.iter().find_map(|name| line.strip_prefix(name))?;
            number.trim().parse::<u64>().ok()
        };
        let files: u64 = stat.lines().filter_map(of_files).sum();
        let used = number(self.used)?.saturating_sub(files);
        Some(number(self.limit)?.saturating_sub(used))
    }
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
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nmodel\t\t: 17\n";
        assert_eq!(name_of(text), "AMD EPYC 9R14");
    }

    #[test]
    fn cpus_without_a_name_are_told_apart_by_their_parts() {
        let of = |parts: &[&str]| {
            let one = |part: &&str| format!("CPU implementer\t: 0x41\nCPU part\t: {part}\n\n");
            name_of(&parts.iter().map(one).collect::<String>())
        };
        let neoverse_n1 = of(&["0xd0c", "0xd0c"]);
        assert_eq!(neoverse_n1, of(&["0xd0c"]), "their number is told elsewhere");
        assert_ne!(neoverse_n1, of(&["0xd40"]));
        assert_ne!(of(&["0xd05", "0xd0a"]), of(&["0xd05"]));
        assert_eq!(name_of(""), std::env::consts::ARCH);
    }

    #[test]
    fn a_limit_around_the_cgroup_counts_and_what_files_take_does_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |folder: &str, name: &str, text: &str| {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), text).unwrap();
        };
        let [two, one] = &Hierarchy::ALL;
        let cgroups = "4:cpu,memory:/a\n0::/outer/inner\n";
        assert_eq!(two.available(root.path(), cgroups), None, "the root has no limit");

        write("outer", "memory.max", "1000\n");
        write("outer", "memory.current", "900\n");
        write("outer", "memory.stat", "anon 300\nfile 600\nactive_file 200\ninactive_file 400\n");
        write("outer/inner", "memory.max", "max\n");
        write("outer/inner", "memory.current", "900\n");
        assert_eq!(two.available(root.path(), cgroups), Some(700));

        write("a", "memory.limit_in_bytes", "500\n");
        write("a", "memory.usage_in_bytes", "600\n");
        write("a", "memory.stat", "inactive_file 1\ntotal_inactive_file 150\n");
        assert_eq!(one.available(root.path(), cgroups), Some(50));
        assert_eq!(one.available(root.path(), "0::/outer\n"), None);
        // In a container that sees its own cgroup at the root.
        write("", "memory.max", "64\n");
        write("", "memory.current", "0\n");
        assert_eq!(two.available(root.path(), "0::/of/the/host\n"), Some(64));
    }
}
