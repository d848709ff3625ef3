//! Messages that are numbered, so that it can be told what has come of each.

use std::collections::BTreeMap;

use super::{Outgoing, Record};

/// Keys that numbered captions share.
const KEYS: usize = 50;

/// Returns the caption with a number.
pub fn numbered(index: usize) -> Outgoing {
    let caption = Outgoing::caption(&format!("key-{}", index % KEYS), &format!("caption {index}"));
    with_index(index, caption)
}

/// Gives a message its number, in the header `index`, which whatever comes of it has too.
pub fn with_index(index: usize, message: Outgoing) -> Outgoing {
    let text: &'static str = index.to_string().leak();
    Outgoing { headers: vec![("index", Some(text.as_bytes()))], ..message }
}

/// Returns the number of the message that a record is of.
#[track_caller]
pub fn index_of(record: &Record) -> usize {
    record.header("index").parse().unwrap()
}

/// Holds vectors and dead letters against what was sent: each of the first `sent` messages came out
/// once, and the vectors of a key are in the order of their captions.
#[track_caller]
pub fn check_each_once(vectors: &[Record], letters: &[Record], sent: usize) {
    let mut indices: Vec<usize> = vectors.iter().chain(letters).map(index_of).collect();
    indices.sort_unstable();
    let number = indices.len();
    assert!(indices.into_iter().eq(0..sent), "{number} of {sent}: each message once");
    let mut of_key: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for record in vectors {
        of_key.entry(record.key.as_deref().unwrap()).or_default().push(index_of(record));
    }
    for (key, indices) in of_key {
        assert!(indices.is_sorted(), "{}: {indices:?}", String::from_utf8_lossy(key));
    }
}
