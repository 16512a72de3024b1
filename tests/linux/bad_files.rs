//! What cannot be booted is refused before anything runs, by a sentence that says why.

use std::fs::{self, File};

use crate::support::{Scratch, first_process, lodger, tiny};

#[track_caller]
fn refused(kernel: &str, options: &[&str], words: &[&str]) {
    lodger([&["run", kernel, "--initrd", first_process()], options].concat(), "").refused(words);
}

#[test]
fn an_initramfs_larger_than_memory_is_refused_without_being_read() {
    let scratch = Scratch::new();
    let path = scratch.at("large");
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    for kernel in [tiny().path("vmlinux"), tiny().path("bzimage_lz4")] {
        refused(kernel, &["--initrd", &path, "--memory", "64M"], &["initrd", &path, "1099511627776 bytes"]);
    }
}

#[test]
fn a_kernel_that_needs_more_memory_than_there_is_is_refused() {
    for kernel in [tiny().path("vmlinux"), tiny().path("bzimage_lz4")] {
        refused(kernel, &["--memory", "4M"], &[kernel, "4M"]);
    }
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let line = "x".repeat(2048);
    for kernel in [tiny().path("vmlinux"), tiny().path("bzimage_lz4")] {
        refused(kernel, &["--cmdline", &line], &["command line", "2048 bytes", "at most 2047"]);
    }
}

#[test]
fn a_damaged_payload_is_refused_and_the_place_named() {
    let scratch = Scratch::new();
    for (format, called) in [
        ("gzip", "gzip"),
        ("bzip2", "bzip2"),
        ("lzma", "LZMA"),
        ("xz", "xz"),
        ("lz4", "LZ4"),
        ("zstd", "zstd"),
    ] {
        let mut image = fs::read(tiny().path(&format!("bzimage_{format}"))).unwrap();
        let middle = image.len() / 2;
        for byte in &mut image[middle..middle + 64] {
            *byte ^= 0x5a;
        }
        let path = scratch.file("damaged", &image);
        refused(&path, &[], &[&path, called, "payload is damaged", "of the file"]);
    }
}

#[test]
fn damage_that_the_formats_themselves_do_not_notice_is_refused() {
    let scratch = Scratch::new();
    let whole = fs::read(tiny().path("bzimage_lz4")).unwrap();
    for at in [0x3000, whole.len() / 3, whole.len() / 2, whole.len() - 5000] {
        let mut image = whole.clone();
        image[at] ^= 1;
        let path = scratch.file("damaged", &image);
        refused(&path, &[], &[&path, "damaged"]);
        refused(&path, &["--entry", "image"], &[&path, "the image is damaged", "CRC-32"]);
    }
}

#[test]
fn a_truncated_image_is_refused() {
    let scratch = Scratch::new();
    for name in ["bzimage_gzip", "bzimage_zstd", "vmlinux"] {
        let image = fs::read(tiny().path(name)).unwrap();
        for length in [600, 5000, image.len() / 3] {
            let path = scratch.file("cut", &image[..length]);
            refused(&path, &[], &[&path, "the file has"]);
        }
    }
}
