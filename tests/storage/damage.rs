//! Images of QEMU's making, with compression, snapshots and small clusters, damaged at random: every command ends with
//! a status of its own, and none takes much memory.

use std::process::Command;

use crate::support::Place;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn every_command_survives_damaged_images() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("source.raw", 1 << 20, 1);
    let mut victims = Vec::new();
    for options in ["-c", "-o cluster_size=512", "-o compat=0.10,cluster_size=4k", "-o refcount_bits=1"] {
        place.qemu_img(&format!("convert -f raw -O qcow2 {options} source.raw victim.qcow2"));
        if !options.contains("refcount_bits") {
            place.qemu_img("snapshot -c one victim.qcow2");
        }
        victims.push(std::fs::read(place.path("victim.qcow2")).unwrap());
    }
    let mut numbers = Numbers(987);
    for round in 0..60 {
        let mut bytes = victims[round % victims.len()].clone();
        // Mostly the beginning, where the tables are.
        let reach =
            [120, 4096, 70_000, bytes.len() as u64][numbers.below(4) as usize].min(bytes.len() as u64);
        for _ in 0..1 + numbers.below(6) {
            let at = numbers.below(reach) as usize;
            bytes[at] = [0, 0xff, 1, 0x80, numbers.below(256) as u8][numbers.below(5) as usize];
        }
        // The magic stays, or it would be a raw image.
        bytes[..4].copy_from_slice(b"QFI\xfb");
        std::fs::write(place.path("damaged.qcow2"), bytes).unwrap();
        for line in [
            "info damaged.qcow2",
            "check damaged.qcow2",
            "convert damaged.qcow2 copy.raw --force",
            "sync source.raw damaged.qcow2 --shrink",
            "check damaged.qcow2 --repair",
            "rebase damaged.qcow2 --none",
        ] {
            // A gigabyte of address space is enough for all of them, and a minute for all that is honest.
            let limited = format!("ulimit -v 1500000; exec timeout 60 \"$0\" disk {line} > out 2>&1");
            let status = Command::new("sh")
                .args(["-c", &limited, env!("CARGO_BIN_EXE_lodger")])
                .current_dir(place.dir())
                .status()
                .unwrap();
            let said = || std::fs::read_to_string(place.path("out")).unwrap_or_default();
            assert!(matches!(status.code(), Some(0 | 1)), "round {round}: {line}: {status}: {}", said());
            assert!(!said().contains("panicked"), "round {round}: {line}: {}", said());
        }
    }
}
