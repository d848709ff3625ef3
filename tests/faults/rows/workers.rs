//! Workers that die, are stopped, come and go, and stand still.

use std::time::Duration;

use super::{BOTH, captions, every, middle_and_longest, seconds};
use crate::scene::{IN_FLIGHT_MAX, SESSION_TIMEOUT, Scene, TRANSACTION_TIMEOUT, Way};
use crate::support::Worker;
use crate::{Found, Mode, Row, Setting};

/// Captions a second.
pub const RATE: u32 = 400;

/// How long a worker may take to go on, where nothing is to be waited for.
const SOON: Duration = Duration::from_secs(60);

/// Captions that one death may bring again: those in flight, and those settled since the last
/// commit, which is made every half second and takes less than another on these brokers.
pub const AGAIN_MAX: usize = IN_FLIGHT_MAX + RATE as usize;

pub const KILLED: Row = Row {
    id: "1",
    fault: "kill -9 of a worker under load",
    is_quick: true,
    modes: BOTH,
    bound: |mode| {
        mode.choose(
            format!(
                "none lost; repeats of one kill at most {AGAIN_MAX}, what is in flight and what was settled since the \
                 last commit"
            ),
            format!(
                "none lost, none repeated; all partitions going again within {}",
                seconds(TRANSACTION_TIMEOUT + Duration::from_secs(10))
            ),
        )
    },
    run: |setting| {
        let kills = setting.size.choose(2, 20);
        let mut scene = Scene::new(setting);
        scene.start_feed(RATE, captions());
        let mut workers = start(&scene, 2);
        scene.until_going_again(SOON);
        let mut times = Vec::new();
        for n in 0..kills {
            let killed = n % workers.len();
            workers.remove(killed).kill();
            workers.insert(killed, scene.worker(killed, Way::Proxied, &[]));
            times.push(scene.until_going_again(SOON));
        }
        let end = scene.finish(workers);
        let (middle, longest) = middle_and_longest(&mut times);
        let mut broken = end.verdict.broken(setting.mode.choose(kills * AGAIN_MAX, 0));
        let limit = TRANSACTION_TIMEOUT + Duration::from_secs(10);
        if setting.mode == Mode::ExactlyOnce && times[times.len() - 1] > limit {
            broken.push(format!("going again after {longest}"));
        }
        Found {
            injected: format!("{kills} kills of 2 workers by turns, each started again at once"),
            found: format!(
                "{}; from a kill to vectors of every partition {middle}, {longest} at most, of which {} are the \
                 group's session timeout",
                end.verdict,
                seconds(SESSION_TIMEOUT)
            ),
            broken,
        }
    },
};

pub const ROLLED: Row = Row {
    id: "2",
    fault: "SIGTERM, rolling",
    is_quick: true,
    modes: BOTH,
    bound: |_| "none lost, none repeated; every worker exits 0".into(),
    run: |setting| {
        let stops = setting.size.choose(3, 10);
        let mut scene = Scene::new(setting);
        scene.start_feed(RATE, captions());
        let mut workers = start(&scene, 3);
        scene.until_going_again(SOON);
        let mut logs = Vec::new();
        for n in 0..stops {
            let stopped = n % workers.len();
            logs.push(workers.remove(stopped).stop());
            workers.insert(stopped, scene.worker(stopped, Way::Proxied, &[]).ready());
        }
        let end = scene.finish(workers);
        logs.extend(end.logs);
        let missed = missed_drains(&logs);
        Found {
            injected: format!("{stops} stops of 3 workers by turns, each replaced"),
            found: format!("{}; {missed} drains missed", end.verdict),
            broken: end.verdict.broken(0),
        }
    },
};

pub const COMING_AND_GOING: Row = Row {
    id: "7",
    fault: "3 to 6 workers joining and leaving every 5 s",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        mode.choose(
            "none lost; none repeated but by missed drains, which are counted",
            "none lost, none repeated",
        )
        .into()
    },
    run: |setting| {
        let time = Duration::from_secs(120);
        let mut scene = Scene::new(setting);
        scene.start_feed(RATE, captions());
        let mut workers = start(&scene, 3);
        scene.until_going_again(SOON);
        let (mut next, mut logs, mut joined, mut left) = (workers.len(), Vec::new(), 0, 0);
        every(Duration::from_secs(5), time, |round| {
            // Up from 3 to 6 and down again; the one that leaves is the one that came first.
            if round % 6 < 3 {
                workers.push(scene.worker(next, Way::Proxied, &[]));
                next += 1;
                joined += 1;
            } else {
                logs.push(workers.remove(0).stop());
                left += 1;
            }
        });
        let end = scene.finish(workers);
        logs.extend(end.logs);
        let missed = missed_drains(&logs);
        let again = setting.mode.choose(missed * AGAIN_MAX, 0);
        Found {
            injected: format!("{joined} workers joined, {left} left, within {}", seconds(time)),
            found: format!("{}; {missed} drains missed", end.verdict),
            broken: end.verdict.broken(again),
        }
    },
};

pub const STOPPED_AND_CONTINUED: Row = Row {
    id: "9",
    fault: "SIGSTOP of a worker, then SIGCONT",
    is_quick: false,
    modes: BOTH,
    bound: |mode| {
        mode.choose(
            format!("none lost; repeats at most {AGAIN_MAX}"),
            "none lost, none repeated: what the zombie had begun is not committed".into(),
        )
    },
    run: |setting| {
        let time = Duration::from_secs(90);
        let mut scene = Scene::new(setting);
        scene.start_feed(RATE, captions());
        let workers = start(&scene, 2);
        scene.until_going_again(SOON);
        workers[0].signal("STOP");
        let going = scene.until_going_again(SOON);
        scene.pass(time.saturating_sub(going));
        workers[0].signal("CONT");
        scene.until_going_again(SOON);
        scene.pass(Duration::from_secs(10));
        let end = scene.finish(workers);
        Found {
            injected: format!("one of 2 workers stood still for {}", seconds(time)),
            found: format!(
                "{}; the other had all partitions after {}",
                end.verdict,
                seconds(going)
            ),
            broken: end.verdict.broken(setting.mode.choose(AGAIN_MAX, 0)),
        }
    },
};

fn start(scene: &Scene<'_>, number: usize) -> Vec<Worker> {
    let workers: Vec<_> = (0..number).map(|n| scene.worker(n, Way::Proxied, &[])).collect();
    workers.into_iter().map(Worker::ready).collect()
}

fn missed_drains(logs: &[String]) -> usize {
    let missed = |log: &String| {
        log.matches("the drain didn't end in time").count()
            + log.matches("lost with messages in the worker").count()
    };
    logs.iter().map(missed).sum()
}

/// Returns what a worker's row is given; rows of other kinds start theirs so too.
pub fn start_for<'a>(setting: &Setting<'a>, number: usize) -> (Scene<'a>, Vec<Worker>) {
    let mut scene = Scene::new(setting);
    scene.start_feed(RATE, captions());
    let workers = start(&scene, number);
    scene.until_going_again(SOON);
    (scene, workers)
}
