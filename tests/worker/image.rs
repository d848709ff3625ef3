//! The container image, built from the Dockerfile around this program, and run.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::support::{CAPVEC, skipped};

fn script(name: &str, args: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    let output = Command::new(path).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stdout));
    match said.lines().find_map(|line| line.strip_prefix("skipped: ")) {
        Some(reason) => skipped(reason.into()),
        // The image's size. Not by eprintln!, which is shown of tests that fail alone.
        None => std::io::stderr().write_all(said.as_bytes()).unwrap(),
    }
}

#[test]
fn the_image_runs_as_nobody_on_a_root_that_cannot_be_written() {
    script("check-image", &[CAPVEC]);
}

#[test]
fn hadolint_has_nothing_to_say_about_the_dockerfile() {
    script("hadolint", &[]);
}
