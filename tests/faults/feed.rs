//! The producer of captions: it goes around the proxies and knows exactly what the brokers have
//! acknowledged.
//!
//! Captions have few keys, which repeat, and no text twice. A caption that was not acknowledged
//! ends the run: then nobody could say what the worker had to deliver.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

/// Where a message lies: partition and offset.
pub type Place = (i32, i64);

/// How long the last captions may take to be acknowledged.
const FLUSH_MAX: Duration = Duration::from_secs(120);

/// Keys that captions share.
pub const KEYS: u64 = 48;

/// How often the producer wakes to send what is due.
const PACE: Duration = Duration::from_millis(5);

/// What must become of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// A vector of this text.
    Vector(String),
    /// A dead letter with this reason.
    DeadLetter(&'static str),
}

/// A message with what must become of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// The value of the header `own`, if it has one.
    pub header: Option<Vec<u8>>,
    pub fate: Fate,
}

impl Sent {
    /// A caption in JSON.
    pub fn caption(key: u64, text: String) -> Sent {
        Sent {
            key: format!("key-{key}").into_bytes(),
            value: serde_json::json!({ "caption": text }).to_string().into_bytes(),
            header: None,
            fate: Fate::Vector(text),
        }
    }

    /// The caption with a number, of the key that it has.
    pub fn numbered(number: u64) -> Sent {
        Sent::caption(number % KEYS, format!("caption {number}"))
    }

    /// Bytes that are no caption, of the key of a number.
    pub fn poison(number: u64) -> Sent {
        let value = format!("{{\"caption\": {number}, \"raw\": \"\u{1}").into_bytes();
        let (header, fate) = (Some(b"kept".to_vec()), Fate::DeadLetter("not_json"));
        Sent { value, header, fate, ..Sent::numbered(number) }
    }
}

/// Everything acknowledged, by where it lies. What was acknowledged without a place has one before
/// all others.
pub type Truth = BTreeMap<Place, Sent>;

/// Returns a place for the message of a partition that is the `number`th one without, from 1 on.
pub fn unplaced(partition: i32, number: i64) -> Place {
    (partition, -number)
}

/// Returns whether it was told where the message lies.
pub fn is_placed(place: &Place) -> bool {
    place.1 >= 0
}

/// Which message has a number.
pub type Mix = Box<dyn FnMut(u64) -> Sent + Send>;

/// The running producer.
pub struct Feed {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Messages a second.
    rate: AtomicU32,
    sent: AtomicU64,
    truth: Mutex<Truth>,
    refused: Mutex<Option<String>>,
}

struct Acknowledged(Arc<Shared>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        match result {
            Ok(message) => {
                let place = (message.partition(), message.offset());
                let mut truth = self.0.truth.lock().unwrap();
                let place = match is_placed(&place) {
                    true => place,
                    false => unplaced(place.0, truth.len() as i64 + 1),
                };
                let before = truth.insert(place, *sent);
                assert_eq!(before, None, "two messages in one place");
            }
            Err((error, _)) => *self.0.refused.lock().unwrap() = Some(error.to_string()),
        }
    }
}

impl Feed {
    /// Begins to send to a topic, `rate` messages a second.
    pub fn start(client: &ClientConfig, topic: &str, rate: u32, mut mix: Mix) -> Feed {
        let shared = Arc::new(Shared::default());
        shared.rate.store(rate, Ordering::Relaxed);
        let producer: ThreadedProducer<Acknowledged> = client
            .clone()
            .set("partitioner", "murmur2_random")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Outages are longer than the default, and every message counts.
            .set("message.timeout.ms", "900000")
            .set("message.max.bytes", "8000000")
            .set("linger.ms", "5")
            .create_with_context(Acknowledged(Arc::clone(&shared)))
            .unwrap();
        let (of_thread, topic) = (Arc::clone(&shared), topic.to_owned());
        let thread = std::thread::Builder::new().name("feed".into()).spawn(move || {
            let (mut due, mut last) = (0.0, Instant::now());
            while !of_thread.stop.load(Ordering::Acquire) {
                let rate = f64::from(of_thread.rate.load(Ordering::Relaxed));
                due += rate * last.elapsed().as_secs_f64();
                last = Instant::now();
                while due >= 1.0 {
                    let number = of_thread.sent.fetch_add(1, Ordering::Relaxed);
                    send(&producer, &topic, mix(number));
                    due -= 1.0;
                }
                std::thread::park_timeout(PACE);
            }
            producer.flush(FLUSH_MAX).expect("the brokers acknowledge the last captions");
        });
        Feed { shared, thread: thread.unwrap() }
    }

    /// Changes how many messages a second are sent.
    pub fn set_rate(&self, rate: u32) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// Returns how many were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.shared.truth.lock().unwrap().len()
    }

    /// Waits until everything that was sent is acknowledged; the rate is to be 0.
    pub fn until_acknowledged(&self) {
        crate::support::eventually("the brokers acknowledge the captions", || {
            let sent = self.shared.sent.load(Ordering::Relaxed);
            (self.acknowledged() as u64 == sent).then_some(())
        });
    }

    /// Returns the last acknowledged offset of each partition.
    pub fn latest(&self) -> BTreeMap<i32, i64> {
        // In the order of places, so that a partition's last offset comes last.
        self.shared.truth.lock().unwrap().keys().copied().collect()
    }

    /// Stops sending, waits for the last acknowledgements, and returns everything.
    pub fn stop(self) -> Truth {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.join().expect("the feed does not panic");
        let refused = self.shared.refused.lock().unwrap().take();
        assert_eq!(refused, None, "a caption was not acknowledged, so nothing can be proven");
        let truth = std::mem::take(&mut *self.shared.truth.lock().unwrap());
        assert_eq!(truth.len() as u64, self.shared.sent.load(Ordering::Relaxed));
        truth
    }
}

fn send(producer: &ThreadedProducer<Acknowledged>, topic: &str, sent: Sent) {
    let headers = sent
        .header
        .as_deref()
        .map(|value| OwnedHeaders::new().insert(Header { key: "own", value: Some(value) }));
    let (key, value) = (sent.key.clone(), sent.value.clone());
    let mut record = BaseRecord::<[u8], [u8], Box<Sent>> {
        topic,
        partition: None,
        payload: Some(&value),
        key: Some(&key),
        timestamp: None,
        headers,
        delivery_opaque: Box::new(sent),
    };
    // Its queue is full while the brokers are away: later captions are sent later.
    while let Err((_, back)) = producer.send(record) {
        std::thread::park_timeout(PACE);
        record = back;
    }
}
