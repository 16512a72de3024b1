//! Every kind of kernel image there is boots to its first process.

use crate::support::{Finished, Linux, USER_SPACE, has_line, section, slow_tests_wanted, tiny};

/// Those that lodger unpacks itself.
const FORMATS: [&str; 6] = ["gzip", "bzip2", "lzma", "xz", "lz4", "zstd"];

#[track_caller]
fn boots(kernel: &str, options: &[&str]) -> Finished {
    let finished = Linux::new(tiny()).kernel(kernel).options(options).run("log exit:42").with(42).silent();
    has_line(&finished, USER_SPACE);
    finished
}

fn packed(format: &str) -> &'static str {
    tiny().path(&format!("bzimage_{format}"))
}

#[test]
fn a_bz_image_with_a_payload_of_every_format_boots() {
    for format in FORMATS {
        println!("{format}");
        boots(packed(format), &[]);
    }
}

#[test]
fn a_vmlinux_boots_by_each_of_its_entries() {
    let vmlinux = tiny().path("vmlinux");
    let by_pvh = boots(vmlinux, &["--entry", "pvh"]);
    let by_linux = boots(vmlinux, &["--entry", "linux64"]);
    // PVH has no place for a seed.
    let has_seed = |finished: &Finished| section(finished, "log").contains("reserve setup_data");
    assert!(has_seed(&by_linux) && !has_seed(&by_pvh), "{by_linux:?} {by_pvh:?}");
}

#[test]
fn an_images_own_code_unpacks_it() {
    boots(packed("lz4"), &["--entry", "image"]);
}

#[test]
fn the_own_code_of_every_image_unpacks_it() {
    if slow_tests_wanted("unpacking every format in the guest") {
        for format in FORMATS {
            boots(packed(format), &["--entry", "image"]);
        }
    }
}
