//! Lists of memory slices in the form that system calls take, a stack's worth at a time.

use std::io;
use std::mem::MaybeUninit;

use vm_memory::VolatileSlice;

/// How many slices go into one system call. A guest's request rarely has more, and then makes several.
const AT_ONCE: usize = 64;

/// How many bytes there are in all; `None` if no disk could be so large.
pub(super) fn total(slices: &[VolatileSlice<'_>]) -> Option<u64> {
    slices.iter().try_fold(0_u64, |sum, slice| sum.checked_add(slice.len() as u64))
}

/// Whether each slice begins and ends where direct I/O wants it.
pub(super) fn aligned(slices: &[VolatileSlice<'_>], memory: usize, length: usize) -> bool {
    slices.iter().all(|slice| {
        (slice.ptr_guard().as_ptr() as usize).is_multiple_of(memory) && slice.len().is_multiple_of(length)
    })
}

/// Moves all bytes of `slices` with as many calls of `transfer` as that takes. It gets the file position, and
/// vectors that are valid during the call; it returns how many bytes it moved, -1 with `errno` set if it
/// failed, 0 at the end of the file.
pub(super) fn transfer_all(
    mut offset: u64,
    slices: &[VolatileSlice<'_>],
    mut transfer: impl FnMut(libc::off_t, &[libc::iovec]) -> isize,
) -> io::Result<()> {
    let mut index = 0;
    let mut done_of_first = 0;
    loop {
        while index < slices.len() && slices[index].len() == done_of_first {
            index += 1;
            done_of_first = 0;
        }
        if index == slices.len() {
            return Ok(());
        }
        let mut room = [const { MaybeUninit::uninit() }; AT_ONCE];
        let vectors = fill(&mut room, &slices[index..], done_of_first);
        let position = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let moved = transfer(position, vectors);
        if moved < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut moved = moved as usize;
        offset += moved as u64;
        while moved > 0 {
            let step = moved.min(slices[index].len() - done_of_first);
            moved -= step;
            done_of_first += step;
            if done_of_first == slices[index].len() {
                index += 1;
                done_of_first = 0;
            }
        }
    }
}

/// Describes as many of `slices` as there is room for, without the first `skip` bytes.
fn fill<'a>(
    room: &'a mut [MaybeUninit<libc::iovec>; AT_ONCE],
    slices: &[VolatileSlice<'_>],
    skip: usize,
) -> &'a [libc::iovec] {
    let count = slices.len().min(AT_ONCE);
    for (index, (place, slice)) in room.iter_mut().zip(slices).enumerate() {
        let skip = if index == 0 { skip } else { 0 };
        // The guard's pointer is the mapped memory itself: `vm-memory`'s guards do something only under Xen.
        let start = slice.ptr_guard_mut().as_ptr().wrapping_add(skip);
        place.write(libc::iovec { iov_base: start.cast(), iov_len: slice.len() - skip });
    }
    // SAFETY: the loop above has written the first `count` places.
    unsafe { room[..count].assume_init_ref() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let mut bytes = vec![0_u8; 300];
        let mut rest = bytes.as_mut_slice();
        let mut slices = Vec::new();
        for len in [0, 1, 99, 0, 150, 50, 0] {
            let (slice, after) = rest.split_at_mut(len);
            slices.push(VolatileSlice::from(slice));
            rest = after;
        }
        let mut seen = Vec::new();
        transfer_all(1000, &slices, |offset, vectors| {
            seen.push(offset);
            let all: usize = vectors.iter().map(|vector| vector.iov_len).sum();
            assert_eq!(all as i64, 1300 - offset);
            all.min(70) as isize
        })
        .unwrap();
        assert_eq!(seen, [1000, 1070, 1140, 1210, 1280]);
    }

    #[test]
    fn more_slices_than_a_call_takes_make_several_calls() {
        let mut bytes = [0_u8; 200];
        let slices: Vec<_> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
        let mut calls = 0;
        transfer_all(0, &slices, |_, vectors| {
            calls += 1;
            assert!(vectors.len() <= AT_ONCE);
            vectors.len() as isize
        })
        .unwrap();
        assert_eq!(calls, 4);
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let mut bytes = [0_u8; 8];
        let slices = [VolatileSlice::from(&mut bytes[..])];
        let error = transfer_all(0, &slices, |_, _| 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
