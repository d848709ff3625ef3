//! Captions for a worker to be busy with, for as long as a test looks at it.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::{Cluster, Outgoing};

/// How captions come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bursts {
    /// Many, with pauses in which the backlog shrinks.
    Rare,
    /// Few, one after the other.
    Often,
}

/// A thread that sends captions in bursts, until the value is dropped. A few of them are poison, one is
/// too long, one is a tombstone.
pub struct Load {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts to send to a topic.
    pub fn start(cluster: &Cluster, topic: &str, bursts: Bursts) -> Load {
        let (cluster, topic) = (cluster.clone(), topic.to_owned());
        let (stop, stopped) = bounded::<()>(1);
        let thread = std::thread::spawn(move || {
            let (captions, pause) = match bursts {
                Bursts::Rare => (3000, Duration::from_millis(1500)),
                Bursts::Often => (200, Duration::from_millis(100)),
            };
            let mut burst = burst(captions);
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
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

fn burst(captions: usize) -> Vec<Outgoing> {
    let mut messages: Vec<_> = (0..captions)
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
