//! The checker: what was acknowledged to the producer against what lies in the topics at the end.
//! It is pure, and knows of capvec only what its documents promise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::feed::{Fate, Place, Sent, Truth, is_placed, unplaced};

/// A record of an output topic, as far as the checker looks at it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which message it says that it is of.
    pub source: Place,
    /// Where it lies.
    pub place: Place,
    pub key: Vec<u8>,
    /// Whether its content is what the message's must be.
    pub proven: bool,
}

/// What the checker found. All but the first three and the last two are 0 for a perfect delivery.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Messages that were acknowledged to the producer.
    pub sent: usize,
    /// Records in the output topic.
    pub vectors: usize,
    /// Records in the dead-letter topic.
    pub letters: usize,
    /// Messages of which nothing came out.
    pub lost: Vec<Place>,
    /// Records beyond the first of a message.
    pub repeated: usize,
    /// Records with another content, another key or in the other topic than their message's must
    /// be, or of no message.
    pub wrong: usize,
    /// Records that came out behind a later one of their key; keys whose last vector is not of
    /// their last caption; keys in more than one partition.
    pub disordered: usize,
    /// Messages that the group's offsets do not cover.
    pub uncommitted: i64,
    /// Partitions in which a transaction is open.
    pub open_transactions: usize,
    /// Messages that the sender's client wrote once more than it was told of; each is a message
    /// like any other.
    pub written_twice: usize,
    /// Messages that were acknowledged to the sender without a place, and lie nowhere.
    pub nowhere: usize,
}

/// Makes what was acknowledged what lies in the input, by the input's records beyond the places
/// that were told. Returns how many messages lie there twice, and how many nowhere.
///
/// librdkafka's idempotent producer can write a message twice when the brokers answer in an unlucky
/// order (confluentinc/librdkafka issue 4953): a sequence number that is out of order in one
/// partition makes it go on under a new epoch in all, and what a broker that died had taken without
/// a word is taken again. A worker can't know that and has to deliver both. And where a broker's
/// answer was lost, it takes a message for acknowledged by the answer to a later one, without a
/// place: see `src/kafka/acknowledged.rs`. No two messages have the same value here.
pub fn as_it_lies(truth: &mut Truth, beyond: &[(Place, Vec<u8>)]) -> (usize, usize) {
    let mut written_twice = 0;
    for (place, value) in beyond {
        let Some((told, sent)) = truth.iter().find(|(_, sent)| sent.value == *value) else {
            continue;
        };
        let (told, sent) = (*told, sent.clone());
        if is_placed(&told) {
            written_twice += 1;
        } else {
            truth.remove(&told);
        }
        truth.insert(*place, sent);
    }
    let acknowledged = truth.len();
    truth.retain(|place, _| is_placed(place));
    (written_twice, acknowledged - truth.len())
}

/// Compares what must have come out with what did.
pub fn judge(truth: &Truth, vectors: &[Seen], letters: &[Seen]) -> Verdict {
    let mut verdict = Verdict {
        sent: truth.len(),
        vectors: vectors.len(),
        letters: letters.len(),
        ..Verdict::default()
    };
    let mut came: BTreeMap<Place, usize> = BTreeMap::new();
    let is_letter = |sent: &Sent| matches!(sent.fate, Fate::DeadLetter(_));
    for (records, in_dead_letters) in [(vectors, false), (letters, true)] {
        for seen in records {
            let of = truth.get(&seen.source);
            let right = of.is_some_and(|sent| {
                seen.proven && sent.key == seen.key && is_letter(sent) == in_dead_letters
            });
            verdict.wrong += usize::from(!right);
            if right {
                *came.entry(seen.source).or_default() += 1;
            }
        }
    }
    verdict.lost = truth.keys().filter(|place| !came.contains_key(place)).copied().collect();
    verdict.repeated = came.values().map(|times| times - 1).sum();
    verdict.disordered = disordered(truth, vectors);
    verdict
}

fn disordered(truth: &Truth, vectors: &[Seen]) -> usize {
    let mut of_key: BTreeMap<&[u8], Vec<&Seen>> = BTreeMap::new();
    for seen in vectors {
        of_key.entry(&seen.key).or_default().push(seen);
    }
    let mut last_of_key: BTreeMap<&[u8], Place> = BTreeMap::new();
    for (place, sent) in truth {
        if matches!(sent.fate, Fate::Vector(_)) {
            // A key's messages are in one partition, so the last is that of the highest offset.
            last_of_key.insert(&sent.key, *place);
        }
    }
    let mut number = 0;
    for (key, mut records) in of_key {
        records.sort_by_key(|seen| seen.place);
        let partitions: BTreeSet<i32> = records.iter().map(|seen| seen.place.0).collect();
        number += partitions.len() - 1;
        // A repeat goes back, and may; what comes out for the first time must not.
        let (mut before, mut known) = (None, BTreeSet::new());
        for seen in &records {
            if known.insert(seen.source) {
                number += usize::from(before.is_some_and(|before| seen.source < before));
                before = before.max(Some(seen.source));
            }
        }
        let last = records.last().map(|seen| seen.source);
        number += usize::from(last != last_of_key.get(key).copied());
    }
    number
}

impl Verdict {
    /// Returns what breaks a promise, where at most so many records may be repeated.
    pub fn broken(&self, repeated_max: usize) -> Vec<String> {
        let limits = [
            (self.lost.len(), 0, "lost"),
            (self.repeated, repeated_max, "repeated"),
            (self.wrong, 0, "wrong"),
            (self.disordered, 0, "out of order"),
            (self.uncommitted.unsigned_abs() as usize, 0, "uncommitted"),
            (self.open_transactions, 0, "open transactions"),
        ];
        let over = limits.into_iter().filter(|(found, most, _)| found > most);
        over.map(|(found, most, what)| format!("{found} {what}, {most} allowed")).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} vectors", self.sent, self.vectors)?;
        if self.letters > 0 {
            write!(f, ", {} dead letters", self.letters)?;
        }
        write!(f, "; {} lost, {} repeated", self.lost.len(), self.repeated)?;
        let others = [
            (self.wrong as i64, "wrong"),
            (self.disordered as i64, "out of order"),
            (self.uncommitted, "uncommitted"),
            (self.open_transactions as i64, "open transactions"),
        ];
        for (number, what) in others.into_iter().filter(|(number, _)| *number != 0) {
            write!(f, ", {number} {what}")?;
        }
        if self.written_twice > 0 {
            write!(
                f,
                "; {} of the sent were written twice by the sender's client",
                self.written_twice
            )?;
        }
        if self.nowhere > 0 {
            write!(f, "; {} were acknowledged to the sender and lie nowhere", self.nowhere)?;
        }
        Ok(())
    }
}

/// Shows that each fault that the checker looks for is found, on records made for it.
pub fn finds_each_fault() {
    let key = |n: u64| format!("key-{n}").into_bytes();
    // Two keys in one partition, by turns, and a poison at the end.
    let mut truth: Truth =
        (0..6).map(|n| ((0, n as i64), Sent::caption(n % 2, format!("caption {n}")))).collect();
    truth.insert((0, 6), Sent { key: key(0), ..Sent::poison(6) });
    let seen = |n: i64, at: i64| Seen {
        source: (0, n),
        place: (3, at),
        key: key(n as u64 % 2),
        proven: true,
    };
    let good: Vec<Seen> = (0..6).map(|n| seen(n, n)).collect();
    let letters = [seen(6, 0)];
    let perfect = Verdict { sent: 7, vectors: 6, letters: 1, ..Verdict::default() };
    assert_eq!(judge(&truth, &good, &letters), perfect);

    let lost = judge(&truth, &[&good[..2], &good[3..]].concat(), &letters);
    assert_eq!(lost, Verdict { vectors: 5, lost: vec![(0, 2)], ..perfect.clone() });
    let no_letter = judge(&truth, &good, &[]);
    assert_eq!(no_letter, Verdict { letters: 0, lost: vec![(0, 6)], ..perfect.clone() });
    // 2 and 3 come again before 4: a rewind, in order.
    let places = [0, 1, 2, 3, 2, 3, 4, 5];
    let again: Vec<_> = places.iter().zip(0..).map(|(&n, at)| seen(n, at)).collect();
    let repeated = judge(&truth, &again, &letters);
    assert_eq!(repeated, Verdict { vectors: 8, repeated: 2, ..perfect.clone() });
    let swapped: Vec<_> = [2, 1, 0, 3, 4, 5].iter().zip(0..).map(|(&n, at)| seen(n, at)).collect();
    assert_eq!(judge(&truth, &swapped, &letters).disordered, 1);
    let stale = [&good[..], &[seen(1, 6)]].concat();
    assert_eq!(judge(&truth, &stale, &letters).disordered, 1, "the last vector is of an old one");
    let mut scattered = good.clone();
    scattered[0].place.0 = 1;
    assert_eq!(judge(&truth, &scattered, &letters).disordered, 1);
    let mut other_text = good.clone();
    other_text[3].proven = false;
    let wrong = judge(&truth, &other_text, &letters);
    assert_eq!((wrong.wrong, wrong.lost), (1, vec![(0, 3)]));
    let mut other_key = good.clone();
    other_key[3].key = key(0);
    assert_eq!(judge(&truth, &other_key, &letters).wrong, 1);
    let vector_of_poison = judge(&truth, &[seen(6, 0)], &[]);
    assert_eq!((vector_of_poison.wrong, vector_of_poison.lost.len()), (1, 7));

    // The sender's client wrote 4 again, behind all others.
    let vectors = [&good[..], &[Seen { source: (0, 7), ..seen(4, 6) }]].concat();
    assert_eq!(judge(&truth, &vectors, &letters).wrong, 1);
    let beyond = [((0, 7), truth[&(0, 4)].value.clone()), ((0, 8), b"of nobody".to_vec())];
    assert_eq!(as_it_lies(&mut truth, &beyond), (1, 0));
    assert_eq!(judge(&truth, &vectors, &letters), Verdict { sent: 8, vectors: 7, ..perfect });

    // It was told no place of two; one lies there, and is missed where nothing comes of it.
    let [there, not_there] = [6, 7].map(|n| Sent::caption(n % 2, format!("caption {n}")));
    let beyond = [((0, 8), there.value.clone())];
    truth.extend([(unplaced(0, 1), there), (unplaced(0, 2), not_there)]);
    assert_eq!(as_it_lies(&mut truth, &beyond), (0, 1));
    assert_eq!(judge(&truth, &vectors, &letters).lost, [(0, 8)]);
}
