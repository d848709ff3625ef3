//! Topics that are missing, forbidden, deleted or too narrow, and messages that are no captions.

use std::time::Duration;

use super::workers::AGAIN_MAX;
use super::{BOTH, captions, seconds};
use crate::feed::{Fate, Sent, Truth};
use crate::scene::{PARTITIONS, Scene, Way};
use crate::support::Worker;
use crate::{Found, Row, Setting};

/// How long a worker may take to go on, where nothing is to be waited for.
const SOON: Duration = Duration::from_secs(60);

pub const SOME_POISON: Row = Row {
    id: "10a",
    fault: "0.1 % poison",
    is_quick: true,
    modes: BOTH,
    bound: |_| {
        "every poison in the dead-letter topic once, byte for byte; none lost, none repeated".into()
    },
    run: |setting| {
        let (rate, time, one_in) = setting.size.choose((1000, 4, 200), (1000, 30, 1000));
        let mut scene = Scene::new(setting);
        let worker = scene.worker(0, Way::Proxied, &[]).ready();
        let mix = move |n| match n % one_in {
            7 => Sent::poison(n),
            _ => Sent::numbered(n),
        };
        scene.start_feed(rate, Box::new(mix));
        scene.pass(Duration::from_secs(time));
        let end = scene.finish(vec![worker]);
        let poison = poison(&end.truth);
        let mut broken = end.verdict.broken(0);
        if poison == 0 || end.verdict.letters != poison {
            broken.push(format!("{} dead letters of {poison}", end.verdict.letters));
        }
        Found {
            injected: format!("{poison} messages that are no captions, one in {one_in}"),
            found: end.verdict.to_string(),
            broken,
        }
    },
};

pub const ALL_POISON: Row = Row {
    id: "10b",
    fault: "100 % poison for a while",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        let repeats = mode.choose(format!("repeats at most {AGAIN_MAX}"), "none repeated".into());
        format!(
            "the breaker stops the worker with exit code 1 and says so; without it, after a restart, every poison is in \
             the dead-letter topic byte for byte; none lost, {repeats}"
        )
    },
    run: |setting| {
        let mut scene = Scene::new(setting);
        let mut worker = scene.worker(0, Way::Proxied, &[]).ready();
        let poisoned = 2_000..8_000;
        let mix = move |n| match n {
            _ if poisoned.contains(&n) => Sent::poison(n),
            _ => Sent::numbered(n),
        };
        scene.start_feed(800, Box::new(mix));
        let status = worker.wait();
        let log = worker.log();
        let said = log.lines().rev().find(|line| line.contains("reject.breaker"));
        // Whoever has looked at the messages starts it so.
        let options = ["reject.breaker_run=0", "reject.breaker_share=1"];
        let restarted = scene.worker(0, Way::Proxied, &options).ready();
        crate::support::eventually("the poison has ended", || {
            (scene.feed().acknowledged() > 10_000).then_some(())
        });
        scene.until_going_again(SOON);
        let end = scene.finish(vec![restarted]);
        let mut broken = end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0));
        if status.code() != Some(1) || said.is_none() {
            broken.push(format!("{status}, and its log does not name the breaker"));
        }
        Found {
            injected: format!("{} messages that are no captions in a row", poison(&end.truth)),
            found: format!("the breaker tripped; without it then: {}", end.verdict),
            broken,
        }
    },
};

pub const TOO_LARGE: Row = Row {
    id: "11a",
    fault: "a vector larger than the topic allows",
    is_quick: false,
    modes: BOTH,
    bound: |_| {
        "a dead letter with the reason record_refused, no stall; none lost, none repeated".into()
    },
    run: |setting| {
        let mut scene = Scene::with_output(setting, &[("max.message.bytes", "1048588")]);
        let worker = scene.worker(0, Way::Proxied, &[]).ready();
        let mix = |n| {
            let caption = Sent::numbered(n);
            if n % 400 != 200 {
                return caption;
            }
            // The vector's record has its message's headers, and these alone are more than the
            // topic takes.
            let header = Some(vec![b'h'; 1_100_000]);
            Sent { header, fate: Fate::DeadLetter("record_refused"), ..caption }
        };
        scene.start_feed(200, Box::new(mix));
        scene.pass(Duration::from_secs(20));
        let going = scene.until_going_again(SOON);
        let end = scene.finish(vec![worker]);
        let poison = poison(&end.truth);
        let mut broken = end.verdict.broken(0);
        if end.verdict.letters != poison {
            broken.push(format!("{} dead letters of {poison}", end.verdict.letters));
        }
        Found {
            injected: format!(
                "{poison} captions whose record is larger than max.message.bytes of the output"
            ),
            found: format!("{}; all partitions going on within {}", end.verdict, seconds(going)),
            broken,
        }
    },
};

pub const SMALL_LIMIT: Row = Row {
    id: "11b",
    fault: "an output topic that takes no more than a few vectors at a time",
    is_quick: false,
    modes: BOTH,
    bound: |_| {
        "a vector that the topic takes alone is no dead letter; none lost, none repeated".into()
    },
    run: |setting| {
        // Room for four vectors; the producer's batches would have hundreds in a backlog.
        let mut scene = Scene::with_output(setting, &[("max.message.bytes", "12000")]);
        scene.start_feed(1000, captions());
        crate::support::eventually("there is a backlog", || {
            (scene.feed().acknowledged() > 2_000).then_some(())
        });
        scene.feed().set_rate(100);
        let worker = scene.worker(0, Way::Proxied, &[]).ready();
        scene.until_going_again(SOON);
        let end = scene.finish(vec![worker]);
        Found {
            injected: "max.message.bytes=12000 on the output, and a backlog of 2,000 captions"
                .into(),
            found: end.verdict.to_string(),
            broken: end.verdict.broken(0),
        }
    },
};

pub const MISSING_AT_START: Row = Row {
    id: "12a",
    fault: "output topic missing at the start",
    is_quick: false,
    modes: BOTH,
    bound: unusable,
    run: |setting| {
        let scene = Scene::new(setting);
        let out = format!("{}.out", scene.topic);
        scene.cluster.delete_topic(&out);
        let cure = |scene: &Scene<'_>| scene.cluster.create_topic(&out, PARTITIONS, &[]);
        unusable_at_start(scene, "the output topic was not there", cure)
    },
};

pub const FORBIDDEN_AT_START: Row = Row {
    id: "12b",
    fault: "output topic forbidden at the start",
    is_quick: false,
    modes: BOTH,
    bound: unusable,
    run: |setting| {
        let scene = Scene::new(setting);
        let out = format!("{}.out", scene.topic);
        scene.cluster.forbid_writing(&out);
        let cure = |scene: &Scene<'_>| scene.cluster.allow_writing(&out);
        unusable_at_start(scene, "the worker was not allowed to write the output topic", cure)
    },
};

fn unusable(_: crate::Mode) -> String {
    "never ready, exit code 1, the topic in its last words, no offset committed; once the topic can be used, none \
     lost, none repeated"
        .into()
}

fn unusable_at_start(mut scene: Scene<'_>, injected: &str, cure: impl FnOnce(&Scene<'_>)) -> Found {
    scene.start_feed(200, captions());
    let out = format!("{}.out", scene.topic);
    let mut worker = scene.worker(0, Way::Proxied, &[]);
    let mut was_ready = false;
    let status = crate::support::eventually("the worker ends", || {
        was_ready |= worker.get("/readyz").is_some_and(|(status, _)| status == 200);
        worker.ended()
    });
    let committed: i64 = scene.committed().expect("the brokers answer").values().sum();
    let last_words = last_words(&worker);
    cure(&scene);
    let restarted = scene.worker(0, Way::Proxied, &[]).ready();
    scene.pass(Duration::from_secs(2));
    let end = scene.finish(vec![restarted]);
    let mut broken = end.verdict.broken(0);
    if was_ready {
        broken.push("it was ready".into());
    }
    if status.code() != Some(1) || committed != 0 || !last_words.contains(&out) {
        broken.push(format!("{status}, {committed} committed, and it said: {last_words}"));
    }
    Found {
        injected: injected.into(),
        found: format!(
            "{}, exit code {}, {committed} committed; then {}",
            if was_ready { "ready for a while" } else { "never ready" },
            status.code().unwrap_or(-1),
            end.verdict
        ),
        broken,
    }
}

pub const DELETED: Row = Row {
    id: "12c",
    fault: "output topic deleted in the middle",
    is_quick: false,
    modes: BOTH,
    bound: |_| {
        "exit code 1, the topic in its last words, offsets stay; once the topic is there, none lost, none repeated of \
         what was sent after the deletion"
            .into()
    },
    run: |setting| {
        let mut scene = Scene::new(setting);
        scene.start_feed(200, captions());
        let mut worker = scene.worker(0, Way::Proxied, &[]).ready();
        scene.until_going_again(SOON);
        // All that is in the topic when it is deleted is gone on purpose, and settled.
        scene.feed().set_rate(0);
        scene.feed().until_acknowledged();
        scene.until_settled();
        let before = scene.committed().expect("the brokers answer");
        let out = format!("{}.out", scene.topic);
        scene.cluster.delete_topic(&out);
        scene.feed().set_rate(200);
        let status = worker.wait();
        let after = scene.committed().expect("the brokers answer");
        let last_words = last_words(&worker);
        scene.cluster.create_topic(&out, PARTITIONS, &[]);
        let restarted = scene.worker(0, Way::Proxied, &[]).ready();
        scene.pass(Duration::from_secs(2));
        let end = scene.finish_after(vec![restarted], &before);
        let mut broken = end.verdict.broken(0);
        if status.code() != Some(1) || before != after || !last_words.contains(&out) {
            broken
                .push(format!("{status}, {before:?} became {after:?}, and it said: {last_words}"));
        }
        Found {
            injected: "the output topic deleted under a worker at work".into(),
            found: format!("exit code 1, offsets stayed; then {}", end.verdict),
            broken,
        }
    },
};

pub const FORBIDDEN: Row = Row {
    id: "12d",
    fault: "output topic forbidden in the middle",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        let repeats = mode.choose(format!("repeats at most {AGAIN_MAX}"), "none repeated".into());
        format!(
            "exit code 1, the topic in its last words; once it may write again, none lost, {repeats}"
        )
    },
    run: |setting| {
        let (end, broken) = forbidden_in_the_middle(setting, "out", captions());
        Found {
            injected: "the right to write the output topic taken from a worker at work".into(),
            found: format!("exit code 1; then {}", end.verdict),
            broken,
        }
    },
};

pub const NO_DEAD_LETTERS: Row = Row {
    id: "14",
    fault: "dead-letter topic can't be written",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        let what = mode.choose(
            format!("stops with exit code 1 and skips nothing; repeats at most {AGAIN_MAX}"),
            "stops with exit code 1 and aborts; none repeated".into(),
        );
        format!(
            "{what}; once it may write again, none lost, every poison a dead letter byte for byte"
        )
    },
    run: |setting| {
        let poison_in = |n| match n % 100 {
            99 => Sent::poison(n),
            _ => Sent::numbered(n),
        };
        let (end, broken) = forbidden_in_the_middle(setting, "dead", Box::new(poison_in));
        let poison = poison(&end.truth);
        Found {
            injected: format!(
                "the right to write the dead-letter topic taken, with {poison} poison among the captions"
            ),
            found: format!("exit code 1; then {}", end.verdict),
            broken,
        }
    },
};

/// Forbids a worker one of its topics, waits for its end, allows the topic and starts the worker
/// again. Returns also what was broken of the bound: it exits with 1, and its last words name the
/// topic.
fn forbidden_in_the_middle(
    setting: &Setting<'_>,
    suffix: &str,
    mix: crate::feed::Mix,
) -> (crate::scene::End, Vec<String>) {
    let mut scene = Scene::new(setting);
    scene.start_feed(200, mix);
    let mut worker = scene.worker(0, Way::Proxied, &[]).ready();
    scene.until_going_again(SOON);
    let topic = format!("{}.{suffix}", scene.topic);
    scene.cluster.forbid_writing(&topic);
    let status = worker.wait();
    let said = last_words(&worker);
    scene.cluster.allow_writing(&topic);
    let restarted = scene.worker(0, Way::Proxied, &[]).ready();
    scene.until_going_again(SOON);
    let end = scene.finish(vec![restarted]);
    let mut broken = end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0));
    let status = status.code();
    if status != Some(1) || !said.contains(&topic) {
        broken.push(format!("{status:?}, and it said: {said}"));
    }
    (end, broken)
}

fn last_words(worker: &Worker) -> String {
    let log = worker.log();
    log.lines().last().unwrap_or_default().to_owned()
}

fn poison(truth: &Truth) -> usize {
    truth.values().filter(|sent| matches!(sent.fate, Fate::DeadLetter(_))).count()
}
