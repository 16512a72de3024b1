//! `--profile` of a kernel that has names for its functions.

use std::fs;

use crate::support::{Linux, Scratch, USER_SPACE, has_line, tiny};

#[test]
fn a_profile_of_a_boot_names_the_kernels_functions() {
    let scratch = Scratch::new();
    let path = scratch.at("profile");
    let linux = Linux::new(tiny()).options(&["--profile", &path, "--profile-interval", "200us"]);
    let finished = linux.run("exit:42").with(42);
    has_line(&finished, USER_SPACE);
    assert!(finished.stderr.contains("profile: "), "{finished:?}");
    let profile = fs::read_to_string(&path).unwrap();
    let named =
        profile.lines().filter(|line| line.contains(" % ")).filter_map(|line| line.split(' ').next_back());
    let named: Vec<_> = named.collect();
    assert!(named.len() >= 5, "{named:?}");
    let is_name = |name: &&&str| !name.starts_with("0x") && !name.starts_with('[');
    assert!(named.iter().filter(is_name).count() * 10 >= named.len() * 7, "{named:?}");
}
