//! Reading what the kernel tells in its small text files. `host/` and `memory/` rely on it; it relies on nothing.

use std::fs::File;
use std::io::Read;

/// No file that is read here needs more; on machines with many processors `/proc/cpuinfo` is longer, but the
/// first processor stands at its start.
const MOST: u64 = 64 << 10;

/// The text of a file, at most its first 64 KiB; nothing if it is not there or not readable.
pub(crate) fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What stands behind `key` and the separator in the first line that has it, as in `/proc/meminfo`.
pub(crate) fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then_some(value.trim())
    })
}

/// The word in brackets of a switch like `always [madvise] never`.
pub(crate) fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// A number that is all there is in a text.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A field in bytes, of `/proc/meminfo` or of a process's `status`.
pub(crate) fn bytes(text: &str, key: &str) -> Option<u64> {
    number(field(text, key)?.strip_suffix("kB")?)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotal:   24 kB\nMem:\nflags\t\t: fpu vme\nodd line\n";
        assert_eq!(field(text, "MemTotal"), Some("24 kB"));
        assert_eq!(field(text, "flags"), Some("fpu vme"));
        assert_eq!(field(text, "Mem"), Some(""));
        assert_eq!(field(text, "odd line"), None);
        assert_eq!(field("", "x"), None);
    }

    #[test]
    fn the_chosen_word_of_a_switch_is_the_one_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        for odd in ["", "always", "[", "]", "a]b["] {
            assert_eq!(chosen(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn only_a_number_is_a_number() {
        assert_eq!(number(" 12\n"), Some(12));
        for odd in ["", "-1", "12 kB", "99999999999999999999999"] {
            assert_eq!(number(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn an_endless_file_is_read_as_far_as_the_bound() {
        assert_eq!(read("/dev/zero").map(|text| text.len()), Some(MOST as usize));
        assert_eq!(read("/nowhere/at/all"), None);
        assert_eq!(read("/"), None);
    }
}
