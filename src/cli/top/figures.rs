//! A worker in numbers: what happened between two looks at it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::scrape::Look;
use crate::metrics::Stage;

/// Fewer messages that wait are no backlog.
const HOT_MESSAGES: u64 = 1000;

/// Such a share of them in one partition is a matter of its keys.
const HOT_SHARE: f64 = 0.9;

/// What happened between two looks, and how things were at the second. The names are those of
/// `capvec top --json`, on which programs rely. A mean or a quantile of nothing is null. A quantile
/// is null, too, where it is longer than the histogram can tell; then the field `..._over_seconds`
/// beside it has what it is over, which is null else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct WorkerFigures {
    /// Seconds between the looks.
    pub(super) seconds: f64,
    /// The worker's version.
    pub(super) version: String,
    /// The model's id; null before the model is loaded.
    pub(super) model: Option<String>,
    /// What runs the network.
    pub(super) execution_provider: Option<String>,
    /// Partitions that the worker owns.
    pub(super) partitions: u64,
    /// Brokers that each of the two clients is connected to; empty where the worker doesn't tell.
    pub(super) brokers_up: BTreeMap<String, u64>,
    /// Captions embedded since the worker began.
    pub(super) captions_embedded: u64,
    /// Captions embedded a second.
    pub(super) captions_per_second: f64,
    /// Their tokens a second.
    pub(super) tokens_per_second: f64,
    /// From a caption's timestamp to its vector's acknowledgement: half take no longer.
    pub(super) end_to_end_p50_seconds: Option<f64>,
    /// They take longer than this.
    pub(super) end_to_end_p50_over_seconds: Option<f64>,
    /// All but one of a hundred take no longer.
    pub(super) end_to_end_p99_seconds: Option<f64>,
    /// More take longer than this.
    pub(super) end_to_end_p99_over_seconds: Option<f64>,
    /// What the mean end to end has beyond the stages: the topic, and the fetch.
    pub(super) before_worker_mean_seconds: Option<f64>,
    /// The stages in the order of a caption's way.
    pub(super) stages: Vec<StageFigures>,
    /// Captions of a batch, on average.
    pub(super) batch_captions: Option<f64>,
    /// Tokens of a batch, on average.
    pub(super) batch_tokens: Option<f64>,
    /// Most tokens of a batch.
    pub(super) batch_tokens_limit: u64,
    /// The one as a part of the other; over 1 where captions are longer than a batch may be, each
    /// of which is a batch of its own.
    pub(super) batch_fill: Option<f64>,
    /// Why batches were cut, as shares of 1.
    pub(super) batch_cut: BTreeMap<String, f64>,
    /// The share of the time that the network was at work.
    pub(super) duty_cycle: Option<f64>,
    /// Messages that aren't settled, in the topic and in the worker.
    pub(super) lag_messages: u64,
    /// The same by partition; empty with `metrics.per_partition = false`.
    pub(super) lag_by_partition: BTreeMap<String, u64>,
    /// Age of the oldest.
    pub(super) lag_seconds: f64,
    /// Messages in the worker.
    pub(super) in_flight_messages: u64,
    /// Messages in the worker at which fetching pauses.
    pub(super) in_flight_messages_limit: u64,
    /// Bytes of the messages in the worker.
    pub(super) in_flight_bytes: u64,
    /// Bytes in the worker at which fetching pauses.
    pub(super) in_flight_bytes_limit: u64,
    /// Records that wait for their acknowledgement.
    pub(super) outstanding_records: u64,
    /// For how long the same message has been the oldest in the worker.
    pub(super) stalled_seconds: f64,
    /// Messages rejected since the worker began, by reason; reasons without any are left out.
    pub(super) rejected: BTreeMap<String, u64>,
    /// Whether means, quantiles and shares are of the time since the worker began: for people
    /// alone.
    #[serde(skip)]
    pub(super) since_start: bool,
}

/// A stage between two looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct StageFigures {
    /// Its name.
    pub(super) stage: &'static str,
    /// Seconds of a caption, on average.
    pub(super) mean_seconds: Option<f64>,
    /// All but one of a hundred take no longer.
    pub(super) p99_seconds: Option<f64>,
    /// More take longer than this.
    pub(super) p99_over_seconds: Option<f64>,
}

/// Within which time a share of captions was through.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quantile {
    /// Within this.
    Within(f64),
    /// It is in the last bucket, which has a beginning and no end.
    Over(f64),
}

impl Quantile {
    /// Returns the two fields of the figures: what it is, or else what it is over.
    fn fields(quantile: Option<Quantile>) -> (Option<f64>, Option<f64>) {
        match quantile {
            None => (None, None),
            Some(Quantile::Within(seconds)) => (Some(seconds), None),
            Some(Quantile::Over(seconds)) => (None, Some(seconds)),
        }
    }
}

impl WorkerFigures {
    /// Reckons what happened between two looks.
    pub(super) fn between(then: &Look, now: &Look) -> WorkerFigures {
        let seconds = (now.at - then.at).as_secs_f64();
        let more = |name: &str, labels: &[(&str, &str)]| {
            (now.sum(name, labels) - then.sum(name, labels)).max(0.0)
        };
        let mean = |name: &str, labels: &[(&str, &str)]| {
            ratio(more(&format!("{name}_sum"), labels), more(&format!("{name}_count"), labels))
        };
        let quantile_of = |share: f64, name: &str, labels: &[(&str, &str)]| {
            Quantile::fields(quantile(
                share,
                &since(&now.buckets(name, labels), &then.buckets(name, labels)),
            ))
        };
        let a_second = |name: &str| ratio(more(name, &[]), seconds).unwrap_or(0.0);
        let text = |name: &str, label: &str| now.label(name, label).map(str::to_owned);
        let end_to_end = "capvec_end_to_end_seconds";
        let stage_seconds = "capvec_stage_seconds";
        let stages = Stage::ALL.map(|stage| {
            let labels = [("stage", stage.as_label())];
            let (p99_seconds, p99_over_seconds) = quantile_of(0.99, stage_seconds, &labels);
            StageFigures {
                stage: stage.as_label(),
                mean_seconds: mean(stage_seconds, &labels),
                p99_seconds,
                p99_over_seconds,
            }
        });
        let in_stages: f64 = stages.iter().filter_map(|stage| stage.mean_seconds).sum();
        let batch_tokens = mean("capvec_batch_tokens", &[]);
        let batch_tokens_limit = now.count("capvec_batch_tokens_limit");
        let cut = then.by("capvec_batches_total", "reason");
        let cut = now.by("capvec_batches_total", "reason").into_iter().map(|(reason, count)| {
            (reason.to_owned(), count - cut.get(reason).copied().unwrap_or(0.0))
        });
        let batches = more("capvec_batches_total", &[]);
        let (p50, p50_over) = quantile_of(0.5, end_to_end, &[]);
        let (p99, p99_over) = quantile_of(0.99, end_to_end, &[]);
        WorkerFigures {
            seconds,
            version: text("capvec_build_info", "version").unwrap_or_default(),
            model: text("capvec_model_info", "model"),
            execution_provider: text("capvec_execution_provider_info", "running"),
            partitions: now.count("capvec_assigned_partitions"),
            brokers_up: now.counts("capvec_brokers_up", "client"),
            captions_embedded: now.count("capvec_captions_embedded_total"),
            captions_per_second: a_second("capvec_captions_embedded_total"),
            tokens_per_second: a_second("capvec_tokens_embedded_total"),
            end_to_end_p50_seconds: p50,
            end_to_end_p50_over_seconds: p50_over,
            end_to_end_p99_seconds: p99,
            end_to_end_p99_over_seconds: p99_over,
            before_worker_mean_seconds: mean(end_to_end, &[])
                .map(|seconds| (seconds - in_stages).max(0.0)),
            stages: stages.into(),
            batch_captions: mean("capvec_batch_captions", &[]),
            batch_tokens,
            batch_tokens_limit,
            batch_fill: batch_tokens.and_then(|tokens| ratio(tokens, batch_tokens_limit as f64)),
            batch_cut: cut
                .filter_map(|(reason, count)| Some((reason, ratio(count, batches)?)))
                .collect(),
            duty_cycle: ratio(
                more("capvec_embed_busy_seconds_total", &[]),
                seconds * now.sum("capvec_embedders", &[]),
            )
            // The worker counts up to its answer, and the looks are timed here, when it has come.
            .map(|share| share.min(1.0)),
            lag_messages: now.count("capvec_lag_messages"),
            lag_by_partition: now.counts("capvec_consumer_lag_messages", "partition"),
            lag_seconds: now.sum("capvec_lag_seconds", &[]),
            in_flight_messages: now.count("capvec_in_flight_messages"),
            in_flight_messages_limit: now.count("capvec_in_flight_messages_limit"),
            in_flight_bytes: now.count("capvec_in_flight_bytes"),
            in_flight_bytes_limit: now.count("capvec_in_flight_bytes_limit"),
            outstanding_records: now.count("capvec_outstanding_records"),
            stalled_seconds: now.sum("capvec_stalled_seconds", &[]),
            rejected: rejected(now),
            since_start: false,
        }
    }

    /// Fills what is of nothing, where no caption came through between the looks, with what is of
    /// all that came before. Of a worker that waits it tells more.
    pub(super) fn or_since_start(self, now: &Look) -> WorkerFigures {
        let came = |s: &StageFigures| s.mean_seconds.is_some();
        if self.captions_embedded == 0 || self.stages.iter().any(came) {
            return self;
        }
        let all = WorkerFigures::between(&Look::parse("", now.at), now);
        WorkerFigures {
            seconds: self.seconds,
            captions_per_second: self.captions_per_second,
            tokens_per_second: self.tokens_per_second,
            duty_cycle: self.duty_cycle,
            since_start: true,
            ..all
        }
    }
}

impl WorkerFigures {
    /// Returns whether no broker answers the consumer, so that nothing is known of what waits.
    /// Before the model is loaded there is no consumer, and nothing is known anyway.
    pub(super) fn is_cut_off(&self) -> bool {
        self.model.is_some() && self.brokers_up.get("consumer") == Some(&0)
    }

    /// Returns whether no broker takes the records that are to be written. A producer that has
    /// nothing to write needs no connection.
    pub(super) fn cannot_write(&self) -> bool {
        self.outstanding_records > 0 && self.brokers_up.get("producer") == Some(&0)
    }

    /// Returns the one partition of several that has what waits, and its share of it. More workers
    /// don't help there.
    pub(super) fn hot_partition(&self) -> Option<(&str, f64)> {
        let total: u64 = self.lag_by_partition.values().sum();
        let (hot, lag) = self.lag_by_partition.iter().max_by_key(|(_, lag)| **lag)?;
        let share = ratio(*lag as f64, total as f64)?;
        let is_hot = self.lag_by_partition.len() > 1 && total >= HOT_MESSAGES && share >= HOT_SHARE;
        is_hot.then_some((hot.as_str(), share))
    }

    /// Returns the model's id, or what the worker does before it has one.
    pub(super) fn model_in_words(&self) -> &str {
        match &self.model {
            Some(model) => model,
            None if self.brokers_up.get("consumer") == Some(&0) => "waiting for the brokers",
            None => "the model is being loaded",
        }
    }
}

/// Returns the reasons for which something was rejected.
fn rejected(look: &Look) -> BTreeMap<String, u64> {
    let mut rejected = look.counts("capvec_captions_rejected_total", "reason");
    rejected.retain(|_, count| *count > 0);
    rejected
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// Returns what came into a histogram's buckets since.
fn since(now: &[(f64, f64)], then: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let before = |bound: f64| then.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, n)| *n);
    now.iter().map(|&(bound, count)| (bound, count - before(bound))).collect()
}

/// The quantile of cumulative buckets, linear within a bucket as Prometheus reckons it.
fn quantile(share: f64, buckets: &[(f64, f64)]) -> Option<Quantile> {
    let rank = share * buckets.last().filter(|(_, total)| *total > 0.0)?.1;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (low, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| buckets[before]);
    let (high, count) = buckets[at];
    if high.is_infinite() {
        return Some(Quantile::Over(low));
    }
    Some(Quantile::Within(low + (high - low) * (rank - below) / (count - below)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let buckets = [(1.0, 0.0), (2.0, 50.0), (5.0, 90.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(0.5, &buckets), Some(Quantile::Within(2.0)));
        assert_eq!(quantile(0.25, &buckets), Some(Quantile::Within(1.5)));
        assert_eq!(quantile(0.7, &buckets), Some(Quantile::Within(3.5)));
        assert_eq!(quantile(0.99, &buckets), Some(Quantile::Over(5.0)), "the last has no end");
        assert_eq!(quantile(0.5, &[(1.0, 0.0), (f64::INFINITY, 0.0)]), None);
        assert_eq!(quantile(0.5, &[]), None);
    }

    #[test]
    fn brokers_that_are_away_are_told_of_where_it_matters() {
        let at = Instant::now();
        let figures = |text: &str| {
            let text = format!("capvec_build_info{{version=\"1\"}} 1\n{text}");
            WorkerFigures::between(
                &Look::parse(&text, at),
                &Look::parse(&text, at + Duration::from_secs(1)),
            )
        };
        let brokers = |consumer: u32, producer: u32| {
            format!(
                "capvec_brokers_up{{client=\"consumer\"}} {consumer}\n\
                 capvec_brokers_up{{client=\"producer\"}} {producer}\n"
            )
        };
        let model = "capvec_model_info{model=\"m@1\"} 1\n";
        let told = |text: &str| {
            let figures = figures(text);
            (figures.is_cut_off(), figures.cannot_write())
        };
        assert_eq!(told(&brokers(0, 0)), (false, false), "the model is being loaded");
        assert_eq!(told(&format!("{model}{}", brokers(0, 0))), (true, false));
        assert_eq!(told(&format!("{model}{}", brokers(1, 0))), (false, false), "nothing to write");
        let waiting = format!("{model}{}capvec_outstanding_records 7\n", brokers(1, 0));
        assert_eq!(told(&waiting), (false, true));
        assert_eq!(told(model), (false, false), "an older worker doesn't tell");
        assert_eq!(figures(&brokers(0, 0)).model_in_words(), "waiting for the brokers");
        assert_eq!(figures(&brokers(1, 1)).model_in_words(), "the model is being loaded");
        assert_eq!(figures(model).model_in_words(), "m@1");
        assert_eq!(figures(&brokers(2, 1)).brokers_up["consumer"], 2);
    }

    #[test]
    fn a_quantile_beyond_the_last_bucket_is_null_and_says_what_it_is_over() {
        let at = Instant::now();
        let text = |count: u32| {
            format!(
                "capvec_stage_seconds_bucket{{stage=\"wait\",le=\"50\"}} 0\n\
                 capvec_stage_seconds_bucket{{stage=\"wait\",le=\"+Inf\"}} {count}\n"
            )
        };
        let look = |count, seconds| Look::parse(&text(count), at + Duration::from_secs(seconds));
        let figures = WorkerFigures::between(&look(0, 0), &look(9, 1));
        let wait = &serde_json::to_value(&figures).unwrap()["stages"][1];
        assert_eq!(wait["stage"], "wait");
        assert!(wait["p99_seconds"].is_null(), "{wait}");
        assert_eq!(wait["p99_over_seconds"], 50.0);
    }

    #[test]
    fn of_a_worker_that_waits_people_see_what_was_since_its_start() {
        let text = "capvec_captions_embedded_total 1\n\
                    capvec_stage_seconds_sum{stage=\"embed\"} 0.5\n\
                    capvec_stage_seconds_count{stage=\"embed\"} 1\n\
                    capvec_embed_busy_seconds_total 0.5\ncapvec_embedders 1\n";
        let at = Instant::now();
        let look = |text: &str, seconds| Look::parse(text, at + Duration::from_secs(seconds));
        let waits = WorkerFigures::between(&look(text, 0), &look(text, 1));
        assert_eq!(waits.stages[2].mean_seconds, None);
        let shown = waits.or_since_start(&look(text, 1));
        assert_eq!((shown.stages[2].mean_seconds, shown.since_start), (Some(0.5), true));
        assert_eq!((shown.captions_per_second, shown.duty_cycle), (0.0, Some(0.0)));
        let works = WorkerFigures::between(&look("", 0), &look(text, 1));
        assert_eq!(works.clone().or_since_start(&look(text, 1)), works);
        let new = WorkerFigures::between(&look("", 0), &look("", 1));
        assert_eq!(new.clone().or_since_start(&look("", 1)), new);
    }

    #[test]
    fn figures_are_of_what_happened_in_between() {
        let then = Instant::now();
        let text = |captions: u32, tokens: u32, batches: u32, busy: f64| {
            format!(
                "capvec_build_info{{version=\"1\"}} 1\n\
                 capvec_captions_embedded_total {captions}\n\
                 capvec_batch_tokens_sum {tokens}\n\
                 capvec_batch_tokens_count {batches}\n\
                 capvec_batch_tokens_limit 512\n\
                 capvec_batches_total{{reason=\"full\"}} {batches}\n\
                 capvec_batches_total{{reason=\"idle\"}} 3\n\
                 capvec_embedders 2\n\
                 capvec_embed_busy_seconds_total {busy}\n\
                 capvec_captions_rejected_total{{reason=\"not_json\"}} 7\n\
                 capvec_captions_rejected_total{{reason=\"not_utf8\"}} 0\n\
                 capvec_end_to_end_seconds_sum {busy}\n\
                 capvec_end_to_end_seconds_count {batches}\n\
                 capvec_stage_seconds_sum{{stage=\"embed\"}} {busy}\n\
                 capvec_stage_seconds_count{{stage=\"embed\"}} {captions}\n"
            )
        };
        let first = Look::parse(&text(100, 1000, 10, 1.0), then);
        let later = then + Duration::from_secs(4);
        let second = Look::parse(&text(300, 3560, 20, 5.0), later);
        let figures = WorkerFigures::between(&first, &second);
        assert_eq!(figures.captions_per_second, 50.0);
        assert_eq!(figures.batch_tokens, Some(256.0));
        assert_eq!(figures.batch_fill, Some(0.5));
        assert_eq!(figures.duty_cycle, Some(0.5));
        assert_eq!(figures.batch_cut["full"], 1.0);
        assert_eq!(figures.batch_cut["idle"], 0.0);
        assert_eq!(figures.rejected, BTreeMap::from([("not_json".into(), 7)]));
        assert_eq!(figures.captions_embedded, 300);
        assert_eq!(figures.stages[2].mean_seconds, Some(0.02));
        assert_eq!(figures.stages[0].mean_seconds, None);
        assert_eq!(figures.before_worker_mean_seconds, Some(0.4 - 0.02));
        assert_eq!(figures.end_to_end_p99_seconds, None);
    }
}
