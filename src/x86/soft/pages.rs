//! Where the pages of the guest's linear address space lie in this process: the software processor's TLB.
//!
//! A page gets in when an access of the guest's kernel to it is certainly allowed; whatever is not certain is
//! left to the hypervisor, which raises the fault. User pages never get in: whether the kernel may touch them
//! changes with a flag. The holder empties it when the guest changes its page tables as the architecture
//! demands (`mov cr`, `invlpg`…).
//!
//! Once programs have run, stores over what may be an entry of a page table are the hypervisor's, if asked for: it
//! keeps tables of its own, made from entries that are present and the user's, and follows them as it executes such
//! stores. Which pages are page tables is not known here, but every entry tells by its value, and in a table all of
//! them do; few other pages look like one.
//!
//! Guest memory is accessed by plain volatile loads and stores of the operand's size, as other processors of the
//! guest may use it at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::alu::Size;
use super::state::State;
use crate::memory::{GuestMemory, PAGE_SIZE};
use crate::x86::entry::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use crate::x86::mode::{CR4_LA57, CR4_SMAP, CR4_SMEP, EFER_NXE};

const ENTRIES: usize = 1024;

const ADDRESS: u64 = (1 << 52) - PAGE_SIZE;
/// In entries of large pages, where it looks like the address's lowest bit.
const ATTRIBUTE: u64 = 1 << 12;
/// Protection keys of user pages.
const CR4_PKE: u64 = 1 << 22;
const MOST_LEVELS: usize = 5;
/// Page numbers have this many bits; those above hold the generation.
const PAGE_NUMBER_BITS: u32 = 52;
const LAST_GENERATION: u64 = (1 << (64 - PAGE_NUMBER_BITS)) - 1;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The page's number and the generation in which it was looked up.
    tag: u64,
    host: *mut u8,
}

/// One table for each kind of access.
pub struct Pages {
    /// Keeps what the pointers lead to.
    _memory: Arc<GuestMemory>,
    regions: Vec<(u64, u64, *mut u8)>,
    tables: [Box<[Entry; ENTRIES]>; 3],
    /// What was looked up in an earlier one is forgotten. The first is 1, so that empty entries belong to none.
    generation: u64,
    /// The same, but never again the same: it counts from 1.
    epoch: u64,
    /// Where the addresses end that entries can have.
    most: u64,
    spare_entries: bool,
}

// SAFETY: the pointers lead into guest memory, which is shared between threads anyway and lives as long as `self`.
unsafe impl Send for Pages {}

/// Bytes of code in one page.
pub struct Code {
    pub bytes: u128,
    /// How many of them there are.
    pub available: usize,
    /// Where sixteen of them are, in guest memory.
    pub whole: Option<*const u8>,
}

/// An access that is left to the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHere;

impl Pages {
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let regions: Vec<_> =
            memory.host_regions().map(|(region, host)| (region.start, region.size, host)).collect();
        let empty = || Box::new([Entry { tag: 0, host: std::ptr::null_mut() }; ENTRIES]);
        let ends = regions.iter().map(|(start, size, _): &(u64, u64, *mut u8)| start.saturating_add(*size));
        // Below 4 GiB there are devices, too.
        let most = ends.max().unwrap_or(0).max(1 << 32);
        Self {
            _memory: memory,
            regions,
            tables: [empty(), empty(), empty()],
            generation: 1,
            epoch: 1,
            most,
            spare_entries: false,
        }
    }

    /// Whether stores over possible entries of page tables are left to the hypervisor.
    pub fn spare_entries(&mut self, spare: bool) {
        self.spare_entries = spare;
    }

    /// Whether they are.
    #[inline]
    pub fn spares_entries(&self) -> bool {
        self.spare_entries
    }

    /// How many of the `size` bytes at a host address that [`host`](Self::host) gave may be overwritten here, from the
    /// first one on.
    #[inline]
    pub fn free_of_entries(&self, at: *mut u8, size: usize) -> usize {
        if !self.spare_entries {
            return size;
        }
        // Words are aligned in this process as they are in the page.
        let before = at as usize % 8;
        let words = (0..before + size).step_by(8);
        let value = |offset: usize| read(at.wrapping_sub(before).wrapping_add(offset), Size(8));
        match words.into_iter().find(|&offset| self.is_entry(value(offset))) {
            Some(offset) if self.is_table(at) => offset.saturating_sub(before),
            _ => size,
        }
    }

    /// Whether the hypervisor may follow an entry of this value.
    #[inline]
    fn is_entry(&self, value: u64) -> bool {
        const FOLLOWED: u64 = PRESENT | USER;
        value & FOLLOWED == FOLLOWED && self.leads_somewhere(value)
    }

    #[inline]
    fn leads_somewhere(&self, entry: u64) -> bool {
        entry & ADDRESS < self.most
    }

    /// Whether the page around `at` may be a page table: nothing in it is present but leads nowhere.
    #[cold]
    fn is_table(&self, at: *mut u8) -> bool {
        let page = at.wrapping_sub(at as usize % PAGE_SIZE as usize);
        (0..PAGE_SIZE as usize).step_by(8).all(|offset| {
            let value = read(page.wrapping_add(offset), Size(8));
            value & PRESENT == 0 || self.leads_somewhere(value)
        })
    }

    /// What changes whenever everything is forgotten.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.epoch += 1;
        if self.generation == LAST_GENERATION {
            for table in &mut self.tables {
                table.iter_mut().for_each(|entry| entry.tag = 0);
            }
            self.generation = 0;
        }
        self.generation += 1;
    }

    /// The host address of `size` bytes that lie in one page.
    #[inline]
    pub fn host(
        &mut self,
        state: &State,
        linear: u64,
        size: usize,
        access: Access,
    ) -> Result<*mut u8, NotHere> {
        let offset = linear % PAGE_SIZE;
        if offset + size as u64 > PAGE_SIZE {
            return Err(NotHere);
        }
        let page = linear / PAGE_SIZE;
        let entry = self.tables[access as usize][page as usize % ENTRIES];
        let host =
            if entry.tag == self.tag(page) { entry.host } else { self.look_up(state, linear, access)? };
        Ok(host.wrapping_add(offset as usize))
    }

    fn tag(&self, page: u64) -> u64 {
        page | self.generation << PAGE_NUMBER_BITS
    }

    #[cold]
    fn look_up(&mut self, state: &State, linear: u64, access: Access) -> Result<*mut u8, NotHere> {
        let (host, user) = self.walk(state, linear, access)?;
        if user {
            return Ok(host);
        }
        let page = linear / PAGE_SIZE;
        self.tables[access as usize][page as usize % ENTRIES] = Entry { tag: self.tag(page), host };
        Ok(host)
    }

    /// Follows the page tables; finds the page and tells whether it is the user's. Marks what was used once nothing
    /// can go wrong any more.
    fn walk(&self, state: &State, linear: u64, access: Access) -> Result<(*mut u8, bool), NotHere> {
        let levels = if state.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        let unused = 64 - (12 + 9 * levels);
        if (linear as i64) << unused >> unused != linear as i64 {
            return Err(NotHere);
        }
        let mut table = state.cr3 & ADDRESS;
        let mut user = true;
        let mut path = Path::default();
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let cell = self.cell(table + (linear >> shift & 0x1ff) * 8)?;
            let entry = cell.load(Ordering::Relaxed);
            let allowed = match access {
                Access::Read => true,
                Access::Write => entry & WRITABLE != 0,
                Access::Execute => entry & NO_EXECUTE == 0,
            };
            if entry & PRESENT == 0 || !allowed || has_reserved_bits(entry, level, state) {
                return Err(NotHere);
            }
            user &= entry & USER != 0;
            let last = level == 1 || entry & LARGE != 0;
            path.add(cell, entry, ACCESSED | if last && access == Access::Write { DIRTY } else { 0 });
            if last {
                if user && !may_use_user_page(state, access) {
                    return Err(NotHere);
                }
                let page = 1_u64 << shift;
                let physical = entry & ADDRESS & !(page - 1) | linear & (page - PAGE_SIZE);
                let host = self.physical(physical, PAGE_SIZE)?;
                path.mark()?;
                return Ok((host, user));
            }
            table = entry & ADDRESS;
        }
        Err(NotHere)
    }

    /// A page table entry.
    fn cell(&self, address: u64) -> Result<&AtomicU64, NotHere> {
        let at = self.physical(address, 8)?;
        // SAFETY: `physical` checked that eight bytes of guest memory lie there, which `self` keeps, and page table
        // entries are aligned; other processors change them atomically, too.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// The host address of guest-physical memory.
    fn physical(&self, address: u64, size: u64) -> Result<*mut u8, NotHere> {
        let found = self.regions.iter().find(|(start, length, _)| {
            address >= *start && address - start < *length && length - (address - start) >= size
        });
        found.map(|(start, _, host)| host.wrapping_add((address - start) as usize)).ok_or(NotHere)
    }

    /// Reads an operand, which may cross pages.
    #[inline]
    pub fn load(&mut self, state: &State, linear: u64, size: Size) -> Result<u64, NotHere> {
        match self.host(state, linear, size.0.into(), Access::Read) {
            Ok(at) => Ok(read(at, size)),
            Err(NotHere) if crosses(linear, size) => {
                let mut bytes = [0; 8];
                for (index, byte) in bytes.iter_mut().enumerate().take(size.0.into()) {
                    let at = self.host(state, linear.wrapping_add(index as u64), 1, Access::Read)?;
                    *byte = read(at, Size(1)) as u8;
                }
                Ok(u64::from_le_bytes(bytes))
            }
            Err(NotHere) => Err(NotHere),
        }
    }

    /// Writes an operand, which may cross pages; both are checked before anything is written.
    #[inline]
    pub fn store(&mut self, state: &State, linear: u64, value: u64, size: Size) -> Result<(), NotHere> {
        match self.host(state, linear, size.0.into(), Access::Write) {
            Ok(at) if self.free_of_entries(at, size.0.into()) == usize::from(size.0) => {
                write(at, value, size);
                Ok(())
            }
            Err(NotHere) if crosses(linear, size) && !self.spare_entries => {
                let last = linear.wrapping_add(u64::from(size.0) - 1);
                self.host(state, last, 1, Access::Write)?;
                for (index, byte) in value.to_le_bytes().into_iter().enumerate().take(size.0.into()) {
                    let at = self.host(state, linear.wrapping_add(index as u64), 1, Access::Write)?;
                    write(at, byte.into(), Size(1));
                }
                Ok(())
            }
            Ok(_) | Err(NotHere) => Err(NotHere),
        }
    }

    /// Replaces an operand by what `change` makes of it, in one step as other processors see it.
    pub fn exchange(
        &mut self,
        state: &State,
        linear: u64,
        size: Size,
        change: impl FnMut(u64) -> u64,
    ) -> Result<u64, NotHere> {
        let at = self.host(state, linear, size.0.into(), Access::Write)?;
        if !linear.is_multiple_of(size.0.into()) || self.free_of_entries(at, size.0.into()) == 0 {
            return Err(NotHere);
        }
        Ok(exchange(at, size, change))
    }

    /// As many bytes of code as lie in the page of `linear`, at most 16; where these are all, also where they are,
    /// which holds for this epoch.
    pub fn code(&mut self, state: &State, linear: u64) -> Result<Code, NotHere> {
        let at = self.host(state, linear, 1, Access::Execute)?;
        let available = (PAGE_SIZE - linear % PAGE_SIZE).min(16) as usize;
        let mut bytes = [0; 16];
        for (index, byte) in bytes.iter_mut().enumerate().take(available) {
            *byte = read(at.wrapping_add(index), Size(1)) as u8;
        }
        let whole = (available == 16).then_some(at.cast_const());
        Ok(Code { bytes: u128::from_le_bytes(bytes), available, whole })
    }

    /// Sixteen bytes of code that reach into the next page.
    #[cold]
    pub fn code_across(&mut self, state: &State, linear: u64) -> Result<u128, NotHere> {
        let mut bytes = [0; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let at = self.host(state, linear.wrapping_add(index as u64), 1, Access::Execute)?;
            *byte = read(at, Size(1)) as u8;
        }
        Ok(u128::from_le_bytes(bytes))
    }
}

/// Whether the kernel may access user pages at the moment, as far as that is certain.
fn may_use_user_page(state: &State, access: Access) -> bool {
    let barred = state.cr4 & CR4_SMAP != 0 && !state.may_touch_user_pages();
    // A user page's key holds for the kernel, too.
    let locked = state.cr4 & CR4_PKE != 0;
    match access {
        Access::Execute => state.cr4 & CR4_SMEP == 0,
        Access::Read | Access::Write => !barred && !locked,
    }
}

/// Whether the processor raises a fault because of bits that must be zero. Addresses beyond the guest's memory are
/// not found later.
fn has_reserved_bits(entry: u64, level: u32, state: &State) -> bool {
    if entry & NO_EXECUTE != 0 && state.efer & EFER_NXE == 0 {
        return true;
    }
    match level {
        1 => false,
        2 | 3 if entry & LARGE != 0 => {
            let page = 1_u64 << (12 + 9 * (level - 1));
            entry & ADDRESS & (page - 1) & !ATTRIBUTE != 0
        }
        2 | 3 => false,
        _ => entry & LARGE != 0,
    }
}

/// The entries that lead to a page, with the marks each gets once the access is known to be allowed.
#[derive(Default)]
struct Path<'a> {
    entries: [Option<(&'a AtomicU64, u64, u64)>; MOST_LEVELS],
    length: usize,
}

impl<'a> Path<'a> {
    fn add(&mut self, cell: &'a AtomicU64, entry: u64, marks: u64) {
        self.entries[self.length] = Some((cell, entry, marks));
        self.length += 1;
    }

    /// An entry that another processor has changed meanwhile is not marked: it may be none any more.
    fn mark(&self) -> Result<(), NotHere> {
        for (cell, entry, marks) in self.entries.iter().flatten() {
            let marked = entry | marks;
            let order = Ordering::Relaxed;
            if marked != *entry && cell.compare_exchange(*entry, marked, order, order).is_err() {
                return Err(NotHere);
            }
        }
        Ok(())
    }
}

fn crosses(linear: u64, size: Size) -> bool {
    linear % PAGE_SIZE + u64::from(size.0) > PAGE_SIZE
}

/// Reads an operand at a host address that [`Pages::host`] gave for this size.
#[inline]
pub fn read(at: *mut u8, size: Size) -> u64 {
    // SAFETY: `at` points to as many bytes of guest memory, which stays mapped. x86 loads need no alignment: the
    // packed wrappers say so to the compiler.
    unsafe {
        match size.0 {
            1 => at.read_volatile().into(),
            2 => at.cast::<Packed<u16>>().read_volatile().0.into(),
            4 => at.cast::<Packed<u32>>().read_volatile().0.into(),
            _ => at.cast::<Packed<u64>>().read_volatile().0,
        }
    }
}

/// Writes an operand at a host address that [`Pages::host`] gave for this size.
#[inline]
pub fn write(at: *mut u8, value: u64, size: Size) {
    // SAFETY: as in `read`.
    unsafe {
        match size.0 {
            1 => at.write_volatile(value as u8),
            2 => at.cast::<Packed<u16>>().write_volatile(Packed(value as u16)),
            4 => at.cast::<Packed<u32>>().write_volatile(Packed(value as u32)),
            _ => at.cast::<Packed<u64>>().write_volatile(Packed(value)),
        }
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Packed<T>(T);

fn exchange(at: *mut u8, size: Size, mut change: impl FnMut(u64) -> u64) -> u64 {
    macro_rules! replace {
        ($atomic:ty, $number:ty) => {{
            // SAFETY: `at` points to guest memory of this size and is aligned, as the caller checked.
            let cell = unsafe { <$atomic>::from_ptr(at.cast()) };
            let order = Ordering::SeqCst;
            let old = cell.fetch_update(order, order, |old| Some(change(old.into()) as $number));
            old.unwrap_or_else(|old| old).into()
        }};
    }
    match size.0 {
        1 => replace!(AtomicU8, u8),
        2 => replace!(AtomicU16, u16),
        4 => replace!(AtomicU32, u32),
        _ => replace!(AtomicU64, u64),
    }
}
