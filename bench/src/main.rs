//! Runs the arms side by side and prints what a visit costs each. `tallyring-bench compare`
fn main() {}
