//! The `capvec` program: arguments, exit code. No logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    capvec::cli::main()
}
