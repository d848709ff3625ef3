//! The parts of a caption's way that only compute, each alone: no Kafka, no network, no threads.
//!
//! They are small beside the network, and these benchmarks are there to keep them so. The captions
//! are the demo's.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use capvec::batch::packing::TokenBatch;
use capvec::batch::policy::{Decision, Limits};
use capvec::config;
use capvec::embed::calibration::TOKENS_UNMEASURED;
use capvec::kafka::offsets::{Incoming, OffsetLedger};
use capvec::kafka::sequencer::Sequencer;
use capvec::model::tokenizer_json::{TokenizerConfig, from_vocabulary};
use capvec::tokenize::{Tokenizer, Words};
use capvec::tracked::{Assignment, Offset};
use capvec::wire::caption::{CaptionDecoder, CaptionFormat, Id};
use capvec::wire::vector::{JsonVector, write_json};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// JSON lines with captions in 63 languages.
const LINES: &str = include_str!("../src/cli/demo/captions.jsonl");

/// Numbers of a vector, as many as M-BERT Base 69 gives.
const DIM: usize = 640;

/// Messages that come out of the embedder, or go into the ledger, at a time.
const MESSAGES: u64 = 64;

fn decoder() -> CaptionDecoder {
    let config = config::InputOptions::default();
    CaptionDecoder {
        format: CaptionFormat::Json { pointer: "/caption".parse().unwrap() },
        id_pointer: None,
        caption_bytes_max: config.caption_bytes_max.get(),
    }
}

fn captions() -> Vec<String> {
    let decoder = decoder();
    LINES.lines().map(|line| decoder.decode(line.as_bytes()).unwrap().text.into_owned()).collect()
}

/// A tokenizer that knows all characters, and the words of every other caption: the words of the
/// rest it has to put together, as a published one has to with some.
fn tokenizer(captions: &[String]) -> Tokenizer {
    let mut pieces = BTreeSet::new();
    for character in captions.iter().flat_map(|caption| caption.chars()) {
        pieces.insert(character.to_string());
        pieces.insert(format!("##{character}"));
    }
    for caption in captions.iter().step_by(2) {
        let words = caption.split(|c: char| !c.is_alphanumeric());
        pieces.extend(words.map(str::to_owned));
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(str::to_owned);
    let pieces = pieces.into_iter().filter(|piece| !piece.trim().is_empty());
    let vocabulary: Vec<String> = special.into_iter().chain(pieces).collect();
    let config = TokenizerConfig { do_lower_case: false, ..Default::default() };
    Tokenizer::from_json(&from_vocabulary(&vocabulary.join("\n"), &config).unwrap(), 128).unwrap()
}

fn limits() -> Limits {
    let config = config::BatchOptions::default();
    Limits {
        tokens_max: TOKENS_UNMEASURED,
        captions_max: config.captions_max.get(),
        wait_max: config.wait_max,
    }
}

/// Captions in: decoding, and tokens.
fn text(c: &mut Criterion) {
    let decoder = decoder();
    let mut lines = LINES.lines().cycle();
    c.bench_function("caption/decode json", |b| {
        b.iter(|| decoder.decode(lines.next().unwrap().as_bytes()).unwrap());
    });

    let captions = captions();
    let tokenizer = tokenizer(&captions);
    let mut captions = captions.iter().cycle();
    c.bench_function("caption/tokenize", |b| {
        b.iter(|| tokenizer.tokenize(captions.next().unwrap()).unwrap());
    });
    // What a worker does. All words have come before, for the captions come round and round.
    let mut words = Words::default();
    c.bench_function("caption/tokenize known words", |b| {
        b.iter(|| tokenizer.tokenize_with(&mut words, captions.next().unwrap()).unwrap());
    });
}

/// Batches: when they are cut, and what the network reads.
fn batch(c: &mut Criterion) {
    let captions = captions();
    let tokenizer = tokenizer(&captions);
    let tokens: Vec<Vec<u32>> =
        captions.iter().map(|caption| tokenizer.tokenize(caption).unwrap().ids).collect();
    let pending: Vec<usize> = tokens.iter().map(Vec::len).cycle().take(1000).collect();
    let decide = |limits: Limits, pending: &[usize]| {
        limits.decide(pending.iter().copied(), Duration::ZERO, None)
    };

    let mut group = c.benchmark_group("batch");
    group.bench_function("decide, full before the end of 1000", |b| {
        b.iter(|| decide(black_box(limits()), black_box(&pending)));
    });
    let vast = Limits { tokens_max: usize::MAX, ..limits() };
    group.bench_function("decide, all of 1000", |b| {
        b.iter(|| decide(black_box(vast), black_box(&pending)));
    });
    let Decision::Cut { captions, .. } = decide(limits(), &pending) else {
        panic!("1000 captions are more than a batch");
    };
    group.bench_function("pack 512 tokens", |b| {
        b.iter(|| TokenBatch::pack(black_box(&tokens[..captions]).iter().map(Vec::as_slice)));
    });
}

/// Kafka's books: the order of vectors, and the offsets.
fn books(c: &mut Criterion) {
    let assignment = Assignment::new(0, 1);
    let mut group = c.benchmark_group("kafka");
    group.throughput(Throughput::Elements(MESSAGES));

    // The worst order: all are held back until the last one comes, which is the first.
    let (mut sequencer, mut next, mut out) = (Sequencer::default(), 0, Vec::new());
    group.bench_function("sequencer, push 64 backwards", |b| {
        b.iter(|| {
            out.clear();
            for sequence in (next..next + MESSAGES).rev() {
                sequencer.push(&assignment, sequence, black_box(sequence), &mut out);
            }
            next += MESSAGES;
            assert_eq!(out.len() as u64, MESSAGES);
        });
    });

    let mut ledger = OffsetLedger::default();
    ledger.assign(assignment.clone());
    let (received, mut next) = (Instant::now(), 0);
    group.bench_function("ledger, open and settle 64", |b| {
        b.iter(|| {
            let offsets = next..next + MESSAGES as i64;
            for offset in offsets.clone() {
                let (offset, bytes) = (Offset(offset), black_box(100));
                let message = Incoming { offset, bytes, timestamp_ms: Some(0), digest: 0 };
                ledger.open(0, message, received).unwrap();
            }
            for offset in offsets.clone().rev() {
                assert!(ledger.settle(&assignment, Offset(offset)));
            }
            next = offsets.end;
            ledger.in_flight()
        });
    });
}

/// Vectors out.
fn vectors(c: &mut Criterion) {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let vector: Vec<f32> = StandardNormal.sample_iter(&mut random).take(DIM).collect();
    let id = Id::Text("de-00042".into());
    let mut out = Vec::new();
    let mut group = c.benchmark_group("vector");
    group.bench_function("write json", |b| {
        b.iter(|| {
            out.clear();
            let vector = JsonVector { id: &id, caption: None, vector: &vector, model: "m@1" };
            write_json(black_box(&vector), &mut out);
        });
    });
}

criterion_group!(pure, text, batch, books, vectors);
criterion_main!(pure);
