//! `capvec check`: finds what would go wrong before the worker runs, one line a check.

mod captions;
mod lines;
mod messages;
mod texts;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use rdkafka::producer::Producer;

use self::lines::{Checks, Status};
use super::{ConfigArgs, EXIT_USAGE, PATIENCE, ids_of_brokers, patience};
use crate::cli::progress::counted;
use crate::config::{Config, DeliveryMode, EmbedderKind, as_written};
use crate::embed::device::DeviceChoice;
use crate::embed::load::{load_one, threads_of_one};
use crate::kafka::asker::Asker;
use crate::kafka::topics::look_up;
use crate::kafka::writable::{self, Answer, ask_what_it_takes, broker_options};
use crate::model::package::Package;
use crate::shutdown::Shutdown;
use crate::tokenize::Tokenizer;
use crate::wire::vector::VectorFormat;

/// Arguments of `capvec check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Checks the configuration alone, with the secrets in it: no brokers, no topics, no model.
    #[arg(long)]
    offline: bool,
    /// Prints a JSON object a check, for programs: check, status (ok, failed, warning or skipped)
    /// and detail; of a bad configuration also faults, each with its option and a message.
    #[arg(long)]
    json: bool,
}

/// Runs the checks; the exit code is 0 where all are well, 64 for a bad configuration, else 1.
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut checks = Checks::new(args.json);
    let config = match args.config.load() {
        Ok(config) => {
            checks.tell(Status::Ok, "configuration", "");
            config
        }
        Err(error) => {
            checks.tell_faults("configuration", &error);
            checks.end();
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if args.offline {
        return checks.end();
    }

    let package = checks.check("model package", || {
        let package = Package::open(&config.model.package)?;
        package.verify(|_| ())?;
        let said = format!("{}, every file as its sha256", package.manifest.model_id);
        Ok((said, package))
    });
    let package = package.as_ref();
    let tokenizer = checks.check_with("tokenizer", package, "no model package", |package| {
        let tokenizer = package.tokenizer()?;
        let tokens = tokenizer.tokenize("Älgen är skogens konung!")?.ids.len();
        Ok((format!("loads; a sentence is {tokens} tokens"), tokenizer))
    });
    if config.embed.embedder == EmbedderKind::Onnx {
        checks.check_with("embedder", package, "no model package", |package| {
            let devices = devices(&config, package)?;
            Ok((format!("loads and runs in ONNX Runtime, {devices}"), ()))
        });
    }
    let dim = package.map(|package| package.manifest.network.dim);
    kafka_checks(&config, tokenizer.as_ref(), dim, &mut checks);
    checks.end()
}

/// Loads the package on every device that is asked for, one after the other.
fn devices(config: &Config, package: &Package) -> anyhow::Result<String> {
    let choices: Vec<DeviceChoice> = match &config.embed.device {
        DeviceChoice::Auto => vec![DeviceChoice::Auto],
        DeviceChoice::Named(devices) => {
            devices.iter().map(|&device| DeviceChoice::Named(vec![device])).collect()
        }
    };
    let threads = threads_of_one(config.embed.threads);
    let mut said = Vec::new();
    for choice in choices {
        let (embedder, taken) = load_one(package, config.embed.onnxruntime(), &choice, threads)?;
        let seconds = embedder.load_time().as_secs_f64();
        let mut one = format!("{} in {seconds:.1} s", embedder.device());
        if taken.wanted != taken.running() {
            one.push_str(", for want of a GPU");
        }
        if !embedder.nodes_on_cpu().is_empty() {
            one.push_str(&format!(", {} nodes of it on the CPU", embedder.nodes_on_cpu().len()));
        }
        said.push(one);
    }
    Ok(said.join("; "))
}

/// Checks what the brokers have; `dim` is how many numbers a vector has, where there is a package.
fn kafka_checks(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    dim: Option<usize>,
    checks: &mut Checks,
) {
    let brokers = checks.check("brokers", || {
        let brokers = ids_of_brokers(config, &Shutdown::default())?;
        Ok((format!("{} in the cluster at {}", brokers.len(), config.kafka.brokers), brokers))
    });
    let Some(brokers) = brokers else {
        // Each of the others would wait in vain for the same.
        checks.tell(Status::Skipped, "topics and group", "no brokers");
        return;
    };
    let judged = checks.check("input topic", || messages::read(config, tokenizer));
    if let Some((status, said)) = judged.as_ref().and_then(|judged| judged.verdict(config)) {
        checks.tell(status, "captions", &said);
    }
    let needs_key = checks.check("output topic", || {
        writable(config, &config.output.topic, "output.topic", dim_as_it_is(config, dim))
    });
    if needs_key == Some(true)
        && let Some(said) = judged.and_then(|judged| judged.without_key_in_words())
    {
        checks.tell(Status::Warning, "keys", &said);
    }
    match config.dead_letter_topic() {
        Some(topic) => {
            let needs_key =
                checks.check("dead-letter topic", || writable(config, topic, "reject.topic", None));
            if needs_key == Some(true) {
                let said = format!(
                    "{topic} is compacted: it keeps the last letter of each key, and takes none without a key"
                );
                checks.tell(Status::Warning, "dead letters", &said);
            }
        }
        None => checks.tell(Status::Ok, "dead-letter topic", "none; reject.on_reject decides"),
    }
    if config.delivery.mode == DeliveryMode::ExactlyOnce {
        checks.check("transactions", || transactions(config, &brokers));
    }
}

/// Compares how long a transaction may take with what the brokers allow, and tries none: it would
/// end a worker that runs under the same name.
fn transactions(config: &Config, brokers: &[i32]) -> anyhow::Result<(String, ())> {
    let wanted = config.delivery.transaction_timeout;
    let in_words = as_written(wanted);
    let id = config.transactional_id().map_err(anyhow::Error::msg)?;
    let untried =
        format!("none is tried as {id:?}, since that would end a running worker of that name");
    // The shortest counts: the coordinator may be any of them.
    let mut shortest: Option<(Duration, i32)> = None;
    for &broker in brokers {
        let allowed = broker_options(config, broker, PATIENCE).and_then(|options| {
            let allowed = options.get("transaction.max.timeout.ms").and_then(|ms| ms.parse().ok());
            allowed
                .map(Duration::from_millis)
                .ok_or_else(|| format!("broker {broker} doesn't say it"))
        });
        match allowed {
            Ok(allowed) => {
                shortest = Some(shortest.map_or((allowed, broker), |s| s.min((allowed, broker))))
            }
            Err(reason) => {
                let said = format!(
                    "delivery.transaction_timeout isn't compared with transaction.max.timeout.ms: {reason}"
                );
                return Ok((format!("{said}; {untried}"), ()));
            }
        }
    }
    match shortest {
        Some((allowed, broker)) if wanted > allowed => bail!(
            "delivery.transaction_timeout is {in_words}, more than the {} of \
             transaction.max.timeout.ms at broker {broker}; shorten the one, or lengthen the other",
            as_written(allowed)
        ),
        Some((allowed, _)) => {
            let allowed = as_written(allowed);
            Ok((format!("may take {in_words}, and the brokers allow {allowed}; {untried}"), ()))
        }
        None => Ok((untried, ())),
    }
}

/// Returns a topic and how many partitions it has.
fn topic_in_words(topic: &str, partitions: usize) -> String {
    format!("{topic}, {}", counted(partitions as u64, "partition"))
}

/// Returns how many numbers a vector has, where a record has them as they are. Numbers of text have
/// no length that is known before, and nor have compressed ones.
fn dim_as_it_is(config: &Config, dim: Option<usize>) -> Option<usize> {
    let is_compressed =
        config.kafka.librdkafka.0.keys().any(|name| name.starts_with("compression."));
    dim.filter(|_| config.output.format == VectorFormat::Native && !is_compressed)
}

/// Finds out whether a topic may be written, with vectors of so many numbers where that is given,
/// and leaves no record in it. Returns whether it takes no record without a key, as far as is known.
fn writable(
    config: &Config,
    topic: &str,
    option: &'static str,
    dim: Option<usize>,
) -> anyhow::Result<(String, bool)> {
    let client = writable::asking(config, Asker::default())?;
    let (brokers, shutdown) = (&config.kafka.brokers, Shutdown::default());
    let partitions = look_up(client.client(), brokers, topic, option, patience(config), &shutdown)?;
    let there = topic_in_words(topic, partitions);
    let takes = ask_what_it_takes(config, topic, PATIENCE);
    let needs_key = takes.as_ref().is_ok_and(|(takes, _)| takes.needs_key);
    let limit = takes.map(|(_, limit)| limit);
    let answer = match &limit {
        Ok(limit) => writable::ask(config, topic, *limit, PATIENCE, &shutdown),
        Err(reason) => Answer::Untried(reason.clone()),
    };
    if let (Answer::Allowed | Answer::Untried(_), Ok(limit), Some(dim)) = (&answer, limit, dim) {
        let bytes = 4 * dim;
        ensure!(
            limit >= bytes,
            "{topic:?} takes {limit} bytes at most (max.message.bytes), and the {dim} numbers of a \
             vector are {bytes}; raise it"
        );
    }
    match answer {
        Answer::Allowed => Ok((format!("{there}, may be written"), needs_key)),
        Answer::Untried(reason) => {
            Ok((format!("{there}; writing isn't tried: {reason}"), needs_key))
        }
        Answer::Refused(code) => bail!("{topic:?} can't be written: {code}"),
        Answer::Taken => {
            bail!("{topic:?} took a record over its own limit; remove the key capvec-check")
        }
        Answer::None => bail!("{topic:?} doesn't answer within {PATIENCE:?}"),
    }
}
