//! The program, run to its end.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program.
pub const CAPVEC: &str = env!("CARGO_BIN_EXE_capvec");

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Options, each `section.key=value`, as arguments.
pub fn sets<'a>(options: &[&'a str]) -> Vec<&'a str> {
    options.iter().flat_map(|option| ["--set", option]).collect()
}

/// Runs the program and returns its output.
#[track_caller]
pub fn capvec(args: &[&str]) -> Output {
    Command::new(CAPVEC).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program, which must succeed, and returns its standard output.
#[track_caller]
pub fn capvec_ok(args: &[&str]) -> String {
    let output = capvec(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "capvec {args:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, which must fail, and returns its exit code and standard error.
#[track_caller]
pub fn capvec_fails(args: &[&str]) -> (i32, String) {
    let output = capvec(args);
    assert!(!output.status.success(), "capvec {args:?} succeeded");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}
