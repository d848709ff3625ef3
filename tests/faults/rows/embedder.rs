//! An embedder that is slow, hangs, or fails.

use std::time::{Duration, Instant};

use super::network::GROWTH_MIB_MAX;
use super::workers::{AGAIN_MAX, RATE};
use super::{BOTH, Memory, captions, seconds};
use crate::feed::{Fate, KEYS, Sent};
use crate::misbehave::{FAILS, HANGS, NAN, STUMBLES, with_misbehaving_embedder};
use crate::scene::{PARTITIONS, Scene, Way};
use crate::{Found, Row};

/// How long a first vector may take.
const SOON: Duration = Duration::from_secs(60);

pub const SLOW: Row = Row {
    id: "8a",
    fault: "embedder slower than max.poll.interval.ms",
    is_quick: false,
    modes: BOTH,
    bound: |_| {
        format!(
            "none lost, none repeated; stays in the group; memory grows by {GROWTH_MIB_MAX} MiB at most"
        )
    },
    run: |setting| {
        let (pass, interval) = (Duration::from_secs(15), "10000");
        let mut scene = Scene::new(setting);
        let limit = format!("kafka.librdkafka.max.poll.interval.ms={interval}");
        let program = with_misbehaving_embedder(pass);
        let worker = scene.worker_of(program, 0, Way::Proxied, &[&limit]).ready();
        let memory = Memory::watch(worker.id());
        // More than the worker can do: it must pause, and poll all the same.
        scene.start_feed(25, captions());
        scene.pass(Duration::from_secs(70));
        scene.feed().set_rate(0);
        scene.feed().until_acknowledged();
        scene.until_settled();
        let rebalances: f64 = ["lost", "revoked"]
            .iter()
            .filter_map(|e| worker.metric(&format!("capvec_rebalances_total{{event=\"{e}\"}}")))
            .sum();
        let (first, most) = memory.stop();
        let end = scene.finish(vec![worker]);
        let mut broken = end.verdict.broken(0);
        if rebalances > 0.0 {
            broken.push(format!("it lost partitions {rebalances} times"));
        }
        if most > first + GROWTH_MIB_MAX {
            broken.push(format!("memory grew from {first} to {most} MiB"));
        }
        Found {
            injected: format!(
                "each forward pass took {}, with max.poll.interval.ms={interval}",
                seconds(pass)
            ),
            found: format!(
                "{}; {rebalances} partitions lost or asked back; memory {first} MiB before, {most} at most",
                end.verdict
            ),
            broken,
        }
    },
};

pub const HANGING: Row = Row {
    id: "8b",
    fault: "embedder that hangs",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        let repeats = mode.choose(format!("repeats at most {AGAIN_MAX}"), "none repeated".into());
        format!(
            "/livez red within admin.stall_timeout (8 s) + 2 s, the partitions still the worker's; after its restart \
             none lost, {repeats}"
        )
    },
    run: |setting| {
        let stall = Duration::from_secs(8);
        let mut scene = Scene::new(setting);
        let options = ["kafka.delivery_timeout=4s", "admin.stall_timeout=8s"];
        let program = with_misbehaving_embedder(Duration::ZERO);
        let worker = scene.worker_of(program, 0, Way::Proxied, &options).ready();
        let hanging = u64::from(RATE) * 10;
        scene.start_feed(
            RATE,
            Box::new(move |n| match n {
                _ if n == hanging => Sent::caption(0, format!("{HANGS} {n}")),
                _ => Sent::numbered(n),
            }),
        );
        scene.until_going_again(SOON);
        let is_red = || worker.get("/livez").is_some_and(|(status, _)| status == 503);
        let was_green = !is_red();
        crate::support::eventually("the embedder hangs", || {
            (scene.feed().acknowledged() as u64 > hanging).then_some(())
        });
        let hung = Instant::now();
        crate::support::eventually("/livez is red", || is_red().then_some(()));
        let red = hung.elapsed();
        let assigned = worker.metric("capvec_assigned_partitions").unwrap_or_default();
        worker.kill();
        // The same captions, and an embedder that doesn't hang on one of them.
        let restarted = scene.worker(0, Way::Proxied, &[]).ready();
        scene.until_going_again(SOON);
        let end = scene.finish(vec![restarted]);
        let mut broken = end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0));
        if !was_green || red > stall + Duration::from_secs(2) {
            broken
                .push(format!("/livez was green before: {was_green}, red after {}", seconds(red)));
        }
        if assigned != f64::from(PARTITIONS) {
            broken.push(format!("it had {assigned} partitions when /livez was red"));
        }
        Found {
            injected: "a forward pass that never ends; kill -9 once /livez was red, then a restart"
                .into(),
            found: format!(
                "{}; /livez red after {}, with {assigned} of {PARTITIONS} partitions",
                end.verdict,
                seconds(red)
            ),
            broken,
        }
    },
};

pub const FAILING: Row = Row {
    id: "15",
    fault: "the embedder fails for a batch, for one row of it, returns NaN",
    is_quick: false,
    modes: BOTH,
    bound: |_| {
        "none lost, none repeated; the captions at fault, and they alone, are dead letters with their reason".into()
    },
    run: |setting| {
        let time = setting.size.choose(Duration::from_secs(5), Duration::from_secs(30));
        let mut scene = Scene::new(setting);
        let program = with_misbehaving_embedder(Duration::ZERO);
        // Batches of some size, so that there is something to split.
        let worker = scene.worker_of(program, 0, Way::Proxied, &["batch.wait_max=250ms"]).ready();
        scene.start_feed(400, Box::new(misbehaved));
        scene.pass(time);
        scene.feed().set_rate(0);
        scene.feed().until_acknowledged();
        scene.until_settled();
        let splits =
            worker.metric("capvec_batch_splits_total{reason=\"failed\"}").unwrap_or_default();
        let end = scene.finish(vec![worker]);
        let count = |reason| {
            end.truth.values().filter(|sent| sent.fate == Fate::DeadLetter(reason)).count()
        };
        let mut broken = end.verdict.broken(0);
        if splits == 0.0 {
            broken.push("no batch was split, so nothing was tried".into());
        }
        Found {
            injected: format!(
                "{} captions on which every batch fails, {} that give NaN, and some on which a batch fails and which \
                 succeed alone",
                count("not_embedded"),
                count("not_finite")
            ),
            found: format!("{}; batches split {splits} times", end.verdict),
            broken,
        }
    },
};

/// One caption in 32 at fault: it fails, gives NaN, or stumbles, by turns.
fn misbehaved(number: u64) -> Sent {
    let normal = Sent::numbered(number);
    if number % 32 != 7 {
        return normal;
    }
    let (word, fate) = match number / 32 % 3 {
        0 => (FAILS, Some("not_embedded")),
        1 => (NAN, Some("not_finite")),
        _ => (STUMBLES, None),
    };
    let caption = Sent::caption(number % KEYS, format!("{word} {number}"));
    let fate = fate.map_or(caption.fate, Fate::DeadLetter);
    Sent { fate, ..caption }
}
