//! Builds what goes into the binary besides its own code.

fn main() {}
