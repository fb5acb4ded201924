//! The tallyring program. Everything is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    tallyring::cli::run()
}
