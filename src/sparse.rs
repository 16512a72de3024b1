//! Files with holes, and what in them and in memory is not zero. `memory/`, `snapshot/` and `storage/` rely on it; it
//! relies on nothing.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Calls `each` with the start and end of every range of the file, from `from` up to `end`, that is not a hole.
pub(crate) fn data_ranges(
    file: &File,
    from: u64,
    end: u64,
    mut each: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = from;
    while at < end {
        let Some(start) = seek(file, at, libc::SEEK_DATA)?.filter(|&start| start < end) else { break };
        let stop = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        if stop <= start {
            break;
        }
        each(start, stop)?;
        at = stop;
    }
    Ok(())
}

/// Where the next data or hole begins, as `whence` says; nothing if there is nothing but a hole from `from` on.
pub(crate) fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    // SAFETY: only moves the position of a file, on which nobody who uses this relies.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// The pieces of `bytes`, in whole units as long as they can be, that are nothing but zeroes (true) or in which no unit
/// is so. They follow each other without gaps.
pub(crate) fn runs(bytes: &[u8], unit: usize) -> impl Iterator<Item = (bool, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[start..];
        let zero = is_zero(rest.chunks(unit).next()?);
        let same = rest.chunks(unit).skip(1).take_while(|next| is_zero(next) == zero).count();
        let run = start..(start + (1 + same) * unit).min(bytes.len());
        start = run.end;
        Some((zero, run))
    })
}

/// Whether there is nothing but zeroes in it.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any sixteen bytes are such a number.
    let (before, words, after) = unsafe { bytes.align_to::<u128>() };
    before.iter().chain(after).all(|&byte| byte == 0)
        // Eight at once, so that the compiler makes vector code of it.
        && words.chunks(8).all(|words| words.iter().fold(0, |any, word| any | word) == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn only_zeroes_are_zero() {
        let mut bytes = vec![0; 4096 + 7];
        assert!(is_zero(&[]) && is_zero(&bytes) && is_zero(&bytes[3..]));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            assert!(is_zero(&bytes[at + 1..]) && is_zero(&bytes[..at]));
            bytes[at] = 0;
        }
    }

    #[test]
    fn runs_are_as_long_as_they_can_be_and_all_there_is() {
        let mut bytes = vec![0; 4 * 10 + 2];
        let found = |bytes: &[u8]| runs(bytes, 4).collect::<Vec<_>>();
        assert_eq!(found(&[]), []);
        assert_eq!(found(&bytes), [(true, 0..42)]);
        for at in [4, 11, 41] {
            bytes[at] = 1;
        }
        assert_eq!(found(&bytes), [(true, 0..4), (false, 4..12), (true, 12..40), (false, 40..42)]);
        assert_eq!(found(&bytes[4..12]), [(false, 0..8)]);
    }

    #[test]
    fn data_is_found_between_holes() {
        const MIB: u64 = 1 << 20;
        let path = std::env::temp_dir().join(format!("lodger-sparse-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(64 * MIB).unwrap();
        let found = |from, end| {
            let mut ranges = Vec::new();
            data_ranges(&file, from, end, |start, end| {
                ranges.push((start, end));
                Ok(())
            })
            .unwrap();
            ranges
        };
        assert_eq!(found(0, 64 * MIB), []);
        file.write_all_at(&[1; 4096], 8 * MIB).unwrap();
        file.write_all_at(&[1], 32 * MIB).unwrap();
        let ranges = found(0, 64 * MIB);
        let has = |at: u64| ranges.iter().any(|&(start, end)| (start..end).contains(&at));
        assert!(has(8 * MIB) && has(32 * MIB) && !has(0) && !has(20 * MIB) && !has(48 * MIB), "{ranges:?}");
        assert_eq!(found(9 * MIB + 1, 32 * MIB), []);
        assert_eq!(found(32 * MIB, 32 * MIB + 10), [(32 * MIB, 32 * MIB + 10)]);
    }
}
