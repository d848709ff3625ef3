//! When a worker that no broker answers should be started again: where a file has changed that its
//! clients read once, when they were made.
//!
//! Certificates and passwords are renewed while workers run, as Kubernetes does with a mounted
//! Secret. That ends no connection; but once there is none, what was read at the start opens no
//! other, and a worker without captions in flight would try for ever.

use std::fs;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use crate::config::KafkaOptions;

/// How long no broker has to answer before the files are looked at, and between two looks. Brokers
/// that are away for a moment, with files that have changed, cost a restart that was due anyway.
const INTERVAL: Duration = Duration::from_secs(10);

/// The files that were read at the start.
#[derive(Debug)]
pub struct Renewed {
    files: Vec<(PathBuf, u64)>,
    /// Since when no broker has answered, or when the files were last looked at since then.
    away: Option<Instant>,
}

impl Renewed {
    /// Notes what is in the files now.
    pub fn new(kafka: &KafkaOptions) -> Renewed {
        let paths = kafka.files_read_once();
        let files = paths.filter_map(|path| Some((path.into(), digest(path)?))).collect();
        Renewed { files, away: None }
    }

    /// Returns the file that has changed, where that is looked at and one has. A file that can't be
    /// read would end the next start.
    pub fn changed(&mut self, brokers_up: i64, now: Instant) -> Option<&Path> {
        if brokers_up > 0 {
            self.away = None;
            return None;
        }
        let away = self.away.get_or_insert(now);
        if now < *away + INTERVAL {
            return None;
        }
        *away = now;
        let has_changed = |(path, then): &&(PathBuf, u64)| digest(path).is_some_and(|d| d != *then);
        self.files.iter().find(has_changed).map(|(path, _)| path.as_path())
    }
}

fn digest(path: &Path) -> Option<u64> {
    fs::read(path).ok().map(|bytes| FixedState::default().hash_one(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_changed_matters_once_no_broker_answers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let mut kafka = KafkaOptions::default();
        kafka.librdkafka_files.0.insert("sasl.password".into(), path.into());
        for place in ["ssl.certificate.location", "ssl.key.location"] {
            kafka.librdkafka.0.insert(place.into(), "/nowhere".into());
        }
        fs::write(path, "old").unwrap();
        let mut renewed = Renewed::new(&kafka);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(renewed.changed(0, at(0)), None);
        assert_eq!(renewed.changed(0, at(60)), None, "it is what was read");
        fs::write(path, "new").unwrap();
        assert_eq!(renewed.changed(1, at(61)), None, "brokers answer");
        assert_eq!(renewed.changed(0, at(62)), None, "for a moment they don't");
        assert_eq!(renewed.changed(1, at(70)), None);
        assert_eq!(renewed.changed(0, at(71)), None);
        assert_eq!(renewed.changed(0, at(81)), Some(file.path()));
        fs::remove_file(path).unwrap();
        assert_eq!(renewed.changed(0, at(91)), None, "no start would come of it");
    }
}
