//! Captions for a worker to be busy with, for as long as a test looks at it.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::{Cluster, Outgoing};

/// A thread that sends captions in bursts, until the value is dropped. A few of them are poison, one is
/// too long, one is a tombstone.
pub struct Load {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts to send to a topic.
    pub fn start(cluster: &Cluster, topic: &str) -> Load {
        let (cluster, topic) = (cluster.clone(), topic.to_owned());
        let (stop, stopped) = bounded::<()>(1);
        let thread = std::thread::spawn(move || {
            let mut burst = burst();
            // Between bursts the backlog shrinks.
            while stopped.recv_timeout(Duration::from_millis(1500))
                == Err(RecvTimeoutError::Timeout)
            {
                cluster.send(&topic, &burst);
                burst.rotate_left(7);
            }
        });
        Load { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("it is taken here alone").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the load failed");
    }
}

fn burst() -> Vec<Outgoing> {
    let mut messages: Vec<_> = (0..3000)
        .map(|i| Outgoing::caption(&format!("k{i}"), &format!("{i} horses in field {}", i % 7)))
        .collect();
    let poison = |value: &[u8]| Outgoing { value: Some(value.into()), ..Outgoing::default() };
    messages.extend([
        poison(b"not json"),
        poison(b"{\"title\": \"no caption\"}"),
        poison(b"\xff\xfe"),
        Outgoing { key: Some("gone".into()), ..Outgoing::default() },
        Outgoing::caption("long", &"a long story ".repeat(100)),
    ]);
    messages
}
