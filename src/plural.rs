//! Counts in sentences. It knows the regular plural alone.

use std::fmt::Display;

/// `1 visit`, `2 visits`.
pub fn plural<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!(plural(0_u64, "visit"), "0 visits");
        assert_eq!(plural(1_u64, "visit"), "1 visit");
        assert_eq!(plural(2_usize, "visit"), "2 visits");
    }
}
