//! The tallyring program. All that it does is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    tallyring::cli::run()
}
