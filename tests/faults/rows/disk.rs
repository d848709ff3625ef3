//! Brokers whose disk is full. They have small disks of their own, which only root can make.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{BOTH, captions, seconds, workers};
use crate::cluster::{Cluster, NODES, Network};
use crate::scene::{Scene, Way};
use crate::{Found, Row, Setting};

/// What a small disk holds.
const DISK_MIB: u32 = 400;

/// Captions that may come again: what a death brings again, for each broker that ends.
const AGAIN_MAX: usize = 2 * workers::AGAIN_MAX;

/// How long the workers may take to go on once there is room again.
const SOON: Duration = Duration::from_secs(120);

pub const FULL: Row = Row {
    id: "13",
    fault: "brokers' disks full, then freed",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        let repeats = mode.choose(format!("repeats at most {AGAIN_MAX}"), "none repeated".into());
        format!(
            "with one disk full the worker goes on; with two, too few replicas are in sync: it waits, and recovers by \
             itself; none lost, {repeats}"
        )
    },
    run: |setting| {
        let disks = match [0, 1].map(|_| Disk::mount()) {
            [Some(first), Some(second)] => [first, second],
            _ => {
                let found = "skipped: only root can mount the small disks that it needs".to_owned();
                return Found { found, ..Found::default() };
            }
        };
        let data = [disks[0].data(), disks[1].data()];
        let cluster = Cluster::start(Network::Plain, [Some(&data[0]), Some(&data[1]), None]);
        let setting = Setting {
            cluster: &cluster,
            mode: setting.mode,
            size: setting.size,
            name: setting.name.clone(),
        };
        let mut scene = Scene::new(&setting);
        scene.start_feed(200, captions());
        let worker = scene.worker(0, Way::Proxied, &[]).ready();
        scene.until_going_again(SOON);

        disks[0].fill();
        scene.until_down(0);
        let with_one = scene.until_going_again(SOON);
        disks[1].fill();
        scene.until_down(1);
        scene.pass(Duration::from_secs(20));
        let waiting = worker.metric("capvec_in_flight_messages").unwrap_or_default();

        for (node, disk) in disks.iter().enumerate() {
            disk.free();
            cluster.node(node).restart();
        }
        let recovered = scene.until_going_again(SOON);
        cluster.until_in_sync();
        let end = scene.finish(vec![worker]);
        Found {
            injected: format!(
                "the disks of 2 of {NODES} brokers filled one after the other, which ends them, then freed"
            ),
            found: format!(
                "{}; going again with one full after {}, with room again after {}; {waiting} in flight meanwhile",
                end.verdict,
                seconds(with_one),
                seconds(recovered)
            ),
            broken: end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0)),
        }
    },
};

/// A small disk in memory.
struct Disk {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl Disk {
    /// Mounts one; `None` where this user may not.
    fn mount() -> Option<Disk> {
        let parent = tempfile::Builder::new().prefix("capvec-disk-").tempdir().unwrap();
        let folder = parent.path().join("disk");
        std::fs::create_dir(&folder).unwrap();
        let size = format!("size={DISK_MIB}m");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "capvec-faults"])
            .arg(&folder)
            .output()
            .ok()?;
        mount.status.success().then_some(Disk { folder, _parent: parent })
    }

    fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }

    /// Writes until there is no room.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let block = vec![0; 4096];
        // An error is what it is for.
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}

fn unmount(folder: &Path) {
    // Lazily: a broker that is being killed may still have files open.
    drop(Command::new("umount").arg("--lazy").arg(folder).status());
}
