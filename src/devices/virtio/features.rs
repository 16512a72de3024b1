//! What features are called, in listings: by their names in the specification (1.2, sections 5 and 6), without what all
//! begin with.

/// A feature's bit and its name.
type Named = (u32, &'static str);

/// Those that all kinds of devices have in common.
const COMMON: &[Named] = &[
    (24, "notify-on-empty"),
    (27, "any-layout"),
    (28, "indirect-desc"),
    (29, "event-idx"),
    (32, "version-1"),
    (33, "access-platform"),
    (34, "ring-packed"),
    (35, "in-order"),
    (36, "order-platform"),
    (37, "sr-iov"),
    (38, "notification-data"),
    (39, "notif-config-data"),
    (40, "ring-reset"),
];

/// Section 5.2.3.
const BLK: &[Named] = &[
    (1, "size-max"),
    (2, "seg-max"),
    (4, "geometry"),
    (5, "ro"),
    (6, "blk-size"),
    (9, "flush"),
    (10, "topology"),
    (11, "config-wce"),
    (12, "mq"),
    (13, "discard"),
    (14, "write-zeroes"),
    (15, "lifetime"),
    (16, "secure-erase"),
];

/// Section 5.3.3.
const CONSOLE: &[Named] = &[(0, "size"), (1, "multiport"), (2, "emerg-write")];

/// Section 5.5.3.
const BALLOON: &[Named] = &[
    (0, "must-tell-host"),
    (1, "stats-vq"),
    (2, "deflate-on-oom"),
    (3, "free-page-hint"),
    (4, "page-poison"),
    (5, "page-reporting"),
];

/// The names of the features that are set, for the kind of device that drivers know by this number.
pub fn names(device: u32, features: u64) -> Vec<String> {
    let own = match device {
        2 => BLK,
        3 => CONSOLE,
        5 => BALLOON,
        _ => &[],
    };
    let set = (0..u64::BITS).filter(|bit| features >> bit & 1 != 0);
    let name = |bit| own.iter().chain(COMMON).find(|(named, _)| *named == bit).map(|(_, name)| *name);
    set.map(|bit| name(bit).map_or_else(|| format!("bit-{bit}"), str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::{COMMON_FEATURES, Device, rng::Rng};

    #[test]
    fn features_have_the_names_of_the_specification() {
        assert_eq!(names(2, 1 << 9 | 1 << 32), ["flush", "version-1"]);
        assert_eq!(names(5, 1 << 5), ["page-reporting"]);
        assert_eq!(
            names(3, 1 << 1 | COMMON_FEATURES),
            ["multiport", "indirect-desc", "event-idx", "version-1"]
        );
        assert_eq!(names(Rng.kind().id, 1 | 1 << 63), ["bit-0", "bit-63"]);
        assert_eq!(names(2, 0), [""; 0]);
        assert_eq!(names(99, u64::MAX).len(), 64);
    }
}
