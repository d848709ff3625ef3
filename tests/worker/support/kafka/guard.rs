//! What ends a node with the process that started it, however that ends.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A shell that waits for this process to end, then kills the JVM and deletes the folder.
///
/// It waits by reading a pipe on which nobody writes: the kernel closes our end when we die, of
/// whatever. The JVM is in the guard's process group, so the guard needs no process id, and nothing
/// is missed between a start and being told of it: a child lets go of our end of the pipe, as of
/// all we have open, after it has joined the group. The group of its own also keeps a Ctrl-C in the
/// terminal from the JVM.
pub struct Guard(Child);

impl Guard {
    /// Starts to wait; `folder` is deleted in the end.
    pub fn start(folder: &Path) -> Guard {
        // `setsid` leaves the group, which may then be killed as a whole, and the folder deleted
        // after it.
        const SCRIPT: &str = r#"
            read -r _
            exec setsid sh -c 'kill -s KILL -- "-$1"; rm -rf -- "$2"' sh "$$" "$1"
        "#;
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .stdin(Stdio::piped())
            // Whoever reads this process's output is not to wait for the guard too.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("every Unix has a shell");
        Guard(shell)
    }

    /// Returns the process group that dies with this process.
    pub fn group(&self) -> i32 {
        self.0.id().try_into().expect("the kernel's process ids are positive i32")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("an own child can be waited for");
    }
}
