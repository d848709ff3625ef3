//! Messages for a worker to be busy with, for as long as a test looks at it.

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

/// Numbered messages that are sent at once.
const SHARE: usize = 40;

/// A thread that sends messages, until the value is dropped.
pub struct Load {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<usize>>,
}

impl Load {
    /// Starts to send captions to a topic in bursts. A few of them are poison, one is too long, one
    /// is a tombstone.
    pub fn start(cluster: &Cluster, topic: &str, bursts: Bursts) -> Load {
        let (captions, pause) = match bursts {
            Bursts::Rare => (3000, Duration::from_millis(1500)),
            Bursts::Often => (200, Duration::from_millis(100)),
        };
        let mut burst = burst(captions);
        Load::spawn(cluster, topic, pause, move |_| {
            burst.rotate_left(7);
            burst.clone()
        })
    }

    /// Starts to send the messages of the numbers from 0 on to a topic, without a pause.
    pub fn numbered(cluster: &Cluster, topic: &str, message: fn(usize) -> Outgoing) -> Load {
        Load::spawn(cluster, topic, Duration::ZERO, move |sent| {
            (sent..sent + SHARE).map(message).collect()
        })
    }

    fn spawn(
        cluster: &Cluster,
        topic: &str,
        pause: Duration,
        mut next: impl FnMut(usize) -> Vec<Outgoing> + Send + 'static,
    ) -> Load {
        let (cluster, topic) = (cluster.clone(), topic.to_owned());
        let (stop, stopped) = bounded::<()>(1);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let messages = next(sent);
                cluster.send(&topic, &messages);
                sent += messages.len();
            }
            sent
        });
        Load { stop: Some(stop), thread: Some(thread) }
    }

    /// Ends it, and returns how many messages were sent.
    pub fn stop(mut self) -> usize {
        drop(self.stop.take());
        let thread = self.thread.take().expect("it is taken where the value ends");
        thread.join().expect("the load failed")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        let ended = thread.join();
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
