//! How often something is done that is worth doing more often than each run of the tests has time for.

use std::env;
use std::str::FromStr;

/// As often as the environment says, or else a number that takes seconds.
pub fn rounds<N: FromStr>(variable: &str, few: N) -> N {
    let Ok(text) = env::var(variable) else { return few };
    text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}"))
}
